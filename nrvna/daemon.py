"""The daemon: claims jobs from a workspace, hands them to its engines and files what comes back.

Standard library only; the model lives in a child process, so that whatever kills that costs no answer.
"""

from __future__ import annotations

import logging
import os
import select
import stat
import subprocess
import sys
import time
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from nrvna import __version__, logs
from nrvna.arguments import Parser
from nrvna.config import SETTINGS, Config, add_options, engine_environment, from_environment, of_job
from nrvna.engine.protocol import Ready, pack, unpack_files
from nrvna.errors import (
    EngineError,
    JobError,
    LeaseLostError,
    LostRaceError,
    ModelNotFoundError,
    NoFolderError,
    NrvnaError,
    SettingError,
    WorkspaceError,
)
from nrvna.job import JobState, Receipt
from nrvna.lease import Claim, Lease, recover
from nrvna.placement import first_place, places
from nrvna.progress import first_line, token_line
from nrvna.replica import SAY_LOADING_EVERY_S, Replica
from nrvna.service import Signals, Starter, log_to, notify
from nrvna.startpage import offloaded, start_page
from nrvna.task import Task
from nrvna.terminal import open_streams
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
# What --tune is given, where nobody says otherwise.
TUNE_S = 120
_MAX_TUNE_S = 86_400
# A job that was being answered this often when the engine died is set aside.
MAX_CRASHES = 3
# Jobs claimed beyond those that run, to find some among them that begin alike.
_LOOK_AHEAD = 24
_MAX_JOINED = 1000
_STOP_PATIENCE_S = 2.0
# What waits in one of several engines for so long goes to another that has nothing to do.
_MOVE_AFTER_S = 1.0
# Characters by which jobs are told to begin alike; and the part of its slots by which an engine may be fuller than
# others for having the beginning in its cache.
_BEGINNING = 256
_UNEVENNESS = 4


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
        self._has_peers = False
        # Claimed, but at work when an engine died: they wait until one can run alone.
        self._suspects: deque[Claim] = deque()
        # Moves that are still to be made, or that the disk would not take yet.
        self._unfiled: list[Callable[[], None]] = []
        self._is_announced = True
        self._was_ready = False
        self._tell_loading_at = 0.0
        self._tend_at = 0.0
        self._sweep_at = 0.0
        self._keep_at = 0.0
        self._troubles: dict[str, str] = {}

    def start(self) -> None:
        """Register with the workspace and start the engines.

        Raises WorkspaceError, OSError, and SettingError or EngineError where there are no such GPUs.
        """
        self._replicas = [Replica(self._path, self._model, place) for place in places(self._path, self._config)]
        self._workspace.create()
        self._lease = Lease(self._workspace, self._model, self._path.name, named=self._config.named)
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
            self._guarded("recovering jobs", self._recover)
            self._guarded("looking for peers", self._count_peers)
            self._guarded("saying that it is ready", self._announce)
        for name, action in (("recording starts", self._start_recorded), ("filing results", self._file_leftovers)):
            # What the disk refused is not tried at every turn.
            if tending or name not in self._troubles:
                self._guarded(name, action)
        self._guarded("claiming jobs", self._claim)

    def stop(self) -> None:
        """Hand back what is unfinished, end the engines, leave the workspace."""
        # What an engine has to say of its own end is of no interest any more.
        with suppress(EngineError):
            self._listen()
            self._guarded("filing results", self._file_leftovers)
        self._keep_progress()
        unfinished = [held.claim for replica in self._replicas for held in replica.jobs.values()] + [*self._suspects]
        if unfinished:
            self._give_back(unfinished)
            log.info("handing back %d unfinished jobs", len(unfinished))
        for replica in self._replicas:
            replica.dismiss()
        patience_ends = time.monotonic() + _STOP_PATIENCE_S
        for replica in self._replicas:
            replica.stop(max(0.0, patience_ends - time.monotonic()))
        self._guarded("filing results", self._file_leftovers)
        if self._unfiled:
            log.error("%d results could not be written: these jobs are answered again", len(self._unfiled))
        self._lease.close()

    def is_at_work(self, job_id: str) -> bool:
        """Whether an engine is at this job, as opposed to jobs that wait."""
        return any(job_id in replica.jobs and replica.jobs[job_id].is_at_work for replica in self._replicas)

    # Who gets what.

    def _claim(self) -> None:
        """Keep the engines busy, with some more jobs at hand among which they find those that begin alike."""
        if self._unfiled or any(replica.unstarted for replica in self._replicas):
            return
        # Bounded, as jobs that fail at once fill no slot: signals and engines are heard in between.
        for _ in range(sum(max(0, self._room(replica)) for replica in self._replicas)):
            empty = [replica for replica in self._replicas if replica.ready and not replica.jobs]
            takers = self._takers()
            if not takers and not (empty and self._suspects):
                return
            system = self._workspace.context()
            if empty and self._suspects:
                self._hand_over(self._suspects.popleft(), empty[:1], system)
            elif claim := self._lease.claim():
                if claim.crashes:
                    self._suspects.append(claim)
                else:
                    self._hand_over(claim, takers, system)
            else:
                self._even_out(takers, system)
                return

    def _room(self, replica: Replica) -> int:
        """How many more jobs an engine may have, those that it cannot begin yet included."""
        if not replica.ready:
            return 0
        # What this daemon holds back, another one cannot answer.
        look_ahead = 1 + replica.parallel // 2 if self._has_peers else _LOOK_AHEAD
        # Those that joined another cost nothing but their place in memory.
        capacity = replica.parallel + look_ahead + min(replica.joined, _MAX_JOINED)
        # The engine lets them begin before those that it has at hand.
        capacity += min(self._lease.urgent, replica.parallel)
        return capacity - len(replica.jobs)

    def _takers(self) -> list[Replica]:
        """The engines that may have another job. One is left to become empty where suspects wait for that."""
        keeps_free: Replica | None = None
        if self._suspects:
            coming = [replica for replica in self._replicas if replica.is_coming] or self._replicas
            keeps_free = min(coming, key=lambda replica: (not replica.is_alone, len(replica.jobs)))
        return [
            replica
            for replica in self._replicas
            if replica is not keeps_free and not replica.is_alone and self._room(replica) > 0
        ]

    def _even_out(self, takers: list[Replica], system: str | None) -> None:
        """Let engines without enough to do have what has waited in another for a while, each job once."""
        if len(self._replicas) == 1:
            return
        patient = time.monotonic() - _MOVE_AFTER_S
        for taker in takers:
            if taker.free <= 0 or taker.waiting:
                continue
            waiting = {
                donor: [held for held in donor.waiting if not held.has_moved and held.since <= patient]
                for donor in self._replicas
                if donor is not taker
            }
            donor = max(waiting, key=lambda donor: len(waiting[donor]))
            for held in waiting[donor][: taker.free]:
                donor.drop(held.claim.id)
                self._release(held.claim)
                self._hand_over(held.claim, [taker], system, moved=True)

    def _hand_over(self, claim: Claim, takers: list[Replica], system: str | None, *, moved: bool = False) -> None:
        try:
            if self._lease.is_cancelled(claim):
                raise JobError("cancelled before it was begun")
            if claim.crashes >= MAX_CRASHES:
                raise JobError(f"the daemon went down each of the {claim.begun} times that this job was begun")
            prompt = self._lease.prompt(claim)
            sampling = of_job(self._config.sampling, claim.settings)
            task = Task.from_dict(claim.task or {})
        except (JobError, SettingError) as error:
            self._fail(claim, str(error))
            return
        except WorkspaceError:
            self._give_back([claim])
            raise
        request: dict[str, Any] = {"id": claim.id, "prompt": prompt, "queued": claim.queued, "system": system}
        request |= {"sampling": asdict(sampling), "task": task.to_dict(), "priority": claim.order.priority}
        request["resume"] = self._resume(claim)
        text = task.messages[0][1] if task.messages else prompt
        beginning = hash((system, task.system, task.lora, text[:_BEGINNING]))
        _best_of(takers, beginning).take(claim, request, beginning, moved=moved)

    def _resume(self, claim: Claim) -> dict[str, Any] | None:
        done = self._lease.progress(claim)
        if done.key is None or not done.tokens:
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
        self._has_peers = sum(peer.model == self._model for peer in self._workspace.peers()) > 1

    def _announce(self) -> None:
        if not self._is_announced:
            self._lease.announce_ready(self._about_engines())
            self._is_announced = True

    def _about_engines(self) -> dict[str, Any]:
        """What the engines that are ready say of themselves, taken together."""
        ready = [replica.ready for replica in self._replicas if replica.ready]
        about = ready[0].to_dict() if ready else {}
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
                log.debug("%s%s is begun", replica.prefix, claim.id, extra=_about(claim, JobState.RUNNING))
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
                    self._fail(held.claim, "cancelled while it was being answered", "cancelled")
        for claim in [claim for claim in self._suspects if self._lease.is_cancelled(claim)]:
            self._suspects.remove(claim)
            self._fail(claim, "cancelled before it was begun again", "cancelled")

    def _end_overdue(self, now: float) -> None:
        for replica in self._replicas:
            for held in list(replica.jobs.values()):
                if held.deadline is not None and now >= held.deadline:
                    replica.drop(held.claim.id)
                    limit_s = held.claim.order.timeout
                    self._fail(held.claim, f"no answer within its timeout of {limit_s:g} s", "timeout")

    def _finish(
        self, replica: Replica, claim: Claim, answer: str, receipt: Receipt, beside: dict[str, bytes]
    ) -> None:
        end = f"cut at the {receipt.finish_reason} limit" if receipt.was_cut else "complete"
        speed = f", {receipt.tokens_per_second} tokens/s" if receipt.generated_tokens else ""
        done = f"{replica.prefix}{claim.id} done: {receipt.generated_tokens} tokens, {end}{speed}"

        def write() -> None:
            self._lease.finish(claim, answer, receipt, beside)
            log.info("%s", done, extra=_about(claim, JobState.DONE, receipt))

        self._release(claim)
        self._unfiled.append(write)

    def _fail(self, claim: Claim, reason: str, finish_reason: str = "error") -> None:
        receipt = Receipt.of_failure(claim.id, claim.queued, reason, finish_reason)
        receipt = receipt._replace(model=self._model, attempts=claim.begun + self.is_at_work(claim.id))
        self._file_failure(claim, reason, receipt, {})

    def _file_failure(self, claim: Claim, reason: str, receipt: Receipt, beside: dict[str, bytes]) -> None:
        def write() -> None:
            self._lease.fail(claim, reason, receipt, beside)
            log.warning("%s failed: %s", claim.id, reason, extra=_about(claim, JobState.FAILED, receipt))

        self._release(claim)
        self._unfiled.append(write)

    def _give_back(self, claims: list[Claim]) -> None:
        begun = [claim for claim in claims if self.is_at_work(claim.id)]
        for claim in claims:
            self._release(claim)
        self._unfiled.append(partial(self._lease.requeue, claims, begun))

    def _give_back_crashed(self, claim: Claim) -> None:
        self._release(claim)

        def write() -> None:
            self._lease.requeue([self._lease.record_crash(claim)])

        self._unfiled.append(write)

    def _release(self, claim: Claim) -> None:
        for replica in self._replicas:
            replica.release(claim.id)

    def _file_leftovers(self) -> None:
        """Make the moves that are due. The engines are heard in between: they may wait for a word to go on."""
        while self._unfiled:
            try:
                self._unfiled[0]()
            except LostRaceError as error:
                log.warning("%s", error)
            self._unfiled.pop(0)
            self._listen()
            if "recording starts" not in self._troubles:
                self._guarded("recording starts", self._start_recorded)

    def _guarded(self, name: str, action: Callable[[], None]) -> None:
        """Trouble with the workspace is said once and does not end the daemon: it goes on when that heals."""
        try:
            action()
        except LeaseLostError:
            raise
        except WorkspaceError as error:
            self._complain(name, f"{error}; trying again until it works")
        else:
            if name in self._troubles:
                del self._troubles[name]
                log.info("%s works again", name)

    def _complain(self, name: str, trouble: str) -> None:
        if trouble != self._troubles.get(name):
            log.error("%s", trouble)
        self._troubles[name] = trouble

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
                        self._finish(replica, claim, answer, receipt, beside)
                    else:
                        self._file_failure(claim, receipt.error, receipt._replace(attempts=claim.begun + 1), beside)
            case {"refused": job_id, "reason": reason}:
                if held := jobs.get(job_id):
                    self._fail(held.claim, reason)
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
        self._troubles.pop(f"{replica.prefix}engine", None)
        self._guarded("saying that it is ready", self._announce)
        shape = "%sready: %s on %s, %d jobs at a time, %d tokens each, %d threads"
        shown = (about.description, about.backend, about.parallel, about.context, about.threads)
        log.info(shape, replica.prefix, *shown)
        if is_first:
            self._guarded("counting jobs", partial(self._show_start_page, replica, about))
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
        crashed = replica.at_work
        if was_serving:
            self._is_announced = self._is_announced and len(self._replicas) == 1
        if smaller:
            died = "%sthe engine ended with %s for want of memory: starting another with %s"
            log.warning(died, replica.prefix, end, smaller)
        elif was_serving:
            died = "%sthe engine ended with %s, at work on %d jobs; starting another"
            log.error(died, replica.prefix, end, len(crashed))
        elif replica.trouble is None:
            self._cannot_start(
                replica,
                f"the engine ended with {end} while it loaded the model",
                f"the engine ended with {end} before it had loaded {self._path}; its log is above",
            )
        self._keep_progress()
        # Where it was too much for the machine, no job is to blame.
        for claim in () if smaller else crashed:
            if claim.crashes + 1 < MAX_CRASHES:
                self._give_back_crashed(claim)
            else:
                times = f"the engine died {claim.crashes + 1} times while it was at this job, last with {end}"
                self._fail(claim, f"{times}; the end of its log:\n{last_words}")
        if replica.jobs:
            self._give_back([held.claim for held in replica.jobs.values()])

    def _cannot_start(self, replica: Replica, trouble: str, reason: str) -> None:
        """Raises EngineError if none can, and none ever could."""
        replica.trouble = trouble
        if self._was_ready:
            self._is_announced = self._is_announced and len(self._replicas) == 1
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
                self._complain(f"{replica.prefix}engine", trouble)

    def _restart(self, replica: Replica) -> None:
        try:
            replica.start()
        except OSError as error:
            self._cannot_start(replica, f"the engine cannot start: {error}", str(error))
            replica.restart_later()


