"""nrvna for Python programs: what ``wrk`` and ``flw`` do, in the ways of concurrent.futures and asyncio."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, Unpack

from nrvna.errors import JobError, JobNotFoundError, SettingError, SubmitError, WorkspaceError, shown
from nrvna.handle import Completed, Job
from nrvna.job import JobState
from nrvna.order import Order
from nrvna.request import Options, Request, for_prompt, order_of
from nrvna.watch import View
from nrvna.workspace import Workspace as Folder

# Jobs that wait for the disk together, and the most characters of their prompts.
_GROUP, _GROUP_CHARACTERS = 200, 16 * 1024 * 1024
_WAITED_FOR = ("ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION")


class Finished(NamedTuple):
    """What :meth:`Workspace.wait` found."""

    done: set[Job]
    not_done: set[Job]


class Workspace:
    """A workspace as a Python program uses it; threads, processes and event loops may share it.

    It is the richer face of the folder in :mod:`nrvna.workspace`: by the same protocol as ``wrk``, ``flw`` and the
    daemon, and so with the same guarantees, it queues jobs and tells of them. It answers none: that takes a daemon.
    """

    def __init__(self, path: str | os.PathLike[str], *, create: bool = False) -> None:
        """Open a workspace; ``create`` makes it first, if it is not there. Raises WorkspaceError."""
        named = Folder(path)
        named.check_name()
        folder = Folder(os.path.abspath(named.path))
        if create:
            folder.create()
        folder.check()
        self._folder = folder
        self._view = View(folder)

    def __repr__(self) -> str:
        return f"nrvna.Workspace({self.path!r})"

    @property
    def path(self) -> str:
        return self._folder.path

    def submit(self, prompt: str, **options: Unpack[Options]) -> Job:
        """Queue a prompt. Once this returns, the job survives a crash of the machine.

        Raises SettingError naming an option that cannot be, GrammarError for a constraint that cannot be kept,
        JobError for a prompt that can never run, JobNotFoundError for a job to come after that is not there:
        nothing was queued then. Raises WorkspaceError if the workspace cannot be written, SubmitError if the job may
        have been queued nevertheless.
        """
        [job] = self._queue([for_prompt(self._order(options), prompt)])
        return job

    def submit_all(self, prompts: Iterable[str | Request], **options: Unpack[Options]) -> list[Job]:
        """Queue many prompts, in their order: thousands in a second, each as safe as by :meth:`submit`.

        One may be a dict with the ``prompt`` and options of its own, which win. All are checked before the first is
        queued. Raises as :meth:`submit`, naming the number of the prompt; a SubmitError says which are queued.
        """
        if isinstance(prompts, str | Mapping):
            raise SettingError(f"prompts is one, {shown(prompts)}, but must be several: submit() takes one")
        # What can be iterated over once is asked of every one of them.
        asked = {name: list(value) if isinstance(value, Iterator) else value for name, value in options.items()}
        shared = self._order(asked)
        orders = []
        for number, each in enumerate(prompts, 1):
            try:
                orders.append(self._one_of_many(each, shared, asked))
            except (SettingError, JobError, JobNotFoundError) as error:
                raise type(error)(f"prompt {number}: {error}") from None
        return self._queue(orders)

    def map(self, prompts: Iterable[str | Request], **options: Unpack[Options]) -> Iterator[str]:
        """Queue many prompts, now, and iterate over their answers in the order of the prompts, as they come.

        Raises as :meth:`submit_all`; the iterator raises JobFailedError where a job has no answer.
        """
        return self._answers(self.submit_all(prompts, **options))

    def _answers(self, jobs: list[Job]) -> Iterator[str]:
        completed, ended = self.as_completed(jobs), set[Job]()
        for job in jobs:
            while job not in ended:
                ended.add(next(completed))
            yield job.result()

    def job(self, id: str) -> Job:
        """The job of an id. Raises JobNotFoundError if there is none."""
        self._folder.find(id)
        return Job(self._view, id)

    def jobs(self, state: JobState | str | None = None, *, tag: str | None = None) -> list[Job]:
        """The jobs in a state, "queued", "running", "done" or "failed", or all; those with a tag; oldest first."""
        if state is not None and state not in tuple(JobState):
            raise SettingError(f"state is {state!r}, but must be {', '.join(JobState)}")
        found = [job for job in self._folder.jobs() if state in (None, job.state)]
        if tag is not None:
            found = [job for job in found if (order := self._folder.order(job)) and tag in order.tags]
        if any(job.is_finished for job in found):
            self._view.confirm()
        return [Job(self._view, job.id, job if job.is_finished else None) for job in found]

    def as_completed(self, jobs: Iterable[Job] | None = None, timeout: float | None = None) -> Completed:
        """An iterator, for ``for`` and for ``async for``, over jobs as they end, in the order in which they do.

        Without ``jobs`` they are all that are unfinished now. A job that fails, or is removed, has ended as well: its
        ``result()`` says so. Raises TimeoutError if the next has not ended ``timeout`` seconds after this call.
        """
        return Completed(self._view, self._unfinished() if jobs is None else jobs, timeout)

    def wait(
        self,
        jobs: Iterable[Job] | None = None,
        timeout: float | None = None,
        return_when: Literal["ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION"] = "ALL_COMPLETED",
    ) -> Finished:
        """Wait until jobs have ended, as concurrent.futures.wait does: those that are, and are not, when it is over.

        Without ``jobs`` they are all that are unfinished now. Raises no TimeoutError.
        """
        if return_when not in _WAITED_FOR:
            raise SettingError(f"return_when is {return_when!r}, but must be {', '.join(_WAITED_FOR)}")
        not_done, done = set(self._unfinished() if jobs is None else jobs), set[Job]()
        completed, is_over = self.as_completed(not_done, timeout), False
        try:
            for job in completed:
                done.add(job)
                not_done.discard(job)
                is_over |= return_when == "FIRST_COMPLETED" or (return_when == "FIRST_EXCEPTION" and _has_failed(job))
                if is_over and not completed.has_next:
                    break
        except TimeoutError:
            pass
        return Finished(done, not_done)

    def _unfinished(self) -> list[Job]:
        return [Job(self._view, job.id) for job in self._folder.jobs() if not job.is_finished]

    def _one_of_many(self, each: str | Request, shared: Order, options: Mapping[str, Any]) -> Order:
        if not isinstance(each, Mapping):
            return for_prompt(shared, each)
        if "prompt" not in each:
            raise SettingError(f"{shown(each)} has no prompt")
        own = {**options, **each}
        prompt = own.pop("prompt")
        return for_prompt(self._order(own), prompt)

    def _order(self, options: Mapping[str, Any]) -> Order:
        return order_of(options, self._parents(options.get("after")))

    def _parents(self, after: object) -> list[str]:
        """The ids of the jobs to come after, all of which are there."""
        if after is None:
            return []
        ids = []
        for parent in after if isinstance(after, Iterable) and not isinstance(after, str) else [after]:
            if not isinstance(parent, Job | str):
                raise SettingError(f"after is {shown(after)}, but must be jobs of this workspace, or their ids")
            if isinstance(parent, Job) and parent.workspace != self.path:
                raise SettingError(f"after has {parent.id} of {parent.workspace}, but must be jobs of {self.path}")
            ids.append(self._folder.find(parent if isinstance(parent, str) else parent.id).id)
        return ids

    def _queue(self, orders: list[Order]) -> list[Job]:
        ids: list[str] = []
        for group in _groups(orders):
            try:
                ids += self._folder.submit_all(group)
            except SubmitError as error:
                raise SubmitError(str(error), [*ids, *error.queued], error.uncertain) from error
            except WorkspaceError as error:
                if not ids:
                    raise
                raise SubmitError(str(error), ids, []) from error
        return [Job(self._view, job_id) for job_id in ids]


def _groups(orders: list[Order]) -> Iterator[list[Order]]:
    group: list[Order] = []
    size = 0
    for order in orders:
        group.append(order)
        size += len(order.prompt)
        if len(group) >= _GROUP or size >= _GROUP_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _has_failed(job: Job) -> bool:
    try:
        return job.state is JobState.FAILED
    except JobNotFoundError:
        return True
