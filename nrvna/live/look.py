"""A look at a workspace as a snapshot: how many jobs are finished, how fast, what is being written, who serves."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from os.path import basename

from nrvna.job import Job, JobState
from nrvna.live.frame import Failure, Running, Server, Snapshot
from nrvna.live.growth import Growth, Pace, Speed
from nrvna.live.roll import Roll
from nrvna.workspace import Workspace

_SERVERS_EVERY_S = 1.0
_TOKENS_OVER_S, _TOKENS_LEAST_S = 5.0, 1.0
# Of jobs that finish at once, as thousands of the same do, only so many are asked for their tokens at a time.
_RECEIPTS_AT_A_TIME = 50
_FAILURES = 5
_REASON_CHARACTERS = 400
# A job that writes nothing before its end, such as one for a vector, is taken to be at work after this.
_SILENT_S = 1.0


class Lookout:
    """Watches a workspace. ``now`` is monotonic, in seconds. Raises WorkspaceError, as its methods do."""

    def __init__(self, workspace: Workspace, now: float) -> None:
        self._workspace = workspace
        self._began = now
        home = os.path.expanduser("~")
        is_below = home != "/" and workspace.path.startswith(f"{home}/")
        # As people write it, and their shells read it.
        self._path = f"~{workspace.path.removeprefix(home)}" if is_below else workspace.path
        self._roll = Roll(workspace, now)
        self._answers = {name: Growth(directory) for name, directory in self._roll.claimed.items()}
        # What was written before is not this watch's.
        self._brought = {name: answer.tokens for name, answer in self._answers.items()}
        self._seen_at = dict.fromkeys(self._answers, now)
        self._receipts_due: deque[tuple[Job, int, int]] = deque()
        self._tokens = 0
        self._speed = Speed(_TOKENS_OVER_S, _TOKENS_LEAST_S)
        self._pace = Pace(now)
        self._failures: deque[Failure] = deque(maxlen=_FAILURES)
        self._servers: tuple[Server, ...] = ()
        self._servers_due = now

    def look(self, now: float) -> Snapshot:
        """How things are, as far as can be told for little."""
        finished = self._roll.look(now)
        self._take_in(finished)
        self._follow_answers(now)
        if now >= self._servers_due:
            self._servers_due = now + _SERVERS_EVERY_S
            self._servers = tuple(
                Server(_name(peer.model.get("path")), peer.ready) for peer in self._workspace.peers()
            )
        running = self._running(now)
        self._speed.note(now, self._tokens)
        if any(server.ready for server in self._servers):
            self._pace.note(now, len(finished), len(running))
        else:
            self._pace.restart(now)
        pace, unfinished = self._pace.per_second(now, len(running)), len(self._roll.unfinished)
        return Snapshot(
            self._path,
            done=len(self._roll.done),
            failed=len(self._roll.failed),
            unfinished=unfinished,
            running=running,
            failures=tuple(failure for failure in reversed(self._failures) if failure.id in self._roll.failed),
            servers=self._servers,
            elapsed_s=now - self._began,
            tokens=self._tokens,
            tokens_per_s=self._speed.per_second() if self._tokens and self._servers else None,
            left_s=unfinished / pace if pace else None,
        )

    def is_over(self, now: float) -> bool:
        """Whether nothing is unfinished any more, for certain."""
        return self._roll.is_over(now)

    def last_look(self, now: float) -> Snapshot:
        """When it is over: how it went, with every finished job counted."""
        snapshot = self.look(now)
        while self._receipts_due:
            self._count_receipts()
        return snapshot._replace(tokens=self._tokens, running=(), is_over=True)

    def _take_in(self, finished: Sequence[Job]) -> None:
        for job in sorted(finished):
            if job.state is JobState.FAILED:
                reason = self._workspace.answer(job)[:_REASON_CHARACTERS].strip()
                self._failures.append(Failure(job.id, reason.partition("\n")[0]))
            answer = self._answers.pop(job.id, None)
            grown = answer.grown if answer else 0
            self._receipts_due.append((job, self._brought.pop(job.id, 0), grown))
        self._count_receipts()

    def _count_receipts(self) -> None:
        """The tokens that came between the last look at an answer and its end."""
        for _ in range(min(len(self._receipts_due), _RECEIPTS_AT_A_TIME)):
            job, brought, grown = self._receipts_due.popleft()
            receipt = self._workspace.receipt(job)
            if receipt and not receipt.same_as:
                before = max(brought, receipt.resumed_tokens or 0)
                self._tokens += max(0, (receipt.generated_tokens or 0) - before - grown)

    def _follow_answers(self, now: float) -> None:
        claimed = self._roll.claimed
        # Those put back into the queue.
        for name in self._answers.keys() - claimed.keys():
            del self._answers[name]
        for name, directory in claimed.items():
            if answer := self._answers.get(name):
                self._tokens += answer.look()
            else:
                self._answers[name] = Growth(directory)
                self._seen_at[name] = now
        self._seen_at = {name: self._seen_at[name] for name in self._answers}

    def _running(self, now: float) -> tuple[Running, ...]:
        begun = {name: answer for name, answer in self._answers.items() if answer.is_begun} or {
            name: answer for name, answer in self._answers.items() if now - self._seen_at[name] > _SILENT_S
        }
        clock = time.time()
        jobs = (
            Running(name, max(0.0, clock - answer.since), answer.tokens, answer.last_words)
            for name, answer in begun.items()
        )
        return tuple(sorted(jobs, key=lambda job: (-job.age_s, job.id)))


def _name(path: object) -> str:
    """A model by its file's name."""
    return basename(path).removesuffix(".gguf") if isinstance(path, str) and path else "some model"
