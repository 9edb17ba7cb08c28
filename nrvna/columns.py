"""How many columns of a terminal a text takes, and text cut so that it fits into some.

Of a sequence that some terminals draw as one (a family of emoji, a heart made red) each part counts for itself, as it
does for terminals that do not: what fits here fits everywhere, and takes less room at times. Text is of one line and
without control characters; :func:`nrvna.terminal.printable` sees to the latter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

ELLIPSIS = "…"
# More marks on one character than any script has: a text that consists of them would fit anywhere, whatever its size.
_MAX_MARKS = 8
_EMOJI_STYLE = 0xFE0F
# What Unicode's properties do not say, or not those of this Python, as ranges of characters.
# Hangul vowels and final consonants, which join the consonant before them.
_JOINING = ((0x1160, 0x11FF), (0xD7B0, 0xD7FF))
# Signs of format that are seen: the soft hyphen, and signs around Arabic, Syriac and Kaithi numbers.
_SEEN = (
    *((0xAD, 0xAD), (0x600, 0x605), (0x6DD, 0x6DD), (0x70F, 0x70F), (0x890, 0x891), (0x8E2, 0x8E2)),
    *((0x110BD, 0x110BD), (0x110CD, 0x110CD)),
)
# Trigrams and hexagrams are wide from Unicode 16 on, so may be halves of flags, and pictures yet to come.
_WIDE = ((0x2630, 0x2637), (0x268A, 0x268F), (0x4DC0, 0x4DFF), (0x1D300, 0x1D376), (0x1F1E6, 0x1F1FF))
_PICTURES = ((0x1F300, 0x1FAFF),)


def columns_of(text: str) -> int:
    """The most columns that a text takes."""
    return len(text) if text.isascii() else sum(width for _, width in _cells(text))


def fit(text: str, columns: int, ellipsis: str = ELLIPSIS) -> str:
    """A text as it is if it fits, else its beginning with an ellipsis; nothing where there is no room at all."""
    return text if _fits(text, columns) else "".join(_head(_cells(text), columns, ellipsis))


def fit_end(text: str, columns: int, ellipsis: str = ELLIPSIS) -> str:
    """The same with the end of the text, behind an ellipsis."""
    if _fits(text, columns):
        return text
    # No more than that many characters can be of any use, at most marks on each.
    last = list(_cells(text[-max(1, columns) * (1 + _MAX_MARKS) :]))
    return "".join(reversed(list(_head(reversed(last), columns, ellipsis))))


def pad(text: str, columns: int) -> str:
    """A text with spaces behind it, so that it takes that many columns; a longer one as it is."""
    return text + " " * (columns - columns_of(text))


def _fits(text: str, columns: int) -> bool:
    if text.isascii():
        return len(text) <= columns
    room = columns
    for cell, width in _cells(text):
        room -= width
        if room < 0 or len(cell) > 1 + _MAX_MARKS:
            return False
    return True


def _head(cells: Iterable[tuple[str, int]], columns: int, ellipsis: str) -> Iterator[str]:
    room = columns - len(ellipsis)
    if room < 0:
        return
    for cell, width in cells:
        room -= width
        if room < 0:
            break
        yield cell[: 1 + _MAX_MARKS]
    yield ellipsis


def _cells(text: str) -> Iterator[tuple[str, int]]:
    """The characters, each with the marks that stand on it, and the columns they take together."""
    cell: list[str] = []
    width = 0
    for char in text:
        own = 1 if char.isascii() else _width(char)
        if own and cell:
            yield "".join(cell), width
            cell, width = [], 0
        cell.append(char)
        width += own
        if ord(char) == _EMOJI_STYLE and width == 1:
            width = 2
    if cell:
        yield "".join(cell), width


@lru_cache(4096)
def _width(char: str) -> int:
    # Imported here: a list in plain letters comes without it.
    from unicodedata import category, east_asian_width

    kind = category(char)
    if kind in ("Mn", "Me", "Cf") and not _among(char, _SEEN):
        return 0
    if _among(char, _JOINING):
        return 0
    is_to_come = kind == "Cn" and _among(char, _PICTURES)
    return 2 if east_asian_width(char) in "WF" or _among(char, _WIDE) or is_to_come else 1


def _among(char: str, ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(first <= ord(char) <= last for first, last in ranges)
