"""The daemon: claims jobs from a workspace, hands them to its engine and files what comes back.

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
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from nrvna import __version__, logs
from nrvna.arguments import Parser
from nrvna.config import SETTINGS, Config, add_options, engine_environment, from_environment, of_job
from nrvna.engine.process import EngineProcess
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
from nrvna.progress import first_line, token_line
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
# A small model is there before this; of a large one it is said how far it is.
SAY_LOADING_EVERY_S = 2.0
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
_MAX_RESTART_DELAY_S = 30.0


class Daemon:
    """One workspace, one model, one engine. ``start``, then ``tick`` until it is enough, then ``stop``.

    ``starter`` is told how the start goes.
    """

    def __init__(self, workspace: Workspace, model: Path, config: Config, starter: Starter | None = None) -> None:
        self._starter = starter or Starter()
        self._workspace = workspace
        self._path = model
        self._model = fingerprint(model)
        self._config = config
        self._claims: dict[str, Claim] = {}
        # Jobs that the engine is at, as opposed to those that wait in it.
        self._at_work: set[str] = set()
        # Jobs that the engine answers with another's answer.
        self._joined: set[str] = set()
        # When those that may be at work for a limited time have had it.
        self._deadlines: dict[str, float] = {}
        # Jobs that the engine would decode, once that is on record.
        self._unstarted: list[str] = []
        # What was added to answers and is not written down yet.
        self._fresh: dict[str, list[bytes]] = {}
        self._has_peers = False
        # Claimed, but it was at work when the engine died: it waits until it can run alone.
        self._suspect: Claim | None = None
        # Moves that are still to be made, or that the disk would not take yet.
        self._unfiled: list[Callable[[], None]] = []
        self._ready: Ready | None = None
        self._was_ready = False
        self._is_announced = True
        self._say_loading_at = time.monotonic() + SAY_LOADING_EVERY_S
        self._tell_loading_at = 0.0
        self._heard_at = 0.0
        self._hung = False
        self._restart_at: float | None = None
        self._restart_delay = 1.0
        self._tend_at = 0.0
        self._sweep_at = 0.0
        self._keep_at = 0.0
        self._troubles: dict[str, str] = {}
        self.engine: EngineProcess | None = None

    def start(self) -> None:
        """Register with the workspace and start the engine. Raises WorkspaceError."""
        self._workspace.create()
        self._lease = Lease(self._workspace, self._model, self._path.name, named=self._config.named)
        self._wake = self._workspace.open_wake()
        self.engine = EngineProcess(self._path, self._model, self._config)

    def tick(self, timeout_s: float, also: int | None = None) -> None:
        """Wait for something to happen, at most that long, and deal with it.

        ``also`` is a further descriptor that ends the wait. Raises EngineError if the engine cannot start at all,
        LeaseLostError if the workspace is gone for good.
        """
        readable = [fd for fd in (self._wake, also) if fd is not None]
        writable = []
        if self.engine:
            readable += [self.engine.stdout, self.engine.stderr]
            if self.engine.has_unsent:
                writable.append(self.engine.stdin)
        woken = select.select(readable, writable, (), timeout_s)[0]
        if self._wake in woken:
            with suppress(BlockingIOError):
                os.read(self._wake, 1 << 16)
        self._listen()
        now = time.monotonic()
        self._watch(now)
        if self._restart_at is not None and now >= self._restart_at:
            self._restart()
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
        """Hand back what is unfinished, end the engine, leave the workspace."""
        # What the engine has to say of its own end is of no interest any more.
        with suppress(EngineError):
            self._listen()
            self._guarded("filing results", self._file_leftovers)
        self._keep_progress()
        unfinished = [*self._claims.values(), *([self._suspect] if self._suspect else [])]
        if unfinished:
            self._give_back(unfinished)
            log.info("handing back %d unfinished jobs", len(unfinished))
        if self.engine:
            self.engine.stop(_STOP_PATIENCE_S)
            self.engine = None
        self._guarded("filing results", self._file_leftovers)
        if self._unfiled:
            log.error("%d results could not be written: these jobs are answered again", len(self._unfiled))
        self._lease.close()

    # The workspace's side.

    def _claim(self) -> None:
        """Keep the engine busy, with some more jobs at hand among which it finds those that begin alike."""
        if self._ready is None or self.engine is None or self._unfiled or self._unstarted:
            return
        # What this daemon holds back, another one cannot answer.
        look_ahead = 1 + self._ready.parallel // 2 if self._has_peers else _LOOK_AHEAD
        # Those that joined another cost nothing but their place in memory.
        capacity = self._ready.parallel + look_ahead + min(len(self._joined), _MAX_JOINED)
        # The engine lets them begin before those that it has at hand.
        capacity += min(self._lease.urgent, self._ready.parallel)
        # Bounded, as jobs that fail at once fill no slot: signals and the engine are heard in between.
        for _ in range(capacity - len(self._claims)):
            is_alone = any(claim.crashes for claim in self._claims.values())
            if is_alone or (self._suspect and self._claims):
                return
            system = self._workspace.context()
            claim, self._suspect = self._suspect or self._lease.claim(), None
            if claim is None:
                return
            if claim.crashes and self._claims:
                self._suspect = claim
                return
            self._hand_over(self.engine, claim, system)

    def _hand_over(self, engine: EngineProcess, claim: Claim, system: str | None) -> None:
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
        if not self._claims:
            self._heard_at = time.monotonic()
        self._claims[claim.id] = claim
        request: dict[str, Any] = {"id": claim.id, "prompt": prompt, "queued": claim.queued, "system": system}
        request |= {"sampling": asdict(sampling), "task": task.to_dict(), "priority": claim.order.priority}
        request["resume"] = self._resume(claim)
        engine.send({"add": request})

    def _resume(self, claim: Claim) -> dict[str, Any] | None:
        done = self._lease.progress(claim)
        if done.key is None or not done.tokens:
            return None
        return {"key": done.key, "seed": done.seed, "tokens": done.tokens, "draws": done.draws}

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
            self._lease.announce_ready(self._ready.to_dict() if self._ready else None)
            self._is_announced = True

    def _start_recorded(self) -> None:
        """Let the engine decode what it has room for: it is on record first."""
        if self._unstarted and self.engine:
            starting = [self._claims[job_id] for job_id in self._unstarted if job_id in self._claims]
            self._lease.record_starts(starting)
            self._at_work.update(claim.id for claim in starting)
            now = time.monotonic()
            self._deadlines.update({claim.id: now + claim.order.timeout for claim in starting if claim.order.timeout})
            for claim in starting:
                log.debug("%s is begun", claim.id, extra=_about(claim, JobState.RUNNING))
            self.engine.send({"go": self._unstarted})
            self._unstarted = []

    def _keep_progress(self) -> None:
        """Write down what was added to the answers, one write for each."""
        for job_id, lines in list(self._fresh.items()):
            claim = self._claims.get(job_id)
            if claim is None or self._lease.append_progress(claim, b"".join(lines)):
                del self._fresh[job_id]

    def _cancel_marked(self) -> None:
        for claim in list(self._claims.values()):
            if self._lease.is_cancelled(claim):
                if self.engine:
                    self.engine.send({"drop": claim.id})
                self._fail(claim, "cancelled while it was being answered", "cancelled")

    def _end_overdue(self, now: float) -> None:
        for job_id in [job_id for job_id, deadline in self._deadlines.items() if now >= deadline]:
            claim = self._claims[job_id]
            if self.engine:
                self.engine.send({"drop": job_id})
            self._fail(claim, f"no answer within its timeout of {claim.order.timeout:g} s", "timeout")

    def _finish(self, claim: Claim, answer: str, receipt: Receipt, beside: dict[str, bytes]) -> None:
        end = f"cut at the {receipt.finish_reason} limit" if receipt.was_cut else "complete"
        speed = f", {receipt.tokens_per_second} tokens/s" if receipt.generated_tokens else ""
        done = f"{claim.id} done: {receipt.generated_tokens} tokens, {end}{speed}"

        def write() -> None:
            self._lease.finish(claim, answer, receipt, beside)
            log.info("%s", done, extra=_about(claim, JobState.DONE, receipt))

        self._release(claim)
        self._unfiled.append(write)

    def _fail(self, claim: Claim, reason: str, finish_reason: str = "error") -> None:
        receipt = Receipt.of_failure(claim.id, claim.queued, reason, finish_reason)
        receipt = receipt._replace(model=self._model, attempts=claim.begun + (claim.id in self._at_work))
        self._file_failure(claim, reason, receipt, {})

    def _file_failure(self, claim: Claim, reason: str, receipt: Receipt, beside: dict[str, bytes]) -> None:
        def write() -> None:
            self._lease.fail(claim, reason, receipt, beside)
            log.warning("%s failed: %s", claim.id, reason, extra=_about(claim, JobState.FAILED, receipt))

        self._release(claim)
        self._unfiled.append(write)

    def _give_back(self, claims: list[Claim]) -> None:
        begun = [claim for claim in claims if claim.id in self._at_work]
        for claim in claims:
            self._release(claim)
        self._unfiled.append(partial(self._lease.requeue, claims, begun))

    def _give_back_crashed(self, claim: Claim) -> None:
        self._release(claim)

        def write() -> None:
            self._lease.requeue([self._lease.record_crash(claim)])

        self._unfiled.append(write)

    def _release(self, claim: Claim) -> None:
        self._claims.pop(claim.id, None)
        self._at_work.discard(claim.id)
        self._joined.discard(claim.id)
        self._deadlines.pop(claim.id, None)
        self._fresh.pop(claim.id, None)

    def _file_leftovers(self) -> None:
        """Make the moves that are due. The engine is heard in between: it may wait for a word to go on."""
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

    # The engine's side.

    def _listen(self) -> None:
        """Deal with what the engine said since, without waiting."""
        if not self.engine:
            return
        self.engine.flush()
        self.engine.pass_on_log()
        messages = self.engine.receive()
        if messages:
            self._heard_at = time.monotonic()
        for message in messages or ():
            self._hear(message)
        if messages is None:
            self._bury_engine(self.engine)

    def _watch(self, now: float) -> None:
        """An engine that has jobs and says nothing for long is hung, or as good as that."""
        patience = self._config.stall
        waits_for_us = self._unstarted or not self._claims
        if self.engine and self._ready and patience and not waits_for_us and now - self._heard_at > patience:
            if not self._hung:
                log.error("the engine made no progress for %d s: ending it", patience)
                self.engine.kill()
            self._hung = True

    def _hear(self, message: dict[str, Any]) -> None:
        """Deal with one message of the engine (see engine/protocol.py)."""
        match message:
            case {"new": pieces}:
                for job_id, (token, text, draws) in pieces.items():
                    if job_id not in self._claims:
                        continue
                    self._fresh.setdefault(job_id, []).append(token_line(token, text, draws))
            case {"reads": job_id} if job_id in self._claims:
                self._at_work.add(job_id)
            case {"waits": job_id}:
                self._at_work.discard(job_id)
            case {"joins": job_id, "text": text}:
                if claim := self._claims.get(job_id):
                    self._joined.add(job_id)
                    self._lease.cut_progress(claim, 0)
                    self._fresh[job_id] = [first_line(None, 0), token_line(None, text)]
            case {"starts": starts}:
                for job_id, start in starts.items():
                    # Also if it was cancelled meanwhile: others may wait for its answer.
                    self._unstarted.append(job_id)
                    if claim := self._claims.get(job_id):
                        self._lease.cut_progress(claim, start["kept"])
                        if not start["kept"]:
                            self._fresh[job_id] = [first_line(start["key"], start["seed"])]
            case {"done": job_id, "answer": answer, "receipt": about, "beside": packed}:
                if claim := self._claims.get(job_id):
                    receipt, beside = Receipt.from_dict(about), unpack_files(packed)
                    if receipt.error is None:
                        self._finish(claim, answer, receipt, beside)
                    else:
                        self._file_failure(claim, receipt.error, receipt._replace(attempts=claim.begun + 1), beside)
            case {"refused": job_id, "reason": reason}:
                if claim := self._claims.get(job_id):
                    self._fail(claim, reason)
            case {"loading": fraction}:
                if time.monotonic() >= self._tell_loading_at or fraction >= 1:
                    self._tell_loading_at = time.monotonic() + TELL_LOADING_EVERY_S
                    self._starter.tell({"loading": fraction})
                if time.monotonic() >= self._say_loading_at:
                    self._say_loading_at = time.monotonic() + SAY_LOADING_EVERY_S
                    log.info("loading the model: %d %%", 100 * fraction)
            case {"ready": about}:
                self._be_ready(Ready(**about))
            case {"fatal": reason}:
                if not self._was_ready:
                    raise EngineError(reason)
                self._complain("engine", f"the engine cannot start: {reason}; trying again until it works")

    def _be_ready(self, about: Ready) -> None:
        self._ready = about
        is_first, self._was_ready = not self._was_ready, True
        self._is_announced = False
        self._restart_delay = 1.0
        self._troubles.pop("engine", None)
        self._guarded("saying that it is ready", self._announce)
        shape = "ready: %s on %s, %d jobs at a time, %d tokens each, %d threads"
        log.info(shape, about.description, about.backend, about.parallel, about.context, about.threads)
        if is_first:
            self._guarded("counting jobs", partial(self._show_start_page, about))
            self._starter.tell({"ready": ""})
        elif about.offloaded:
            log.info("offloaded: %s", offloaded(about))
        notify("READY=1")

    def _show_start_page(self, about: Ready) -> None:
        others = [peer for peer in self._workspace.peers() if peer.pid != os.getpid()]
        queued = self._workspace.counts().queued
        attended = sys.stderr.isatty()
        path = os.path.abspath(self._workspace.path)  # noqa: PTH100 - it is a string everywhere
        page = start_page(about, self._model, self._config, path, queued=queued, peers=others, has_terminal=attended)
        if log.isEnabledFor(logging.INFO):
            if attended and not self._config.log_json:
                print(*page, sep="\n", file=sys.stderr)
            else:
                for line in page:
                    log.info("%s", line)
        self._starter.tell({"ready": "\n".join(page)})

    def _bury_engine(self, engine: EngineProcess) -> None:
        """The engine died: those it was at gain a crash, all go back, and another engine is started soon."""
        self.engine, was_serving = None, self._ready is not None
        self._ready = None
        end = engine.wait()
        if self._hung:
            end, self._hung = f"no progress for {self._config.stall} s", False
        if not self._was_ready:
            raise EngineError(f"the engine ended with {end} before it had loaded {self._path}; its log is above")
        if was_serving:
            log.error("the engine ended with %s, at work on %d jobs; starting another", end, len(self._at_work))
        elif "engine" not in self._troubles:
            self._complain("engine", f"the engine ended with {end} while it loaded the model; trying again")
        self._keep_progress()
        self._unstarted.clear()
        crashed = [claim for claim in self._claims.values() if claim.id in self._at_work]
        for claim in crashed:
            if claim.crashes + 1 < MAX_CRASHES:
                self._give_back_crashed(claim)
            else:
                times = f"the engine died {claim.crashes + 1} times while it was at this job, last with {end}"
                self._fail(claim, f"{times}; the end of its log:\n{engine.last_words}")
        if self._claims:
            self._give_back(list(self._claims.values()))
        self._restart_later()

    def _restart_later(self) -> None:
        self._restart_at = time.monotonic() + self._restart_delay
        self._restart_delay = min(2 * self._restart_delay, _MAX_RESTART_DELAY_S)

    def _restart(self) -> None:
        self._restart_at = None
        self._say_loading_at = time.monotonic() + SAY_LOADING_EVERY_S
        try:
            self.engine = EngineProcess(self._path, self._model, self._config)
        except OSError as error:
            self._complain("engine", f"the engine cannot start: {error}")
            self._restart_later()


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
    open_streams()
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
        return check(model, config)
    # Imported here: most daemons are started without.
    if options.way == "tune":
        from nrvna.tune import tune

        return tune(model, config, within_s)
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
