"""The daemon: claims jobs from a workspace, hands them to its engine and files what comes back.

Standard library only; the model lives in a child process, so that whatever kills that costs no answer.
"""

from __future__ import annotations

import argparse
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from nrvna import __version__
from nrvna.config import LOG_LEVELS, SETTINGS, Config, add_options, engine_environment, from_environment, of_job
from nrvna.engine.process import EngineProcess
from nrvna.engine.protocol import Ready, pack
from nrvna.errors import (
    EngineError,
    JobError,
    LeaseLostError,
    LostRaceError,
    ModelNotFoundError,
    NrvnaError,
    SettingError,
    WorkspaceError,
)
from nrvna.job import Receipt, timestamp
from nrvna.workspace import Claim, Workspace

log = logging.getLogger("nrvna")

# How often an idle daemon looks for itself: for jobs made by hand, and those that a peer's wake-up swallowed.
LOOK_EVERY_S = 0.25
# How often it looks for the jobs of dead peers, and tries again what the disk refused.
TEND_EVERY_S = 2.0
# A small model is there before this; of a large one it is said how far it is.
SAY_LOADING_EVERY_S = 2.0
# A job that was being answered this often when the engine died is set aside.
MAX_CRASHES = 3
# Jobs claimed beyond those that run, to find some among them that begin alike.
_LOOK_AHEAD = 24
_MAX_JOINED = 1000
_STOP_PATIENCE_S = 2.0
_MAX_RESTART_DELAY_S = 30.0


