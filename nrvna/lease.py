"""A daemon's side of the queue: a hold on jobs that ends with the process, and what becomes of them.

A daemon owns ``processing/<daemon>/`` and holds a flock on the ``.lock`` in it. Claiming a job is renaming it into
that folder, which only one can win. When the process dies the kernel lets go of the lock; whoever then takes it puts
the jobs back. Nobody touches a folder whose lock he does not hold.

``.starts`` beside the lock names the jobs that are being decoded, on the disk before they are: what a dead daemon was
at gains an attempt, what only waited in it does not.
"""

from __future__ import annotations

import errno
import fcntl
import heapq
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from os.path import basename, join
from typing import Any, NamedTuple, TypeGuard

from nrvna.errors import (
    JobError,
    JobNotFoundError,
    JsonError,
    LeaseLostError,
    LostRaceError,
    WorkspaceError,
    reason_of,
)
from nrvna.files import (
    append,
    as_json,
    clear,
    encode,
    folders_in,
    is_folder,
    move,
    read,
    read_bytes,
    read_object,
    read_text,
    remove,
    replace,
    sync,
    write,
)
from nrvna.job import (
    LARGE_FIELDS,
    RECEIPT,
    Job,
    JobState,
    Receipt,
    check_id,
    new_id,
    part_of_receipt,
    timestamp,
)
from nrvna.jsontext import MAX_DEPTH_OF_FILES, check_value, read_json
from nrvna.lines import without_mark
from nrvna.order import MAX_ABOUT_BYTES, MAX_PROMPT_BYTES, Order, check_prompt, may_be_empty
from nrvna.parents import Parents
from nrvna.priorities import Priorities
from nrvna.progress import Progress, parse
from nrvna.workspace import (
    FILLED,
    PROGRESS,
    REASONING,
    VECTOR,
    Workspace,
    entries,
    locked,
)

# A folder made by hand is taken once nobody has written to it for this long: it may still be being filled.
SETTLE_S = 2.0
# So many times a job may have been begun, got no further and gone down with its daemon, before that is held against
# the job: daemons are killed, and machines lose power, for reasons of their own.
MAX_UNENDED = 3
# Names looked at ahead in the queue: bounds both the cost of a scan and how late a job put back is seen.
_LOOK_AHEAD = 256
# A folder's mtime moves in steps of a clock tick: within this time of a change, another may not have shown.
_MTIME_TICK_NS = 50_000_000
_ATTEMPTS, _NEW_ATTEMPTS, _CANCEL = "attempts.json", "attempts.json.new", "cancel"
# What a job has as long as it is not finished. What is needed if its daemon ends before the move goes last.
UNFINISHED = (PROGRESS, _ATTEMPTS, _NEW_ATTEMPTS, _CANCEL)
# What a daemon files; anything of these names that was put there before is removed.
_FILED = ("result.txt", "error.txt", RECEIPT, *map(part_of_receipt, LARGE_FIELDS), REASONING, VECTOR)
_STARTS = ".starts"
_NOTHING_BESIDE: Mapping[str, bytes] = {}
# What says nothing of the job: it can be read another time.
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN)
# How large it may be to be read, and how large a daemon lets it become that has no more than that at work.
_MAX_STARTS_BYTES, _MANY_STARTS_BYTES = 64 * 1024 * 1024, 1024 * 1024


class Claim(NamedTuple):
    """A job that this process has claimed: nobody else will touch its folder while the lease is held.

    ``begun`` counts how often it was decoded before, ``crashes`` how often the engine died of that, as far as is
    known. ``settings`` and ``task`` are the job's own, unchecked; ``trouble`` says why they cannot be known, and
    ``order`` holds what else was asked. One ``by_hand`` was made by no program of nrvna.
    """

    id: str
    directory: str
    queued: str
    begun: int
    crashes: int
    settings: dict[str, Any]
    trouble: str | None = None
    task: object = None
    order: Order = Order(b"")
    by_hand: bool = False