def _best_of(takers: Sequence[Replica], beginning: int) -> Replica:
    """The engine with most room; or one that knows how the job begins, unless it has so much less that it is full
    while another idles."""
    freest = max(takers, key=lambda replica: replica.free)
    knowing = [
        replica
        for replica in takers
        if replica.knows(beginning) and replica.free >= freest.free - replica.parallel // _UNEVENNESS
    ]
    return max(knowing or [freest], key=lambda replica: replica.free)


def _about(claim: Claim, state: JobState, receipt: Receipt | None = None) -> dict[str, Any]:
    """A job for the log's readers, in the fields of :data:`nrvna.logs.FIELDS`."""
    about: dict[str, Any] = {"job": claim.id, "state": state}
    if receipt:
        about |= {"tokens": receipt.generated_tokens, "tokens_per_second": receipt.tokens_per_second}
    return about


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
            signals.drain()
            if signals.reopen and config.log_file:
                signals.reopen = False
                with suppress(OSError):
                    log_to(config.log_file)
    finally:
        notify("STOPPING=1")
        daemon.stop()
    log.info("stopped")


def run_in_foreground(model: Path, workspace: Workspace, config: Config) -> int:
    """Serve until a signal comes; returns the exit code, with the reason on standard error if it is not 0."""
    starter = Starter()
    try:
        if config.log_file:
            log_to(config.log_file)
    except OSError as error:
        starter.tell({"failed": f"cannot write to the log file {config.log_file}: {error.strerror}"})
        print(f"nrvnad: cannot write to the log file {config.log_file}: {error.strerror}", file=sys.stderr)
        return 2
    logs.configure(config)
    try:
        serve(model, workspace, config, starter)
    except (NrvnaError, OSError) as error:
        starter.tell({"failed": str(error)})
        if config.log_json:
            log.error("%s", error)
        else:
            print(f"nrvnad: {error}", file=sys.stderr)
        return 2 if isinstance(error, ModelNotFoundError | NoFolderError) else 1
    return 0


