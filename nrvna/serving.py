"""A daemon at work: it claims jobs from a workspace, hands them to its engines and files what comes back.

Standard library only; the model lives in a child process, so that whatever kills that costs no answer.
"""

from __future__ import annotations

import logging
import os
import select
import stat
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from nrvna import __version__
from nrvna.config import Config, of_job
from nrvna.dispatch import Dispatch, best_of
from nrvna.engine.protocol import Ready, unpack_files
from nrvna.errors import EngineError, JobError, ModelNotFoundError, WorkspaceError, reason_of
from nrvna.filing import Filing, about_job
from nrvna.job import JobState, Receipt
from nrvna.lease import Claim, Lease, recover
from nrvna.placement import places
from nrvna.progress import first_line, token_line
from nrvna.replica import SAY_LOADING_EVERY_S, Replica
from nrvna.service import Signals, Starter, log_to, notify, reap_orphans
from nrvna.startpage import counted, offloaded, start_page
from nrvna.task import Task
from nrvna.troubles import Troubles
from nrvna.workspace import Workspace

log = logging.getLogger("nrvna")

# How often an idle daemon looks for itself: for jobs made by hand, and those that a peer's wake-up swallowed.
LOOK_EVERY_S = 0.25
# How often it looks for the jobs of dead peers, and tries again what the disk refused.
TEND_EVERY_S = 1.0
# How often it looks for what was left half-made.
SWEEP_EVERY_S = 600.0
# How often the answers that grow are written down: what a kill of this process costs of them.
KEEP_EVERY_S = 0.2
# Whoever looks at a terminal sees it move.
TELL_LOADING_EVERY_S = 0.1
# A job that was being answered this often when the engine died is set aside.
MAX_CRASHES = 3
_STOP_PATIENCE_S = 2.0
# Characters by which jobs are told to begin alike.
_BEGINNING = 256


