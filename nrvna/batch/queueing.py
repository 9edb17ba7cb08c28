"""``wrk --batch``: queue the requests of a file, each exactly once, however often it is killed on the way."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os.path import basename
from typing import Any, BinaryIO, NamedTuple

from nrvna.batch.fields import RefusedError
from nrvna.batch.ledger import Entry, Head, Ledger, batch_id, newest_batch
from nrvna.batch.lines import numbered_lines, survey
from nrvna.batch.request import read_request
from nrvna.errors import JobError, JobNotFoundError
from nrvna.order import Order
from nrvna.workspace import Workspace

QUEUED, REFUSED = 0, 2

# Jobs that wait for the disk together, at least, and bytes of lines.
_GROUP, _GROUP_BYTES = 200, 16 * 1024 * 1024
_SHOW_AFTER_S, _SHOW_EVERY_S = 2.0, 0.5
_MAX_COMPLAINTS = 20
_MAX_MODELS = 3


class Counts:
    """What became of a file's requests, and of how many jobs."""

    def __init__(self) -> None:
        self.queued = self.before = self.refused = self.jobs = 0


class _Part(NamedTuple):
    """A request on its way: its entry, the jobs to be made, and the places that these take among all its jobs."""

    entry: Entry
    orders: list[Order]
    places: list[int]


def queue_batch(workspace: Workspace, path: str, *, base: Order | None = None, again: bool = False) -> int:
    """Queue what a file asks for, "-" for standard input, and print the batch's id.

    ``base`` is what is asked of all jobs: model, tags, priority, timeout, and settings where a line has none of its
    own. A file that was queued before is gone on with; ``again`` makes another batch of it.

    Returns 0, or 2 if some lines cannot be answered; their reasons are on standard error. Raises JobError if nothing
    of it can be queued, OSError, with its filename, if it cannot be read, WorkspaceError and SubmitError.
    """
    base = base or Order("")
    asked = _asked(base)
    with _opened(path) as file:
        try:
            found = survey(file)
        except JobError as error:
            raise JobError(f"{path}: {error}") from None
        file.seek(0)
        ledger = _ledger(workspace, found.digest, asked, again=again)
        ledger.create()
        with ledger.lock(_say_waiting):
            ledger.refresh()
            if ledger.head is None:
                ledger.begin(Head(basename(path), found.requests, int(time.time()), asked))
            elif ledger.head.asked != asked:
                raise JobError(
                    f"{path} was queued before, as {ledger.id}, with other options: give the same ones, "
                    "or --again to queue it anew"
                )
            queue = _Queue(workspace, ledger, base._replace(batch=ledger.id))
            try:
                queue.take_all(path, file)
            except BaseException:
                queue.say_how_to_go_on()
                raise
    print(ledger.id, flush=True)
    queue.say_what_became_of_it()
    return REFUSED if queue.counts.refused else QUEUED


def _asked(base: Order) -> dict[str, Any]:
    """As the ledger keeps it. Raises JobError for what a batch's jobs cannot have."""
    if base.task or base.after or base.key:
        raise JobError(
            "what is asked beside settings, model, tags, priority and timeout must stand in the batch file"
        )
    asked: dict[str, Any] = json.loads(json.dumps(base.about()))
    return asked


def _ledger(workspace: Workspace, digest: str, asked: dict[str, Any], *, again: bool) -> Ledger:
    """The file's newest batch; a new one if there is none yet, or if ``again`` asks for one and it is complete."""
    number = max(1, newest_batch(workspace, digest))
    ledger = Ledger(workspace, batch_id(digest, number))
    ledger.refresh()
    if again and ledger.head and (ledger.is_complete or ledger.head.asked != asked):
        return Ledger(workspace, batch_id(digest, number + 1))
    return ledger


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    """The file, or all of standard input, to be read twice."""
    if path != "-":
        with open(path, "rb") as file:
            yield file
        return
    import shutil
    import tempfile

    with tempfile.TemporaryFile() as spooled:
        shutil.copyfileobj(sys.stdin.buffer, spooled)
        spooled.seek(0)
        yield spooled


def _say_waiting() -> None:
    print("wrk: another wrk is queueing this file: waiting for it", file=sys.stderr)


