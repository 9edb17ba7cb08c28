"""Files of jobs: read without being led astray, written so that they stay. Knows no name of any of them.

Whoever may write to a workspace can put anything under any name: a link, a FIFO, a folder. Reading takes regular
files alone and follows no link; writing clears the way first. The only module that waits for the disk or renames.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from os.path import basename, dirname, isdir, join
from typing import Any

from nrvna.errors import JobError
from nrvna.jsontext import read_json

_MAX_OBJECT_BYTES = 1024 * 1024
# From linux/fs.h and sys/stdio.h of macOS.
_RENAME_NOREPLACE, _RENAME_EXCL = 1, 4
_AT_FDCWD = -100


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


def read_from(path: str, offset: int, limit: int) -> tuple[int, int, bytes]:
    """For following a regular file that grows: its inode, its size in bytes, and what it holds from an offset on.

    Of that no more than ``limit`` bytes: the rest another time. Raises OSError, or JobError if it is no file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise JobError(f"{basename(path)} is no regular file")
        size = min(max(0, about.st_size - offset), limit)
        return about.st_ino, about.st_size, os.pread(descriptor, size, offset) if size else b""
    finally:
        os.close(descriptor)


def read_text(path: str, limit: int = sys.maxsize) -> str:
    """For showing: what can be read of a file as text, empty if it cannot be."""
    return read_bytes(path, limit).decode("utf-8", "replace")


def read_bytes(path: str, limit: int = sys.maxsize) -> bytes:
    """What can be read of a file, empty if it cannot be."""
    try:
        return read(path, limit)
    except (OSError, JobError):
        return b""


def read_head(path: str, limit: int) -> str:
    """For showing: the beginning of a regular file as text, so many bytes of it; empty if it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return os.read(descriptor, limit).decode("utf-8", "replace")
    except OSError:
        pass
    finally:
        os.close(descriptor)
    return ""


def read_object(path: str, limit: int = _MAX_OBJECT_BYTES) -> dict[str, Any]:
    """A JSON object from a file, empty if there is none."""
    try:
        content = read_json(read(path, limit))
    except (OSError, ValueError, JobError):
        return {}
    return content if isinstance(content, dict) else {}


def as_json(content: dict[str, Any]) -> bytes:
    """A JSON object as a file's content."""
    return (json.dumps(content) + "\n").encode()


def write(path: str, data: bytes, *, durable: bool = True) -> None:
    """Write a new file in place of whatever was there; ``durable`` waits until its content is on the disk."""
    clear(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        _write_all(descriptor, data)
        if durable:
            _flush(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole_file(path: str) -> Iterator[Callable[[bytes], None]]:
    """A function that writes to a file which takes the place of what is there once it is whole, and on the disk.

    If anything fails until then, nothing has changed. What is no regular file is written to as it is. Raises OSError.
    """
    try:
        about = os.stat(path)
    except FileNotFoundError:
        about = None
    if about and not stat.S_ISREG(about.st_mode):
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            yield lambda data: _write_all(descriptor, data)
        finally:
            os.close(descriptor)
        return
    target = os.path.realpath(path)
    staging = join(dirname(target), f".{basename(target)[:100]}.{os.urandom(3).hex()}")
    descriptor = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            if about:
                os.fchmod(descriptor, stat.S_IMODE(about.st_mode))
            yield lambda data: _write_all(descriptor, data)
            _flush(descriptor)
        finally:
            os.close(descriptor)
        os.rename(staging, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(staging)
        raise
    sync(dirname(target))


def append(path: str, data: bytes, *, at: int | None = None, durable: bool = False) -> None:
    """Add to a file, all of it or nothing; ``at`` cuts the file there first. What is no regular file stays as it is.

    Raises OSError, and FileNotFoundError if the folder is gone.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            return
        size = about.st_size if at is None else min(at, about.st_size)
        if size < about.st_size:
            os.ftruncate(descriptor, size)
        try:
            _write_all(descriptor, data)
            if durable:
                _flush(descriptor)
        except OSError:
            # Half a line would spoil all that come after it.
            with suppress(OSError):
                os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def encode(text: str) -> bytes:
    """UTF-8, also of a job's name that is none; what that cannot hold becomes an escape, which JSON reads back."""
    return text.encode(errors="backslashreplace")


def make_folder(path: str) -> None:
    """Make a folder, and those above it, that only its user can enter; one that is there stays as it is.

    It survives a crash of the machine, if those above that were there before do.
    """
    above = dirname(path)
    if above and not isdir(above):
        make_folder(above)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not isdir(path):
            raise
        # Whoever made it may have died before he could wait for the disk. One that he cannot read is not his.
        with suppress(PermissionError):
            sync(above or ".")
        return
    sync(above or ".")


def sync(path: str) -> None:
    """Wait until a folder's entries, or a file's content, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _flush(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folders: list[str], beside: Sequence[str] = ()) -> None:
    """Wait until these folders and the files in them are on the disk, and the files and folders ``beside``.

    For many at once this is one wait for all.
    """
    if len(folders) > 1 and _sync_file_system(folders[0]):
        return
    for folder in folders:
        for name in sorted(os.listdir(folder)):
            sync(join(folder, name))
        sync(folder)
    for path in beside:
        sync(path)


def move(origin: str, target: str) -> None:
    """Rename without replacing anything, not even an empty folder. Raises FileExistsError if ``target`` is there."""
    code = _rename_exclusively(origin, target)
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        # A file system without it: the next best is to look first.
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
        os.rename(origin, target)
    elif code:
        raise OSError(code, os.strerror(code), origin, None, target)


def replace(origin: str, target: str) -> None:
    """Rename a file over whatever is there, so that a reader sees either file whole."""
    try:
        os.rename(origin, target)
    except IsADirectoryError:
        remove(target)
        os.rename(origin, target)


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
    """Whether it is a folder itself, and no link to one, as far as can be seen."""
    with suppress(OSError):
        return has_folder(path, follow=False)
    return False


def has_folder(path: str, *, follow: bool = True) -> bool:
    """Whether a folder is there, or, if links are to be followed, a link to one.

    Raises OSError where that cannot be told: what may not be looked at is not missing.
    """
    try:
        return stat.S_ISDIR(os.stat(path, follow_symlinks=follow).st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        # The last of them for a name that no file can have.
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


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _flush(descriptor: int) -> None:
    # On macOS fsync leaves the data in the disk's own cache.
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with suppress(OSError):
            fcntl.fcntl(descriptor, full)
            return
    os.fsync(descriptor)


def _rename_exclusively(origin: str, target: str) -> int:
    """An errno, or 0 if it was done."""
    # Imported here: flw has no use for it.
    import ctypes

    old, new = os.fsencode(origin), os.fsencode(target)
    library = ctypes.CDLL(None, use_errno=True)
    try:
        if sys.platform == "darwin":
            failed = library.renamex_np(old, new, _RENAME_EXCL)
        else:
            failed = library.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, _RENAME_NOREPLACE)
    except AttributeError:
        return errno.ENOSYS
    return ctypes.get_errno() if failed else 0


def _sync_file_system(path: str) -> bool:
    """Write back everything of the file system that a folder is on; False where that cannot be asked for."""
    import ctypes

    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        try:
            failed = library.syncfs(descriptor)
        except AttributeError:
            return False
        if failed:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), path)
        return True
    finally:
        os.close(descriptor)
