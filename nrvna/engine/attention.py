"""Which of llama.cpp's two attentions is the faster one for the sequences at hand, on a CPU.

Flash attention costs a token as many products as its own sequence is long. The plain one multiplies the tokens of all
sequences with all cells of the cache at once, other sequences' included, at about a third of the cost each
(benchmarks/RESULTS.md): it wins where most of the cells are shared.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise

from nrvna.engine.sequence import Sequence

_COST_RATIO = 3
# Below this many tokens attention costs too little to matter, or there is too little to share.
_MIN_LENGTH = 128
_MIN_SEQUENCES = 4
# An answer is rarely as long as it may be, and while it grows half of that on average.
_USUAL_ANSWER = 128


def plain_is_faster(sequences: Collection[Sequence]) -> bool:
    """Whether plain attention suits sequences that are to run together."""
    if len(sequences) < _MIN_SEQUENCES:
        return False
    lengths = [len(sequence.prompt) + min(sequence.max_tokens, _USUAL_ANSWER) // 2 for sequence in sequences]
    mean = sum(lengths) / len(lengths)
    return mean >= _MIN_LENGTH and sum(lengths) - n_shared(sequences) < _COST_RATIO * mean


def n_shared(sequences: Collection[Sequence]) -> int:
    """Tokens of some prompts that need not be computed or kept twice, as they begin alike."""
    ordered = sorted(sequences, key=lambda sequence: sequence.key)
    return sum(one.n_common(other) for one, other in pairwise(ordered))
