"""nrvna's own matrix products, which stand in for ggml's, against ggml's dot products of single rows."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ggml import Params
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nrvna.config import llama_dir
from nrvna.llama import load_library

# As enum ggml_type numbers them.
F32, IQ4_NL = 0, 20
FORMATS = {"Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8}

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


class Traits(ctypes.Structure):
    """ggml_type_traits_cpu."""

    _fields_ = (
        ("from_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        (
            "vec_dot",
            ctypes.CFUNCTYPE(
                None,
                *(ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t),
                *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
            ),
        ),
        ("vec_dot_type", ctypes.c_int),
        ("nrows", ctypes.c_int64),
    )


@dataclass(frozen=True)
class Kernels:
    """The C functions under test and ggml's to compare with."""

    product: Callable[..., bool]
    compute_rows_alone: Callable[[bool], None]
    traits: Callable[[int], Any]
    row_size: Callable[[int, int], int]

    def quantize(self, rows: Floats, kind: int) -> Bytes:
        packed = np.zeros((len(rows), self.row_size(kind, rows.shape[1])), np.uint8)
        for row, target in zip(np.ascontiguousarray(rows), packed, strict=True):
            self.traits(kind).contents.from_float(row.ctypes.data, target.ctypes.data, len(row))
        return packed

    def dots(self, kind: int, a: Bytes, b: Bytes, length: int) -> Floats:
        """The dot products of all rows of b with all of a, one by one as ggml computes them."""
        out = np.zeros((len(b), len(a)), np.float32)
        dot = self.traits(kind).contents.vec_dot
        for j, y in enumerate(b):
            for i, x in enumerate(a):
                dot(length, out[j, i:].ctypes.data, 0, x.ctypes.data, 0, y.ctypes.data, 0, 1)
        return out

    def multiply(self, kind: int, a: Bytes, b: Bytes, c: Floats, blocks: int, threads: int = 1) -> bool:
        """Fill c as so many threads would; whether they took it on, which they all have to agree about."""
        taken = {
            self.product(
                *(ctypes.byref(Params(thread, threads)), len(a), len(b), blocks),
                *(a.ctypes.data, blocks, b.ctypes.data, blocks, c.ctypes.data, c.shape[1]),
                *(kind, self.traits(kind).contents.vec_dot_type, F32),
            )
            for thread in range(threads)
        }
        [agreed] = taken
        return agreed


@pytest.fixture(scope="module")
def kernels(kernels_file: Path) -> Kernels:
    folder = load_library(llama_dir()).build.directory
    own, cpu = ctypes.CDLL(str(kernels_file)), ctypes.CDLL(str(folder / "libggml-cpu.so"))
    base = ctypes.CDLL(str(folder / "libggml-base.so"))
    own.llamafile_sgemm.restype = ctypes.c_bool
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    own.llamafile_sgemm.argtypes = [pointer, size, size, size, *3 * (pointer, size), *3 * (ctypes.c_int,)]
    own.nrvna_compute_rows_alone.argtypes = [ctypes.c_bool]
    cpu.ggml_get_type_traits_cpu.restype = ctypes.POINTER(Traits)
    base.ggml_row_size.restype, base.ggml_row_size.argtypes = ctypes.c_size_t, [ctypes.c_int, size]
    # Else formats for which ggml's own tiles are as fast are left to it.
    own.nrvna_compute_rows_alone(True)
    return Kernels(
        own.llamafile_sgemm, own.nrvna_compute_rows_alone, cpu.ggml_get_type_traits_cpu, base.ggml_row_size
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
@given(
    m=st.integers(1, 40), n=st.integers(2, 150), blocks=st.integers(1, 9), threads=st.integers(1, 3), data=st.data()
)
def test_a_tiled_product_has_the_bits_of_single_dot_products(
    kernels: Kernels, name: str, m: int, n: int, blocks: int, threads: int, data: st.DataObject
) -> None:
    kind = FORMATS[name]
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    scale = data.draw(st.sampled_from([1e-4, 1.0, 1e4]))
    a = kernels.quantize(random.standard_normal((m, 32 * blocks), np.float32) * np.float32(scale), kind)
    b = kernels.quantize(
        random.standard_normal((n, 32 * blocks), np.float32), kernels.traits(kind).contents.vec_dot_type
    )
    # Wider than the product: what lies between its rows belongs to others.
    c = np.full((n, m + 3), 7, np.float32)
    if not kernels.multiply(kind, a, b, c, blocks, threads):
        pytest.skip(f"no kernel for {name} on this processor")
    assert c[:, :m].tobytes() == kernels.dots(kind, a, b, 32 * blocks).tobytes()
    assert (c[:, m:] == 7).all()


def test_the_extremes_of_eight_bits_are_exact(kernels: Kernels) -> None:
    # A quantizer never writes -128; a file may.
    blocks = 3
    block = np.concatenate([np.frombuffer(np.float16(0.5).tobytes(), np.uint8), np.full(32, 128, np.uint8)])
    a = np.tile(block, (9, blocks))
    b = kernels.quantize(np.full((5, 32 * blocks), -1, np.float32), FORMATS["Q8_0"])
    c = np.zeros((5, 9), np.float32)
    if not kernels.multiply(FORMATS["Q8_0"], a, b, c, blocks):
        pytest.skip("no kernel for Q8_0 on this processor")
    assert c.tobytes() == kernels.dots(FORMATS["Q8_0"], a, b, 32 * blocks).tobytes()


def test_what_has_no_kernel_is_tiled_by_ggml_unless_rows_are_to_be_computed_alone(kernels: Kernels) -> None:
    random = np.random.default_rng(0)
    a = kernels.quantize(random.standard_normal((16, 64), np.float32), IQ4_NL)
    b = kernels.quantize(random.standard_normal((8, 64), np.float32), FORMATS["Q8_0"])
    c = np.zeros((8, 16), np.float32)
    assert not kernels.multiply(IQ4_NL, a, b, c, blocks=2)
    assert not c.any()
    kernels.compute_rows_alone(False)
    try:
        is_taken = kernels.multiply(IQ4_NL, a, b, c, blocks=2)
    finally:
        kernels.compute_rows_alone(True)
    if not is_taken:
        pytest.skip("ggml has no tiles for IQ4_NL on this processor")
    assert np.allclose(c, kernels.dots(IQ4_NL, a, b, 64), rtol=1e-4)
