"""Pictures of screens: what stands in which cell is drawn there."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pyte
from terminal_picture import picture
from terminal_screen import Emulator

SVG = "{http://www.w3.org/2000/svg}"


def drawn(written: str) -> list[tuple[float, float, str | None, str | None]]:
    """Column, row, text and colour of what is drawn, blocks without text."""
    screen = Emulator(40, 5)
    pyte.Stream(screen).feed(written)
    shapes = [shape for shape in ET.fromstring(picture(screen, "a <title>")).iter() if shape.get("x")]
    return [
        ((float(shape.get("x", "")) - 12) / 8, (float(shape.get("y", "")) - 12) // 18, shape.text, shape.get("fill"))
        for shape in shapes
    ]


def test_every_character_is_drawn_in_its_cell() -> None:
    text = "\x1b[?25lab  東京 c\r\n \x1b[32m██\x1b[31m▒\x1b[m░ <x> & 🦀."
    assert drawn(text) == [
        (0, 0, "ab", None),
        (4, 0, "東", None),
        (6, 0, "京", None),
        (9, 0, "c", None),
        (1, 1, None, "#93d48d"),
        (3, 1, None, "#f2768f"),
        (4, 1, None, None),
        (6, 1, "<x> &", None),
        (12, 1, "🦀", None),
        (14, 1, ".", None),
    ]


def test_a_cursor_that_is_shown_is_drawn() -> None:
    assert drawn("$ ")[-1][:2] == (2, 0)
    assert len(drawn("\x1b[?25l$ ")) == 1


def test_an_emulated_terminal_keeps_sequences_of_emoji_whole() -> None:
    screen = Emulator(40, 5)
    pyte.Stream(screen).feed("👨\u200d👩 ❤\ufe0f e\u0301 end")
    assert screen.display[0].rstrip() == "👨\u200d👩 ❤\ufe0f é end"


def test_an_emulated_window_that_gets_lower_keeps_the_cursors_line() -> None:
    screen = Emulator(10, 5)
    pyte.Stream(screen).feed("a\r\nb\r\nc\r\nd")
    screen.resize(2, 10)
    assert [line.rstrip() for line in screen.display] == ["c", "d"]
    assert (screen.cursor.x, screen.cursor.y) == (1, 1)
