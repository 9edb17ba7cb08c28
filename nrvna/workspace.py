"""The queue on disk: state is location, transitions are renames.

    input/<id>/                prompt.txt, job.json         queued; built in a hidden sibling, then renamed
    processing/<daemon>/<id>/                               claimed; the daemon holds a flock on .lock beside it
    output/<id>/               result.txt, receipt.json     done: complete, never touched again
    failed/<id>/               error.txt, receipt.json      failed, with the reason
    .nrvna/                    context.txt, for every job; wake, a FIFO that tells an idle daemon of a new job

The only module that names these folders and files, and the only one that renames. A job's files and the
folder that holds them are synced before a rename, the folder it arrives in after it: what a caller was told of
survives a crash of the machine.

Paths are strings and not pathlib's: importing that takes as long as everything else that ``wrk`` does.
"""

from __future__ import annotations

import errno
import fcntl
import heapq
import json
import os
import stat
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os.path import isdir, join
from typing import Any, NamedTuple, TypeGuard

from nrvna import __version__
from nrvna.errors import JobError, JobNotFoundError, LeaseLostError, LostRaceError, WorkspaceError
from nrvna.files import (
    append,
    clear,
    encode,
    folders_in,
    is_folder,
    read,
    read_object,
    read_text,
    remove,
    sync,
    write,
)
from nrvna.job import Job, JobState, Receipt, check_id, is_generated_id, new_id, order_of_time, timestamp

MAX_PROMPT_BYTES = 16 * 1024 * 1024
MAX_CONTEXT_BYTES = 1024 * 1024
# A folder made by hand is taken once nobody has written to it for this long: it may still be being filled.
SETTLE_S = 2.0
# Names looked at ahead in the queue: bounds both the cost of a scan and how late a job put back is seen.
_LOOK_AHEAD = 256
# A folder's mtime moves in steps of a clock tick: within this time of a change, another may not have shown.
_MTIME_TICK_NS = 50_000_000
_STALE_STAGING_S = 3600
# What a daemon writes into a job's folder; anything of these names that was put there before is removed.
_WRITTEN = ("partial.txt", "result.txt", "error.txt", "receipt.json")
# Folders put beside their own kind under another name where theirs is taken.
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)


class Claim(NamedTuple):
    """A job that this process has claimed: nobody else will touch its folder while the lease is held.

    ``crashes`` counts how often the engine died while it was at this job; ``settings`` are the job's own, unchecked.
    """

    id: str
    directory: str
    queued: str
    crashes: int
    settings: dict[str, Any]


class Peer(NamedTuple):
    """A living daemon of a workspace, as it described itself; ``model`` is its model's fingerprint."""

    pid: int
    model: dict[str, Any]
    ready: bool


class Counts(NamedTuple):
    """How many jobs are in each state."""

    queued: int
    running: int
    done: int
    failed: int


