"""Which jobs are meant: by a name that people can type, by tags and by states.

A name is an id, its beginning, its end, or @1 for the newest job, @2 for the one before. Ids begin with the time, so
what tells them apart soonest is their end.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from nrvna.errors import JobError, JobNotFoundError
from nrvna.files import is_folder
from nrvna.job import Job, JobState, is_generated_id, seconds_of, time_of
from nrvna.order import Order
from nrvna.workspace import Seen, Workspace

STATES = ("queued", "waiting", "running", "done", "cut", "failed")
# Of the end of an id, so much must be named.
LEAST_END = 4
_CANDIDATES = 5
# The end of an id that chance made; with the fraction of a second before it; more than that is the whole.
_ENDS = (6, 13)
_PLACE = re.compile(r"@(\d{1,9})", re.ASCII)


class Selection(NamedTuple):
    """``names`` of jobs, or what all that are meant have: every one of the ``tags``, one of the ``states``."""

    names: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    states: tuple[str, ...] = ()

    @property
    def filters(self) -> bool:
        return bool(self.tags or self.states)


class Glance:
    """The jobs of a workspace as they are at one moment. Raises WorkspaceError if it cannot be read."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.now = time.time()
        self._found: list[Seen] = workspace.survey()
        self._unfinished: set[str] | None = None

    def __len__(self) -> int:
        return len(self._found)

    def newest_first(self) -> Iterator[Job]:
        self._found.sort(reverse=True)
        return (seen.job for seen in self._found)

    def newest(self, number: int) -> list[Job]:
        """So many, the newest first."""
        from heapq import nlargest

        return [seen.job for seen in nlargest(number, self._found)]

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state, of those that some are in."""
        numbers = Counter(seen.state for seen in self._found)
        return {state.value: numbers[state] for state in JobState if numbers[state]}

    def select(self, selection: Selection, newest: int | None = None) -> list[Job]:
        """The jobs that have what is asked for, oldest first; of them the ``newest`` so many."""
        if not selection.filters and newest is not None:
            return self.newest(newest)[::-1]
        chosen: list[Job] = []
        for job in self.newest_first():
            if newest is not None and len(chosen) >= newest:
                break
            if self._is_meant(job, selection):
                chosen.append(job)
        return chosen[::-1]

    def named(self, name: str) -> Job:
        """The job of a name. Raises JobNotFoundError if there is none, or there are several."""
        if place := _PLACE.fullmatch(name):
            newest = self.newest(int(place[1])) if 0 < int(place[1]) <= len(self) else []
            if not newest:
                raise JobNotFoundError(f"no job {name}: @1 is the newest, and there are {len(self)} in all")
            return newest[-1]
        possible = [seen for seen in self._found if seen.id.startswith(name) or _ends_with(seen.id, name)]
        found = [seen for seen in possible if seen.id == name] or possible
        if name and len(found) == 1:
            return found[0].job
        if name and found:
            some = ", ".join(seen.id for seen in sorted(found)[-_CANDIDATES:])
            more = "…, " if len(found) > _CANDIDATES else ""
            raise JobNotFoundError(f"{name} could be {len(found)} jobs: {more}{some}: name more of one")
        # Says what an id looks like, or finds what came in this moment.
        return self.workspace.find(name)

    def short_names(self, jobs: Sequence[Job]) -> dict[str, str]:
        """For each of these jobs' ids the shortest of a few ends that names it alone."""
        shortest: dict[str, str] = {}
        for length in _ENDS:
            missing = [job.id for job in jobs if job.id not in shortest and is_generated_id(job.id)]
            if not missing:
                break
            taken = Counter(seen.id[-length:] for seen in self._found)
            heads = {seen.id[:length] for seen in self._found}
            for job_id in missing:
                end = job_id[-length:]
                if taken[end] == 1 and end not in heads:
                    shortest[job_id] = end
        return {job.id: shortest.get(job.id, job.id) for job in jobs}

    def word(self, job: Job, order: Order | None = None) -> str:
        """A job's state, or what is more exact: waiting for other jobs, cut at a limit."""
        if job.state is JobState.DONE:
            receipt = self.workspace.receipt(job)
            return "cut" if receipt and receipt.was_cut else "done"
        if job.state is JobState.QUEUED:
            order = order or self.workspace.order(job)
            return "waiting" if order and self.unfinished(order.after) else "queued"
        return job.state.value

    def unfinished(self, ids: Sequence[str]) -> list[str]:
        """Those of some jobs that are not finished."""
        if self._unfinished is None and ids:
            states = (JobState.QUEUED, JobState.RUNNING)
            self._unfinished = {seen.id for seen in self._found if seen.state in states}
        return [job_id for job_id in ids if job_id in (self._unfinished or ())]

    def awaited(self) -> dict[str, str]:
        """The jobs that unfinished ones come after, each with one of these."""
        awaited: dict[str, str] = {}
        for seen in self._found:
            if seen.state in (JobState.QUEUED, JobState.RUNNING):
                order = self.workspace.order(seen.job)
                awaited |= dict.fromkeys(order.after if order else (), seen.id)
        return awaited

    def _is_meant(self, job: Job, selection: Selection) -> bool:
        if selection.states and not self._is_in(job, selection.states):
            return False
        if not selection.tags:
            return True
        order = self.workspace.order(job)
        return order is not None and set(selection.tags) <= set(order.tags)

    def _is_in(self, job: Job, states: tuple[str, ...]) -> bool:
        if job.state in states:
            return True
        # What tells these apart must be read first.
        finer = {JobState.DONE: "cut", JobState.QUEUED: "waiting"}.get(job.state)
        return finer in states and self.word(job) == finer


def select(workspace: Workspace, selection: Selection) -> list[Job]:
    """The jobs meant: in the order that they were named in, or else oldest first.

    Raises JobNotFoundError for a name that is none, or several jobs', WorkspaceError.
    """
    if not selection.names:
        return Glance(workspace).select(selection)
    found: dict[str, Job] = {}
    glance: Glance | None = None
    for name in selection.names:
        # A whole id is found without a look at all others.
        if is_generated_id(name):
            job = workspace.find(name)
        else:
            glance = glance or Glance(workspace)
            job = glance.named(name)
        found.setdefault(job.id, job)
    return list(found.values())


def resettled(workspace: Workspace, job: Job) -> Job | None:
    """The job where it is now, if it is not any more where it was seen; None if it is still there, or nowhere."""
    if not is_folder(job.directory):
        with suppress(JobNotFoundError):
            return workspace.find(job.id)
    return None


def queued_at(job: Job, about: dict[str, Any]) -> float:
    """When a job was queued, in seconds since the epoch, as well as can be known."""
    with suppress(ValueError):
        if is_generated_id(job.id):
            return time_of(job.id) / 1_000_000
    if (queued := seconds_of(about.get("queued"))) is not None:
        return queued
    with suppress(OSError):
        return os.stat(job.directory).st_mtime
    return time.time()


def read_order(about: dict[str, Any]) -> Order:
    """What a ``job.json`` says; nothing where it cannot be read."""
    with suppress(JobError):
        return Order.read(about)
    return Order(b"")


def _ends_with(job_id: str, name: str) -> bool:
    return len(name) >= LEAST_END and job_id.endswith(name)