class Daemon:
    """One workspace, one model, one engine or several. ``start``, then ``tick`` until it is enough, then ``stop``.

    ``starter`` is told how the start goes.
    """

    def __init__(self, workspace: Workspace, model: Path, config: Config, starter: Starter | None = None) -> None:
        self._starter = starter or Starter()
        self._workspace = workspace
        self._path = model
        self._model = fingerprint(model)
        self._config = config
        self._replicas: list[Replica] = []
        self._is_announced = True
        self._was_ready = False
        self._tell_loading_at = 0.0
        self._tend_at = 0.0
        self._sweep_at = 0.0
        self._keep_at = 0.0
        self._troubles = Troubles()

    def start(self) -> None:
        """Register with the workspace and start the engines.

        Raises WorkspaceError, OSError, and SettingError or EngineError where there are no such GPUs.
        """
        self._replicas = [Replica(self._path, self._model, place) for place in places(self._path, self._config)]
        self._workspace.create()
        self._lease = Lease(self._workspace, self._model, self._path.name, named=self._config.named)
        self._filing = Filing(self._lease, self._model, self._replicas)
        self._dispatch = Dispatch(self._replicas, self._lease)
        self._wake = self._workspace.open_wake()
        for replica in self._replicas:
            replica.start()

    def tick(self, timeout_s: float, also: int | None = None) -> None:
        """Wait for something to happen, at most that long, and deal with it.

        ``also`` is a further descriptor that ends the wait. Raises EngineError if no engine can start at all,
        LeaseLostError if the workspace is gone for good.
        """
        readable = [fd for fd in (self._wake, also) if fd is not None]
        writable = []
        for engine in [replica.engine for replica in self._replicas if replica.engine]:
            readable += [engine.stdout, engine.stderr]
            if engine.has_unsent:
                writable.append(engine.stdin)
        woken = select.select(readable, writable, (), timeout_s)[0]
        if self._wake in woken:
            with suppress(BlockingIOError):
                os.read(self._wake, 1 << 16)
        self._listen()
        for replica in self._replicas:
            if replica.end_if_hung():
                log.error("%sthe engine made no progress for %d s: ending it", replica.prefix, self._config.stall)
            if replica.is_due:
                self._restart(replica)
        now = time.monotonic()
        if now >= self._keep_at:
            self._keep_at = now + KEEP_EVERY_S
            self._keep_progress()
            self._cancel_marked()
            self._end_overdue(now)
        tending = now >= self._tend_at
        if tending:
            self._tend_at = now + TEND_EVERY_S
            self._troubles.guard("recovering jobs", self._recover)
            self._troubles.guard("looking for peers", self._count_peers)
            self._troubles.guard("saying that it is ready", self._announce)
        for name, action in (("recording starts", self._start_recorded), ("filing results", self._file_leftovers)):
            # What the disk refused is not tried at every turn.
            if tending or name not in self._troubles:
                self._troubles.guard(name, action)
        self._troubles.guard("claiming jobs", self._claim)

    def stop(self) -> None:
        """Hand back what is unfinished, end the engines, leave the workspace."""
        # What an engine has to say of its own end is of no interest any more.
        with suppress(EngineError):
            self._listen()
            self._troubles.guard("filing results", self._file_leftovers)
        self._keep_progress()
        unfinished = [held.claim for replica in self._replicas for held in replica.jobs.values()]
        unfinished += self._dispatch.suspects
        if unfinished:
            self._filing.give_back(unfinished)
            log.info("handing back %d unfinished jobs", len(unfinished))
        for replica in self._replicas:
            replica.dismiss()
        patience_ends = time.monotonic() + _STOP_PATIENCE_S
        for replica in self._replicas:
            replica.stop(max(0.0, patience_ends - time.monotonic()))
        self._troubles.guard("filing results", self._file_leftovers)
        if self._filing:
            log.error("%d results could not be written: these jobs are answered again", len(self._filing))
        self._lease.close()

    def is_at_work(self, job_id: str) -> bool:
        """Whether an engine is at this job, as opposed to jobs that wait."""
        return self._filing.is_at_work(job_id)

    @property
    def engine_pids(self) -> set[int]:
        """Its children, also those that have ended without its having heard of that."""
        return {replica.engine.pid for replica in self._replicas if replica.engine}

    # Who gets what.

    def _claim(self) -> None:
        """Keep the engines busy, with some more jobs at hand among which they find those that begin alike."""
        if self._filing or any(replica.unstarted for replica in self._replicas):
            return
        # Bounded, as jobs that fail at once fill no slot: signals and engines are heard in between.
        for _ in range(self._dispatch.vacancies):
            empty, suspects = self._dispatch.empty, self._dispatch.suspects
            takers = self._dispatch.takers()
            if not takers and not (empty and suspects):
                return
            system = self._workspace.context()
            if empty and suspects:
                self._hand_over(suspects.popleft(), empty[:1], system)
            elif claim := self._lease.claim():
                if claim.crashes:
                    suspects.append(claim)
                else:
                    self._hand_over(claim, takers, system)
            else:
                for held, donor, taker in self._dispatch.moves(takers):
                    donor.drop(held.claim.id)
                    donor.release(held.claim.id)
                    self._hand_over(held.claim, [taker], system, moved=True)
                return

    def _hand_over(self, claim: Claim, takers: list[Replica], system: str | None, *, moved: bool = False) -> None:
        try:
            if self._lease.is_cancelled(claim):
                raise JobError("cancelled before it was begun")
            if claim.crashes >= MAX_CRASHES:
                raise JobError(f"the daemon went down each of the {claim.begun} times that this job was begun")
            request, beginning = self._request(claim, system)
            best_of(takers, beginning).take(claim, request, beginning, moved=moved)
        except WorkspaceError:
            self._filing.give_back([claim])
            raise
        except Exception as error:
            # Also what nobody foresaw: it is this job's, and the others go on.
            self._filing.fail(claim, reason_of(error))

    def _request(self, claim: Claim, system: str | None) -> tuple[dict[str, Any], int]:
        """What an engine is asked for this job, and what tells how it begins. Raises JobError, SettingError."""
        prompt = self._lease.prompt(claim)
        sampling = of_job(self._config.sampling, claim.settings)
        task = Task.from_dict(claim.task or {})
        request: dict[str, Any] = {"id": claim.id, "prompt": prompt, "queued": claim.queued, "system": system}
        request |= {"sampling": sampling.to_dict(), "task": task.to_dict(), "priority": claim.order.priority}
        request["resume"] = self._resume(claim)
        text = task.messages[0][1] if task.messages else prompt
        return request, hash((system, task.system, task.lora, text[:_BEGINNING]))

    def _resume(self, claim: Claim) -> dict[str, Any] | None:
        done = self._lease.progress(claim)
        if done.key is None:
            return None
        return {"key": done.key, "seed": done.seed, "tokens": done.tokens, "draws": done.draws}

    # The workspace's side.

    def _recover(self) -> None:
        if recovered := recover(self._workspace):
            log.info("put %d jobs of a daemon that died back into the queue", len(recovered))
        now = time.monotonic()
        if now >= self._sweep_at:
            # Seldom: it looks at every job that is queued.
            self._sweep_at = now + SWEEP_EVERY_S
            self._workspace.sweep_staging()

    def _count_peers(self) -> None:
        self._dispatch.has_peers = sum(peer.model == self._model for peer in self._workspace.peers()) > 1

    def _announce(self) -> None:
        if not self._is_announced:
            self._lease.announce_ready(self._about_engines())
            self._is_announced = True

    def _about_engines(self) -> dict[str, Any]:
        """What the engines that are ready say of themselves, taken together."""
        ready = [replica.ready for replica in self._replicas if replica.ready]
        about = ready[0].to_dict() if ready else {}
        if len(self._replicas) == 1 and not ready:
            about["trouble"] = self._replicas[0].trouble or "its engine ended; another is being started"
        if len(self._replicas) > 1:
            about["parallel"] = sum(one.parallel for one in ready)
            about["replicas"] = [
                {
                    "name": replica.place.name,
                    "ready": bool(replica.ready),
                    "parallel": replica.parallel,
                    "trouble": replica.trouble,
                }
                for replica in self._replicas
            ]
        return about

    def _start_recorded(self) -> None:
        """Let the engines decode what they have room for: it is on record first."""
        starting = {
            replica: [replica.jobs[job_id].claim for job_id in replica.unstarted if job_id in replica.jobs]
            for replica in self._replicas
            if replica.unstarted and replica.engine
        }
        if not starting:
            return
        self._lease.record_starts([claim for claims in starting.values() for claim in claims])
        for replica, claims in starting.items():
            for claim in claims:
                log.debug("%s%s is begun", replica.prefix, claim.id, extra=about_job(claim, JobState.RUNNING))
            replica.go(claims)

    def _keep_progress(self) -> None:
        """Write down what was added to the answers, one write for each."""
        for replica in self._replicas:
            for held in replica.jobs.values():
                if held.fresh and self._lease.append_progress(held.claim, b"".join(held.fresh)):
                    held.fresh = []

    def _cancel_marked(self) -> None:
        for replica in self._replicas:
            for held in list(replica.jobs.values()):
                if self._lease.is_cancelled(held.claim):
                    replica.drop(held.claim.id)
                    self._filing.fail(held.claim, "cancelled while it was being answered", "cancelled")
        for claim in [claim for claim in self._dispatch.suspects if self._lease.is_cancelled(claim)]:
            self._dispatch.suspects.remove(claim)
            self._filing.fail(claim, "cancelled before it was begun again", "cancelled")

    def _end_overdue(self, now: float) -> None:
        for replica in self._replicas:
            for held in list(replica.jobs.values()):
                if held.deadline is not None and now >= held.deadline:
                    replica.drop(held.claim.id)
                    limit_s = held.claim.order.timeout
                    self._filing.fail(held.claim, f"no answer within its timeout of {limit_s:g} s", "timeout")

    def _file_leftovers(self) -> None:
        """Make the moves that are due. The engines are heard in between: they may wait for a word to go on."""
        while self._filing:
            self._filing.make_next()
            self._listen()
            if "recording starts" not in self._troubles:
                self._troubles.guard("recording starts", self._start_recorded)

    # The engines' side.

    def _listen(self) -> None:
        """Deal with what the engines said since, without waiting."""
        for replica in self._replicas:
            for message in replica.listen():
                self._hear(replica, message)
            if replica.has_ended:
                self._bury_engine(replica)

    def _hear(self, replica: Replica, message: dict[str, Any]) -> None:
        """Deal with one message of an engine (see engine/protocol.py), after what it means to the replica itself."""
        jobs = replica.jobs
        match message:
            case {"new": pieces}:
                for job_id, (token, text, draws) in pieces.items():
                    if held := jobs.get(job_id):
                        held.fresh.append(token_line(token, text, draws))
            case {"joins": job_id, "text": text}:
                if held := jobs.get(job_id):
                    self._lease.cut_progress(held.claim, 0)
                    held.fresh = [first_line(None, 0), token_line(None, text)]
            case {"starts": starts}:
                for job_id, start in starts.items():
                    if held := jobs.get(job_id):
                        self._lease.cut_progress(held.claim, start["kept"])
                        if not start["kept"]:
                            held.fresh = [first_line(start["key"], start["seed"])]
            case {"done": job_id, "answer": answer, "receipt": about, "beside": packed}:
                if held := jobs.get(job_id):
                    claim, receipt, beside = held.claim, Receipt.from_dict(about), unpack_files(packed)
                    if receipt.error is None:
                        self._filing.finish(claim, answer, receipt, beside, prefix=replica.prefix)
                    else:
                        self._filing.fail_with(
                            claim, receipt.error, receipt._replace(attempts=claim.begun + 1), beside
                        )
            case {"refused": job_id, "reason": reason}:
                if held := jobs.get(job_id):
                    self._filing.fail(held.claim, reason)
            case {"loading": fraction}:
                self._tell_loading(replica, fraction)
            case {"tries": _} if replica.ready:
                # It goes on with fewer jobs at a time.
                self._is_announced = False
            case {"ready": _}:
                self._be_ready(replica)
            case {"fatal": reason}:
                self._cannot_start(replica, f"the engine cannot start: {reason}", reason)

    def _tell_loading(self, replica: Replica, fraction: float) -> None:
        now = time.monotonic()
        # Of several engines, it is the first to be ready that the starter waits for.
        is_first = all(other.loaded <= fraction for other in self._replicas)
        if is_first and (now >= self._tell_loading_at or fraction >= 1):
            self._tell_loading_at = now + TELL_LOADING_EVERY_S
            self._starter.tell({"loading": fraction})
        if now >= replica.say_loading_at:
            replica.say_loading_at = now + SAY_LOADING_EVERY_S
            log.info("%sloading the model: %d %%", replica.prefix, 100 * fraction)

    def _be_ready(self, replica: Replica) -> None:
        about = replica.ready
        assert about is not None
        is_first, self._was_ready = not self._was_ready, True
        self._is_announced = False
        self._troubles.forget(f"{replica.prefix}engine")
        self._troubles.guard("saying that it is ready", self._announce)
        jobs, threads = counted(about.parallel, "job"), counted(about.threads, "thread")
        shape = "%sready: %s on %s, %s at a time, %d tokens each, %s"
        log.info(shape, replica.prefix, about.description, about.backend, jobs, about.context, threads)
        if is_first:
            self._troubles.guard("counting jobs", partial(self._show_start_page, replica, about))
            self._starter.tell({"ready": ""})
            self._say_troubles()
        elif about.offloaded:
            log.info("%soffloaded: %s", replica.prefix, offloaded(about))
        notify("READY=1")

    def _show_start_page(self, replica: Replica, about: Ready) -> None:
        others = [peer for peer in self._workspace.peers() if peer.pid != os.getpid()]
        queued = self._workspace.counts().queued
        attended = sys.stderr.isatty()
        path = os.path.abspath(self._workspace.path)
        count = len(self._replicas)
        page = start_page(
            about,
            self._model,
            self._config,
            path,
            queued=queued,
            peers=others,
            has_terminal=attended,
            engine=f"that is {replica.place.name}, the first of {count} engines to be ready" if count > 1 else "",
        )
        if log.isEnabledFor(logging.INFO):
            if attended and not self._config.log_json:
                print(*page, sep="\n", file=sys.stderr)
            else:
                for line in page:
                    log.info("%s", line)
        self._starter.tell({"ready": "\n".join(page)})

    def _bury_engine(self, replica: Replica) -> None:
        """An engine died: those it was at gain a crash, all it had go back, and another is started soon."""
        was_serving = replica.ready is not None
        end, last_words, smaller = replica.bury()
        crashed = replica.to_blame
        if was_serving:
            self._is_announced = False
        if smaller:
            died = "%sthe engine ended with %s for want of memory: starting another with %s"
            log.warning(died, replica.prefix, end, smaller)
        elif was_serving:
            died = "%sthe engine ended with %s, at work on %d jobs; starting another"
            log.error(died, replica.prefix, end, len(replica.at_work))
            if replica.one_by_one:
                log.warning("%sit does so again and again: one job at a time, until it is known why", replica.prefix)
        elif replica.trouble is None:
            self._cannot_start(
                replica,
                f"the engine ended with {end} while it loaded the model",
                f"the engine ended with {end} before it had loaded {self._path}; "
                f"its log is {self._config.log_file or 'above'}",
            )
        self._keep_progress()
        # Where it was too much for the machine, no job is to blame.
        for claim in () if smaller else crashed:
            if claim.crashes + 1 < MAX_CRASHES:
                self._filing.give_back_crashed(claim)
            else:
                times = f"the engine died {claim.crashes + 1} times while it was at this job, last with {end}"
                self._filing.fail(claim, f"{times}; the end of its log:\n{last_words}")
        if replica.jobs:
            self._filing.give_back([held.claim for held in replica.jobs.values()])

    def _cannot_start(self, replica: Replica, trouble: str, reason: str) -> None:
        """Raises EngineError if none can, and none ever could."""
        replica.trouble = trouble
        if self._was_ready:
            self._is_announced = False
            self._say_troubles()
        elif all(other.trouble for other in self._replicas):
            is_same = all(other.trouble == trouble for other in self._replicas)
            raise EngineError(
                reason if is_same else "; ".join(f"{other.prefix}{other.trouble}" for other in self._replicas)
            )

    def _say_troubles(self) -> None:
        """Once one serves, why others do not: else the same reason may yet end them all."""
        for replica in self._replicas:
            if replica.trouble:
                trouble = f"{replica.prefix}{replica.trouble}; trying again until it works"
                self._troubles.complain(f"{replica.prefix}engine", trouble)

    def _restart(self, replica: Replica) -> None:
        try:
            replica.start()
        except OSError as error:
            self._cannot_start(replica, f"the engine cannot start: {error}", str(error))
            replica.restart_later()


