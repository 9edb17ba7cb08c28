"""A terminal for tests: a real command in a real pty, and what an emulator (pyte) shows of its bytes."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyte
from processes import PATIENCE_S
from wcwidth import wcwidth

_READ_S = 0.02


class Emulator(pyte.Screen):
    """pyte's, but that characters which take no room of their own are kept, and lines cut as xterm does it."""

    def draw(self, data: str) -> None:
        for char in data:
            if wcwidth(char) == 0 and not unicodedata.combining(char):
                if self.cursor.x:
                    cells = self.buffer[self.cursor.y]
                    last = self.cursor.x - 1 - (cells[self.cursor.x - 1].data == "")
                    cells[last] = cells[last]._replace(data=cells[last].data + char)
            else:
                super().draw(char)

    def resize(self, lines: int | None = None, columns: int | None = None) -> None:
        lines, columns = lines or self.lines, columns or self.columns
        lost = max(0, self.cursor.y - lines + 1)
        kept = {row - lost: cells for row, cells in self.buffer.items() if lost <= row < lost + lines}
        self.buffer.clear()
        self.buffer.update(kept)
        for cells in self.buffer.values():
            for column in [column for column in cells if column >= columns]:
                del cells[column]
        self.lines, self.columns = lines, columns
        self.cursor.y -= lost
        self.cursor.x = min(self.cursor.x, columns - 1)
        self.margins = None


class TerminalScreen:
    """A command on a terminal of its own, of which it is the session's leader, so that Ctrl-C and the like work."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        columns: int = 80,
        rows: int = 24,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.screen = Emulator(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.written = b""
        self._controller, terminal = pty.openpty()
        self._set_size(columns, rows)
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            cwd=cwd,
            # The emulator's kind: one that cuts lines when it gets narrower.
            env={**os.environ, "TERM": "linux", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", **(env or {})},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(terminal)

    def __enter__(self) -> TerminalScreen:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._controller)

    def lines(self) -> list[str]:
        """What is on the screen, from the top down to the last line with something on it."""
        lines = [line.rstrip() for line in self.screen.display]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    @property
    def text(self) -> str:
        return "\n".join(self.lines())

    @property
    def cursor_is_shown(self) -> bool:
        return not self.screen.cursor.hidden

    @property
    def echoes(self) -> bool:
        """Whether keys that are pressed show."""
        return bool(termios.tcgetattr(self._controller)[3] & termios.ECHO)

    def send(self, keys: str) -> None:
        os.write(self._controller, keys.encode())

    def resize(self, columns: int, rows: int) -> None:
        """As by dragging the window's edge: the command is told."""
        self.look(0)
        self.screen.resize(rows, columns)
        self._set_size(columns, rows)

    def look(self, seconds: float) -> None:
        """Take in what is written, for so long."""
        end = time.monotonic() + seconds
        while True:
            left = max(0.0, end - time.monotonic())
            if select.select([self._controller], (), (), min(left, _READ_S))[0]:
                try:
                    data = os.read(self._controller, 1 << 16)
                except OSError:
                    # Nobody has the terminal open any more.
                    return
                self.written += data
                self._stream.feed(data)
            elif left <= 0:
                return

    def until(self, condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> None:
        """Wait until it holds of what is shown; fail the test with the screen if it does not."""
        deadline = time.monotonic() + patience_s
        while not condition():
            assert time.monotonic() < deadline, f"waited {patience_s:.0f} s for {what}; the screen:\n{self.text}"
            self.look(_READ_S)

    def wait_for(self, text: str, patience_s: float = PATIENCE_S) -> None:
        self.until(lambda: text in self.text, repr(text), patience_s)

    def wait_end(self, patience_s: float = PATIENCE_S) -> int:
        """Wait until the command ends, take in the rest, and return its exit code."""
        self.until(lambda: self.process.poll() is not None, "the command's end", patience_s)
        self.look(0.05)
        return self.process.returncode

    def _set_size(self, columns: int, rows: int) -> None:
        with suppress(OSError):
            fcntl.ioctl(self._controller, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
