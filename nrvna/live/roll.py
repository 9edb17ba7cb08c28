"""Which jobs are watched, and how far they are: by their names alone, and without burdening whoever serves them.

A folder is read again only if it changed, and one with thousands of jobs seldom; a job that left it is looked for
where it must have gone.
"""

from __future__ import annotations

import os
import time
from os.path import join

from nrvna.files import folders_in, is_folder
from nrvna.job import Job, JobState
from nrvna.workspace import Workspace

# No more of a core than this goes into reading a folder.
_SHARE = 1 / 50
# A folder's mtime moves in steps of a clock tick: within this time of a change, another may not have shown.
_MTIME_TICK_NS = 50_000_000
# A job that is nowhere was removed; one that is being moved is somewhere before that.
_GONE_AFTER_S = 2.0


class Names:
    """The jobs of one folder by name: ``all`` of them, and those that ``came`` since the first look."""

    def __init__(self, folder: str, now: float) -> None:
        self._folder = folder
        self._mtime_ns = -1
        self._due = 0.0
        self._before: frozenset[str] = frozenset()
        self._told: set[str] = set()
        self.all: set[str] = set()
        self.look(now)
        self._before = frozenset(self.all)
        self.came: set[str] = set()

    def look(self, now: float, *, at_once: bool = False) -> bool:
        """Read them again if it is time to, or ``at_once``; whether that was done. Raises OSError."""
        if now < self._due and not at_once:
            return False
        mtime_ns = os.stat(self._folder).st_mtime_ns
        if mtime_ns == self._mtime_ns and not at_once:
            return False
        started = time.perf_counter()
        self._mtime_ns = -1 if time.time_ns() - mtime_ns < _MTIME_TICK_NS else mtime_ns
        self.all = set(folders_in(self._folder))
        self.came = self.all - self._before
        self._due = now + (time.perf_counter() - started) / _SHARE
        return True

    def find(self, name: str) -> bool:
        """Whether a job is there now, also if its folder was not read again since it came."""
        if name not in self.came and is_folder(join(self._folder, name)):
            self.all.add(name)
            self.came.add(name)
        return name in self.came

    def news(self) -> set[str]:
        """Those that came since this was last asked."""
        fresh = self.came - self._told
        if fresh or len(self._told) != len(self.came):
            self._told = set(self.came)
        return fresh


class Roll:
    """The jobs that are unfinished when it begins, and those that come after. ``now`` is monotonic, in seconds.

    ``claimed`` holds for each job that a daemon has the folder it is in. Raises WorkspaceError, as its methods do, if
    the folders cannot be read.
    """

    def __init__(self, workspace: Workspace, now: float) -> None:
        self._workspace = workspace
        self._astray: dict[str, float] = {}
        self.unfinished: set[str] = set()
        self.claimed: dict[str, str] = {}
        with workspace.explained("read"):
            self._queued = Names(workspace.input, now)
            self._read_claimed()
            self._done, self._failed = Names(workspace.output, now), Names(workspace.failed, now)
        self.unfinished = (self._queued.all | self.claimed.keys()) - self._done.all - self._failed.all

    @property
    def done(self) -> set[str]:
        return self._done.came

    @property
    def failed(self) -> set[str]:
        return self._failed.came

    def look(self, now: float) -> list[Job]:
        """The jobs that are seen to be finished for the first time."""
        self._read(now)
        places = (
            (self._done, JobState.DONE, self._workspace.output),
            (self._failed, JobState.FAILED, self._workspace.failed),
        )
        return [Job(name, state, join(folder, name)) for names, state, folder in places for name in names.news()]

    def is_over(self, now: float) -> bool:
        """Whether nothing is unfinished, for certain. Raises WorkspaceError too if the workspace is gone."""
        if self.unfinished:
            return False
        self._workspace.check()
        # Twice, as a job that is put back into the queue meanwhile may be missed once.
        for _ in range(2):
            self._read(now, at_once=True)
        return not self.unfinished

    def _read(self, now: float, *, at_once: bool = False) -> None:
        was_claimed = self.claimed.keys()
        with self._workspace.explained("read"):
            # In the order that jobs move, so that one which moves meanwhile is met later.
            is_changed = self._queued.look(now, at_once=at_once)
            self._read_claimed()
            for names in (self._done, self._failed):
                is_changed |= names.look(now, at_once=at_once)
        if is_changed or self._astray or self.claimed.keys() != was_claimed:
            self._count(now)

    def _read_claimed(self) -> None:
        self.claimed = {
            name: join(folder, name) for folder in self._workspace.daemon_folders() for name in folders_in(folder)
        }

    def _count(self, now: float) -> None:
        present = self._queued.all | self.claimed.keys()
        for name in self.unfinished - present:
            if not self._done.find(name) and not self._failed.find(name):
                self._astray.setdefault(name, now)
        # A folder that was not read again still names what has gone from it.
        self._astray = {
            name: since
            for name, since in self._astray.items()
            if name not in present
            and not self._done.find(name)
            and not self._failed.find(name)
            and now - since < _GONE_AFTER_S
        }
        self.unfinished = (present | self._astray.keys()) - self.done - self.failed
