"""A fault at any one of the file operations that some work in a workspace makes, and that work, to be forked.

Production code knows nothing of it: the functions of ``os``, and the two of nrvna/files.py that call the C library,
are replaced in the forked process. Only what lies in the workspace counts; pipes and FIFOs do not.
"""

from __future__ import annotations

import errno
import functools
import json
import logging
import os
import signal
import stat
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from toy_engine import answer_of, commands_in

import nrvna.serving
from nrvna import files
from nrvna.config import Config
from nrvna.errors import LostRaceError, SubmitError, WorkspaceError
from nrvna.job import Receipt, timestamp
from nrvna.lease import Claim, Lease, cancel, recover
from nrvna.progress import first_line, token_line
from nrvna.serving import Daemon, fingerprint
from nrvna.workspace import Workspace

# What a full disk refuses, as opposed to a broken one.
_TAKES_ROOM = {"mkdir", "open", "write", "fsync", "rename", "mkfifo", "syncfs"}
_PAUSE_S = 0.02
# How long a lasting fault lasts after it struck first.
_LASTS_S = 0.15
_DEADLINE_S = 20.0
_RETRIES = 3


class Fault(NamedTuple):
    """At the ``at``-th operation, and if it is ``lasting`` at all that follow until it is lifted."""

    kind: str
    at: int
    lasting: bool = False


KINDS = [
    ("kill before", False),
    ("kill after", False),
    ("EIO", False),
    ("EIO", True),
    ("ENOSPC", False),
    ("ENOSPC", True),
    ("pause", False),
]


