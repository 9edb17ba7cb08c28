"""A job in the hands of a Python program: what it is, waiting for it, and several of them as they end."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Generator, Iterable, Iterator
from typing import NamedTuple

from nrvna.errors import DamagedResultError, JobFailedError, JobNotFoundError, SettingError
from nrvna.files import is_folder
from nrvna.job import Job as Found
from nrvna.job import JobState, Receipt
from nrvna.jsontext import read_json
from nrvna.task import RERANK, Task
from nrvna.watch import Ended, View, Watch

_POLL_S = 0.05
_CANCEL_PATIENCE_S = 3.0


class Ranked(NamedTuple):
    """A document of a job that was to order some: its score, its place in the list as given, from 0, its text."""

    score: float
    place: int
    document: str


class Job:
    """A job of a workspace, wherever it is in the queue; what is known of it is read from there.

    What waits takes a ``timeout`` in seconds, None for as long as it takes, and raises TimeoutError when it is over.
    It may be awaited, any number of times, for its answer: ``await job``. Equal jobs are those of one id in one
    workspace. Its methods raise JobNotFoundError once it was removed, WorkspaceError if it cannot be read.
    """

    __slots__ = ("_found", "_view", "id")

    def __init__(self, view: View, id: str, found: Found | None = None) -> None:
        self.id = id
        self._view = view
        # Where it was seen finished, in a way that a crash of the machine cannot take back.
        self._found = found

    def __repr__(self) -> str:
        return f"<nrvna.Job {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and (self.id, self.workspace) == (other.id, other.workspace)

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def workspace(self) -> str:
        """The path of its workspace."""
        return self._view.folder.path

    @property
    def state(self) -> JobState:
        """Where it is: "queued", "running", "done" or "failed"; what is seen finished survives a power cut."""
        return self._look().state

    @property
    def prompt(self) -> str:
        return self._view.folder.prompt(self._look())

    @property
    def tags(self) -> tuple[str, ...]:
        order = self._view.folder.order(self._look())
        return order.tags if order else ()

    def done(self) -> bool:
        """Whether nothing more will come of it: it is done or failed, or was removed."""
        try:
            return self._look().is_finished
        except JobNotFoundError:
            return True

    def result(self, timeout: float | None = None) -> str:
        """The answer. Raises JobFailedError with the reason if there is none."""
        found = self._finished(timeout)
        text = self._view.folder.answer(found)
        self._judge(found)
        return text

    def exception(self, timeout: float | None = None) -> JobFailedError | None:
        """Why there is no answer, or None."""
        found = self._finished(timeout)
        return self._failure(found) if found.state is JobState.FAILED else None

    def receipt(self, timeout: float | None = None) -> Receipt:
        """How it was answered, or failed: tokens, times, settings, why it ended."""
        return self._receipt(self._finished(timeout), whole=True)

    def reasoning(self, timeout: float | None = None) -> str:
        """What the model thought before it answered; empty where it did not."""
        return self._view.folder.reasoning(self._finished(timeout))

    def probabilities(self, timeout: float | None = None) -> dict[str, float]:
        """Of each of the choices; empty where there were none. Raises JobFailedError."""
        found = self._finished(timeout)
        self._judge(found)
        return self._receipt(found, whole=True).probabilities or {}

    def vector(self, timeout: float | None = None) -> list[float]:
        """What a job with ``embed=True`` made of its prompt: of length 1, as the numbers of float32 that they are.

        Raises JobFailedError, and SettingError for a job that was to answer.
        """
        text = self.result(timeout)
        try:
            vector = read_json(text)
        except ValueError:
            vector = None
        if not isinstance(vector, list) or not all(isinstance(number, float | int) for number in vector):
            raise SettingError(f"{self.id} made no vector: submit it with embed=True")
        return vector

    def ranking(self, timeout: float | None = None) -> list[Ranked]:
        """The documents of a job with ``rerank=[...]``, best first. Raises as :meth:`vector`."""
        text, found = self.result(timeout), self._look()
        task = self._view.folder.about(found).get("task", {})
        if task.get("kind") != RERANK:
            raise SettingError(f"{self.id} ordered no documents: submit it with rerank=[...]")
        documents = task["documents"]
        places = {number: place for place, number in enumerate(Task.from_dict(task).document_numbers)}
        ranking, start = [], 0
        while start < len(text):
            after_score = text.index("\t", start)
            after_number = text.index("\t", after_score + 1)
            place = places[int(text[after_score + 1 : after_number])]
            ranking.append(Ranked(float(text[start:after_score]), place, documents[place]))
            # A document may have tabs and line breaks of its own.
            start = after_number + 1 + len(documents[place]) + 1
        return ranking

    def so_far(self) -> str:
        """As much of the answer as there is."""
        found = self._look()
        return "" if found.state is JobState.FAILED else self._view.folder.answer(found)

    def cancel(self, timeout: float = _CANCEL_PATIENCE_S) -> bool:
        """See to it that it is not answered; whether there will be no answer, for sure: False if it is done.

        Raises TimeoutError if it is running and its daemon does not confirm in time; it may then be answered or not.
        """
        # Imported here: nothing else moves jobs.
        from nrvna.lease import cancel

        deadline = time.monotonic() + timeout
        is_marked = False
        while True:
            found = self._look()
            if found.is_finished:
                return found.state is JobState.FAILED
            if found.state is JobState.QUEUED or not is_marked:
                if cancel(self._view.folder, found):
                    return True
                is_marked = found.state is JobState.RUNNING
            if time.monotonic() >= deadline:
                raise TimeoutError(f"{self.id} is asked to end, but its daemon did not confirm that in {timeout:g} s")
            time.sleep(_POLL_S)

    def __await__(self) -> Generator[object, None, str]:
        return self._awaited().__await__()

    async def _awaited(self) -> str:
        # Imported here: it takes longer than all the rest.
        import asyncio

        while True:
            with self._view.waiting().wait_for([self.id]) as waiter:
                self._saw(await waiter.next())
            try:
                return await asyncio.to_thread(self.result, 0)
            except TimeoutError:
                # Somebody put it back into the queue.
                continue

    def _saw(self, ended: Ended) -> Job:
        """The job itself, which was seen to end."""
        self._found = ended.job
        return self

    def _look(self) -> Found:
        found = self._found
        if found is None or not is_folder(found.directory):
            self._found = None
            found = self._view.folder.find(self.id)
            if found.is_finished:
                self._view.confirm()
                self._found = found
        return found

    def _finished(self, timeout: float | None) -> Found:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not (found := self._look()).is_finished:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                next(Completed(self._view, [self], left))
            except TimeoutError:
                raise TimeoutError(f"{self.id} is {found.state} after {timeout:g} s{self._view.hint()}") from None
        return found

    def _judge(self, found: Found) -> Receipt:
        """The receipt of a finished job, if there is an answer and it is that of the receipt."""
        if found.state is JobState.FAILED:
            raise self._failure(found)
        receipt = self._receipt(found)
        if not self._view.folder.is_intact(found, receipt):
            raise self._damage("has another answer than the one that its receipt was written for")
        return receipt

    def _receipt(self, found: Found, *, whole: bool = False) -> Receipt:
        receipt = self._view.folder.receipt(found, whole=whole)
        if receipt is None:
            raise self._damage("has no receipt that can be read")
        return receipt

    def _failure(self, found: Found) -> JobFailedError:
        receipt = self._view.folder.receipt(found)
        reason = self._view.folder.answer(found).strip() or "for no reason that could be read"
        return JobFailedError(self.id, reason, receipt.finish_reason if receipt else "error")

    def _damage(self, what: str) -> DamagedResultError:
        """Raises JobNotFoundError if it was only removed meanwhile."""
        self._look()
        return DamagedResultError(f"the job {self.id} {what}: its files were changed, or the disk fails")


class Completed(Iterator[Job], AsyncIterable[Job]):
    """Jobs as they end, each once: ``for job in ...`` waits for the next, and ``async for job in ...`` too.

    Raises TimeoutError if the next is not there ``timeout`` seconds after this was made. Those that are to come
    stay: it can be gone on with.
    """

    def __init__(self, view: View, jobs: Iterable[Job], timeout: float | None) -> None:
        self._view = view
        self._pending = {job.id: job for job in jobs}
        for job in self._pending.values():
            if job.workspace != view.folder.path:
                raise SettingError(f"{job.id} is a job of {job.workspace}, not of {view.folder.path}")
        self._count = len(self._pending)
        self._timeout = timeout
        self._deadline = float("inf") if timeout is None else time.monotonic() + timeout
        self._ended: deque[Ended] = deque()
        self._watch: Watch | None = None
        self._look_at = 0.0

    def __next__(self) -> Job:
        if not self._pending:
            raise StopIteration
        while not self._ended:
            # Also after a look that found some: where jobs end all the time, it would look all the time.
            pause = min(self._look_at, self._deadline) - time.monotonic()
            if pause > 0:
                time.sleep(pause)
            afresh, self._watch = self._watch is None, self._watch or Watch(self._view.folder)
            self._ended += self._watch.look(frozenset(self._pending), afresh=afresh)
            self._look_at = time.monotonic() + self._watch.pause_s
            if not self._ended and time.monotonic() >= self._deadline:
                raise self._late()
        return self._take(self._ended.popleft())

    async def __aiter__(self) -> AsyncIterator[Job]:
        import asyncio

        # Once before the clock counts: what has ended already is there, whatever the timeout.
        ended = await asyncio.to_thread(Watch(self._view.folder).look, frozenset(self._pending), afresh=True)
        for each in ended:
            yield self._take(each)
        if not self._pending:
            return
        with self._view.waiting().wait_for(self._pending) as waiter:
            while self._pending:
                try:
                    async with asyncio.timeout(None if self._timeout is None else self._deadline - time.monotonic()):
                        each = await waiter.next()
                except TimeoutError:
                    raise self._late() from None
                yield self._take(each)

    @property
    def has_next(self) -> bool:
        """Whether the next has been seen to end already."""
        return bool(self._ended)

    def _take(self, ended: Ended) -> Job:
        return self._pending.pop(ended.id)._saw(ended)

    def _late(self) -> TimeoutError:
        about = f"{len(self._pending)} of {self._count} jobs are unfinished after {self._timeout:g} s"
        return TimeoutError(about + self._view.hint())
