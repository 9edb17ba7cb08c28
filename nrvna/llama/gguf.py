"""The head of a GGUF file: its metadata and what tensors it holds, without their data.

For files that llama.cpp would believe more than is good for the process. It is no reader of weights.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
# The format's numbers for types of values, as struct writes them.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS, _MAX_NAME = 4, 64
_ALIGNMENT = 32
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


class HeaderError(ValueError):
    """The head does not follow the format, or ends early."""


@dataclass(frozen=True)
class Tensor:
    """``shape`` in the file's order, rows' length first; ``type`` is ggml's number for the elements' format."""

    shape: tuple[int, ...]
    type: int


@dataclass(frozen=True)
class Header:
    """``metadata`` holds text, numbers and flags; of arrays the key alone, with None, where nobody asked for them.

    ``sizes`` are the tensors' bytes in this file, the padding to the next one included.
    """

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]
    sizes: dict[str, int] = field(default_factory=dict, compare=False)


def open_file(path: Path) -> BinaryIO:
    """A regular file, to be read. Raises OSError, also for a pipe or the like: what nobody writes is waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_header(path: Path, *, arrays: bool = False) -> Header:
    """``arrays`` keeps them in the metadata, as lists: a vocabulary's take tens of megabytes.

    Raises OSError if the file cannot be read and HeaderError if it is no GGUF file of today's versions.
    """
    with open_file(path) as file:
        reader = _Reader(file, os.fstat(file.fileno()).st_size, arrays)
        if reader.take(len(MAGIC)) != MAGIC:
            raise HeaderError("it does not begin with GGUF")
        version = reader.number("I")
        if version not in _VERSIONS:
            raise HeaderError(f"it is of version {version}, not 3")
        n_tensors, n_keys = reader.number("Q"), reader.number("Q")
        metadata = dict(reader.pair() for _ in range(n_keys))
        tensors = dict(reader.tensor() for _ in range(n_tensors))
        return Header(metadata, tensors, reader.sizes(metadata.get("general.alignment", _ALIGNMENT)))


def parts_of(path: Path) -> list[Path]:
    """The files of a model that is split into several, named after its first one; else the file alone.

    It is the name that says so: some may not be there.
    """
    match = _PART.fullmatch(path.name)
    if not match or not int(match[3]):
        return [path]
    stem, count = match[1], match[3]
    return [path.with_name(f"{stem}-{index:05}-of-{count}.gguf") for index in range(1, int(count) + 1)]


class _Reader:
    def __init__(self, file: BinaryIO, size: int, keeps_arrays: bool) -> None:
        self._file = file
        self._size = size
        self._keeps_arrays = keeps_arrays
        self._offsets: dict[str, int] = {}

    def take(self, count: int) -> bytes:
        self._within(count)
        data = self._file.read(count)
        if len(data) < count:
            raise HeaderError("it ends within its head")
        return data

    def number(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(form)))[0]

    def string(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def pair(self) -> tuple[str, Any]:
        return self.string(), self._value(self.number("I"))

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise HeaderError(f"it has a value of the unknown type {kind}")
        return self.number(_SCALARS[kind])

    def _array(self) -> list[Any] | None:
        kind, count = self.number("I"), self.number("Q")
        if kind != _STRING and kind not in _SCALARS:
            raise HeaderError(f"it has an array of the unknown type {kind}")
        if self._keeps_arrays:
            return self._kept(kind, count)
        if kind == _STRING:
            for _ in range(count):
                self._skip(self.number("Q"))
        else:
            self._skip(count * struct.calcsize(_SCALARS[kind]))
        return None

    def _kept(self, kind: int, count: int) -> list[Any]:
        if kind == _STRING:
            return [self.string() for _ in range(count)]
        data = self.take(count * struct.calcsize(_SCALARS[kind]))
        return list(struct.unpack(f"<{count}{_SCALARS[kind]}", data))

    def tensor(self) -> tuple[str, Tensor]:
        name, dimensions = self.string(), self.number("I")
        if len(name) > _MAX_NAME:
            raise HeaderError(f"a tensor has a name of {len(name)} characters")
        if dimensions > _MAX_DIMENSIONS:
            raise HeaderError(f"the tensor {name!r} has {dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(dimensions))
        found = Tensor(shape, self.number("I"))
        self._offsets[name] = self.number("Q")
        return name, found

    def sizes(self, alignment: object) -> dict[str, int]:
        """From where each tensor begins, once all were read: none where they lie beyond the file."""
        step = alignment if isinstance(alignment, int) and alignment > 0 else _ALIGNMENT
        end = self._size - -(-self._file.tell() // step) * step
        starts = sorted(self._offsets.values())
        if starts and starts[-1] > end:
            return {}
        following = dict(pairwise([*dict.fromkeys(starts), end]))
        return {name: following[start] - start for name, start in self._offsets.items()}

    def _skip(self, count: int) -> None:
        self._within(count)
        self._file.seek(count, 1)

    def _within(self, count: int) -> None:
        """A number that is wrong must not become memory."""
        if count > self._size - self._file.tell():
            raise HeaderError("it ends within its head")