class Workspace:
    """One workspace folder. Any number of processes may use it at once."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.expanduser(path)
        self._input = join(self.path, "input")
        self._processing = join(self.path, "processing")
        self._output = join(self.path, "output")
        self._failed = join(self.path, "failed")
        self._private = join(self.path, ".nrvna")

    @property
    def context_file(self) -> str:
        """The text that is prepended to every job as its system message, if it exists."""
        return join(self._private, "context.txt")

    # Making and opening.

    def create(self) -> None:
        """Make what is missing of the folders; an existing workspace stays as it is. Raises WorkspaceError."""
        with self._explained("make"):
            for folder in (self.path, self._input, self._processing, self._output, self._failed, self._private):
                os.makedirs(folder, 0o700, exist_ok=True)
            # Some file systems have none; a daemon then looks by itself.
            with suppress(OSError):
                os.mkfifo(join(self._private, "wake"), 0o600)

    def check(self) -> None:
        """Raises WorkspaceError, saying what to do, if this is no workspace."""
        if not isdir(self.path):
            raise WorkspaceError(
                f"no workspace {self.path}: start one with `nrvnad MODEL {self.path}`, "
                f"or make it with `wrk --init {self.path}`"
            )
        if not isdir(self._input) or not isdir(self._private):
            raise WorkspaceError(
                f"{self.path} is a folder but no workspace: make it one with `wrk --init {self.path}`"
            )

    # Submitting.

    def submit(self, prompt: str | bytes, settings: dict[str, Any] | None = None) -> str:
        """Queue a prompt and return its id. When this returns, the job survives a crash of the machine.

        ``settings`` are fields of Sampling that the job has otherwise than the daemon; the daemon checks them.
        Raises JobError for a prompt that can never run, WorkspaceError if it cannot be written.
        """
        data = check_prompt(prompt if isinstance(prompt, bytes) else prompt.encode("utf-8", "surrogatepass"))
        job_id = new_id()
        staging = join(self._input, f".{job_id}")
        try:
            with self._explained("queue a job in"):
                os.mkdir(staging, 0o700)
                write(join(staging, "prompt.txt"), data)
                about = {"queued": timestamp(time.time()), "nrvna": __version__, "settings": settings or {}}
                write(join(staging, "job.json"), _json(about))
                sync(staging)
                os.rename(staging, join(self._input, job_id))
        except BaseException:
            remove(staging)
            raise
        with self._explained("queue a job in"):
            sync(self._input)
        self._wake()
        return job_id

    def _wake(self) -> None:
        # Nobody listening (ENXIO), no FIFO, a full one: the daemon looks by itself before long.
        with suppress(OSError):
            descriptor = os.open(join(self._private, "wake"), os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
            try:
                if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                    os.write(descriptor, b"\n")
            finally:
                os.close(descriptor)

    def open_wake(self) -> int | None:
        """A descriptor that becomes readable when a job is queued, or None where there can be none."""
        try:
            # Open for writing too, or it would be readable for ever once the last writer closes.
            descriptor = os.open(
                join(self._private, "wake"), os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
            )
        except OSError:
            return None
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        return None

    # Looking.

    def find(self, job_id: str) -> Job:
        """Where the job is now. Raises JobNotFoundError if it is nowhere, or its id cannot be one."""
        check_id(job_id)
        # In the order that jobs move, so that one which moves meanwhile is met later; again, as it may be put back.
        for _ in range(3):
            for folder, state in self._folders():
                if is_folder(join(folder, job_id)):
                    return Job(job_id, state, join(folder, job_id))
        raise JobNotFoundError(f"no job {job_id} in {self.path}: `flw {self.path}` lists the jobs")

    def jobs(self) -> list[Job]:
        """Every job, oldest first. Raises WorkspaceError if the folders cannot be read."""
        found: dict[str, tuple[str, Job]] = {}
        with self._explained("read"):
            for folder, state in self._folders():
                for order, name in _entries(folder):
                    found[name] = (order, Job(name, state, join(folder, name)))
        return [job for _, job in sorted(found.values(), key=lambda pair: (pair[0], pair[1].id))]

    def newest_running(self) -> Job | None:
        """The running job that was queued last, if any runs."""
        with self._explained("read"):
            running = [
                (order, Job(name, JobState.RUNNING, join(folder, name)))
                for folder in self._daemon_folders()
                for order, name in _entries(folder)
            ]
        return max(running, key=lambda pair: pair[0])[1] if running else None

    def counts(self) -> Counts:
        """How many jobs are in each state; cheaper than :meth:`jobs`."""
        number = dict.fromkeys(JobState, 0)
        with self._explained("read"):
            for folder, state in self._folders():
                number[state] += sum(1 for _ in folders_in(folder))
        return Counts(*number.values())

    def prompt(self, job: Job) -> str:
        """A job's prompt, as far as it can be read as text; empty if it is gone or never was."""
        return read_text(join(job.directory, "prompt.txt"), MAX_PROMPT_BYTES)

    def answer(self, job: Job) -> str:
        """A done job's answer, a failed job's reason, what there is so far of a running job's answer."""
        name = {JobState.DONE: "result.txt", JobState.FAILED: "error.txt"}.get(job.state, "partial.txt")
        return read_text(join(job.directory, name))

    def receipt(self, job: Job) -> Receipt | None:
        """A finished job's receipt, or None where there is none to read."""
        try:
            return Receipt.from_dict(read_object(join(job.directory, "receipt.json")))
        except TypeError:
            return None

    def peers(self) -> list[Peer]:
        """The daemons that serve this workspace now."""
        with self._explained("read"):
            return [peer for folder in self._daemon_folders() if (peer := _living(folder))]

    def context(self) -> str | None:
        """The system message of every job, or None. Raises WorkspaceError if the file cannot be used."""
        try:
            text = read(self.context_file, MAX_CONTEXT_BYTES).decode()
        except FileNotFoundError:
            return None
        except (OSError, JobError, UnicodeDecodeError) as error:
            raise WorkspaceError(f"{self.context_file} cannot be used as context: {error}") from error
        if "\0" in text:
            raise WorkspaceError(f"{self.context_file} cannot be used as context: it holds a NUL byte")
        return text.strip() or None

    # Serving.

    def lease(self, model: dict[str, Any]) -> Lease:
        """Register this process as a daemon that serves ``model``, described by its file's fingerprint.

        Raises WorkspaceError if a living daemon serves another model here.
        """
        with self._explained("serve"), open(join(self._private, "start.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for folder in self._daemon_folders():
                peer = _living(folder)
                if peer and peer.model != model:
                    path = peer.model.get("path")
                    raise WorkspaceError(
                        f"{self.path} is served already by process {peer.pid} with another model, {path}: "
                        "stop that one, or give this one a workspace of its own"
                    )
            return Lease(self, model)

    def recover(self) -> list[str]:
        """Put the jobs of dead daemons back into the queue and return their ids.

        Raises WorkspaceError if one of them could not be; the others are.
        """
        recovered = []
        trouble: OSError | None = None
        with self._explained("recover jobs in"):
            for folder in self._daemon_folders():
                with _locked(folder) as won:
                    for name in sorted(folders_in(folder)) if won else ():
                        try:
                            clear(join(folder, name, "partial.txt"))
                            recovered.append(_move(join(folder, name), self._input, name))
                        except OSError as error:
                            trouble = error
                    if won and not any(folders_in(folder)):
                        remove(folder)
            if recovered:
                sync(self._input)
            self._sweep_staging()
            if trouble:
                raise trouble
        return recovered

    def _sweep_staging(self) -> None:
        """Remove what was killed half-way through being made: jobs whose id was never printed, unborn daemons."""
        for folder in (self._input, self._processing):
            for entry in os.scandir(folder):
                made_here = entry.name.startswith(".") and (
                    folder == self._processing or is_generated_id(entry.name.removeprefix("."))
                )
                with suppress(OSError):
                    if made_here and time.time() - entry.stat().st_mtime > _STALE_STAGING_S:
                        remove(entry.path)

    def _folders(self) -> Iterator[tuple[str, JobState]]:
        yield self._input, JobState.QUEUED
        for folder in self._daemon_folders():
            yield folder, JobState.RUNNING
        yield self._output, JobState.DONE
        yield self._failed, JobState.FAILED

    def _daemon_folders(self) -> list[str]:
        return [join(self._processing, name) for name in folders_in(self._processing)]

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        """Turns the system's refusals into one line about this workspace."""
        try:
            yield
        except WorkspaceError:
            raise
        except OSError as error:
            raise WorkspaceError(f"cannot {verb} {self.path}: {os.strerror(error.errno or 0)}") from error


class Lease:
    """One daemon's hold on a workspace: claims jobs and moves them on, until it is closed or the process dies."""

    def __init__(self, workspace: Workspace, model: dict[str, Any]) -> None:
        self._workspace = workspace
        self._input = workspace._input
        name = f"{os.uname().nodename}-{os.getpid()}-{os.urandom(3).hex()}"
        self._folder = join(workspace._processing, name)
        self._about = {"pid": os.getpid(), "model": model, "ready": False}
        self._next: deque[str] = deque()
        self._scanned_mtime_ns = -1
        self._unsettled = False
        # Hidden until it is locked: a peer would take an unlocked folder for a dead daemon's.
        staging = join(workspace._processing, f".{name}")
        os.mkdir(staging, 0o700)
        self._lock = os.open(join(staging, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        write(join(staging, ".daemon.json"), _json(self._about))
        os.rename(staging, self._folder)

    def announce_ready(self) -> None:
        """Tell those who look that this daemon answers jobs now."""
        self._about["ready"] = True
        staging = join(self._folder, ".daemon.json.new")
        with self._workspace._explained("serve"):
            write(staging, _json(self._about))
            os.rename(staging, join(self._folder, ".daemon.json"))

    def claim(self) -> Claim | None:
        """The next job of the queue, or None if none is waiting.

        Raises WorkspaceError if there may be one that cannot be claimed, LeaseLostError if nothing can be any more.
        """
        trouble: OSError | None = None
        with self._workspace._explained("claim a job in"):
            if not self._next:
                self._scan()
            while self._next:
                name = self._next.popleft()
                try:
                    return self._take(name)
                except LostRaceError:
                    continue
                except OSError as error:
                    # Its turn comes again: the reason may go away, and the others need not wait for that.
                    self._unsettled = True
                    trouble = error
            if not is_folder(self._folder):
                raise LeaseLostError(f"{self._workspace.path} was moved or replaced while it was being served")
            if trouble:
                raise trouble
        return None

    def _scan(self) -> None:
        mtime_ns = os.stat(self._input).st_mtime_ns
        if mtime_ns == self._scanned_mtime_ns and not self._unsettled:
            return
        fresh = time.time_ns() - mtime_ns < _MTIME_TICK_NS
        self._scanned_mtime_ns = -1 if fresh else mtime_ns
        self._unsettled = False
        self._next.extend(name for _, name in heapq.nsmallest(_LOOK_AHEAD, _entries(self._input)))

    def _take(self, name: str) -> Claim:
        """Raises LostRaceError if it is gone, or not to be taken yet, and OSError."""
        origin = join(self._input, name)
        try:
            if not os.path.exists(join(origin, "job.json")) and not _settled(origin):
                self._unsettled = True
                raise LostRaceError(name)
            own = self._own_name(name)
            about = read_object(join(origin, "job.json"))
            queued, settings = about.get("queued"), about.get("settings", {})
            if not _is_timestamp(queued):
                queued = timestamp(os.stat(origin).st_mtime)
            os.rename(origin, join(self._folder, own))
        except FileNotFoundError:
            raise LostRaceError(name) from None
        directory = join(self._folder, own)
        for leftover in _WRITTEN:
            clear(join(directory, leftover))
        counted = read_text(join(directory, "crashes"), 10).strip()
        crashes = int(counted) if counted.isascii() and counted.isdecimal() else 0
        return Claim(own, directory, queued, crashes, settings if isinstance(settings, dict) else {})

    def _own_name(self, name: str) -> str:
        """The name itself; another where it cannot be an id, or is that of a job which has run already."""
        try:
            check_id(name)
        except JobNotFoundError:
            return new_id()
        finished = (self._workspace._output, self._workspace._failed)
        return _other(name) if any(is_folder(join(folder, name)) for folder in finished) else name

    def prompt(self, claim: Claim) -> str:
        """The claimed job's prompt. Raises JobError, with the reason, if it can never run."""
        try:
            data = read(join(claim.directory, "prompt.txt"), MAX_PROMPT_BYTES)
        except FileNotFoundError:
            raise JobError("the job's folder holds no prompt.txt") from None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise JobError("prompt.txt is a link, and links are not followed") from None
            raise JobError(f"prompt.txt cannot be read: {error.strerror}") from error
        return check_prompt(data).decode()

    def append_partial(self, claim: Claim, text: str) -> None:
        """Show a running job's answer as it grows; nothing depends on it."""
        with suppress(OSError):
            append(join(claim.directory, "partial.txt"), text.encode())

    def finish(self, claim: Claim, answer: str, receipt: Receipt) -> None:
        """File the answer under output/. Raises WorkspaceError if it cannot be written; the claim then stands.

        Raises LostRaceError if somebody removed the job's folder: there is nothing left to file.
        """
        self._file(claim, "result.txt", answer, receipt, self._workspace._output)

    def fail(self, claim: Claim, reason: str, receipt: Receipt) -> None:
        """File the job under failed/ with the reason. Raises WorkspaceError as :meth:`finish` does."""
        self._file(claim, "error.txt", reason + "\n", receipt, self._workspace._failed)

    def _file(self, claim: Claim, name: str, text: str, receipt: Receipt, target: str) -> None:
        with self._workspace._explained("write a result to"):
            self._check_held(claim)
            for leftover in (*_WRITTEN, "crashes"):
                clear(join(claim.directory, leftover))
            write(join(claim.directory, name), encode(text))
            write(join(claim.directory, "receipt.json"), encode(receipt.to_json()))
            sync(claim.directory)
            _move(claim.directory, target, claim.id)
            sync(target)
            sync(self._folder)

    @staticmethod
    def _check_held(claim: Claim) -> None:
        if not is_folder(claim.directory):
            raise LostRaceError(f"the folder of {claim.id} was removed while it was being answered")

    def requeue(self, claim: Claim) -> None:
        """Put a claimed job back where it was in the queue. Raises WorkspaceError, LostRaceError if it is gone."""
        with self._workspace._explained("put a job back in"):
            self._check_held(claim)
            clear(join(claim.directory, "partial.txt"))
            _move(claim.directory, self._input, claim.id)
            sync(self._input)
            # It is older than what was going to be next.
            self._next.clear()
            self._unsettled = True

    def record_crash(self, claim: Claim) -> Claim:
        """Count, durably, that the engine died while it was at this job."""
        with self._workspace._explained("write to"):
            write(join(claim.directory, "crashes"), f"{claim.crashes + 1}\n".encode())
        return claim._replace(crashes=claim.crashes + 1)

    def close(self) -> None:
        """Give the lease up. Jobs still claimed stay behind for :meth:`Workspace.recover`."""
        if not any(folders_in(self._folder)):
            remove(self._folder)
        os.close(self._lock)


def check_prompt(data: bytes) -> bytes:
    """The prompt itself, if it can run. Raises JobError: empty, too large, a NUL byte, or invalid UTF-8."""
    if len(data) > MAX_PROMPT_BYTES:
        raise JobError(f"the prompt has {len(data)} bytes, more than the {MAX_PROMPT_BYTES} allowed")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise JobError(f"the prompt is not UTF-8: byte {data[error.start]:#04x} at position {error.start}") from None
    if "\0" in text:
        raise JobError(f"the prompt holds a NUL byte at position {data.index(0)}")
    if not text.strip():
        raise JobError("the prompt is empty")
    return data


def _entries(folder: str) -> Iterator[tuple[str, str]]:
    """The jobs of a folder, each with what orders it: the time in its id, or its folder's time if made by hand."""
    for name in folders_in(folder):
        if is_generated_id(name):
            yield name, name
            continue
        with suppress(FileNotFoundError):
            yield order_of_time(os.stat(join(folder, name)).st_mtime_ns // 1000), name


def _move(origin: str, target: str, name: str) -> str:
    """Rename a job's folder into another folder, replacing nothing; returns the name it got there."""
    try:
        os.rename(origin, join(target, name))
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        name = _other(name)
        os.rename(origin, join(target, name))
    return name


def _other(name: str) -> str:
    """A name like this one that nobody has."""
    return f"{name}-{os.urandom(3).hex()}"


def _is_timestamp(queued: object) -> TypeGuard[str]:
    return isinstance(queued, str) and queued.isascii() and queued.isprintable() and len(queued) <= 40


def _settled(folder: str) -> bool:
    """Whether nobody has written to it for a while. A time in the future came with a copy and says nothing."""
    newest = os.stat(folder).st_mtime
    with suppress(FileNotFoundError):
        newest = max(newest, os.lstat(join(folder, "prompt.txt")).st_mtime)
    return abs(time.time() - newest) > SETTLE_S


def _living(folder: str) -> Peer | None:
    """The daemon of that folder, if it holds its lock."""
    with _locked(folder, fcntl.LOCK_SH) as dead:
        about = {} if dead else read_object(join(folder, ".daemon.json"))
    if not about:
        return None
    model, pid = about.get("model"), about.get("pid")
    return Peer(
        pid=pid if isinstance(pid, int) else 0,
        model=model if isinstance(model, dict) else {},
        ready=bool(about.get("ready")),
    )


@contextmanager
def _locked(folder: str, kind: int = fcntl.LOCK_EX) -> Iterator[bool]:
    """Whether the daemon's lock in that folder could be taken, which it can if the daemon is dead."""
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    # Who only looks makes no lock: it may not be allowed to.
    flags |= os.O_RDONLY if kind == fcntl.LOCK_SH else os.O_RDWR | os.O_CREAT
    try:
        descriptor = os.open(join(folder, ".lock"), flags, 0o600)
    except FileNotFoundError:
        # No daemon ever held it, or the folder itself is gone.
        yield kind == fcntl.LOCK_SH
        return
    try:
        won = True
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            won = False
        yield won
    finally:
        os.close(descriptor)


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content) + "\n").encode()
