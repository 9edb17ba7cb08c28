"""Lines on a terminal that are drawn anew in place, below what was there before and above what comes after.

Only what changed is written, in one go, so nothing flickers. The cursor, hidden, rests at the beginning of the last
line: from there it is known how far up the first one is, also after the window was made narrower.
"""

from __future__ import annotations

import os
import sys
import termios
from contextlib import suppress
from typing import Any

from nrvna.columns import columns_of
from nrvna.live.frame import Line, text_of

_COLOURS = {"good": "\x1b[32m", "bad": "\x1b[31m", "warning": "\x1b[33m"}
_PLAIN = "\x1b[m"
_CLEAR_LINE, _CLEAR_BELOW = "\x1b[K", "\x1b[J"
_HIDE, _SHOW = "\x1b[?25l", "\x1b[?25h"
# What a terminal takes for wider than it is counted here ends at the edge and does not spill into the next line.
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"
_ECHO = termios.ECHO | termios.ECHONL
_LOCAL_MODES = 3


class Screen:
    """Standard output, which must be a terminal. ``reflows``: it breaks lines anew when it is made narrower."""

    def __init__(self, *, has_colour: bool, reflows: bool) -> None:
        self._terminal = sys.stdout.fileno()
        self._has_colour = has_colour
        self._reflows = reflows
        self._shown: list[Line] = []
        self._drawn_at = (0, 0)
        self._modes: list[Any] | None = None

    def size(self) -> tuple[int, int]:
        """Columns and rows; those of old where the terminal does not know."""
        with suppress(OSError):
            columns, rows = os.get_terminal_size(self._terminal)
            if columns > 0 and rows > 0:
                return columns, rows
        return 80, 24

    def is_ours(self) -> bool:
        """Whether this process may draw: not while it runs in the background of a shell."""
        try:
            return os.tcgetpgrp(self._terminal) == os.getpgrp()
        except OSError:
            # It is not the terminal that controls this process: no shell shares it.
            return True

    def enter(self) -> None:
        """Begin to draw where the cursor is, and keep keys that are pressed from showing there."""
        self._shown = []
        if self._modes is None:
            with suppress(termios.error):
                self._modes = termios.tcgetattr(self._terminal)
        if self._modes is not None:
            silent = [*self._modes]
            silent[_LOCAL_MODES] &= ~_ECHO
            self._set_modes(silent)
        self._write(_HIDE)

    def leave(self) -> None:
        """Leave what is drawn where it is, and the terminal as it was, with the cursor below."""
        self._write(("\n" if self._shown else "") + _SHOW)
        self._shown = []
        if self._modes is not None and self.is_ours():
            self._set_modes(self._modes)
            self._modes = None

    def draw(self, lines: list[Line]) -> None:
        """Show these lines, at least one and each narrower than the window, in place of those shown before."""
        size = self.size()
        is_resized = bool(self._shown) and size != self._drawn_at
        above = self._rows_above(size[0] if is_resized else self._drawn_at[0])
        old = [] if is_resized else self._shown
        out, row = [], 0
        for number, line in enumerate(lines):
            if number >= len(old) or old[number] != line:
                out.append("\n" * (number - row) + self._styled(line) + _CLEAR_LINE)
                row = number
        if not out and len(lines) >= len(old):
            return
        out.append("\n" * (len(lines) - 1 - row))
        if len(old) > len(lines):
            out.append(f"\n{_CLEAR_BELOW}\x1b[A")
        to_top = (f"\x1b[{above}A" if above else "") + (_CLEAR_BELOW if is_resized else "")
        self._shown, self._drawn_at = lines, size
        self._write(f"{to_top}{_NO_WRAP}{''.join(out)}{_WRAP}\r")

    def _rows_above(self, columns: int) -> int:
        """How many rows the lines above the last one take."""
        above = self._shown[:-1]
        if not self._reflows:
            return len(above)
        return sum(max(1, -(-columns_of(text_of(line)) // columns)) for line in above)

    def _styled(self, line: Line) -> str:
        if not self._has_colour:
            return text_of(line)
        return "".join(
            f"{_COLOURS[span.colour]}{span.text}{_PLAIN}" if span.colour and span.text else span.text for span in line
        )

    def _set_modes(self, modes: list[Any]) -> None:
        with suppress(termios.error):
            termios.tcsetattr(self._terminal, termios.TCSADRAIN, modes)

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
