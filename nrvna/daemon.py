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
from nrvna.config import SETTINGS, Config, add_options, engine_environment, from_environment
from nrvna.engine.process import EngineProcess
from nrvna.engine.protocol import Ready, pack
from nrvna.errors import EngineError, JobError, ModelNotFoundError, NrvnaError, SettingError, WorkspaceError
from nrvna.job import Receipt, timestamp
from nrvna.workspace import Claim, Workspace

log = logging.getLogger("nrvna")

# How often an idle daemon looks for itself: for jobs made by hand, and those that a peer's wake-up swallowed.
LOOK_EVERY_S = 0.25
# How often it looks for the jobs of dead peers, and tries again what the disk refused.
TEND_EVERY_S = 2.0
# A job that was being answered this often when the engine died is set aside.
MAX_CRASHES = 3
_STOP_PATIENCE_S = 2.0
_MAX_RESTART_DELAY_S = 30.0
_LEVELS = {"error": logging.ERROR, "warn": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG}


class Daemon:
    """One workspace, one model, one engine. ``start``, then ``tick`` until it is enough, then ``stop``."""

    def __init__(self, workspace: Workspace, model: Path, config: Config) -> None:
        self._workspace = workspace
        self._path = model
        self._model = fingerprint(model)
        self._config = config
        self._claims: dict[str, Claim] = {}
        self._started: set[str] = set()
        # Finished jobs that the disk would not take yet.
        self._unfiled: list[Callable[[], None]] = []
        self._ready: Ready | None = None
        self._restart_at: float | None = None
        self._restart_delay = 1.0
        self._tend_at = 0.0
        self._trouble = ""
        self.engine: EngineProcess | None = None

    def start(self) -> None:
        """Register with the workspace and start the engine. Raises WorkspaceError."""
        self._workspace.create()
        self._lease = self._workspace.lease(self._model)
        self._wake = self._workspace.open_wake()
        self.engine = EngineProcess(self._path, self._model, self._config)

    @property
    def is_ready(self) -> bool:
        return self._ready is not None

    def tick(self, timeout_s: float, also: int | None = None) -> None:
        """Wait for something to happen, at most that long, and deal with it.

        ``also`` is a further descriptor that ends the wait. Raises EngineError if the engine cannot start at all.
        """
        descriptors = [fd for fd in (self._wake, also) if fd is not None]
        if self.engine:
            descriptors.append(self.engine.descriptor)
        readable = select.select(descriptors, (), (), timeout_s)[0]
        if self._wake in readable:
            with suppress(BlockingIOError):
                os.read(self._wake, 1 << 16)
        if self.engine:
            messages = self.engine.receive()
            if messages is None:
                self._bury_engine(self.engine)
            for message in messages or ():
                self._hear(message)
        now = time.monotonic()
        if self._restart_at is not None and now >= self._restart_at:
            self._restart_at = None
            self.engine = EngineProcess(self._path, self._model, self._config)
        if now >= self._tend_at:
            self._tend_at = now + TEND_EVERY_S
            self._guarded(self._tend)
        self._guarded(self._claim)

    def stop(self) -> None:
        """Hand back what is unfinished, end the engine, leave the workspace."""
        for claim in self._claims.values():
            self._guarded(partial(self._lease.requeue, claim))
        if self._claims:
            log.info("handed back %d unfinished jobs", len(self._claims))
        if self.engine:
            self.engine.stop(_STOP_PATIENCE_S)
        self._guarded(self._file_leftovers)
        self._lease.close()

    # The workspace's side.

    def _claim(self) -> None:
        """Keep the engine's slots filled, and a few jobs at hand for the slots that come free."""
        if self._ready is None or self.engine is None or self._unfiled:
            return
        capacity = self._ready.slots + self._ready.slots // 2 + 1
        while len(self._claims) < capacity:
            system = self._workspace.context()
            claim = self._lease.claim()
            if claim is None:
                return
            try:
                prompt = self._lease.prompt(claim)
            except JobError as error:
                self._fail(claim, str(error))
                continue
            self._claims[claim.id] = claim
            request = {"id": claim.id, "prompt": prompt, "queued": claim.queued, "system": system}
            self.engine.send({"add": {**request, "sampling": asdict(self._config.sampling)}})

    def _tend(self) -> None:
        self._file_leftovers()
        if recovered := self._workspace.recover():
            log.info("put %d jobs of a daemon that died back into the queue", len(recovered))

    def _file_leftovers(self) -> None:
        while self._unfiled:
            self._unfiled[0]()
            self._unfiled.pop(0)

    def _finish(self, claim: Claim, answer: str, receipt: Receipt) -> None:
        self._release(claim)
        self._file(partial(self._lease.finish, claim, answer, receipt))
        log.info(
            "%s done: %s tokens, %s, %s tokens/s",
            claim.id,
            receipt.generated_tokens,
            f"cut at the {receipt.finish_reason} limit" if receipt.was_cut else "complete",
            receipt.tokens_per_second,
        )

    def _fail(self, claim: Claim, reason: str) -> None:
        self._release(claim)
        receipt = Receipt(
            id=claim.id,
            finish_reason="error",
            queued=claim.queued,
            finished=timestamp(time.time()),
            nrvna=__version__,
            model=self._model,
            error=reason,
        )
        self._file(partial(self._lease.fail, claim, reason, receipt))
        log.warning("%s failed: %s", claim.id, reason)

    def _file(self, write: Callable[[], None]) -> None:
        """Write now, or keep it in memory until the disk takes it."""
        self._unfiled.append(write)
        self._guarded(self._file_leftovers)

    def _release(self, claim: Claim) -> None:
        self._claims.pop(claim.id, None)
        self._started.discard(claim.id)

    def _guarded(self, action: Callable[[], None]) -> None:
        """Trouble with the workspace is said once and does not end the daemon: it goes on when that heals."""
        try:
            action()
        except WorkspaceError as error:
            if str(error) != self._trouble:
                log.error("%s; trying again until it works", error)
            self._trouble = str(error)
        else:
            if self._trouble and not self._unfiled:
                self._trouble = ""

    # The engine's side.

    def _hear(self, message: dict[str, Any]) -> None:
        """Deal with one message of the engine (see engine/protocol.py)."""
        if "text" in message:
            for job_id, text in message["text"].items():
                if claim := self._claims.get(job_id):
                    self._lease.append_partial(claim, text)
        elif "started" in message:
            self._started.add(message["started"])
        elif "done" in message:
            if claim := self._claims.get(message["done"]):
                self._finish(claim, message["answer"], Receipt.from_dict(message["receipt"]))
        elif "refused" in message:
            if claim := self._claims.get(message["refused"]):
                self._fail(claim, message["reason"])
        elif "ready" in message:
            self._ready = Ready(**message["ready"])
            self._restart_delay = 1.0
            self._guarded(self._lease.announce_ready)
            shape = "ready: %s on %s, %d jobs at a time, %d tokens each, %d threads"
            about = self._ready
            log.info(shape, about.description, about.backend, about.slots, about.context, about.threads)
        elif "fatal" in message:
            raise EngineError(message["fatal"])

    def _bury_engine(self, engine: EngineProcess) -> None:
        """The engine died: those it was answering gain a crash, all go back, and another is started soon."""
        end = engine.wait()
        self.engine = None
        if self._ready is None and self._restart_delay == 1.0:
            raise EngineError(f"the engine ended with {end} before it was ready; its log is above")
        log.error("the engine ended with %s while it answered %d jobs; starting another", end, len(self._started))
        self._ready = None
        for claim in list(self._claims.values()):
            crashes = 0
            if claim.id in self._started:
                with suppress(WorkspaceError):
                    crashes = self._lease.record_crash(claim)
            if crashes >= MAX_CRASHES:
                self._fail(claim, f"the engine died {crashes} times while it answered this job, last with {end}")
            else:
                self._release(claim)
                self._guarded(partial(self._lease.requeue, claim))
        self._restart_at = time.monotonic() + self._restart_delay
        self._restart_delay = min(2 * self._restart_delay, _MAX_RESTART_DELAY_S)


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
    """SIGTERM and SIGINT ask for an orderly end; a second one ends the process at once, which is safe too."""

    def __init__(self) -> None:
        self.descriptor, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self.stop = False
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
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
    command = [sys.executable, "-m", "nrvna.engine", "--check"]
    request = pack({"path": str(model), "config": config.to_dict()})
    done = subprocess.run(command, input=request, env=engine_environment(config), check=False)
    return 1 if done.returncode else 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="nrvnad",
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
    if options.workspace is None:
        parser.error("name a workspace too: nrvnad MODEL WORKSPACE")
    logging.basicConfig(format="%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")
    log.setLevel(_LEVELS[config.log_level])
    try:
        serve(options.model, Workspace(options.workspace), config)
    except NrvnaError as error:
        print(f"nrvnad: {error}", file=sys.stderr)
        return 1
    return 0


def run() -> None:
    """The installed command ``nrvnad``."""
    sys.exit(main())


if __name__ == "__main__":
    run()
