r"""Text that people give in files and pipes: where it begins, and what its lines are.

It begins after a byte order mark, which some editors put at the head. ``\n`` or ``\r\n`` ends a line, and nothing
else does. Lines are counted as editors count them, the blank ones too. Python's splitlines() would end them at form
feeds, at U+2028 and at others as well, and its text files at a lone ``\r``.
"""

from __future__ import annotations

from typing import BinaryIO

_MARK = b"\xef\xbb\xbf"
# Kept of a line that is too long, beyond what it may have: so it still is without mark and end.
_MORE = len(_MARK) + 2


class Lines:
    """Takes a text piece by piece, wherever it is cut, and gives its lines with their numbers, from 1 on.

    Blank lines count, and are left out. Of a line with more than ``longest`` bytes only so much is kept that this
    can be told.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._held = bytearray()
        self._number = 1

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Take in more of the text; returns the lines that ended with it, without their ends."""
        first, *others = data.split(b"\n")
        self._hold(first)
        found = []
        for piece in others:
            found += self._line()
            self._number += 1
            self._hold(piece)
        return found

    def close(self) -> list[tuple[int, bytes]]:
        """No more text comes; returns the last line, where something stands behind the last end of one."""
        return self._line()

    def _hold(self, piece: bytes) -> None:
        self._held += piece[: self._longest + _MORE - len(self._held)]

    def _line(self) -> list[tuple[int, bytes]]:
        line = bytes(self._held).removesuffix(b"\r")
        self._held.clear()
        if self._number == 1:
            line = without_mark(line)
        return [] if _is_blank(line) else [(self._number, line[: self._longest + 1])]


def read_given(file: BinaryIO, most: int) -> bytes:
    """A file's text; of one with more than ``most`` bytes only so much that this can be told. Raises OSError."""
    return without_mark(file.read(most + 1 + len(_MARK)))[: most + 1]


def without_mark(data: bytes) -> bytes:
    """A file's text, of all that it holds."""
    return data.removeprefix(_MARK)


def lines_of(text: str) -> list[tuple[int, str]]:
    """The lines of a whole text, as :class:`Lines` gives them."""
    data = text.encode()
    lines = Lines(len(data))
    return [(number, line.decode()) for number, line in lines.feed(data) + lines.close()]


def head_line(text: str) -> str:
    """The first line of a text that is not blank, without the space around it; empty if all are."""
    return next((line.strip() for line in text.split("\n") if line.strip()), "")


def _is_blank(line: bytes) -> bool:
    """Whether nothing stands there that can be seen."""
    return not line.strip() or not line.decode(errors="replace").strip()
