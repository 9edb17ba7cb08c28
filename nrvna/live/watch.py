"""``flw --watch``: looks at a workspace and shows it, several times a second, until nothing is unfinished."""

from __future__ import annotations

import codecs
import os
import select
import signal
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import Any

from nrvna.live.frame import BLOCKS, LETTERS, Marks, frame, sentence
from nrvna.live.look import Lookout
from nrvna.live.screen import Screen
from nrvna.terminal import terminal
from nrvna.workspace import Workspace

FINISHED, FAILED, INTERRUPTED = 0, 1, 130

_LOOK_EVERY_S = 0.25
_SAY_EVERY_S = 5.0
# The next look waits so many times as long as the last one took of the processor, up to a limit: what is dear in it,
# reading folders of many jobs, is seldom done.
_REST, _MAX_REST_S = 20, 2.0
# An edge that is dragged tells of each step: they are drawn together.
_SETTLE_S = 0.05
_HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH)


def watch(workspace: Workspace) -> int:
    """Show how the jobs are doing that are unfinished now, and those that come meanwhile, until all are finished.

    On a terminal a view that is drawn in place; elsewhere a line now and then. Returns the exit code: 1 if one of
    them failed, 130 after Ctrl-C. Raises WorkspaceError if the workspace cannot be read, OSError if standard output
    takes no more, and KeyboardInterrupt if it is no terminal.
    """
    kind = terminal()
    if not sys.stdout.isatty() or kind.is_dumb:
        return _report(workspace)
    screen = Screen(has_colour=kind.has_colour, reflows=kind.reflows)
    with _Signals() as signals:
        try:
            return _show(Lookout(workspace, time.monotonic()), screen, signals, _marks(is_ascii=kind.is_ascii))
        except _Ended as end:
            number = end.number
    if number == signal.SIGINT:
        return INTERRUPTED
    # Whoever started this sees what ended it.
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number


def _report(workspace: Workspace) -> int:
    lookout = Lookout(workspace, time.monotonic())
    said, say_at = "", 0.0
    while True:
        now, began = time.monotonic(), time.process_time()
        snapshot = lookout.look(now)
        if not snapshot.unfinished and lookout.is_over(now):
            snapshot = lookout.last_look(now)
            print(sentence(snapshot), flush=True)
            return FAILED if snapshot.failed else FINISHED
        if now >= say_at and sentence(snapshot) != said:
            said, say_at = sentence(snapshot), now + _SAY_EVERY_S
            print(said, flush=True)
        time.sleep(_rest(began))


def _show(lookout: Lookout, screen: Screen, signals: _Signals, marks: Marks) -> int:
    """Raises _Ended."""
    is_drawing = False
    try:
        while True:
            now, began = time.monotonic(), time.process_time()
            snapshot = lookout.look(now)
            is_over = not snapshot.unfinished and lookout.is_over(now)
            if is_over:
                snapshot = lookout.last_look(now)
            may_draw = screen.is_ours() or is_over
            if may_draw and not is_drawing:
                screen.enter()
            is_drawing = may_draw
            if is_drawing:
                columns, rows = screen.size()
                # The last column stays empty: behind it some terminals have the cursor in no certain place.
                screen.draw(frame(snapshot, max(1, columns - 1), rows, marks))
            if is_over:
                return FAILED if snapshot.failed else FINISHED
            came = signals.wait(_rest(began))
            if signal.SIGTSTP in came:
                screen.leave()
                signals.stop_here()
            if came & {signal.SIGTSTP, signal.SIGCONT}:
                # Others have written since.
                is_drawing = False
            if signal.SIGWINCH in came:
                time.sleep(_SETTLE_S)
    finally:
        # The terminal may be what is gone.
        with suppress(OSError):
            screen.leave()


def _rest(began: float) -> float:
    """How long not to look again, so that all of it takes little of a core."""
    return min(_MAX_REST_S, max(_LOOK_EVERY_S, _REST * (time.process_time() - began)))


def _marks(*, is_ascii: bool) -> Marks:
    encoding = codecs.lookup(sys.stdout.encoding).name
    marks = BLOCKS if encoding == "utf-8" and not is_ascii else LETTERS
    return marks._replace(encoding=encoding)


class _Ended(Exception):  # noqa: N818 - it is no error
    """A signal that asks for an end."""

    def __init__(self, number: int) -> None:
        self.number = number


class _Signals:
    """Signals that are heard between two drawings and not within one. They are as they were after the block."""

    def __enter__(self) -> _Signals:
        self._came: set[int] = set()
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        # What nohup, or a shell without job control, has asked to ignore stays ignored.
        self._before = {number: old for number in _HEARD if (old := signal.getsignal(number)) != signal.SIG_IGN}
        for number in self._before:
            signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._read)
        os.close(self._write)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        self._came.add(number)

    def wait(self, seconds: float) -> set[int]:
        """Those that came since the last time, within some seconds or before. Raises _Ended."""
        if not self._came:
            select.select([self._read], (), (), seconds)
        with suppress(BlockingIOError):
            os.read(self._read, 1024)
        came, self._came = self._came, set()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number in came:
                raise _Ended(number)
        return came

    def stop_here(self) -> None:
        """Stop, as Ctrl-Z asks, and go on when told to."""
        handler: Any = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, handler)