def check(model: Path, config: Config) -> int:
    """Print whether a model will work here; 0 if so, else 1."""
    command = [sys.executable, "-P", "-m", "nrvna.engine", "--check"]
    request = pack({"path": str(model), "config": config.to_dict()})
    try:
        done = subprocess.run(command, input=request, env=engine_environment(config), process_group=0, check=False)
    except KeyboardInterrupt:
        return 130
    return 1 if done.returncode else 0


EPILOG = """\
Queue jobs with `wrk WORKSPACE PROMPT`, collect the answers with `flw WORKSPACE`. Jobs that are unfinished when it
stops go back into the queue. A second model in a workspace must be --named; jobs ask for it with `wrk --model NAME`.

examples:
  nrvnad ~/models/model.gguf ~/work              answer the jobs of the folder ~/work
  nrvnad --daemonize ~/models/model.gguf ~/work  the same, by itself: this returns once it is ready
  nrvnad --status ~/work                         whether one runs, and with what
  nrvnad --stop ~/work                           end it
  nrvnad --check ~/models/model.gguf             what the model is and whether it will work here
  nrvnad --tune ~/models/model.gguf              which settings are faster on this machine
  nrvnad --gpus 0,1 ~/models/model.gguf ~/work   with an engine on each of two GPUs, sharing the queue
  nrvnad --temp 0 ~/models/model.gguf ~/work     with a setting for the jobs that have none of their own

exit codes: 0 stopped as asked, or ready with --daemonize, 1 it could not start, with --check the model will
not work, with --stop one did not end, 2 usage, or no such model file, 3 with --status none runs, 4 with
--status it is not ready yet
"""
# Ways to call it that take one word, and which.
_ONE_WORD = {"check": "MODEL", "tune": "MODEL", "status": "WORKSPACE", "stop": "WORKSPACE"}
_WAYS = {
    "daemonize": "return when it is ready, and let it go on by itself; its log is WORKSPACE/.nrvna/nrvnad.log",
    "status": "say how the daemons of WORKSPACE are doing",
    "stop": "end the daemons of WORKSPACE, and wait until they have",
    "check": "say whether MODEL will work here, and exit 0 or 1",
    "tune": "try MODEL with several settings on this machine, and print those worth exporting",
}
_USAGE = """\
nrvnad [settings] [--daemonize] MODEL WORKSPACE
       nrvnad --status | --stop WORKSPACE
       nrvnad [settings] --check | --tune MODEL"""


