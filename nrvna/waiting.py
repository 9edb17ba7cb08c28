"""Waiting until jobs are finished, with a line on a terminal that shows how they are doing meanwhile."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from nrvna.columns import fit, fit_end
from nrvna.errors import JobNotFoundError, WorkspaceError
from nrvna.outlook import obstacle
from nrvna.terminal import complain, printable
from nrvna.workspace import Workspace

POLL_S = 0.05
WARN_AFTER_S = 2.0
_SHOW_EVERY_S = 0.5


class Waiting:
    """``timeout`` is in seconds from now, for all that is waited for together; None for ever."""

    def __init__(self, workspace: Workspace, timeout: float | None = None) -> None:
        self._workspace = workspace
        self._started = time.monotonic()
        self._deadline = None if timeout is None else self._started + timeout
        self._is_warned = False
        self._show_at = _SHOW_EVERY_S

    def until(self, is_over: Callable[[], bool], job_id: str | None = None) -> bool:
        """Wait until a condition holds, or the time is over; whether it holds. ``job_id`` is what is waited for."""
        while True:
            looked = time.monotonic()
            if is_over():
                self._clear()
                return True
            if self._deadline is not None and looked >= self._deadline:
                self._clear()
                return False
            waited = looked - self._started
            if waited >= self._show_at and sys.stderr.isatty():
                self._show_at = waited + _SHOW_EVERY_S
                self._show(waited)
            if not self._is_warned and waited > WARN_AFTER_S:
                self._is_warned = True
                self._warn(job_id)
            # Looking at thousands of jobs takes a while: no more than a twentieth of a core goes into it.
            rest = max(POLL_S, 20 * (time.monotonic() - looked))
            if self._deadline is not None:
                rest = min(rest, max(0.0, self._deadline - time.monotonic()))
            time.sleep(rest)

    def _warn(self, job_id: str | None) -> None:
        try:
            job = self._workspace.find(job_id) if job_id else None
            reason = obstacle(self._workspace, job)
        except JobNotFoundError:
            return
        if reason:
            self._clear()
            complain(f"still waiting{reason}")

    @staticmethod
    def _clear() -> None:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _show(self, waited: float) -> None:
        try:
            columns = os.get_terminal_size(2).columns - 1
            counts = self._workspace.counts()
            newest = self._workspace.newest_running()
        except (OSError, WorkspaceError):
            return
        line = ", ".join(f"{number} {state}" for state, number in counts._asdict().items())
        line += f"  {waited:.0f} s  "
        words = " ".join(printable(self._workspace.answer(newest)).split()) if newest else ""
        line = fit(line + fit_end(words, max(0, columns - len(line))), columns)
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
