"""Which jobs are to start out of turn: a daemon's view of ``.nrvna/priority``, where submit.py says so."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from os.path import join
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nrvna.workspace import Workspace

# A folder's mtime moves in steps of a clock tick: within this time of a change, another may not have shown.
_MTIME_TICK_NS = 50_000_000


class Priorities:
    """What was asked for, as far as it is not 0. Names that say nothing are passed over."""

    def __init__(self, workspace: Workspace) -> None:
        self._folder = workspace.priority
        self._known: dict[str, int] = {}
        self._read_mtime_ns = -1
        self.urgent = 0
        # Marked before they stand in the queue, so that they may yet come; those that came are no longer here.
        self.expected: set[str] = set()

    def of(self, job_id: str) -> int:
        return self._known.get(job_id, 0)

    def refresh(self) -> bool:
        """Look again if something may have changed; whether it did."""
        try:
            mtime_ns = os.stat(self._folder).st_mtime_ns
            if mtime_ns == self._read_mtime_ns:
                return False
            names = os.listdir(self._folder)
        except FileNotFoundError:
            names, mtime_ns = [], -1
        fresh = time.time_ns() - mtime_ns < _MTIME_TICK_NS
        self._read_mtime_ns = -1 if fresh else mtime_ns
        known = {}
        for name in names:
            priority, _, job_id = name.partition("~")
            with suppress(ValueError):
                known[job_id] = int(priority)
        urgent = {name for name, priority in known.items() if priority > 0}
        self.expected = (self.expected & urgent) | (urgent - self._known.keys())
        changed, self._known, self.urgent = known != self._known, known, len(urgent)
        return changed

    def forget(self, job_id: str, priority: int) -> None:
        """The job is finished. What stays behind of it is swept away later."""
        if self._known.pop(job_id, 0) > 0:
            self.urgent -= 1
        self.expected.discard(job_id)
        if priority:
            with suppress(OSError):
                os.unlink(join(self._folder, f"{priority}~{job_id}"))
