"""The queue on disk: state is location, transitions are renames.

    input/<id>/                prompt.txt, job.json         queued; built in a hidden sibling, then renamed
    processing/<daemon>/<id>/  progress.jsonl               claimed; the daemon holds a flock on .lock beside it
    output/<id>/               result.txt, receipt.json     done: complete, and never changed
    failed/<id>/               error.txt, receipt.json      failed, with the reason; what is large of a receipt is in
                               receipt.<field>.json         a file of its own beside it
    .nrvna/                    context.txt, for every job; wake, a FIFO that tells an idle daemon of a new job;
                               clock, whose time is that of the newest id, for when the clock is set back;
                               keys/, which job is that of a key; priority/, which jobs are to start out of turn;
                               nrvnad.log, of a daemon that runs by itself;
                               batches/<id>/, which jobs answer the lines of a batch file, see batch/ledger.py

This module, submit.py, by which jobs come in, lease.py, which is a daemon's side, and finished.py, by which jobs are
asked again or removed, are the only ones that name these folders and files, and the only ones that move them. A job's
files and the folder that holds them are synced before a move, the folder it arrives in after it: what a caller was
told of survives a crash of the machine. A move never replaces anything.

Paths are strings and not pathlib's: importing that takes as long as everything else that ``wrk`` does.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from os.path import isdir, join
from typing import TYPE_CHECKING, Any, NamedTuple

from nrvna.errors import JobError, JobNotFoundError, NoFolderError, UnsafeWorkspaceError, WorkspaceError
from nrvna.files import (
    clear,
    folders_in,
    has_folder,
    is_folder,
    make_folder,
    read,
    read_bytes,
    read_object,
    remove,
    sync,
    write,
)
from nrvna.job import (
    MAX_PART_BYTES,
    RECEIPT,
    Job,
    JobState,
    Receipt,
    check_id,
    is_generated_id,
    order_of_time,
    part_of_receipt,
    parts_of_receipt,
)
from nrvna.jsontext import read_json
from nrvna.lines import without_mark
from nrvna.order import MAX_ABOUT_BYTES, MAX_PROMPT_BYTES, Order

if TYPE_CHECKING:
    from nrvna.progress import Progress

MAX_CONTEXT_BYTES = 1024 * 1024
# Where a daemon keeps an answer that grows.
PROGRESS = "progress.jsonl"
# What may stand beside an answer: the thought that led to it; the vector that it shows, as numpy reads it.
REASONING, VECTOR = "reasoning.txt", "result.npy"
# The prompt of a job that wanted other jobs' answers, with these in their places.
FILLED = "filled.txt"
# How the folder of a finished job is called that is being removed, with its id behind.
REMOVED = ".removed-"
_STALE_STAGING_S = 3600

# Is told the ids of jobs before they appear in the queue, and for which orders of the list they are.
Record = Callable[[Sequence[str], Sequence[int]], None]


class Peer(NamedTuple):
    """A living daemon of a workspace, as it described itself.

    ``model`` is its model's fingerprint, ``names`` what a job may call that. A ``named`` one answers only jobs that
    ask for it by name. ``since`` is when it was ready, or when it began to load (ISO 8601, UTC). ``about`` is what
    its engine says of itself, in the fields of :class:`nrvna.engine.protocol.Ready`, once it is ready. ``pid`` is the
    process's number on ``host``, or in a container there; see :func:`holds_lock`.
    """

    pid: int
    model: dict[str, Any]
    ready: bool
    named: bool
    names: tuple[str, ...]
    host: str
    since: str
    about: dict[str, Any]
    folder: str

    def answers(self, model: str | None) -> bool:
        """Whether it takes a job that asks for a model of this name, None where a job asks for none."""
        return not self.named if model is None else model.casefold() in self.names


class Seen(NamedTuple):
    """A job that was seen in a folder. ``order`` sorts by the time it was queued."""

    order: str
    id: str
    state: JobState
    folder: str

    @property
    def job(self) -> Job:
        return Job(self.id, self.state, join(self.folder, self.id))


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
        self.input = join(self.path, "input")
        self.processing = join(self.path, "processing")
        self.output = join(self.path, "output")
        self.failed = join(self.path, "failed")
        self.private = join(self.path, ".nrvna")
        self.clock = join(self.private, "clock")
        self.keys = join(self.private, "keys")
        self.priority = join(self.private, "priority")
        self.batches = join(self.private, "batches")

    @property
    def context_file(self) -> str:
        """The text that is prepended to every job as its system message, if it exists."""
        return join(self.private, "context.txt")

    @property
    def log_file(self) -> str:
        """Where a daemon logs that runs by itself and was not told another place."""
        return join(self.private, "nrvnad.log")

    def batch(self, batch_id: str) -> str:
        """The folder of what is known of a batch."""
        return join(self.batches, batch_id)

    # Making and opening.

    def create(self) -> None:
        """Make what is missing of the folders; an existing workspace stays as it is. Raises WorkspaceError."""
        self.check_name()
        with self.explained("make"):
            for folder in self._own_folders():
                make_folder(folder)
            # Some file systems have none; a daemon then looks by itself.
            with suppress(OSError):
                os.mkfifo(join(self.private, "wake"), 0o600)
            if not os.path.lexists(self.clock):
                write(self.clock, b"", durable=False)
                os.utime(self.clock, (0, 0))

    def check(self) -> None:
        """Raises WorkspaceError, saying what to do, if this is no workspace, or others could change what is in it."""
        self.check_name()
        with self.explained("read"):
            if not has_folder(self.path):
                raise WorkspaceError(
                    f"no workspace {self.path}: start one with `nrvnad MODEL {self.path}`, "
                    f"or make it with `wrk --init {self.path}`"
                )
            if not has_folder(self.input) or not has_folder(self.private):
                raise WorkspaceError(
                    f"{self.path} is a folder but no workspace: make it one with `wrk --init {self.path}`"
                )
        self.check_private()

    def check_name(self) -> None:
        """Raises NoFolderError for a name that cannot be a workspace's."""
        if not self.path:
            raise NoFolderError("the workspace's name is empty: name its folder")
        if self.path == "~" or self.path.startswith("~/"):
            raise NoFolderError(f"no home folder is known, where {self.path} would be: set HOME, or name it in full")
        with self.explained("read"):
            if os.path.lexists(self.path) and not has_folder(self.path):
                raise NoFolderError(f"{self.path} is no folder, as a workspace is: name another")

    def check_private(self) -> None:
        """Raises UnsafeWorkspaceError if others than its user can write to the workspace, and WorkspaceError."""
        with self.explained("read"):
            for folder in self._own_folders():
                with suppress(FileNotFoundError):
                    if os.stat(folder).st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                        raise UnsafeWorkspaceError(
                            f"others can write to {folder}, and so into your queue: "
                            f"mend that with `chmod go-w {folder}`"
                        )

    def _own_folders(self) -> tuple[str, ...]:
        jobs = (self.path, self.input, self.processing, self.output, self.failed)
        return *jobs, self.private, self.keys, self.priority, self.batches

    # Submitting.

    def submit(
        self,
        prompt: str | bytes,
        settings: Mapping[str, Any] | None = None,
        model: str | None = None,
        task: Mapping[str, Any] | None = None,
    ) -> str:
        """Queue a prompt and return its id. When this returns, the job survives a crash of the machine.

        For what else can be asked see :class:`nrvna.order.Order` and :meth:`submit_all`. Raises JobError for a prompt
        that can never run, WorkspaceError if it cannot be written, SubmitError if it may have been written
        nevertheless.
        """
        [job_id] = self.submit_all([Order(prompt, settings or {}, model, task or {})])
        return job_id

    def submit_all(self, orders: Iterable[Order | str | bytes], record: Record | None = None) -> list[str]:
        """Queue several prompts, in this order, with one wait for the disk; some hundreds at once are quickest.

        ``record`` is told the ids, and for which of the orders they are, before a job appears in the queue: it may
        write down, durably, what is to be known of them. Of an order whose key has a job already it gets to know
        nothing. Raises as :meth:`submit`; after a JobError none is queued, a SubmitError says which are.
        """
        # Imported here: flw has no use for it.
        from nrvna.submit import submit_all

        listed = [order if isinstance(order, Order) else Order(order) for order in orders]
        return submit_all(self, listed, record)

    def open_wake(self) -> int | None:
        """A descriptor that becomes readable when a job is queued, or None where there can be none."""
        try:
            # Open for writing too, or it would be readable for ever once the last writer closes.
            descriptor = os.open(join(self.private, "wake"), os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        return None

    # Looking.

    def find(self, job_id: str) -> Job:
        """Where the job is now. Raises JobNotFoundError if it is nowhere, or its id cannot be one; WorkspaceError."""
        check_id(job_id)
        # In the order that jobs move, so that one which moves meanwhile is met later; again, as it may be put back.
        with self.explained("read"):
            for _ in range(10):
                for folder, state in self.folders():
                    if has_folder(join(folder, job_id), follow=False):
                        return Job(job_id, state, join(folder, job_id))
        raise JobNotFoundError(f"no job {job_id} in {self.path}: `flw {self.path}` lists the jobs")

    def jobs(self, newest: int | None = None) -> list[Job]:
        """Every job, or the ``newest`` so many, oldest first. Raises WorkspaceError if the folders cannot be read."""
        found = self.survey()
        if newest is None:
            found.sort()
        else:
            # Imported here: wrk has no use for it.
            from heapq import nlargest

            found = nlargest(newest, found)[::-1]
        return [seen.job for seen in found]

    def survey(self) -> list[Seen]:
        """Every job, in no order; they sort as they were queued. Raises WorkspaceError if it cannot be read."""
        found: dict[str, Seen] = {}
        with self.explained("read"):
            for folder, state in self.folders():
                for order, name in entries(folder):
                    found[name] = Seen(order, name, state, folder)
        return list(found.values())

    def newest_running(self) -> Job | None:
        """The running job that was queued last, if any runs."""
        with self.explained("read"):
            running = [
                (order, Job(name, JobState.RUNNING, join(folder, name)))
                for folder in self.daemon_folders()
                for order, name in entries(folder)
            ]
        return max(running, key=lambda pair: pair[0])[1] if running else None

    def counts(self) -> Counts:
        """How many jobs are in each state; cheaper than :meth:`jobs`."""
        number = dict.fromkeys(JobState, 0)
        with self.explained("read"):
            for folder, state in self.folders():
                number[state] += sum(1 for _ in folders_in(folder))
        return Counts(*number.values())

    def prompt(self, job: Job) -> str:
        """A job's prompt, as far as it can be read as text; empty if it is gone or never was.

        Raises WorkspaceError, as all that reads a job's texts, if its user may not read them.
        """
        return self._text(job, "prompt.txt", MAX_PROMPT_BYTES)

    def answer(self, job: Job) -> str:
        """A done job's answer, a failed job's reason, what there is so far of another one's answer."""
        if name := {JobState.DONE: "result.txt", JobState.FAILED: "error.txt"}.get(job.state):
            return self._text(job, name)
        return self.progress(job).text

    def _text(self, job: Job, name: str, limit: int = sys.maxsize) -> str:
        with _permitted(job):
            return read(join(job.directory, name), limit).decode("utf-8", "replace")
        return ""

    def progress(self, job: Job) -> Progress:
        """What there is so far of a running job's answer."""
        # Imported here: wrk has no use for it.
        from nrvna.progress import parse

        return parse(read_bytes(join(job.directory, PROGRESS)))

    def order(self, job: Job) -> Order | None:
        """What was asked beside prompt, settings and task; None where that cannot be known."""
        try:
            return Order.read(self.about(job))
        except JobError:
            return None

    def about(self, job: Job) -> dict[str, Any]:
        """A job's ``job.json``; empty where there is none to read."""
        return read_object(join(job.directory, "job.json"), MAX_ABOUT_BYTES)

    def filled(self, job: Job) -> str:
        """The prompt of a job that was begun, with the answers of others in it; empty where it wanted none."""
        return self._text(job, FILLED, MAX_PROMPT_BYTES)

    def reasoning(self, job: Job) -> str:
        """The thought that led to a finished job's answer; empty where there was none."""
        return self._text(job, REASONING)

    def is_intact(self, job: Job, receipt: Receipt) -> bool:
        """Whether a done job's answer is, byte by byte, the one that its receipt was written for."""
        import hashlib

        found = hashlib.sha256(read_bytes(join(job.directory, "result.txt"))).hexdigest()
        return receipt.sha256 in (None, found)

    def confirm(self) -> None:
        """Wait until the results that are seen now survive a crash of the machine, as their daemon does before long.

        Raises WorkspaceError if the disk says that they do not.
        """
        for folder in (self.output, self.failed):
            try:
                sync(folder)
            except OSError as error:
                # Who may only read has nothing to wait for.
                if error.errno == errno.EIO:
                    raise WorkspaceError(
                        f"the disk does not confirm results in {folder}: {error.strerror}"
                    ) from error

    def receipt(self, job: Job, *, whole: bool = False) -> Receipt | None:
        """A finished job's receipt, or None where there is none to read.

        Unless it is wanted ``whole``, fields that are large may be missing, as they stand in files of their own. Who
        wants it whole wants this job: raises WorkspaceError then if its user may not read it.
        """
        if not whole:
            return _receipt_of(read_object(join(job.directory, RECEIPT), MAX_PART_BYTES))
        with _permitted(job):
            content = read_json(read(join(job.directory, RECEIPT), MAX_PART_BYTES))
            for field in parts_of_receipt(content):
                content[field] = read_json(read(join(job.directory, part_of_receipt(field)), MAX_PART_BYTES))
            return _receipt_of(content)
        return None

    def peers(self) -> list[Peer]:
        """The daemons that serve this workspace now."""
        with self.explained("read"):
            return [peer for folder in self.daemon_folders() if (peer := living(folder))]

    def context(self) -> str | None:
        """The system message of every job, or None. Raises WorkspaceError if the file cannot be used."""
        try:
            text = without_mark(read(self.context_file, MAX_CONTEXT_BYTES)).decode()
        except FileNotFoundError:
            return None
        except (OSError, JobError, UnicodeDecodeError) as error:
            raise WorkspaceError(f"{self.context_file} cannot be used as context: {error}") from error
        if "\0" in text:
            raise WorkspaceError(f"{self.context_file} cannot be used as context: it holds a NUL byte")
        return text.strip() or None

    def sweep_removed(self) -> None:
        """Remove the rest of what was killed half-way through being removed. Raises WorkspaceError."""
        with self.explained("clean up in"):
            for folder in (self.output, self.failed):
                for entry in os.scandir(folder):
                    if entry.name.startswith(REMOVED) and entry.is_dir(follow_symlinks=False):
                        remove(entry.path)

    def sweep_staging(self) -> None:
        """Remove what was killed half-way through being made: jobs whose id was never printed, unborn daemons.

        And what was half-way through being removed. Raises WorkspaceError.
        """
        self.sweep_removed()
        with self.explained("clean up in"):
            for folder in (self.input, self.processing):
                for entry in os.scandir(folder):
                    made_here = entry.name.startswith(".") and (
                        folder == self.processing or is_generated_id(entry.name.removeprefix("."))
                    )
                    with suppress(OSError):
                        if made_here and time.time() - entry.stat().st_mtime > _STALE_STAGING_S:
                            remove(entry.path)
            for name in os.listdir(self.priority) if isdir(self.priority) else ():
                job_id = name.partition("~")[2]
                if not any(is_folder(join(folder, job_id)) for folder in (self.input, *self.daemon_folders())):
                    with suppress(OSError):
                        if time.time() - os.lstat(join(self.priority, name)).st_mtime > _STALE_STAGING_S:
                            clear(join(self.priority, name))

    def folders(self) -> Iterator[tuple[str, JobState]]:
        """The folders that hold jobs, in the order that jobs move."""
        yield self.input, JobState.QUEUED
        for folder in self.daemon_folders():
            yield folder, JobState.RUNNING
        yield self.output, JobState.DONE
        yield self.failed, JobState.FAILED

    def daemon_folders(self) -> list[str]:
        """The folders of daemons, living and dead."""
        return [join(self.processing, name) for name in folders_in(self.processing)]

    @contextmanager
    def explained(self, verb: str) -> Iterator[None]:
        """Turns the system's refusals into one line about this workspace."""
        try:
            yield
        except WorkspaceError:
            raise
        except OSError as error:
            raise WorkspaceError(f"cannot {verb} {self.path}: {os.strerror(error.errno or 0)}") from error


@contextmanager
def _permitted(job: Job) -> Iterator[None]:
    """Passes over what cannot be read of a job. Raises WorkspaceError if that is so because it is another user's."""
    try:
        yield
    except PermissionError as error:
        raise WorkspaceError(f"cannot read {job.directory}: {error.strerror}") from error
    except (OSError, JobError, ValueError):
        pass


def _receipt_of(content: Any) -> Receipt | None:
    try:
        return Receipt.from_dict(content) if isinstance(content, dict) else None
    except TypeError:
        return None


def entries(folder: str) -> Iterator[tuple[str, str]]:
    """The jobs of a folder, each with what orders it: the time in its id, or its folder's time if made by hand."""
    for name in folders_in(folder):
        if is_generated_id(name):
            yield name, name
            continue
        with suppress(FileNotFoundError):
            yield order_of_time(os.stat(join(folder, name)).st_mtime_ns // 1000), name


def living(folder: str) -> Peer | None:
    """The daemon of that folder, if it holds its lock."""
    with locked(folder, fcntl.LOCK_SH) as dead:
        about = {} if dead else read_object(join(folder, ".daemon.json"))
    if not about:
        return None
    model, pid, engine, names = (about.get(key) for key in ("model", "pid", "engine", "names"))
    return Peer(
        pid=pid if isinstance(pid, int) else 0,
        model=model if isinstance(model, dict) else {},
        ready=bool(about.get("ready")),
        named=bool(about.get("named")),
        names=tuple(map(str, names)) if isinstance(names, list) else (),
        host=str(about.get("host", "")),
        since=str(about.get("since", "")),
        about=engine if isinstance(engine, dict) else {},
        folder=folder,
    )


def holds_lock(peer: Peer) -> bool:
    """Whether the process of this machine that has the daemon's number is the daemon itself.

    It is not where that runs on another machine, or in a container that numbers its processes by itself. Where the
    system does not tell who holds a file, as outside of Linux, the machine's name decides.
    """
    if peer.host != os.uname().nodename or peer.pid <= 0:
        return False
    try:
        wanted = os.stat(join(peer.folder, ".lock"))
        descriptors = os.listdir(f"/proc/{peer.pid}/fd")
    except OSError:
        return not isdir("/proc/self/fd") and living(peer.folder) is not None
    for descriptor in descriptors:
        with suppress(OSError):
            found = os.stat(f"/proc/{peer.pid}/fd/{descriptor}")
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                return True
    return False


@contextmanager
def locked(folder: str, kind: int = fcntl.LOCK_EX) -> Iterator[bool]:
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