def fingerprint(model: Path) -> dict[str, Any]:
    """What tells a model file from another without reading it: absolute path, bytes, modification time.

    Raises ModelNotFoundError.
    """
    try:
        about = model.stat()
    except OSError as error:
        raise ModelNotFoundError(f"no model file {model}: {error.strerror}") from error
    if stat.S_ISDIR(about.st_mode):
        raise ModelNotFoundError(f"{model} is a folder: name the .gguf file in it")
    if not stat.S_ISREG(about.st_mode):
        raise ModelNotFoundError(f"{model} is no regular file: name a .gguf file")
    return {"path": str(model.resolve()), "size": about.st_size, "mtime_ns": about.st_mtime_ns}


def serve(model: Path, workspace: Workspace, config: Config, starter: Starter | None = None) -> None:
    """Answer the jobs of a workspace until a signal says to stop. Raises NrvnaError if it cannot begin."""
    signals = Signals(has_log_file=config.log_file is not None)
    daemon = Daemon(workspace, model, config, starter)
    daemon.start()
    log.info("nrvnad %s, process %d: %s answers %s", __version__, os.getpid(), model, workspace.path)
    try:
        while not signals.stop:
            daemon.tick(LOOK_EVERY_S, signals.descriptor)
            reap_orphans(daemon.engine_pids)
            signals.drain()
            if signals.reopen and config.log_file:
                signals.reopen = False
                with suppress(OSError):
                    log_to(config.log_file)
    finally:
        notify("STOPPING=1")
        daemon.stop()
    log.info("stopped")