class Daemon:
    """One workspace, one model, one engine. ``start``, then ``tick`` until it is enough, then ``stop``."""

    def __init__(self, workspace: Workspace, model: Path, config: Config) -> None:
        self._workspace = workspace
        self._path = model
        self._model = fingerprint(model)
        self._config = config
        self._claims: dict[str, Claim] = {}
        # Jobs that the engine is at, as opposed to those that wait in it.
        self._at_work: set[str] = set()
        # Jobs that the engine answers with another's answer.
        self._joined: set[str] = set()
        self._has_peers = False
        # Claimed, but it was at work when the engine died: it waits until it can run alone.
        self._suspect: Claim | None = None
        # Moves that the disk would not take yet.
        self._unfiled: list[Callable[[], None]] = []
        self._ready: Ready | None = None
        self._was_ready = False
        self._say_loading_at = time.monotonic() + SAY_LOADING_EVERY_S
        self._restart_at: float | None = None
        self._restart_delay = 1.0
        self._tend_at = 0.0
        self._troubles: dict[str, str] = {}
        self.engine: EngineProcess | None = None

    def start(self) -> None:
        """Register with the workspace and start the engine. Raises WorkspaceError."""
        self._workspace.create()
        self._lease = self._workspace.lease(self._model)
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
            readable.append(self.engine.stdout)
            if self.engine.has_unsent:
                writable.append(self.engine.stdin)
        woken = select.select(readable, writable, (), timeout_s)[0]
        if self._wake in woken:
            with suppress(BlockingIOError):
                os.read(self._wake, 1 << 16)
        if self.engine:
            self.engine.flush()
            messages = self.engine.receive()
            for message in messages or ():
                self._hear(message)
            if messages is None:
                self._bury_engine(self.engine.wait())
        now = time.monotonic()
        if self._restart_at is not None and now >= self._restart_at:
            self._restart()
        if now >= self._tend_at:
            self._tend_at = now + TEND_EVERY_S
            self._guarded("file", self._file_leftovers)
            self._guarded("recover", self._recover)
            self._guarded("peers", self._count_peers)
        self._guarded("claim", self._claim)

    def stop(self) -> None:
        """Hand back what is unfinished, end the engine, leave the workspace."""
        unfinished = [*self._claims.values(), *([self._suspect] if self._suspect else [])]
        for claim in unfinished:
            self._give_back(claim)
        if unfinished:
            log.info("handed back %d unfinished jobs", len(unfinished))
        if self.engine:
            self.engine.stop(_STOP_PATIENCE_S)
        self._lease.close()

    # The workspace's side.

    def _claim(self) -> None:
        """Keep the engine busy, with some more jobs at hand among which it finds those that begin alike."""
        if self._ready is None or self.engine is None or self._unfiled:
            return
        # What this daemon holds back, another one cannot answer.
        look_ahead = 1 + self._ready.parallel // 2 if self._has_peers else _LOOK_AHEAD
        # Those that joined another cost nothing but their place in memory.
        capacity = self._ready.parallel + look_ahead + min(len(self._joined), _MAX_JOINED)
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
            prompt = self._lease.prompt(claim)
            sampling = of_job(self._config.sampling, claim.settings)
        except (JobError, SettingError) as error:
            self._fail(claim, str(error))
            return
        self._claims[claim.id] = claim
        request = {"id": claim.id, "prompt": prompt, "queued": claim.queued, "system": system}
        engine.send({"add": {**request, "sampling": asdict(sampling)}})

    def _recover(self) -> None:
        if recovered := self._workspace.recover():
            log.info("put %d jobs of a daemon that died back into the queue", len(recovered))

    def _count_peers(self) -> None:
        self._has_peers = len(self._workspace.peers()) > 1

    def _finish(self, claim: Claim, answer: str, receipt: Receipt) -> None:
        end = f"cut at the {receipt.finish_reason} limit" if receipt.was_cut else "complete"
        done = f"{claim.id} done: {receipt.generated_tokens} tokens, {end}, {receipt.tokens_per_second} tokens/s"

        def write() -> None:
            self._lease.finish(claim, answer, receipt)
            log.info("%s", done)

        self._release(claim)
        self._file(write)

    def _fail(self, claim: Claim, reason: str) -> None:
        receipt = Receipt(
            id=claim.id,
            finish_reason="error",
            queued=claim.queued,
            finished=timestamp(time.time()),
            nrvna=__version__,
            model=self._model,
            error=reason,
        )

        def write() -> None:
            self._lease.fail(claim, reason, receipt)
            log.warning("%s failed: %s", claim.id, reason)

        self._release(claim)
        self._file(write)

    def _give_back(self, claim: Claim) -> None:
        self._release(claim)
        self._file(partial(self._lease.requeue, claim))

    def _release(self, claim: Claim) -> None:
        self._claims.pop(claim.id, None)
        self._at_work.discard(claim.id)
        self._joined.discard(claim.id)

    def _file(self, move: Callable[[], None]) -> None:
        """Do it now, or keep it in memory until the disk takes it."""
        self._unfiled.append(move)
        self._guarded("file", self._file_leftovers)

    def _file_leftovers(self) -> None:
        while self._unfiled:
            try:
                self._unfiled[0]()
            except LostRaceError as error:
                log.warning("%s", error)
            self._unfiled.pop(0)

    def _guarded(self, name: str, action: Callable[[], None]) -> None:
        """Trouble with the workspace is said once and does not end the daemon: it goes on when that heals."""
        try:
            action()
        except LeaseLostError:
            raise
        except WorkspaceError as error:
            if str(error) != self._troubles.get(name):
                log.error("%s; trying again until it works", error)
            self._troubles[name] = str(error)
        else:
            self._troubles.pop(name, None)

    # The engine's side.

    def _hear(self, message: dict[str, Any]) -> None:
        """Deal with one message of the engine (see engine/protocol.py)."""
        match message:
            case {"text": texts}:
                for job_id, text in texts.items():
                    if claim := self._claims.get(job_id):
                        self._lease.append_partial(claim, text)
            case {"begins": job_id}:
                self._at_work.add(job_id)
            case {"waits": job_id}:
                self._at_work.discard(job_id)
            case {"joins": job_id}:
                self._joined.add(job_id)
            case {"done": job_id, "answer": answer, "receipt": receipt}:
                if claim := self._claims.get(job_id):
                    self._finish(claim, answer, Receipt.from_dict(receipt))
            case {"refused": job_id, "reason": reason}:
                if claim := self._claims.get(job_id):
                    self._fail(claim, reason)
            case {"loading": fraction}:
                if time.monotonic() >= self._say_loading_at:
                    self._say_loading_at = time.monotonic() + SAY_LOADING_EVERY_S
                    log.info("loading the model: %d %%", 100 * fraction)
            case {"ready": about}:
                self._be_ready(Ready(**about))
            case {"fatal": reason}:
                if not self._was_ready:
                    raise EngineError(reason)
                log.error("the engine cannot start: %s", reason)

    def _be_ready(self, about: Ready) -> None:
        self._ready = about
        self._was_ready = True
        self._restart_delay = 1.0
        self._guarded("announce", self._lease.announce_ready)
        shape = "ready: %s on %s, %d jobs at a time, %d tokens each, %d threads"
        log.info(shape, about.description, about.backend, about.parallel, about.context, about.threads)

    def _bury_engine(self, end: str) -> None:
        """The engine died: those it was at gain a crash, all go back, and another engine is started soon."""
        self.engine, self._ready = None, None
        if not self._was_ready:
            raise EngineError(f"the engine ended with {end} before it had loaded the model; its log is above")
        log.error("the engine ended with %s, at work on %d jobs; starting another", end, len(self._at_work))
        for claim in list(self._claims.values()):
            suspect = claim
            if claim.id in self._at_work:
                with suppress(WorkspaceError):
                    suspect = self._lease.record_crash(claim)
            if suspect.crashes >= MAX_CRASHES:
                self._fail(
                    suspect, f"the engine died {suspect.crashes} times while it was at this job, last with {end}"
                )
            else:
                self._give_back(suspect)
        self._restart_later()

    def _restart_later(self) -> None:
        self._restart_at = time.monotonic() + self._restart_delay
        self._restart_delay = min(2 * self._restart_delay, _MAX_RESTART_DELAY_S)

    def _restart(self) -> None:
        self._restart_at = None
        try:
            self.engine = EngineProcess(self._path, self._model, self._config)
        except OSError as error:
            log.error("the engine cannot start: %s", error)
            self._restart_later()