def make_parser() -> Parser:
    """The command line of nrvnad. The first of two words is MODEL, one alone is what its option says."""
    parser = Parser(
        prog="nrvnad",
        usage=_USAGE,
        description="Answer the jobs of a workspace with a local GGUF model, until Ctrl-C.",
        epilog=EPILOG,
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a .gguf file")
    parser.add_argument("workspace", nargs="?", metavar="WORKSPACE", help="a folder; made if it does not exist")
    ways = parser.add_mutually_exclusive_group()
    for way, words in _WAYS.items():
        ways.add_argument(f"--{way}", dest="way", action="store_const", const=way, help=words)
    parser.add_argument(
        "--within", metavar="SECONDS", help=f"how long --tune may take at most; {TUNE_S} unless told otherwise"
    )
    parser.add_argument("--version", action="version", version=f"nrvna {__version__}")
    add_options(parser)
    return parser


def _check_words(parser: Parser, options: Namespace) -> None:
    """Ends the process if the words and options do not suit the way that was chosen."""
    way = options.way
    if wanted := _ONE_WORD.get(way):
        if options.model is None:
            parser.error(f"--{way} needs a {wanted}: nrvnad --{way} {wanted}")
        if options.workspace is not None:
            hint = "; a text that ends answers is --stop-text" if way == "stop" else ""
            parser.error(f"--{way} takes a {wanted} alone, not {options.workspace!r} as well{hint}")
    elif options.model is None:
        parser.error("name a model and a workspace: nrvnad MODEL WORKSPACE")
    elif not options.workspace:
        parser.error("name a workspace too: nrvnad MODEL WORKSPACE")
    if wanted == "WORKSPACE":
        for setting in SETTINGS:
            if getattr(options, setting.field) is not None:
                parser.error(f"{setting.daemon_option} is for a daemon that starts, not for --{way}")
    if options.within is not None and way != "tune":
        parser.error("--within is for --tune alone")


def main(argv: list[str] | None = None) -> int:
    open_streams("nrvnad")
    parser = make_parser()
    given = sys.argv[1:] if argv is None else argv
    options = parser.read(given)
    _check_words(parser, options)
    if _ONE_WORD.get(options.way) == "WORKSPACE":
        return _look_after(options.way, Workspace(options.model))
    texts = {setting: getattr(options, setting.field) for setting in SETTINGS}
    try:
        config = from_environment({setting.field: text for setting, text in texts.items()})
        within_s = tune_seconds(options.within)
    except SettingError as error:
        print(f"nrvnad: {error}", file=sys.stderr)
        return 2
    model = Path(options.model)
    if options.way == "check":
        return check(model, first_place(config))
    # Imported here: most daemons are started without.
    if options.way == "tune":
        from nrvna.tune import tune

        return tune(model, first_place(config), within_s)
    workspace = Workspace(options.workspace)
    if options.way == "daemonize":
        from nrvna.control import daemonize

        return daemonize(model, workspace, config, texts)
    return run_in_foreground(model, workspace, config)


def tune_seconds(text: str | None) -> int:
    """How long ``--tune`` may take. Raises SettingError."""
    if text is None:
        return TUNE_S
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= _MAX_TUNE_S:
        raise SettingError(f"--within is {text!r}, but must be a whole number of seconds from 1 to {_MAX_TUNE_S}")
    return int(text)


def _look_after(way: str, workspace: Workspace) -> int:
    """``--stop`` and ``--status``."""
    from nrvna import control

    try:
        return control.stop(workspace) if way == "stop" else control.status(workspace)
    except WorkspaceError as error:
        print(f"nrvnad: {error}", file=sys.stderr)
        return control.USAGE
    except KeyboardInterrupt:
        return control.INTERRUPTED


def run() -> None:
    """The installed command ``nrvnad``."""
    sys.exit(main())


if __name__ == "__main__":
    run()
