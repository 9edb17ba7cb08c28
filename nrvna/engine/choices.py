"""The probabilities of a closed list of answers, from the logits where they part: nothing is sampled.

Each choice is the tokens that the model would write it with, and then an end. Choices that begin alike share their
heads in a tree. Where a node has several continuations, a softmax over these alone says how likely each is; where it
has one, that one is certain. The product along a choice's path is its probability: just what sampling at temperature
1 would give it if everything but the choices, spelled like this, were ruled out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nrvna.errors import GrammarError

# Tokens behind the prompt.
Path = tuple[int, ...]


class ChoiceTree:
    """Choices as token ids, each once and none empty. Raises GrammarError if not."""

    def __init__(self, choices: Sequence[Sequence[int]]) -> None:
        self._choices = [tuple(choice) for choice in choices]
        numbers: dict[Path, int] = {}
        # The tokens that may follow a path, and None where a choice may end.
        self._continuations: dict[Path, list[int | None]] = {}
        for number, choice in enumerate(self._choices, 1):
            if not choice:
                raise GrammarError(f"choice {number} is empty: it has no token")
            if numbers.setdefault(choice, number) != number:
                raise GrammarError(
                    f"choices {numbers[choice]} and {number} are the same to the model: name one of them"
                )
            for length, token in enumerate((*choice, None)):
                following = self._continuations.setdefault(choice[:length], [])
                if token not in following:
                    following.append(token)

    @property
    def branches(self) -> list[Path]:
        """The paths behind which the logits are needed: the tokens from the prompt to where choices part."""
        return [path for path, following in self._continuations.items() if len(following) > 1]

    def probabilities(self, logits: Mapping[Path, NDArray[np.float32]], *, ends: Collection[int]) -> list[float]:
        """The probability of each choice, in the order given; together they are 1.

        ``logits`` has a row of shape (n_vocab,) for each of :attr:`branches`, and ``ends`` are the tokens that end a
        generation: any of them ends a choice that another one goes on from. Raises ValueError for logits that say
        nothing: none of a branch's continuations is possible, or one is not a number.
        """
        logs = {path: self._log_probabilities(path, logits[path], list(ends)) for path in self.branches}
        totals = []
        for choice in self._choices:
            steps = [logs[choice[:n]][token] for n, token in enumerate((*choice, None)) if choice[:n] in logs]
            totals.append(sum(steps))
        # Along many branches the roundings add up.
        found = np.exp(np.array(totals, np.float64))
        return [float(probability) for probability in found / found.sum()]

    def _log_probabilities(self, path: Path, row: NDArray[np.float32], ends: list[int]) -> dict[int | None, float]:
        following = self._continuations[path]
        scores = np.array(
            [_log_sum(row[ends]) if token is None else row[token] for token in following], dtype=np.float64
        )
        if not np.isfinite(scores.max()):
            raise ValueError(f"the logits behind {path} leave no choice possible")
        return dict(zip(following, (scores - _log_sum(scores)).tolist(), strict=True))


def _log_sum(values: NDArray[np.floating]) -> float:
    """The logarithm of the sum of the exponentials."""
    exact = values.astype(np.float64)
    largest = exact.max()
    if not np.isfinite(largest):
        return float(largest)
    return float(largest + np.log(np.exp(exact - largest).sum()))
