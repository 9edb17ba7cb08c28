"""Texts too long for the context: what is left of one after some of its tokens were taken away."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

from nrvna.config import OVERFLOWS

FAIL, LEFT, RIGHT, MIDDLE = OVERFLOWS

# Characters at a time: tokens of a long text are counted piece by piece, beyond the limit they are estimated.
_PIECE = 1 << 16
_MOST_COUNTED = 1 << 18
# Characters for each token that may be kept, to begin with.
_WINDOW = 8

Pieces = Callable[[str], list[bytes]]


class Shortener:
    """Takes tokens away from a text, on its left, its right or in its middle, as ``policy`` says.

    ``pieces`` turns a text into the bytes of its tokens. However long the text is, only what could be kept is looked
    at, where no more than ``most`` tokens are. The text is cut between tokens, at whole characters.
    """

    def __init__(self, text: str, policy: str, *, most: int, pieces: Pieces) -> None:
        self._text = text
        self._policy = policy
        self._pieces = pieces
        self._head = self._end(most, left=True) if policy != LEFT else _End(b"", [0])
        self._tail = self._end(most, left=False) if policy != RIGHT else _End(b"", [0])

    @property
    def most(self) -> int:
        """The most tokens that :meth:`keep` can leave."""
        return max(len(self._head.bounds), len(self._tail.bounds)) - 1

    def keep(self, count: int) -> str:
        """The text with so many tokens left."""
        head = {LEFT: 0, RIGHT: count, MIDDLE: (count + 1) // 2}[self._policy]
        parts = self._head.left(head), self._tail.right(count - head)
        # Long tokens at one end, and both ends meet.
        return self._text if sum(map(len, parts)) >= len(self._text) else "".join(parts)

    def count(self) -> tuple[int, bool]:
        """The tokens of the text, and whether that is exact."""
        text = self._text[:_MOST_COUNTED]
        tokens = sum(len(self._pieces(text[at : at + _PIECE])) for at in range(0, len(text), _PIECE))
        return round(tokens * len(self._text) / max(1, len(text))), len(self._text) <= _PIECE

    def _end(self, most: int, *, left: bool) -> _End:
        """The first or last tokens of the text: at least ``most``, if it has as many."""
        size = _WINDOW * most
        while True:
            window = self._text[:size] if left else self._text[-size:]
            pieces = self._pieces(window)
            if len(pieces) >= most or len(window) == len(self._text):
                break
            size *= 2
        bounds = list(accumulate(map(len, pieces), initial=0))
        data = window.encode()
        # A vocabulary that does not keep every character has pieces of other lengths.
        return _End(data, [bound * len(data) // max(1, bounds[-1]) for bound in bounds])


class _End:
    """The text at one end in UTF-8, and where its tokens begin and end in it."""

    def __init__(self, data: bytes, bounds: list[int]) -> None:
        self.data = data
        self.bounds = bounds

    def left(self, count: int) -> str:
        """The first ``count`` tokens."""
        return self.data[: self.bounds[min(count, len(self.bounds) - 1)]].decode("utf-8", "ignore")

    def right(self, count: int) -> str:
        """The last ``count`` tokens."""
        start = self.bounds[max(0, len(self.bounds) - 1 - count)]
        return self.data[start:].decode("utf-8", "ignore")
