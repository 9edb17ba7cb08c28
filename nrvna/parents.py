"""Jobs that come after others: which of them must wait, and what they are told of those others.

A daemon looks at a job's parents when its turn comes. One that must wait is remembered here, and looked at again when
a parent was filed by this very daemon, or from time to time, as other daemons file jobs too.
"""

from __future__ import annotations

import time
from collections import defaultdict
from os.path import join
from typing import TYPE_CHECKING

from nrvna.errors import JobError, JobNotFoundError, WorkspaceError
from nrvna.files import encode, is_folder
from nrvna.job import Job, JobState
from nrvna.lines import head_line
from nrvna.order import Order, check_prompt
from nrvna.results import fill_in, parents_named

if TYPE_CHECKING:
    from nrvna.workspace import Workspace

_LOOK_EVERY_S = 0.5
# Looking at all that wait takes at most this part of the time.
_SHARE = 0.05


class Parents:
    """The jobs of a workspace that wait for others, as far as a daemon has met them."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        # The parents, not yet finished, of each job that waits; and the other way round.
        self._missing: dict[str, set[str]] = {}
        self._children: defaultdict[str, set[str]] = defaultdict(set)
        self._is_released = False
        self._look_at = 0.0

    def __len__(self) -> int:
        return len(self._missing)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._missing

    def hold(self, job_id: str, after: tuple[str, ...]) -> bool:
        """Whether it must wait; it is remembered then.

        A parent that failed, or is gone, is nothing to wait for: the job has to be told.
        """
        missing = {parent for parent in after if self._is_unfinished(parent)} if after else set()
        if not missing or self._has_failed(set(after) - missing):
            return False
        self._missing[job_id] = missing
        for parent in missing:
            self._children[parent].add(job_id)
        return True

    def finished(self, parent: str) -> None:
        """A job was filed: those that waited for nothing else wait no longer, nor do any, if it failed."""
        for child in self._children.pop(parent, ()):
            missing = self._missing.get(child, set())
            missing.discard(parent)
            if not missing or is_folder(join(self._workspace.failed, parent)):
                self._forget(child)
                self._is_released = True

    def release(self) -> bool:
        """Whether some that waited can be looked at again."""
        now = time.monotonic()
        if self._missing and now >= self._look_at:
            for parent in list(self._children):
                if not self._is_unfinished(parent):
                    self.finished(parent)
            for child in [child for child in self._missing if not is_folder(join(self._workspace.input, child))]:
                self._forget(child)
            self._look_at = now + max(_LOOK_EVERY_S, (time.monotonic() - now) / _SHARE)
        released, self._is_released = self._is_released, False
        return released

    def _forget(self, child: str) -> None:
        for parent in self._missing.pop(child, ()):
            self._children[parent].discard(child)
            if not self._children[parent]:
                del self._children[parent]

    def _is_unfinished(self, parent: str) -> bool:
        workspace = self._workspace
        if is_folder(join(workspace.output, parent)) or is_folder(join(workspace.failed, parent)):
            return False
        try:
            return not workspace.find(parent).is_finished
        except JobNotFoundError:
            return False

    def _has_failed(self, finished: set[str]) -> bool:
        return not all(is_folder(join(self._workspace.output, parent)) for parent in finished)

    def fill_in(self, prompt: str, order: Order) -> str:
        """The prompt with the answers that it wants.

        Raises JobError if a parent has none, or the whole is too long; WorkspaceError if one is not finished.
        """
        for parent in order.after:
            self._check_done(parent)
        named = parents_named(prompt, order)
        if not named:
            return prompt
        answers = {parent: self._answer(parent) for parent in named}
        return check_prompt(encode(fill_in(prompt, order, answers))).decode()

    def _check_done(self, parent: str) -> None:
        try:
            job = self._workspace.find(parent)
        except JobNotFoundError:
            raise JobError(f"the job {parent}, which it comes after, is not there any more") from None
        if job.state is JobState.FAILED:
            reason = head_line(self._workspace.answer(job))
            raise JobError(f"the job {parent}, which it comes after, failed: {reason}")
        if job.state is not JobState.DONE:
            raise WorkspaceError(f"the job {parent}, which another comes after, is {job.state} again")

    def _answer(self, parent: str) -> str:
        return self._workspace.answer(Job(parent, JobState.DONE, join(self._workspace.output, parent))).rstrip("\n")
