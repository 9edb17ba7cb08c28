"""What is known of a batch on the disk: which jobs answer which line of its file.

    .nrvna/batches/<id>/ledger.jsonl   {"file": "in.jsonl", "requests": 3, "created": 1795352645, "asked": {}}
                                       {"line": 1, "id": "a", "url": "/v1/chat/completions", "jobs": ["2026…"]}
                                       {"line": 2, "id": null, "error": {"code": "…", "message": "…", "param": null}}
                                       {"end": true}
    .nrvna/batches/<id>/lock           held by the ``wrk`` that queues it

Lines are only added, and those of jobs are on the disk before the jobs appear in the queue. Of several with one
number the last counts: who was killed between the two leaves jobs here that are nowhere, and the next ``wrk`` queues
these anew. What a crash of the machine left of the last line is cut off before another one is added.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from os.path import join
from types import MappingProxyType
from typing import Any, NamedTuple

from nrvna.errors import JobNotFoundError
from nrvna.files import append, folders_in, make_folder, sync
from nrvna.jsontext import read_json
from nrvna.workspace import Workspace

_PREFIX, _DIGITS = "batch_", 24
_ID = re.compile(rf"{_PREFIX}[0-9a-f]{{{_DIGITS}}}(-[0-9]{{1,6}})?")
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Entry(NamedTuple):
    """A line of the batch's file. It has jobs, or an ``error``: {"code", "message", "param"}.

    ``wants`` says how the response is to be written, see :class:`nrvna.batch.request.Request`.
    """

    line: int
    custom_id: str | None
    url: str | None = None
    jobs: tuple[str, ...] = ()
    wants: Mapping[str, Any] = _NOTHING
    error: dict[str, Any] | None = None

    def to_json(self) -> bytes:
        about: dict[str, Any] = {"line": self.line, "id": self.custom_id, "url": self.url}
        about |= {"error": self.error} if self.error else {"jobs": self.jobs}
        return _line({**about, **({"wants": dict(self.wants)} if self.wants else {})})

    @classmethod
    def read(cls, content: dict[str, Any]) -> Entry:
        jobs = tuple(content.get("jobs", ()))
        return cls(
            content["line"], content["id"], content.get("url"), jobs, content.get("wants", {}), content.get("error")
        )


class Head(NamedTuple):
    """``file`` is the name of the batch's file, ``requests`` how many lines of it are not blank.

    ``created`` is in seconds since the epoch; ``asked`` is what ``wrk`` was asked beside it.
    """

    file: str
    requests: int
    created: int
    asked: dict[str, Any]


class Ledger:
    """One batch. Any number of processes may read it; one adds to it, while it holds :meth:`lock`."""

    def __init__(self, workspace: Workspace, batch_id: str) -> None:
        self.id = batch_id
        self._workspace = workspace
        self._folder = workspace.batch(batch_id)
        self._path = join(self._folder, "ledger.jsonl")
        # Where in the file each line's last entry is.
        self._places: dict[int, int] = {}
        self._end = 0
        self.head: Head | None = None
        self.is_complete = False

    def create(self) -> None:
        """Make its folder. Raises WorkspaceError."""
        with self._workspace.explained("write to"):
            make_folder(self._folder)

    @contextmanager
    def lock(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Be the only one who queues this batch; ``waiting`` is called if another is at it. Raises WorkspaceError."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with self._workspace.explained("write to"):
            descriptor = os.open(join(self._folder, "lock"), flags, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @property
    def is_being_queued(self) -> bool:
        """Whether a living ``wrk`` is at it."""
        try:
            descriptor = os.open(join(self._folder, "lock"), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def refresh(self) -> list[int]:
        """Read what was added since; returns the numbers of the lines that are new. Raises WorkspaceError."""
        news: list[int] = []
        with self._workspace.explained("read"), suppress(FileNotFoundError), open(self._path, "rb") as file:
            file.seek(self._end)
            # What has no line break yet is still being written, or never will be.
            while (line := file.readline()).endswith(b"\n"):
                if (number := self._read(line)) is not None:
                    self._places[number] = self._end
                    news.append(number)
                self._end += len(line)
        return news

    def _read(self, line: bytes) -> int | None:
        """Take in a line that is no entry; the number of one that is."""
        try:
            content = read_json(line)
        except ValueError:
            return None
        match content:
            case {"line": int() as number, "id": _}:
                return number
            case {"file": str() as file, "requests": int() as requests, "created": int() as created, "asked": asked}:
                self.head = Head(file, requests, created, asked)
            case {"end": True}:
                self.is_complete = True
        return None

    def __contains__(self, line: int) -> bool:
        return line in self._places

    def __len__(self) -> int:
        return len(self._places)

    def entries(self, lines: Iterable[int] | None = None) -> Iterator[Entry]:
        """What is known of the lines, in their order, or of some of them in that given. Raises WorkspaceError."""
        if not self._places:
            return
        with self._workspace.explained("read"), open(self._path, "rb") as file:
            for line in sorted(self._places) if lines is None else lines:
                if (place := self._places[line]) != file.tell():
                    file.seek(place)
                yield Entry.read(read_json(file.readline()))

    def begin(self, head: Head) -> None:
        """Write down what it is about. Raises WorkspaceError."""
        self._append([_line(head._asdict())])
        with self._workspace.explained("write to"):
            sync(self._folder)

    def add(self, entries: Sequence[Entry]) -> None:
        """When this returns, they survive a crash of the machine. Raises WorkspaceError."""
        self._append([entry.to_json() for entry in entries])

    def complete(self) -> None:
        """All lines have an entry. Raises WorkspaceError."""
        self._append([_line({"end": True})])

    def _append(self, lines: list[bytes]) -> None:
        with self._workspace.explained("write to"):
            append(self._path, b"".join(lines), at=self._end, durable=True)
        self.refresh()


def batch_id(digest: str, number: int = 1) -> str:
    """The id of the batch that a file makes, by its SHA-256, when it is queued for the ``number``-th time."""
    return f"{_PREFIX}{digest[:_DIGITS]}" + (f"-{number}" if number > 1 else "")


def newest_batch(workspace: Workspace, digest: str) -> int:
    """The number of the batch that a file made last; 0 if it made none. Raises WorkspaceError."""
    stem = batch_id(digest)
    numbers = [name.removeprefix(stem) for name in batch_ids(workspace) if name.startswith(stem)]
    return max((int(number[1:] or 1) for number in numbers), default=0)


def batch_ids(workspace: Workspace) -> list[str]:
    """All batches of a workspace, by their names. Raises WorkspaceError."""
    with workspace.explained("read"):
        return sorted(name for name in folders_in(workspace.batches) if _ID.fullmatch(name))


def find_batch(workspace: Workspace, name: str) -> str:
    """The batch of that id, or the only one whose id begins so. Raises JobNotFoundError, WorkspaceError."""
    known = batch_ids(workspace)
    if name in known:
        return name
    found = [each for each in known if name and each.startswith((name, _PREFIX + name))]
    if not found:
        raise JobNotFoundError(f"no batch {name!r} in {workspace.path}: wrk --batch prints the id of one")
    if len(found) > 1:
        raise JobNotFoundError(f"{name!r} begins {len(found)} batches' ids: {', '.join(found[:3])}: give more of it")
    return found[0]


def _line(content: dict[str, Any]) -> bytes:
    # ASCII: every string, also one with unpaired surrogates, survives.
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"
