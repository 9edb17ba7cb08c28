"""Which of llama.cpp's two attentions is the faster one for the sequences at hand, on a CPU.

Flash attention costs a token as many products as its own sequence is long. The plain one multiplies the tokens of all
sequences with all cells of the cache at once, other sequences' included, at about a third of the cost each
(benchmarks/RESULTS.md): it wins where most of the cells are shared.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt

from nrvna.engine.sequence import Sequence

_COST_RATIO = 3
# Below this many tokens attention costs too little to matter, or there is too little to share.
_MIN_LENGTH = 128
_MIN_SEQUENCES = 4
# An answer is rarely as long as it may be, and while it grows half of that on average.
_USUAL_ANSWER = 128
# Multiplications of the plain attention take so much longer than those with the weights.
_SLOWER = 1.4


@dataclass(frozen=True)
class Costs:
    """Seconds that a step takes for itself, for each token in it, and for each token and cell of plain attention."""

    step: float
    token: float
    cell: float

    @classmethod
    def of(cls, speeds: Mapping[int, float], products_per_weight: float) -> Costs | None:
        """From tokens per second measured at several numbers of sequences, and the multiplications of attention for
        each multiplication with a weight; None where too little was measured."""
        times = {count: count / speed for count, speed in speeds.items()}
        few, many = min(times, default=0), max(times, default=0)
        if few == many:
            return None
        token = (times[many] - times[few]) / (many - few)
        return cls(max(0.0, times[few] - few * token), token, _SLOWER * token * products_per_weight)


def plain_is_faster(sequences: Collection[Sequence]) -> bool:
    """Whether plain attention suits sequences that are to run together."""
    if len(sequences) < _MIN_SEQUENCES:
        return False
    lengths = _lengths(sequences)
    mean = sum(lengths) / len(lengths)
    return mean >= _MIN_LENGTH and sum(lengths) - n_shared(sequences) < _COST_RATIO * mean


def best_together(sequences: Collection[Sequence], costs: Costs) -> int:
    """How many sequences are fastest together under plain attention: more of them share what a step costs for itself,
    but each is multiplied with the cells of all."""
    lengths = _lengths(sequences)
    shared = n_shared(sequences) / max(1, len(sequences) - 1)
    own = max(1.0, sum(lengths) / len(lengths) - shared)
    return max(_MIN_SEQUENCES, round(sqrt(costs.step / max(1e-12, costs.cell * own))))


def _lengths(sequences: Collection[Sequence]) -> list[int]:
    """Tokens of each, on average while it is answered."""
    return [len(sequence.prompt) + min(sequence.max_tokens, _USUAL_ANSWER) // 2 for sequence in sequences]


def n_shared(sequences: Collection[Sequence]) -> int:
    """Tokens of some prompts that need not be computed or kept twice, as they begin alike."""
    ordered = sorted(sequences, key=lambda sequence: sequence.key)
    return sum(one.n_common(other) for one, other in pairwise(ordered))
