"""Which of some jobs are finished, seen with no more work than there is news.

The folders of finished jobs change when a job arrives: as long as their times stay, a look costs two calls, however
many jobs are waited for. When they change, each job is looked for or the folders are listed, whichever is less.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from contextlib import suppress
from os.path import join
from typing import TYPE_CHECKING, NamedTuple

from nrvna.errors import JobNotFoundError
from nrvna.files import folders_in
from nrvna.job import Job, JobState
from nrvna.workspace import Workspace

if TYPE_CHECKING:
    import asyncio

    from nrvna.awaiting import Waiting

# Looks follow each other faster at first: an answer of a few tokens is not to wait for the next one.
_SOON_S, _POLL_S = 0.005, 0.05
# A look is due, news or not, so often: jobs can be removed, and some file systems are slow to tell the time.
_LOOK_EVERY_S = 1.0
# Looking takes at most this part of a core.
_SHARE = 0.05
# A folder's mtime moves in steps of a clock tick: within this time of a change, another may not have shown.
_MTIME_TICK_NS = 50_000_000
# Looking for a job takes as long as listing so many; so few are looked for in any case.
_LISTED_MEANWHILE, _FEW = 16, 16
_WARN_AFTER_S = 2.0

log = logging.getLogger("nrvna")
# The workspaces of which it was said that no daemon serves them.
_warned: set[str] = set()


def filed_ns(folder: Workspace) -> tuple[int, int] | None:
    """When jobs were filed last, done and failed; None if another may have been since that would not show.

    Raises OSError.
    """
    done, failed = os.stat(folder.output).st_mtime_ns, os.stat(folder.failed).st_mtime_ns
    return None if time.time_ns() - max(done, failed) < _MTIME_TICK_NS else (done, failed)


class View:
    """What one program sees of a workspace."""

    def __init__(self, folder: Workspace) -> None:
        self.folder = folder
        self._confirmed_ns: tuple[int, int] | None = None
        self._waiting: dict[asyncio.AbstractEventLoop, Waiting] = {}

    def __reduce__(self) -> tuple[type[View], tuple[Workspace]]:
        # Event loops stay in their process.
        return View, (self.folder,)

    def confirm(self) -> None:
        """Wait until the results that are seen now survive a crash of the machine, if that is not certain already.

        Raises WorkspaceError.
        """
        with self.folder.explained("read"):
            filed = filed_ns(self.folder)
        if filed is None or filed != self._confirmed_ns:
            self.folder.confirm()
            self._confirmed_ns = filed

    def hint(self) -> str:
        """Why an answer may be long in coming."""
        peers = self.folder.peers()
        if not peers:
            return f", and no daemon answers it (start one: nrvnad MODEL {self.folder.path})"
        return "" if any(peer.ready for peer in peers) else ", and its daemon is still loading the model"

    def waiting(self) -> Waiting:
        """All who wait for jobs in the event loop that runs."""
        # Imported here: not every program has one.
        import asyncio

        from nrvna.awaiting import Waiting

        loop = asyncio.get_running_loop()
        if loop not in self._waiting:
            open_ones = {each: waiting for each, waiting in self._waiting.items() if not each.is_closed()}
            self._waiting = {**open_ones, loop: Waiting(self.folder)}
        return self._waiting[loop]


class Ended(NamedTuple):
    """A job that nobody needs to wait for any more: finished, or gone, which is ``job`` None."""

    id: str
    job: Job | None


class Watch:
    """One who waits for jobs of a workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._filed_ns: tuple[int, int] | None = None
        self._listed = 0
        self._look_at = 0.0
        self._warn_at = time.monotonic() + _WARN_AFTER_S
        self._began = time.monotonic()
        self._cost_s = 0.0

    @property
    def pause_s(self) -> float:
        """How long to wait before the next look."""
        waited = time.monotonic() - self._began
        return max(min(_POLL_S, max(_SOON_S, waited / 10)), self._cost_s / _SHARE)

    def look(self, ids: frozenset[str], *, afresh: bool) -> list[Ended]:
        """Those of the jobs that are finished or gone, in the order in which they ended.

        ``afresh``: there are jobs among them that were not, the last time. What is returned as finished survives a
        crash of the machine. Raises WorkspaceError.
        """
        began = time.thread_time()
        if afresh:
            self._began, self._look_at = time.monotonic(), 0.0
        is_due = time.monotonic() >= self._look_at
        with self._workspace.explained("read"):
            filed, seen = filed_ns(self._workspace), self._filed_ns
            found = self._finished(ids) if is_due or filed is None or filed != seen else []
            self._filed_ns = filed
            ended = [Ended(job.id, job) for _, job in sorted(found)]
            if is_due:
                ended += self._gone(ids - {job.id for _, job in found})
        if found:
            self._workspace.confirm()
        elif time.monotonic() >= self._warn_at:
            self._warn()
        self._cost_s = time.thread_time() - began
        if is_due:
            self._look_at = time.monotonic() + max(_LOOK_EVERY_S, self._cost_s / _SHARE)
        return ended

    def _warn(self) -> None:
        """Once in a process: who waits for ever should know why."""
        self._warn_at = float("inf")
        path = self._workspace.path
        if path not in _warned and not self._workspace.peers():
            _warned.add(path)
            log.warning(
                "still waiting, and no daemon answers the jobs of %s: start one with nrvnad MODEL %s", path, path
            )

    def _finished(self, ids: frozenset[str]) -> list[tuple[int, Job]]:
        """Each with when it was filed: it is the last time that its folder was written to."""
        found: list[tuple[int, Job]] = []
        few, listed = self._are_few(ids), 0
        for folder, state in ((self._workspace.output, JobState.DONE), (self._workspace.failed, JobState.FAILED)):
            here = ids
            if not few:
                names = os.listdir(folder)
                listed += len(names)
                here = ids.intersection(names)
            for name in here:
                with suppress(FileNotFoundError):
                    about = os.lstat(join(folder, name))
                    if stat.S_ISDIR(about.st_mode):
                        found.append((about.st_mtime_ns, Job(name, state, join(folder, name))))
        self._listed = listed or self._listed
        return found

    def _gone(self, ids: frozenset[str]) -> list[Ended]:
        missing = ids
        if not self._are_few(ids):
            folders = (self._workspace.input, *self._workspace.daemon_folders())
            missing = ids.difference(*(folders_in(folder) for folder in folders))
        gone = []
        for job_id in missing:
            try:
                self._workspace.find(job_id)
            except JobNotFoundError:
                gone.append(Ended(job_id, None))
        return gone

    def _are_few(self, ids: frozenset[str]) -> bool:
        """Whether it is less work to look for each of them than to list the folders."""
        return len(ids) <= max(_FEW, self._listed // _LISTED_MEANWHILE)
