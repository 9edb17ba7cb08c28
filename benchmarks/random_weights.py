"""Random weights in ggml's formats, block by block, for models that are made to be measured and not to be read.

All bits of a block are random, but for its scales: those are chosen so that the weights' mean is 0 and their standard
deviation the one that was asked for. Nothing here is quantized, so a file is made as fast as the disk takes it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
from gguf_writer import Streamed
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
_PIECE_BYTES = 8 << 20


@dataclass(frozen=True)
class Format:
    """One of ggml's: ``number`` is ggml's own for it; a block of so many ``weights`` takes ``nbytes``.

    ``scale`` makes blocks out of random bytes of shape (blocks, nbytes), in place, for a standard deviation.
    """

    name: str
    number: int
    weights: int
    nbytes: int
    scale: Callable[[Bytes, float], None]

    def size(self, rows: int, columns: int) -> int:
        """Bytes of a matrix. Its rows must be whole blocks."""
        return rows * columns // self.weights * self.nbytes


def random_matrix(name: str, rows: int, columns: int, form: Format, deviation: float, seed: int) -> Streamed:
    """Weights of mean 0 and this standard deviation, the same ones for the same name and seed."""
    nbytes = form.size(rows, columns)
    return Streamed((rows, columns), form.number, nbytes, _pieces(name, nbytes, form, deviation, seed))


def random_vector(name: str, length: int, deviation: float, seed: int) -> NDArray[np.float32]:
    """As :func:`random_matrix`, in F32."""
    return _normal(_bits(name, seed).random_raw(length).astype(np.uint16), deviation).astype(np.float32)


def _pieces(name: str, nbytes: int, form: Format, deviation: float, seed: int) -> Iterator[Bytes]:
    bits = _bits(name, seed)
    step = _PIECE_BYTES // form.nbytes * form.nbytes
    for start in range(0, nbytes, step):
        size = min(step, nbytes - start)
        words = bits.random_raw(-(-size // 8)).astype("<u8", copy=False)
        blocks = words.view(np.uint8)[:size].reshape(-1, form.nbytes)
        form.scale(blocks, deviation)
        yield blocks


def _bits(name: str, seed: int) -> np.random.PCG64DXSM:
    """Raw bits: what numpy's distributions make of a seed may change from one version to the next, these do not."""
    return np.random.PCG64DXSM(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))


@cache
def _normal_table() -> NDArray[np.float64]:
    """Normally distributed numbers, one for each 16 random bits."""
    quantile = NormalDist().inv_cdf
    return np.array([quantile((index + 0.5) / 65536) for index in range(65536)])


def _normal(bits: NDArray[np.uint16], deviation: float) -> NDArray[np.float16]:
    return np.take((_normal_table() * deviation).astype(np.float16), bits)


def _f16(blocks: Bytes, deviation: float) -> None:
    blocks[:] = _normal(blocks.view("<u2")[:, 0], deviation).view(np.uint8).reshape(-1, 2)


def _rms(numbers: range) -> float:
    return float(np.sqrt(np.mean(np.square(numbers, dtype=float))))


def _f16_bytes(number: float) -> Bytes:
    return np.frombuffer(np.array(number, "<f2").tobytes(), np.uint8)


def _signed_scale(levels: range) -> Callable[[Bytes, float], None]:
    """For formats whose levels lie not quite evenly about 0: the scale's sign stays random, so that the mean is 0."""
    rms = _rms(levels)

    def scale(blocks: Bytes, deviation: float) -> None:
        low, high = _f16_bytes(deviation / rms)
        blocks[:, 0] = low
        blocks[:, 1] = (blocks[:, 1] & 0x80) | high

    return scale


def _q8_0(blocks: Bytes, deviation: float) -> None:
    blocks[:, :2] = _f16_bytes(deviation / _rms(range(-127, 128)))
    # ggml's own quantizer never makes a -128.
    levels = blocks[:, 2:].view(np.int8)
    np.maximum(levels, -127, out=levels)


def _q4_k(blocks: Bytes, deviation: float) -> None:
    """A weight is d·scale·level - dmin·minimum: with minimum = scale and dmin = 7.5 d the mean of its levels is 0."""
    d = deviation / _rms(range(32, 64)) / float(np.sqrt(np.mean(np.square(np.arange(16) - 7.5))))
    # Eight scales and eight minimums of 6 bits, the last four of each in two parts (get_scale_min_k4 in ggml).
    scales = (blocks[:, 4:12] & 31) | 32
    first, last = scales[:, :4], scales[:, 4:]
    blocks[:, 0:2] = _f16_bytes(d)
    blocks[:, 2:4] = _f16_bytes(7.5 * d)
    blocks[:, 4:8] = blocks[:, 8:12] = first | (last >> 4 << 6)
    blocks[:, 12:16] = (last & 15) * 17


def _q6_k(blocks: Bytes, deviation: float) -> None:
    blocks[:, 208:] = _f16_bytes(deviation / _rms(range(-128, 128)) / _rms(range(-32, 32)))


F16 = Format("F16", 1, 1, 2, _f16)
Q4_0 = Format("Q4_0", 2, 32, 18, _signed_scale(range(-8, 8)))
Q5_0 = Format("Q5_0", 6, 32, 22, _signed_scale(range(-16, 16)))
Q8_0 = Format("Q8_0", 8, 32, 34, _q8_0)
Q4_K = Format("Q4_K", 12, 256, 144, _q4_k)
Q6_K = Format("Q6_K", 14, 256, 210, _q6_k)
