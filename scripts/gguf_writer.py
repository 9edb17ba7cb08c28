"""Write GGUF files: metadata and tensors, in the order given; those that are too large for memory piece by piece."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

_ALIGNMENT = 32
_U32, _F32, _BOOL, _STRING, _ARRAY, _I32 = 4, 6, 7, 8, 9, 5
_INTEGERS = {np.dtype(np.uint16): 2, np.dtype(np.int32): _I32}
# ggml's numbers for the elements' formats.
_FORMATS = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.int32): 26}


@dataclass(frozen=True)
class Streamed:
    """A tensor of shape (…, rows, row length) in the format that has this number in ggml.

    ``pieces`` are its ``nbytes`` bytes in portions of any size, made while they are written.
    """

    shape: tuple[int, ...]
    format: int
    nbytes: int
    pieces: Iterable[NDArray[np.uint8]]


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, NDArray[Any] | Streamed]) -> None:
    """Numbers are written as 32 bits, int as unsigned, in lists as signed; numpy's as they are. Arrays are float32,
    float16 or int32, of shape (…, rows, row length), which the file names the other way round.

    Raises ValueError if a streamed tensor has more bytes, or fewer, than it said.
    """
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
        for key, value in metadata.items():
            file.write(_string(key) + _value(value))
        offset = 0
        for name, tensor in tensors.items():
            shape = tensor.shape[::-1]
            number = tensor.format if isinstance(tensor, Streamed) else _FORMATS[tensor.dtype]
            form = f"<I{len(shape)}QIQ"
            file.write(_string(name) + struct.pack(form, len(shape), *shape, number, offset))
            offset += _padded(tensor.nbytes)
        _pad(file)
        for name, tensor in tensors.items():
            _write_data(file, name, tensor)
            _pad(file)


def _write_data(file: BinaryIO, name: str, tensor: NDArray[Any] | Streamed) -> None:
    if not isinstance(tensor, Streamed):
        file.write(np.ascontiguousarray(tensor).tobytes())
        return
    start = file.tell()
    for piece in tensor.pieces:
        file.write(np.ascontiguousarray(piece).data)
    if file.tell() - start != tensor.nbytes:
        raise ValueError(f"the tensor {name} was to have {tensor.nbytes} bytes and has {file.tell() - start}")


def _value(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, np.integer):
        return struct.pack("<I", _INTEGERS[value.dtype]) + value.tobytes()
    if isinstance(value, int):
        return struct.pack("<II", _U32, value)
    if isinstance(value, float):
        return struct.pack("<If", _F32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if all(isinstance(item, str) for item in value):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_string, value))
    if all(isinstance(item, float) for item in value):
        return struct.pack(f"<IIQ{len(value)}f", _ARRAY, _F32, len(value), *value)
    return struct.pack(f"<IIQ{len(value)}i", _ARRAY, _I32, len(value), *value)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _pad(file: BinaryIO) -> None:
    file.write(bytes(_padded(file.tell()) - file.tell()))
