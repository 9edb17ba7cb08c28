"""How jobs come into the queue: built in a hidden folder, on the disk before they appear, announced to the daemon.

``.nrvna/keys/<hash>`` holds the id of the job that was queued with a key; it is written before that job appears, so
one that died in between leaves a key that leads nowhere, and the next with it queues anew. Whoever looks up a key and
queues a job holds the lock beside. ``.nrvna/priority/<priority>~<id>`` lets a daemon know, without reading every job,
which are to start out of turn.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from os.path import join
from typing import TYPE_CHECKING

from nrvna import __version__
from nrvna.errors import JobError, JobNotFoundError, JsonError, SubmitError
from nrvna.files import as_json, is_folder, make_folder, move, read, remove, sync, sync_tree, write
from nrvna.job import new_id, time_of, timestamp
from nrvna.jsontext import MAX_DEPTH_OF_FILES, check_value
from nrvna.order import MAX_ABOUT_BYTES, Order, check_prompt, encode_prompt, may_be_empty

if TYPE_CHECKING:
    from nrvna.workspace import Record, Workspace

# An id is not dated further ahead than this to keep the queue in order: then the clock was wrong before, not now.
_MAX_AHEAD_US = 24 * 3600 * 1_000_000
# What stands in the file of a key is an id.
_MAX_KEY_FILE_BYTES = 1000


def submit_all(workspace: Workspace, orders: list[Order], record: Record | None) -> list[str]:
    """See :meth:`Workspace.submit_all`."""
    contents = [_contents(order) for order in orders]
    with ExitStack() as held:
        if any(order.key for order in orders):
            with workspace.explained("queue a job in"):
                held.enter_context(keys_locked(workspace))
        return _Submission(workspace, orders, contents).commit(record)


def _contents(order: Order) -> tuple[bytes, bytes]:
    """The files of a job. Raises JobError if it cannot run."""
    prompt = _checked(order)
    if order.after:
        # Imported here: few jobs come after others.
        from nrvna.results import with_places

        order = with_places(order)
        prompt = _checked(order)
    content = {"queued": timestamp(time.time()), "nrvna": __version__, **order.about()}
    try:
        check_value(content, MAX_DEPTH_OF_FILES)
        about = as_json(content)
    except JsonError as error:
        raise JobError(f"what is asked beside the prompt {error}") from None
    except (TypeError, ValueError) as error:
        raise JobError(f"what is asked beside the prompt cannot be written as JSON: {error}") from None
    if len(about) > MAX_ABOUT_BYTES:
        raise JobError(f"what is asked beside the prompt has {len(about)} bytes: {MAX_ABOUT_BYTES} are allowed")
    return prompt, about


def _checked(order: Order) -> bytes:
    prompt = order.prompt if isinstance(order.prompt, bytes) else encode_prompt(order.prompt)
    return check_prompt(prompt, may_be_empty=may_be_empty(order.task))


class _Submission:
    """Jobs on their way into the queue. ``ids`` are those of the orders, as far as they have one already."""

    def __init__(self, workspace: Workspace, orders: list[Order], contents: list[tuple[bytes, bytes]]) -> None:
        self._workspace = workspace
        self._orders = orders
        self._contents = contents
        self._ids: list[str | None] = [None] * len(orders)
        # Of the orders, those that need a job: others have the key of one that is there, or comes before them here.
        self._fresh: list[int] = []
        self._same: dict[int, int] = {}

    def commit(self, record: Record | None) -> list[str]:
        staged: list[str] = []
        beside: list[str] = []
        try:
            with self._workspace.explained("queue a job in"):
                self._match_keys()
                for number in self._fresh:
                    # One by one: what was staged before one fails must be known.
                    staged.append(self._stage(*self._contents[number]))  # noqa: PERF401
                for number, job_id in zip(self._fresh, staged, strict=True):
                    beside += self._mark(self._orders[number], job_id)
                sync_tree([self._staging(job_id) for job_id in staged], beside)
            if record and staged:
                record(staged, self._fresh)
        except BaseException:
            self._discard(staged)
            raise
        moved = self._move(staged, record)
        for number, job_id in zip(self._fresh, moved, strict=True):
            self._ids[number] = job_id
        for number, first in self._same.items():
            self._ids[number] = self._ids[first]
        return [job_id for job_id in self._ids if job_id is not None]

    def _match_keys(self) -> None:
        seen: dict[str, int] = {}
        for number, order in enumerate(self._orders):
            if order.key is None:
                self._fresh.append(number)
            elif order.key in seen:
                self._same[number] = seen[order.key]
            elif job_id := _job_of(self._workspace, order.key):
                self._ids[number] = job_id
            else:
                seen[order.key] = number
                self._fresh.append(number)

    def _stage(self, prompt: bytes, about: bytes) -> str:
        """Write a job beside the queue and return its id, which nobody has."""
        while True:
            job_id = new_id(self._newest_id_us())
            try:
                os.mkdir(self._staging(job_id), 0o700)
            except FileExistsError:
                continue
            if not self._is_taken(job_id):
                break
            os.rmdir(self._staging(job_id))
        try:
            write(join(self._staging(job_id), "prompt.txt"), prompt, durable=False)
            write(join(self._staging(job_id), "job.json"), about, durable=False)
        except BaseException:
            self._discard([job_id])
            raise
        return job_id

    def _mark(self, order: Order, job_id: str) -> list[str]:
        """Write what is known of a job outside its folder; returns what must be on the disk before it appears."""
        marked = []
        if order.key is not None:
            path = key_path(self._workspace, order.key)
            write(path, job_id.encode(), durable=False)
            marked += [path, self._workspace.keys]
        if order.priority:
            marked += mark_priority(self._workspace, job_id, order.priority)
        return marked

    def _move(self, staged: list[str], record: Record | None) -> list[str]:
        """Let what was staged appear in the queue. Raises SubmitError if not all of it does, for sure."""
        workspace = self._workspace
        moved: list[str] = []
        trouble: OSError | None = None
        try:
            for number, job_id in zip(self._fresh, staged, strict=True):
                order = self._orders[number]
                moved.append(self._enter(job_id, is_known=bool(record or order.key or order.priority)))
        except OSError as error:
            trouble = error
            self._discard(staged[len(moved) :])
        try:
            sync(workspace.input)
        except OSError as error:
            reason = f"the disk did not confirm that {', '.join(moved)} will run, but it may: {error.strerror}"
            if moved:
                raise SubmitError(reason, [], moved) from error
        if moved:
            # For whoever submits after the clock was set back; of no use elsewhere.
            with suppress(OSError):
                newest = time_of(moved[-1]) * 1000
                os.utime(workspace.clock, ns=(newest, newest))
            wake(workspace)
        if trouble:
            reason = f"cannot queue a job in {workspace.path}: {trouble.strerror}"
            raise SubmitError(reason, moved, []) from trouble
        return moved

    def _enter(self, job_id: str, *, is_known: bool) -> str:
        """Move a staged job into the queue; returns the id it has there, another one if somebody took that.

        Raises FileExistsError if it was and the id ``is_known`` elsewhere already.
        """
        staging = self._staging(job_id)
        while True:
            try:
                move(staging, join(self._workspace.input, job_id))
                return job_id
            except FileExistsError:
                if is_known:
                    raise
                job_id = new_id(self._newest_id_us())

    def _staging(self, job_id: str) -> str:
        return join(self._workspace.input, f".{job_id}")

    def _discard(self, staged: Sequence[str]) -> None:
        for job_id in staged:
            remove(self._staging(job_id))

    def _newest_id_us(self) -> int:
        with suppress(OSError):
            newest = os.stat(self._workspace.clock).st_mtime_ns // 1000
            if newest < time.time_ns() // 1000 + _MAX_AHEAD_US:
                return newest
        return 0

    def _is_taken(self, job_id: str) -> bool:
        return any(is_folder(join(folder, job_id)) for folder, _ in self._workspace.folders())


def key_path(workspace: Workspace, key: str) -> str:
    """Where the id of the job of a key stands."""
    # Imported here: few jobs have a key.
    from hashlib import sha256

    return join(workspace.keys, sha256(key.encode()).hexdigest())


def mark_priority(workspace: Workspace, job_id: str, priority: int) -> list[str]:
    """Let daemons know that a job is to start out of turn; returns what is to be synced before they rely on it."""
    make_folder(workspace.priority)
    path = join(workspace.priority, f"{priority}~{job_id}")
    write(path, b"", durable=False)
    return [path, workspace.priority]


def _job_of(workspace: Workspace, key: str) -> str | None:
    """The job that was queued with a key, if it is still there. Raises OSError if that cannot be told."""
    try:
        job_id = read(key_path(workspace, key), _MAX_KEY_FILE_BYTES).decode("utf-8", "replace")
        return workspace.find(job_id).id
    except (FileNotFoundError, JobError, JobNotFoundError):
        return None


@contextmanager
def keys_locked(workspace: Workspace) -> Iterator[None]:
    """As long as this lasts nobody else looks up a key, or takes it. Raises OSError."""
    make_folder(workspace.keys)
    lock = os.open(join(workspace.private, "keys.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def wake(workspace: Workspace) -> None:
    """Tell an idle daemon that there is something to do."""
    # Nobody listening (ENXIO), no FIFO, a full one: the daemon looks by itself before long.
    with suppress(OSError):
        descriptor = os.open(join(workspace.private, "wake"), os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                os.write(descriptor, b"\n")
        finally:
            os.close(descriptor)