class Failpoints:
    """Counts the operations in a folder, and lets one of them go wrong."""

    def __init__(self, root: str, fault: Fault) -> None:
        self._root = str(Path(root).resolve())
        self._fault = fault
        self.count = 0
        self.struck: str | None = None
        self.struck_at = 0.0
        self.is_lifted = False

    def install(self) -> None:
        for name in ("mkdir", "mkfifo", "unlink", "rmdir", "utime", "rename"):
            self._wrap(os, name, name, self._by_path)
        self._wrap(os, "open", "open", self._by_creation)
        for name in ("write", "fsync", "ftruncate"):
            self._wrap(os, name, name, self._by_descriptor)
        self._wrap(files, "_rename_exclusively", "rename", self._by_path)
        self._wrap(files, "_sync_file_system", "syncfs", self._by_path)

    def lift(self) -> None:
        self.is_lifted = True

    def _wrap(self, module: Any, name: str, kind: str, place: Callable[..., str | None]) -> None:
        plain = getattr(module, name)

        @functools.wraps(plain)
        def with_fault(*arguments: Any, **options: Any) -> Any:
            found = place(*arguments, **options)
            if found is None:
                return plain(*arguments, **options)
            act = functools.partial(plain, *arguments, **options)
            return self._do(kind, found, act, arguments, returns_code=name == "_rename_exclusively")

        setattr(module, name, with_fault)
        if module is os:
            # Else shutil would think less of them and take another way than it does in earnest.
            for known in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
                if plain in known:
                    known.add(with_fault)

    def _do(
        self, kind: str, place: str, act: Callable[[], Any], arguments: tuple[Any, ...], *, returns_code: bool
    ) -> Any:
        self.count += 1
        fault = self._fault
        is_due = self.count == fault.at or (fault.lasting and self.count > fault.at and self.struck)
        if not is_due or self.is_lifted or (fault.kind == "ENOSPC" and kind not in _TAKES_ROOM):
            return act()
        if self.struck is None:
            self.struck, self.struck_at = f"{kind} {place.removeprefix(self._root)}", time.monotonic()
        if fault.kind == "pause":
            time.sleep(_PAUSE_S)
            return act()
        if fault.kind == "kill before":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault.kind == "kill after":
            act()
            os.kill(os.getpid(), signal.SIGKILL)
        code = getattr(errno, fault.kind)
        if kind == "write":
            # What there was room for.
            _plain_write(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
        if returns_code:
            return code
        raise OSError(code, os.strerror(code), place)

    def _by_path(self, path: Any, *_: Any, dir_fd: int | None = None, **__: Any) -> str | None:
        place = descriptor_path(path) if isinstance(path, int) else os.fsdecode(path)
        if dir_fd is not None:
            place = f"{descriptor_path(dir_fd)}/{place}"
        return place if (place + "/").startswith(self._root + "/") else None

    def _by_creation(self, path: Any, flags: int, *_: Any, dir_fd: int | None = None, **__: Any) -> str | None:
        return self._by_path(path, dir_fd=dir_fd) if flags & os.O_CREAT else None

    def _by_descriptor(self, descriptor: int, *_: Any) -> str | None:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            return None
        return self._by_path(descriptor)


def descriptor_path(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


_plain_write = os.write


def say(**fact: Any) -> None:
    """Tell the test something, for sure."""
    _plain_write(1, json.dumps(fact).encode() + b"\n")


class Insistent:
    """Does what a daemon does with trouble: it tries again, and the trouble goes away after a while."""

    def __init__(self, points: Failpoints) -> None:
        self._points = points

    def __call__(self, action: Callable[[], Any]) -> Any:
        for number in range(20):
            try:
                return action()
            except LostRaceError as error:
                say(lost_race=str(error))
                return None
            except WorkspaceError:
                if number >= _RETRIES:
                    self._points.lift()
        say(gave_up=True)
        return None


def _prepare(path: str, fault: list[Any]) -> tuple[Workspace, Failpoints, Insistent]:
    points = Failpoints(path, Fault(*fault))
    points.install()
    return Workspace(path), points, Insistent(points)


# The work, each to be forked with a workspace, a model's file and a fault.


def submit(path: str, _: str, fault: list[Any], prompts: list[str]) -> None:
    workspace, points, _insist = _prepare(path, fault)
    try:
        say(queued=workspace.submit_all(prompts))
    except SubmitError as error:
        assert all(job_id in str(error) for job_id in error.uncertain)
        say(queued=error.queued, uncertain=error.uncertain)
    except WorkspaceError as error:
        say(queued=[], error=str(error))
    say(count=points.count, struck=points.struck)


def wrk_lines(path: str, _: str, fault: list[Any], prompts: list[str]) -> int:
    from nrvna.wrk import main

    lines = Path(path).with_name("lines")
    lines.write_text("\n".join(prompts))
    _workspace, points, _insist = _prepare(path, fault)
    code = 0
    try:
        code = main([path, "--lines", str(lines)])
    except SystemExit as end:
        code = int(end.code or 0)
    say(count=points.count, struck=points.struck)
    return code


def wrk(path: str, fault: list[Any], argv: list[str]) -> int:
    """Any call of it; the exit code."""
    from nrvna.wrk import main

    _workspace, points, _insist = _prepare(path, fault)
    try:
        code = main(argv)
    except SystemExit as end:
        code = int(end.code or 0)
    say(count=points.count, struck=points.struck)
    return code


def cancel_first(path: str, _: str, fault: list[Any], _prompts: list[str]) -> None:
    workspace, points, insist = _prepare(path, fault)
    [job, *_others] = workspace.jobs()
    say(asked=job.id)
    if insist(lambda: cancel(workspace, job) or workspace.find(job.id).is_finished):
        say(cancelled=job.id)
    say(count=points.count, struck=points.struck)


def live_as_daemon(path: str, model: str, fault: list[Any], prompts: list[str]) -> None:
    """All that a lease can do, without an engine."""
    workspace, points, insist = _prepare(path, fault)
    lease = insist(lambda: Lease(workspace, fingerprint(Path(model))))
    insist(lease.announce_ready)
    claims: list[Claim] = [claim for _ in prompts if (claim := insist(lease.claim))]
    by_prompt = {lease.prompt(claim): claim for claim in claims}
    insist(lambda: lease.record_starts(claims[:4]))
    for claim in claims[:4]:
        lease.cut_progress(claim, 0)
        lease.append_progress(claim, first_line("no engine's key", 7) + token_line(5, "five"))
        lease.append_progress(claim, token_line(6, "six"))
    for refused in [claim for prompt, claim in by_prompt.items() if "REFUSE" in commands_in(prompt)]:
        reason = "it said so itself"
        insist(functools.partial(lease.fail, refused, reason, Receipt.of_failure(refused.id, refused.queued, reason)))
    for prompt, claim in by_prompt.items():
        if "REFUSE" not in commands_in(prompt):
            receipt = Receipt(claim.id, "stop", claim.queued, timestamp(time.time()), "0", resumed_tokens=0)
            insist(functools.partial(lease.finish, claim, answer_of(prompt), receipt))
            break
    left = [claim for claim in claims if Path(claim.directory).is_dir()]
    if left:
        crashed = insist(lambda: lease.record_crash(left[0]))
        insist(lambda: lease.requeue([crashed or left[0], *left[1:-1]], left[1:2]))
    # The last one stays behind, for whoever recovers it.
    lease.close()
    say(count=points.count, struck=points.struck)


def die_as_daemon(path: str, model: str) -> None:
    """Leave behind what a daemon leaves that was killed: two jobs begun, one with progress, and one that waited."""
    lease = Lease(Workspace(path), fingerprint(Path(model)))
    claims = [claim for _ in range(3) if (claim := lease.claim())]
    lease.record_starts(claims[:2])
    lease.append_progress(claims[0], first_line("no engine's key", 7) + token_line(5, "five"))
    os.kill(os.getpid(), signal.SIGKILL)


def recover_dead(path: str, _: str, fault: list[Any], _prompts: list[str]) -> None:
    workspace, points, insist = _prepare(path, fault)
    insist(lambda: recover(workspace))
    say(count=points.count, struck=points.struck)


def create_workspace(path: str, _: str, fault: list[Any], prompts: list[str]) -> None:
    workspace, points, insist = _prepare(path, fault)
    insist(workspace.create)
    points.lift()
    say(queued=workspace.submit_all(prompts), count=points.count, struck=points.struck)


class _Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            self.errors.append(record.getMessage())


def serve(path: str, model: str, fault: list[Any], _prompts: list[str]) -> None:
    """A daemon until all is done but what stays, which it hands back; it marks what is to be cancelled itself."""
    workspace, points, _insist = _prepare(path, fault)
    log = _Log()
    logging.getLogger("nrvna").addHandler(log)
    daemon = _quick_daemon(workspace, model, parallel=8)
    cancelled: set[str] = set()
    try:
        daemon.start()
    except WorkspaceError as error:
        say(count=points.count, struck=points.struck, no_start=str(error))
        return
    deadline = time.monotonic() + _DEADLINE_S
    while time.monotonic() < deadline:
        for replica in daemon._replicas:
            replica.restart_delay = 0.01
        daemon.tick(0.01)
        if points.struck and time.monotonic() - points.struck_at > _LASTS_S:
            points.lift()
        jobs = [(job, workspace.prompt(job)) for job in workspace.jobs() if not job.is_finished]
        for job, prompt in jobs:
            if "cancel me" in prompt and daemon.is_at_work(job.id) and job.id not in cancelled:
                say(asked=job.id)
                with suppress(OSError):
                    Path(job.directory, "cancel").touch()
                    cancelled.add(job.id)
        rest = [job for job, prompt in jobs if "stays" not in prompt]
        stays = [job for job, prompt in jobs if "stays" in prompt]
        has_progress = all(
            daemon.is_at_work(job.id) and Path(job.directory, "progress.jsonl").exists() for job in stays
        )
        if not rest and has_progress and (points.is_lifted or not points.struck or not fault[2]):
            break
    else:
        say(stuck=[job.id for job in rest])
    daemon.stop()
    say(count=points.count, struck=points.struck, errors=log.errors)


def finish_all(path: str, model: str) -> int:
    """An undisturbed daemon, until nothing is left."""
    workspace = Workspace(path)
    workspace.create()
    daemon = _quick_daemon(workspace, model, parallel=8, step_s=0.0001)
    daemon.start()
    deadline = time.monotonic() + _DEADLINE_S
    while time.monotonic() < deadline:
        for replica in daemon._replicas:
            replica.restart_delay = 0.01
        daemon.tick(0.01)
        counts = workspace.counts()
        if not counts.queued + counts.running:
            break
    daemon.stop()
    counts = workspace.counts()
    return 1 if counts.queued + counts.running else 0


def _quick_daemon(workspace: Workspace, model: str, *, parallel: int, step_s: float = 0.001) -> Daemon:
    sys.modules["__main__"].use_toy_engine(step_s)
    nrvna.serving.KEEP_EVERY_S = 0.005
    nrvna.serving.TEND_EVERY_S = 0.02
    logging.getLogger("nrvna").setLevel(logging.INFO)
    return Daemon(workspace, Path(model), Config(parallel=parallel))