def fingerprint(model: Path) -> dict[str, Any]:
    """What tells a model file from another without reading it: absolute path, bytes, modification time.

    Raises ModelNotFoundError.
    """
    try:
        about = model.stat()
    except OSError as error:
        raise ModelNotFoundError(f"no model file {model}: {error.strerror}") from error
    return {"path": str(model.resolve()), "size": about.st_size, "mtime_ns": about.st_mtime_ns}


class _Signals:
    """SIGTERM, SIGINT and a closed terminal ask for an orderly end; a second one ends the process at once.

    That is safe too: the jobs are put back when the next daemon starts.
    """

    def __init__(self) -> None:
        self.descriptor, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self.stop = False
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # nohup and a shell's background jobs have asked that some be ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    def _on_signal(self, *_: object) -> None:
        if self.stop:
            os._exit(1)
        self.stop = True


def serve(model: Path, workspace: Workspace, config: Config) -> None:
    """Answer the jobs of a workspace until a signal says to stop. Raises NrvnaError if it cannot begin."""
    signals = _Signals()
    daemon = Daemon(workspace, model, config)
    daemon.start()
    log.info("nrvnad %s, process %d: %s answers %s", __version__, os.getpid(), model, workspace.path)
    try:
        while not signals.stop:
            daemon.tick(LOOK_EVERY_S, signals.descriptor)
    finally:
        daemon.stop()
    log.info("stopped")


def check(model: Path, config: Config) -> int:
    """Print whether a model will work here; 0 if so, else 1."""
    command = [sys.executable, "-P", "-m", "nrvna.engine", "--check"]
    request = pack({"path": str(model), "config": config.to_dict()})
    try:
        done = subprocess.run(command, input=request, env=engine_environment(config), process_group=0, check=False)
    except KeyboardInterrupt:
        return 130
    return 1 if done.returncode else 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="nrvnad",
        usage="nrvnad [settings] MODEL WORKSPACE\n       nrvnad [settings] --check MODEL",
        description="Answer the jobs of a workspace with a local GGUF model, until Ctrl-C.",
        epilog="Queue jobs with `wrk WORKSPACE PROMPT`, collect the answers with `flw WORKSPACE`. "
        "Jobs that are unfinished when it stops go back into the queue.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="a .gguf file")
    parser.add_argument("workspace", nargs="?", metavar="WORKSPACE", help="a folder; made if it does not exist")
    parser.add_argument("--check", action="store_true", help="say whether MODEL will work here, and exit 0 or 1")
    parser.add_argument("--version", action="version", version=f"nrvna {__version__}")
    add_options(parser)
    options = parser.parse_args(argv)
    try:
        config = from_environment({setting.field: getattr(options, setting.field) for setting in SETTINGS})
    except SettingError as error:
        print(f"nrvnad: {error}", file=sys.stderr)
        return 2
    if options.check:
        return check(options.model, config)
    if not options.workspace:
        parser.error("name a workspace too: nrvnad MODEL WORKSPACE")
    logging.basicConfig(format="%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")
    log.setLevel(LOG_LEVELS[config.log_level])
    try:
        serve(options.model, Workspace(options.workspace), config)
    except (NrvnaError, OSError) as error:
        print(f"nrvnad: {error}", file=sys.stderr)
        return 1
    return 0


def run() -> None:
    """The installed command ``nrvnad``."""
    sys.exit(main())


if __name__ == "__main__":
    run()
