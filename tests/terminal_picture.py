"""A terminal's screen as a picture: SVG, of text that can be selected, each character in its cell."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from itertools import groupby

import pyte
from pyte.screens import Char

_COLUMN, _ROW, _MARGIN, _FONT = 8.0, 18, 12, 13
_BASELINE = 13
_PAPER, _INK = "#1e1e2e", "#d9dcec"
_COLOURS = {"red": "#f2768f", "green": "#93d48d", "brown": "#f0c674", "blue": "#82aaf0", "cyan": "#7fd0d8"}
# Blocks are drawn as such: fonts differ in how they fill a cell with them.
_BLOCKS = {"█": 1.0, "▓": 0.75, "▒": 0.6, "░": 0.25}
_FAMILY = "ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', 'Noto Sans Mono CJK JP', monospace"


def picture(screen: pyte.Screen, title: str) -> str:
    """The screen down to its last line with something on it, or to the cursor; ``title`` says what is to be seen."""
    rows = max((row for row in range(screen.lines) if screen.display[row].strip()), default=0)
    rows = 1 + (max(rows, screen.cursor.y) if not screen.cursor.hidden else rows)
    width, height = 2 * _MARGIN + _COLUMN * screen.columns, 2 * _MARGIN + _ROW * rows
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height}" width="{width:g}" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="100%" height="100%" rx="6" fill="{_PAPER}"/>',
        f'<g font-family="{_FAMILY}" font-size="{_FONT}" fill="{_INK}">',
    ]
    for row in range(rows):
        parts += _line(screen, row)
    if not screen.cursor.hidden:
        x, y = _MARGIN + _COLUMN * screen.cursor.x, _MARGIN + _ROW * screen.cursor.y
        parts.append(f'<rect x="{x:g}" y="{y}" width="{_COLUMN:g}" height="{_ROW - 2}" opacity="0.7"/>')
    return "\n".join([*parts, "</g>", "</svg>", ""])


def _line(screen: pyte.Screen, row: int) -> Iterator[str]:
    cells = [(column, screen.buffer[row][column]) for column in range(screen.columns)]
    # The second half of a wide character is empty.
    drawn = [(column, cell) for column, cell in cells if cell.data]
    for (colour, _), run in groupby(drawn, key=lambda pair: (pair[1].fg, _kind(*pair))):
        (first, _), *_ = characters = list(run)
        text = "".join(cell.data for _, cell in characters)
        ink = f' fill="{_COLOURS[colour]}"' if colour in _COLOURS else ""
        if opacity := _BLOCKS.get(text[0]):
            x, y = _MARGIN + _COLUMN * first, _MARGIN + _ROW * row
            size = f'width="{_COLUMN * len(text):g}" height="{_ROW - 4}"'
            yield f'<rect x="{x:g}" y="{y}" {size} opacity="{opacity}"{ink}/>'
            continue
        # Words far from each other each get their place: not every viewer keeps more than one space.
        for words in re.finditer(r"\S+( \S+)*", text):
            yield _text(first + words.start(), row, words[0], ink, is_narrow=text.isascii())


def _text(column: int, row: int, text: str, ink: str, *, is_narrow: bool) -> str:
    x, y = _MARGIN + _COLUMN * column, _MARGIN + _ROW * row + _BASELINE
    # In whatever font, it takes its columns.
    length = f' textLength="{_COLUMN * len(text):g}"' if is_narrow and len(text) > 1 else ""
    return f'<text x="{x:g}" y="{y}"{length}{ink}>{escape(text, quote=False)}</text>'


def _kind(column: int, cell: Char) -> object:
    """Runs of the same kind are drawn as one: blocks, letters; any other character alone, in its place."""
    if cell.data in _BLOCKS:
        return cell.data
    return "narrow" if cell.data.isascii() else column