class Attempts(NamedTuple):
    """What became of a job so far. ``unended`` counts the last starts that ended with the daemon itself and got no
    further than ``reached``, in bytes of progress."""

    begun: int = 0
    crashes: int = 0
    unended: int = 0
    reached: int = 0

    @classmethod
    def of(cls, directory: str) -> Attempts:
        content = read_object(join(directory, _ATTEMPTS))
        return cls(*(_count(content.get(field)) for field in cls._fields))

    def write(self, directory: str) -> None:
        """Whatever happens meanwhile, what was known before is known after it."""
        write(join(directory, _NEW_ATTEMPTS), as_json(self._asdict()))
        replace(join(directory, _NEW_ATTEMPTS), join(directory, _ATTEMPTS))

    def after_death(self, reached: int) -> Attempts:
        """After a start whose daemon died as well."""
        unended = 1 if reached > self.reached else self.unended + 1
        crashes = self.crashes + (unended > MAX_UNENDED)
        return Attempts(self.begun + 1, crashes, unended, reached)


class Lease:
    """One daemon's hold on a workspace: claims jobs and moves them on, until it is closed or the process dies.

    ``model`` is the fingerprint of the model's file; None serves nobody, and is not seen as a daemon. ``alias`` is
    another name of that file, such as a link to it. A ``named`` daemon takes only jobs that ask for its model by
    name, and may stand beside those of other models. Raises WorkspaceError if a living daemon serves another model
    here, UnsafeWorkspaceError if others can write to it.
    """

    def __init__(
        self, workspace: Workspace, model: dict[str, Any] | None, alias: str | None = None, *, named: bool = False
    ) -> None:
        self._workspace = workspace
        self._is_named = named
        self._input = workspace.input
        name = f"{os.uname().nodename}-{os.getpid()}-{os.urandom(3).hex()}"
        self._folder = join(workspace.processing, name)
        self._model_names = _names_of(model, alias)
        self._about = {
            "pid": os.getpid(),
            "host": os.uname().nodename,
            "model": model,
            "names": sorted(self._model_names),
            "named": named,
            "ready": False,
            "since": timestamp(time.time()),
        }
        self._next: deque[str] = deque()
        self._scanned_mtime_ns = -1
        self._unsettled = False
        # Jobs that ask for another model.
        self._left: set[str] = set()
        self._parents = Parents(workspace)
        self._priorities = Priorities(workspace)
        # Jobs that have moved on, but the disk did not confirm it yet.
        self._unconfirmed: set[str] = set()
        self._starts_bytes, self._most_starts_bytes = 0, _MANY_STARTS_BYTES
        workspace.check_private()
        with workspace.explained("serve"):
            if model is None:
                self._register()
                return
            starting = os.open(join(workspace.private, "start.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(starting, fcntl.LOCK_EX)
                self._check_peers(model)
                self._register()
            finally:
                os.close(starting)

    def _check_peers(self, model: dict[str, Any]) -> None:
        """A job must never be answered by one model or another, as it happens."""
        for peer in self._workspace.peers():
            if peer.model == model:
                continue
            served = f"{self._workspace.path} is served already by process {peer.pid} with another model"
            path = peer.model.get("path")
            if not self._is_named and not peer.named:
                raise WorkspaceError(
                    f"{served}, {path}: stop that one, give this one a workspace of its own, or start it with "
                    "--named, to answer only jobs that ask for it by name"
                )
            if shared := self._model_names.intersection(peer.names):
                raise WorkspaceError(
                    f"{served} of the same name, {path}: stop that one, or give one of the files a name of its own, "
                    f"as a job that asks for {min(shared, key=len)} could mean either"
                )

    def _register(self) -> None:
        # Hidden until it is locked: a peer would take an unlocked folder for a dead daemon's.
        staging = join(self._workspace.processing, f".{basename(self._folder)}")
        os.mkdir(staging, 0o700)
        self._lock = os.open(join(staging, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        if self._about["model"] is not None:
            write(join(staging, ".daemon.json"), as_json(self._about), durable=False)
        write(join(staging, _STARTS), b"", durable=False)
        move(staging, self._folder)
        # Else jobs that are claimed could be lost with the folder that they were moved into.
        sync(self._workspace.processing)

    def announce_ready(self, engine: dict[str, Any] | None = None) -> None:
        """Tell those who look that this daemon answers jobs now, and what its ``engine`` says of itself."""
        if not self._about["ready"]:
            self._about |= {"ready": True, "since": timestamp(time.time())}
        self._about["engine"] = engine or {}
        staging = join(self._folder, ".daemon.json.new")
        with self._workspace.explained("serve"):
            write(staging, as_json(self._about), durable=False)
            replace(staging, join(self._folder, ".daemon.json"))

    # Claiming.

    def claim(self) -> Claim | None:
        """The next job of the queue, or None if none is waiting.

        Raises WorkspaceError if there may be one that cannot be claimed, LeaseLostError if nothing can be any more.
        """
        trouble: OSError | None = None
        with self._workspace.explained("claim a job in"):
            if self._parents.release() or self._priorities.refresh() or self._has_urgent_come():
                # They may come before what was going to be next.
                self._next.clear()
                self._unsettled = True
            known = -1
            # Again where all that was seen of the queue is for others, or later: there may be more behind it.
            while known < len(self._left) + len(self._parents):
                known = len(self._left) + len(self._parents)
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
                # Only if there is another one in its place: else it may come back.
                os.stat(self._input)
                if not is_folder(self._folder):
                    raise LeaseLostError(f"{self._workspace.path} was moved or replaced while it was being served")
            if trouble:
                raise trouble
        return None

    def claim_this(self, job: Job) -> Claim:
        """A job that waits in the queue. Raises LostRaceError if it waits no more, WorkspaceError."""
        with self._workspace.explained("claim a job in"):
            return self._take(job.id, in_turn=False)

    def _scan(self) -> None:
        mtime_ns = os.stat(self._input).st_mtime_ns
        if mtime_ns == self._scanned_mtime_ns and not self._unsettled:
            return
        fresh = time.time_ns() - mtime_ns < _MTIME_TICK_NS
        self._scanned_mtime_ns = -1 if fresh else mtime_ns
        self._unsettled = False
        self._left = {name for name in self._left if is_folder(join(self._input, name))}
        urgency, found = self._priorities.of, list(entries(self._input))
        self._priorities.expected.difference_update(name for _, name in found)
        waiting = (
            (-urgency(name), order, name)
            for order, name in found
            if name not in self._left and name not in self._parents
        )
        self._next.extend(name for *_, name in heapq.nsmallest(_LOOK_AHEAD, waiting))

    def _has_urgent_come(self) -> bool:
        """Whether a job stands in the queue now that was marked as urgent when the queue was looked through."""
        return any(is_folder(join(self._input, name)) for name in self._priorities.expected)

    @property
    def urgent(self) -> int:
        """How many jobs that are to start before others, at most, are known to wait."""
        return self._priorities.urgent

    def _take(self, name: str, *, in_turn: bool = True) -> Claim:
        """A job that waits, if it has nothing to wait for, or is not taken to be answered.

        Raises LostRaceError if it is gone, or not to be taken by this daemon, or not yet; and OSError."""
        origin = join(self._input, name)
        try:
            if not os.path.exists(join(origin, "job.json")) and not _settled(origin):
                self._unsettled = True
                raise LostRaceError(name)
            about, trouble = _about(origin)
            queued, settings, model = about.get("queued"), about.get("settings", {}), about.get("model")
            if self._is_for_others(model):
                self._left.add(name)
                self._unsettled = True
                raise LostRaceError(name)
            try:
                order = Order.read(about)
            except Exception as error:
                # Whoever made it may have put in anything.
                order, trouble = Order(b""), trouble or reason_of(error)
            if in_turn and self._parents.hold(name, order.after):
                self._unsettled = True
                raise LostRaceError(name)
            if not _is_timestamp(queued):
                queued = timestamp(os.stat(origin).st_mtime)
            own = self._own_name(name)
            move(origin, join(self._folder, own))
        except FileNotFoundError:
            raise LostRaceError(name) from None
        directory = join(self._folder, own)
        for leftover in (*_FILED, FILLED):
            # The claim is made, and must not be forgotten over this: they are cleared again before it is filed.
            with suppress(OSError):
                clear(join(directory, leftover))
        attempts = Attempts.of(directory)
        if not isinstance(settings, dict):
            settings, trouble = {}, "its settings in job.json are no JSON object"
        task = about.get("task")
        begun, crashes, by_hand = attempts.begun, attempts.crashes, "nrvna" not in about
        return Claim(own, directory, queued, begun, crashes, settings, trouble, task, order, by_hand)

    def _is_for_others(self, model: object) -> bool:
        if isinstance(model, str):
            return bool(self._model_names) and model.casefold() not in self._model_names
        return self._is_named

    def _own_name(self, name: str) -> str:
        """The name itself; another where it cannot be an id, or is that of a job which has run already."""
        try:
            check_id(name)
        except JobNotFoundError:
            return new_id()
        taken = (self._workspace.output, self._workspace.failed, self._folder)
        return _other(name) if any(is_folder(join(folder, name)) for folder in taken) else name

    def prompt(self, claim: Claim) -> str:
        """The claimed job's prompt, with the answers that it wants of the jobs it comes after.

        Raises JobError, with the reason, if it can never run, WorkspaceError if it cannot be read just now.
        """
        if claim.trouble:
            raise JobError(claim.trouble)
        try:
            data = read(join(claim.directory, "prompt.txt"), MAX_PROMPT_BYTES)
        except FileNotFoundError:
            raise JobError("the job's folder holds no prompt.txt") from None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise JobError("prompt.txt is a link, and links are not followed") from None
            if error.errno in _PASSING:
                raise WorkspaceError(f"cannot read {claim.id}: {error.strerror}") from error
            raise JobError(f"prompt.txt cannot be read: {error.strerror}") from error
        text = without_mark(data) if claim.by_hand else data
        prompt = check_prompt(text, may_be_empty=may_be_empty(claim.task)).decode()
        if not claim.order.after:
            return prompt
        with self._workspace.explained("write to"):
            filled = self._parents.fill_in(prompt, claim.order)
            if filled != prompt:
                write(join(claim.directory, FILLED), encode(filled))
        return filled

    # Being at work.

    def record_starts(self, claims: Sequence[Claim]) -> None:
        """Put on record that these jobs are going to be decoded. Raises WorkspaceError if it cannot be written."""
        with self._workspace.explained("write to"):
            lines = "".join(f"{claim.id}\n" for claim in claims).encode()
            if self._starts_bytes + len(lines) > self._most_starts_bytes:
                self._forget_starts()
            append(join(self._folder, _STARTS), lines, durable=True)
            self._starts_bytes += len(lines)
            # Without the move that claimed it, a job is not found beside its start.
            sync(self._folder)

    def _forget_starts(self) -> None:
        """Keep on record only what is at work still: else, after millions of jobs, nobody could read it any more."""
        path, staging = join(self._folder, _STARTS), join(self._folder, f"{_STARTS}.new")
        begun = set(read_text(path, _MAX_STARTS_BYTES).split("\n"))
        kept = "".join(f"{name}\n" for name in folders_in(self._folder) if name in begun).encode()
        write(staging, kept)
        replace(staging, path)
        self._starts_bytes = len(kept)
        self._most_starts_bytes = max(_MANY_STARTS_BYTES, 2 * len(kept))

    def progress(self, claim: Claim) -> Progress:
        """What an earlier attempt left of the job's answer."""
        return parse(read_bytes(join(claim.directory, PROGRESS)))

    def cut_progress(self, claim: Claim, kept: int) -> None:
        """Leave the first ``kept`` tokens of an earlier attempt for :meth:`append_progress` to go on, or nothing."""
        path = join(claim.directory, PROGRESS)
        with suppress(OSError):
            found = self.progress(claim)
            # What was there to be kept may have been taken away meanwhile.
            if 0 < kept <= len(found.tokens):
                append(path, b"", at=found.end_of(kept))
            else:
                clear(path)

    def append_progress(self, claim: Claim, lines: bytes) -> bool:
        """Keep an answer as it grows, without waiting for the disk; whether it was written.

        Nothing that was acknowledged depends on it.
        """
        try:
            append(join(claim.directory, PROGRESS), lines)
        except OSError:
            return False
        return True

    def is_cancelled(self, claim: Claim) -> bool:
        """Whether somebody asked that it be cancelled."""
        return os.path.lexists(join(claim.directory, _CANCEL))

    # Moving on.

    def finish(
        self, claim: Claim, answer: str, receipt: Receipt, beside: Mapping[str, bytes] = _NOTHING_BESIDE
    ) -> None:
        """File the answer under output/, and ``beside`` it files of the names that workspace.py knows.

        Raises WorkspaceError if it cannot be written; the claim then stands. Raises LostRaceError if somebody removed
        the job's folder: there is nothing left to file.
        """
        # Imported here: flw cancels jobs without it.
        import hashlib

        data = encode(answer)
        receipt = receipt._replace(sha256=hashlib.sha256(data).hexdigest(), attempts=claim.begun + 1)
        self._file(claim, {"result.txt": data, **beside}, receipt, self._workspace.output)

    def fail(
        self, claim: Claim, reason: str, receipt: Receipt, beside: Mapping[str, bytes] = _NOTHING_BESIDE
    ) -> None:
        """File the job under failed/ with the reason. Raises WorkspaceError as :meth:`finish` does."""
        self._file(claim, {"error.txt": encode(reason + "\n"), **beside}, receipt, self._workspace.failed)

    def _file(self, claim: Claim, contents: Mapping[str, bytes], receipt: Receipt, target: str) -> None:
        with self._workspace.explained("write a result to"):
            if claim.id not in self._unconfirmed:
                self._check_folder(claim)
                for leftover in _FILED:
                    clear(join(claim.directory, leftover))
                for name, data in {**contents, **receipt.to_files()}.items():
                    write(join(claim.directory, name), data)
                sync(claim.directory)
                for leftover in UNFINISHED:
                    clear(join(claim.directory, leftover))
                _move_as(claim.directory, target, claim.id)
                self._unconfirmed.add(claim.id)
            sync(target)
            self._unconfirmed.discard(claim.id)
            self._parents.finished(claim.id)
            self._priorities.forget(claim.id, claim.order.priority)

    def _check_folder(self, claim: Claim) -> None:
        """Raises LostRaceError if somebody removed the job's folder, OSError if all of the workspace is away."""
        if is_folder(claim.directory):
            return
        os.lstat(self._folder)
        # Again: it may just have come back.
        if not is_folder(claim.directory):
            raise LostRaceError(f"the folder of {claim.id} was removed while it was being answered")

    def requeue(self, claims: Sequence[Claim], begun: Sequence[Claim] = ()) -> None:
        """Put claimed jobs back where they were in the queue; ``begun`` are those of them that were being decoded.

        Those whose folder was removed are passed over. Raises WorkspaceError if one cannot be put back; the others
        are.
        """
        trouble: OSError | None = None
        with self._workspace.explained("put a job back in"):
            for claim in claims:
                try:
                    if claim in begun:
                        attempts = Attempts.of(claim.directory)
                        # A full disk costs no more than the count.
                        with suppress(OSError):
                            attempts._replace(begun=attempts.begun + 1).write(claim.directory)
                    _move_as(claim.directory, self._input, claim.id)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    trouble = error
            # They are older than what was going to be next.
            self._next.clear()
            self._unsettled = True
            if trouble:
                raise trouble

    def record_crash(self, claim: Claim) -> Claim:
        """Count, durably, that the engine died while it was at this job.

        Raises WorkspaceError, and LostRaceError if somebody removed the job's folder.
        """
        with self._workspace.explained("write to"):
            self._check_folder(claim)
            attempts = Attempts.of(claim.directory)
            attempts = attempts._replace(begun=attempts.begun + 1, crashes=claim.crashes + 1)
            attempts.write(claim.directory)
            sync(claim.directory)
        return claim._replace(begun=attempts.begun, crashes=attempts.crashes)

    def close(self) -> None:
        """Give the lease up. Jobs still claimed stay behind for :func:`recover`."""
        # What the disk does not confirm stays for others to recover.
        with suppress(OSError):
            _leave(self._workspace, self._folder)
        os.close(self._lock)


def recover(workspace: Workspace) -> list[str]:
    """Put the jobs of dead daemons back into the queue and return their ids.

    Raises WorkspaceError if one of them could not be; the others are.
    """
    recovered: list[str] = []
    trouble: OSError | None = None
    with workspace.explained("recover jobs in"):
        for folder in workspace.daemon_folders():
            with locked(folder) as won:
                if not won:
                    continue
                begun = set(read_text(join(folder, _STARTS), _MAX_STARTS_BYTES).split("\n"))
                for name in sorted(folders_in(folder)):
                    try:
                        if name in begun:
                            _count_death(join(folder, name))
                        recovered.append(_move_as(join(folder, name), workspace.input, name))
                    except OSError as error:
                        trouble = error
                try:
                    _leave(workspace, folder)
                except OSError as error:
                    trouble = error
        if trouble:
            raise trouble
    return recovered


def _leave(workspace: Workspace, folder: str) -> None:
    """Remove a daemon's folder once it is empty, and what was in it has arrived where it was moved to for sure.

    Whoever moved it may have died, or failed, before he knew. Raises OSError if that cannot be had.
    """
    for target in (workspace.input, workspace.output, workspace.failed):
        sync(target)
    if not any(folders_in(folder)):
        remove(folder)


def _count_death(directory: str) -> None:
    reached = 0
    with suppress(FileNotFoundError):
        reached = os.lstat(join(directory, PROGRESS)).st_size
    Attempts.of(directory).after_death(reached).write(directory)
    sync(directory)


def cancel(workspace: Workspace, *jobs: Job) -> list[str]:
    """Cancel jobs that wait and return their ids; those that run are marked for their daemons, which do it soon.

    Raises WorkspaceError.
    """
    cancelled: list[str] = []
    waiting = []
    for job in jobs:
        if job.state is JobState.RUNNING:
            with suppress(OSError):
                write(join(job.directory, _CANCEL), b"", durable=False)
        else:
            waiting.append(job)
    if not waiting:
        return []
    lease = Lease(workspace, None)
    try:
        for job in waiting:
            with suppress(LostRaceError):
                claim = lease.claim_this(job)
                reason = "cancelled before it was begun"
                lease.fail(claim, reason, Receipt.of_failure(claim.id, claim.queued, reason, "cancelled"))
                cancelled.append(job.id)
    finally:
        lease.close()
    return cancelled


def _about(directory: str) -> tuple[dict[str, Any], str | None]:
    """What a job's job.json holds, if there is one, and why that cannot be used. Raises OSError for what passes."""
    try:
        content = read_json(read(join(directory, "job.json"), MAX_ABOUT_BYTES))
        check_value(content, MAX_DEPTH_OF_FILES)
    except FileNotFoundError:
        return {}, None
    except JsonError as error:
        return {}, f"job.json {error}"
    except JobError as error:
        return {}, str(error)
    except OSError as error:
        if error.errno in _PASSING:
            raise
        return {}, f"job.json cannot be read: {error.strerror}"
    except ValueError:
        content = None
    return (content, None) if isinstance(content, dict) else ({}, "job.json is no JSON object")


def _move_as(origin: str, target: str, name: str) -> str:
    """Move a job's folder into another folder, replacing nothing; returns the name it got there."""
    try:
        move(origin, join(target, name))
    except FileExistsError:
        name = _other(name)
        move(origin, join(target, name))
    return name


def _other(name: str) -> str:
    """A name like this one that nobody has."""
    return f"{name}-{os.urandom(3).hex()}"


def _names_of(model: dict[str, Any] | None, alias: str | None) -> set[str]:
    """By what names a job may ask for a model: those of its file, with and without the ending."""
    path = (model or {}).get("path")
    if not isinstance(path, str):
        return set()
    names = {basename(each).casefold() for each in (path, alias) if each}
    return names | {name.removesuffix(".gguf") for name in names} | {path.casefold()}


def _count(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value < 1 << 60 else 0


def _is_timestamp(queued: object) -> TypeGuard[str]:
    return isinstance(queued, str) and queued.isascii() and queued.isprintable() and len(queued) <= 40


def _settled(folder: str) -> bool:
    """Whether nobody has written to it for a while. A time in the future came with a copy and says nothing."""
    newest = os.stat(folder).st_mtime
    with suppress(FileNotFoundError):
        newest = max(newest, os.lstat(join(folder, "prompt.txt")).st_mtime)
    return abs(time.time() - newest) > SETTLE_S