class _Queue:
    """The requests of one file on their way into a workspace."""

    def __init__(self, workspace: Workspace, ledger: Ledger, base: Order) -> None:
        self._workspace = workspace
        self._ledger = ledger
        self._base = base
        self._group: list[_Part] = []
        self._models: list[str] = []
        self._complaints = 0
        self._started = time.monotonic()
        self._shows = sys.stderr.isatty()
        self._show_at = _SHOW_AFTER_S
        self.counts = Counts()

    def take_all(self, path: str, file: BinaryIO) -> None:
        """Raises as :func:`queue_batch`."""
        version = _version(file)
        # In step with the file's lines.
        known = self._ledger.entries()
        size = jobs = 0
        for number, line in numbered_lines(file):
            if number in self._ledger:
                entry = next(entry for entry in known if entry.line == number)
                part = self._again(entry, line)
            else:
                part = self._first(number, line)
            if part:
                self._group.append(part)
                size += len(line)
                jobs += len(part.orders)
            if jobs >= _GROUP or size >= _GROUP_BYTES or len(self._group) >= _GROUP:
                self._submit(path, file, version)
                size = jobs = 0
        self._submit(path, file, version)
        if not self._ledger.is_complete:
            self._ledger.complete()

    def _first(self, number: int, line: bytes) -> _Part:
        """A line that is new."""
        try:
            request = read_request(line, self._base)
        except RefusedError as error:
            self._complain(number, str(error))
            about = {"code": error.code, "message": str(error), "param": error.param}
            return _Part(Entry(number, error.custom_id, error=about), [], [])
        if request.model and request.model not in self._models and len(self._models) <= _MAX_MODELS:
            self._models.append(request.model)
        entry = Entry(number, request.custom_id, request.url, ("",) * len(request.orders), request.wants)
        return _Part(entry, request.orders, list(range(len(request.orders))))

    def _again(self, entry: Entry, line: bytes) -> _Part | None:
        """A line that somebody was at before: what there is of its jobs stays."""
        if entry.error:
            self._complain(entry.line, str(entry.error.get("message")))
            self.counts.refused += 1
            return None
        missing = [place for place, job_id in enumerate(entry.jobs) if self._is_nowhere(job_id)]
        if not missing:
            self.counts.before += 1
            return None
        fresh = self._first(entry.line, line)
        if len(fresh.orders) != len(entry.jobs):
            # Another version of nrvna reads it otherwise.
            return fresh
        return _Part(entry, [fresh.orders[place] for place in missing], missing)

    def _is_nowhere(self, job_id: str) -> bool:
        try:
            self._workspace.find(job_id)
        except JobNotFoundError:
            return True
        return False

    def _submit(self, path: str, file: BinaryIO, version: tuple[int, int]) -> None:
        """Queue the group. Its jobs are in the ledger before they appear anywhere."""
        if _version(file) != version:
            raise JobError(f"{path} was changed while it was read: queue it anew")
        group, self._group = self._group, []
        places = [(number, place) for number, part in enumerate(group) for place in part.places]
        jobs = [list(part.entry.jobs) for part in group]

        def record(ids: Sequence[str], fresh: Sequence[int]) -> None:
            for job_id, order in zip(ids, fresh, strict=True):
                number, place = places[order]
                jobs[number][place] = job_id
            entries = [part.entry._replace(jobs=tuple(made)) for part, made in zip(group, jobs, strict=True)]
            self._ledger.add(entries)

        if places:
            orders = [order for part in group for order in part.orders]
            self.counts.jobs += len(self._workspace.submit_all(orders, record))
        elif group:
            record([], [])
        self.counts.queued += sum(1 for part in group if part.orders)
        self.counts.refused += sum(1 for part in group if part.entry.error)
        self._show()

    # What is said, all of it on standard error.

    def _complain(self, number: int, reason: str) -> None:
        self._complaints += 1
        if self._complaints <= _MAX_COMPLAINTS:
            print(f"wrk: line {number}: {reason}", file=sys.stderr)

    def _show(self) -> None:
        waited = time.monotonic() - self._started
        if self._shows and waited >= self._show_at:
            self._show_at = waited + _SHOW_EVERY_S
            done = self.counts.queued + self.counts.before + self.counts.refused
            total = self._ledger.head.requests if self._ledger.head else done
            print(f"\r\x1b[K{done} of {total} requests", end="", file=sys.stderr, flush=True)

    def _clear(self) -> None:
        if self._shows and self._show_at > _SHOW_AFTER_S:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def say_how_to_go_on(self) -> None:
        """It ends before its time."""
        self._clear()
        safe = self.counts.queued + self.counts.before
        print(
            f"wrk: {safe} requests of {self._ledger.id} are queued: the same command goes on there", file=sys.stderr
        )

    def say_what_became_of_it(self) -> None:
        """It is all done."""
        self._clear()
        counts = self.counts
        if self._complaints > _MAX_COMPLAINTS:
            more = self._complaints - _MAX_COMPLAINTS
            print(f"wrk: {more} more lines are no better: flw --batch writes all of it down", file=sys.stderr)
        if self._models and not self._base.model:
            names = ", ".join(self._models[:_MAX_MODELS]) + (", …" if len(self._models) > _MAX_MODELS else "")
            print(
                f"wrk: the daemon's model answers, whatever the lines name ({names}); --model NAME asks for one",
                file=sys.stderr,
            )
        parts = [f"{_number(counts.queued, 'request')} queued as {_number(counts.jobs, 'job')}"]
        if counts.before:
            parts.append(f"{counts.before} queued before")
        if counts.refused:
            parts.append(f"{_number(counts.refused, 'line')} refused")
        print(f"wrk: {', '.join(parts)}", file=sys.stderr)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _version(file: BinaryIO) -> tuple[int, int]:
    about = os.fstat(file.fileno())
    return about.st_size, about.st_mtime_ns
