"""Files of jobs: read without being led astray, written so that they stay. Knows no name of any of them.

Whoever may write to a workspace can put anything under any name: a link, a FIFO, a folder. Reading takes regular
files alone and follows no link; writing clears the way first.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from os.path import basename
from typing import Any

from nrvna.errors import JobError

_MAX_OBJECT_BYTES = 1024 * 1024


def read(path: str, limit: int) -> bytes:
    """A regular file's content, no link followed. Raises OSError, or JobError if it is no file or too large."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise JobError(f"{basename(path)} is no regular file")
        if about.st_size > limit:
            raise JobError(f"{basename(path)} has {about.st_size} bytes, more than the {limit} allowed")
        return file.read(about.st_size)


def read_text(path: str, limit: int = sys.maxsize) -> str:
    """For showing: what can be read of a file as text, empty if it cannot be."""
    try:
        return read(path, limit).decode("utf-8", "replace")
    except (OSError, JobError):
        return ""


def read_object(path: str) -> dict[str, Any]:
    """A JSON object from a file, empty if there is none."""
    try:
        content = json.loads(read(path, _MAX_OBJECT_BYTES))
    except (OSError, ValueError, RecursionError, JobError):
        return {}
    return content if isinstance(content, dict) else {}


def write(path: str, data: bytes) -> None:
    """Write a new file in place of whatever was there, and wait until it is on the disk."""
    clear(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def append(path: str, data: bytes) -> None:
    """Add to a file without waiting for the disk; what is no regular file stays as it is."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "ab") as file:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.write(data)


def encode(text: str) -> bytes:
    """UTF-8, also of a job's name that is none; what that cannot hold becomes an escape, which JSON reads back."""
    return text.encode(errors="backslashreplace")


def sync(folder: str) -> None:
    """Wait until a folder's entries are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def clear(path: str) -> None:
    """See to it that nothing is there, whatever it was."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        # What unlink says of a folder: EISDIR on Linux, EPERM elsewhere.
        if error.errno not in (errno.EISDIR, errno.EPERM):
            raise
        remove(path)


def remove(folder: str) -> None:
    """Remove a folder and what is in it, as far as it goes."""
    # Imported here: it takes a tenth of the time that wrk has, which has nothing to remove.
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def is_folder(path: str) -> bool:
    """Whether it is a folder itself, and no link to one."""
    with suppress(OSError):
        return stat.S_ISDIR(os.lstat(path).st_mode)
    return False


def folders_in(folder: str) -> Iterator[str]:
    """The names of the folders in a folder, but for hidden ones; none if it is gone. Raises OSError."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                    yield entry.name
    except FileNotFoundError:
        return
