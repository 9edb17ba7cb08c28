"""What becomes of claims in the workspace: done, failed or back in the queue, each once the disk takes it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from nrvna.errors import LostRaceError, WorkspaceError, reason_of
from nrvna.job import JobState, Receipt
from nrvna.lease import Claim, Lease
from nrvna.replica import Replica

log = logging.getLogger("nrvna")


class Filing:
    """Moves that are to be made, in their order. What is said here to become of a claim, the engines forget at once.

    ``len()`` is how many are left; ``make_next`` makes one.
    """

    def __init__(self, lease: Lease, model: dict[str, Any], replicas: Sequence[Replica]) -> None:
        self._lease = lease
        self._model = model
        self._replicas = replicas
        self._moves: deque[Callable[[], None]] = deque()

    def __len__(self) -> int:
        return len(self._moves)

    def make_next(self) -> None:
        """Raises WorkspaceError where the disk refuses it: the move is still the next then."""
        try:
            self._moves[0]()
        except LostRaceError as error:
            log.warning("%s", error)
        self._moves.popleft()

    def is_at_work(self, job_id: str) -> bool:
        """Whether an engine is at this job, as opposed to jobs that wait."""
        return any(job_id in replica.jobs and replica.jobs[job_id].is_at_work for replica in self._replicas)

    def finish(
        self, claim: Claim, answer: str, receipt: Receipt, beside: dict[str, bytes], *, prefix: str = ""
    ) -> None:
        """An answer is complete. ``prefix`` is what the log says before the job, where there are several engines."""
        end = f"cut at the {receipt.finish_reason} limit" if receipt.was_cut else "complete"
        speed = f", {receipt.tokens_per_second} tokens/s" if receipt.generated_tokens else ""
        done = f"{prefix}{claim.id} done: {receipt.generated_tokens} tokens, {end}{speed}"

        def write() -> None:
            try:
                self._lease.finish(claim, answer, receipt, beside)
            except (WorkspaceError, LostRaceError):
                raise
            except Exception as error:
                self._fail_plainly(claim, error)
            else:
                log.info("%s", done, extra=about_job(claim, JobState.DONE, receipt))

        self._add([claim], write)

    def fail(self, claim: Claim, reason: str, finish_reason: str = "error") -> None:
        """There will be no answer, for a reason that the daemon knows."""
        receipt = Receipt.of_failure(claim.id, claim.queued, reason, finish_reason)
        attempts = claim.begun + self.is_at_work(claim.id)
        self.fail_with(claim, reason, receipt._replace(model=self._model, attempts=attempts), {})

    def fail_with(self, claim: Claim, reason: str, receipt: Receipt, beside: dict[str, bytes]) -> None:
        """The same, where there is a receipt of it, and files to keep beside it."""

        def write() -> None:
            try:
                self._lease.fail(claim, reason, receipt, beside)
            except (WorkspaceError, LostRaceError):
                raise
            except Exception as error:
                self._fail_plainly(claim, error)
            else:
                log.warning("%s failed: %s", claim.id, reason, extra=about_job(claim, JobState.FAILED, receipt))

        self._add([claim], write)

    def _fail_plainly(self, claim: Claim, error: Exception) -> None:
        """What was to be filed cannot be written: say at least that."""
        reason = reason_of(error)
        self._lease.fail(claim, reason, Receipt.of_failure(claim.id, claim.queued, reason))

    def give_back(self, claims: list[Claim]) -> None:
        """Back into the queue, those that were begun with what is written of their answers."""
        begun = [claim for claim in claims if self.is_at_work(claim.id)]
        self._add(claims, partial(self._lease.requeue, claims, begun))

    def give_back_crashed(self, claim: Claim) -> None:
        """The same for one that an engine was at when it died, which is put on record."""

        def write() -> None:
            self._lease.requeue([self._lease.record_crash(claim)])

        self._add([claim], write)

    def _add(self, claims: list[Claim], move: Callable[[], None]) -> None:
        for claim in claims:
            for replica in self._replicas:
                replica.release(claim.id)
        self._moves.append(move)


def about_job(claim: Claim, state: JobState, receipt: Receipt | None = None) -> dict[str, Any]:
    """A job for the log's readers, in the fields of :data:`nrvna.logs.FIELDS`."""
    about: dict[str, Any] = {"job": claim.id, "state": state}
    if receipt:
        about |= {"tokens": receipt.generated_tokens, "tokens_per_second": receipt.tokens_per_second}
    return about
