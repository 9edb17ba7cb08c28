"""nrvna's own attention, which stands in for ggml's, against the definition in double precision."""

from __future__ import annotations

import ctypes
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

F32, F16 = 0, 1
Array = NDArray[Any]


class InitParams(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


@dataclass(frozen=True)
class Case:
    """Queries (streams, heads, tokens, length), keys and values (streams, groups, cells, length), and what each token
    sees (streams, tokens, cells)."""

    queries: Array
    keys: Array
    values: Array
    seen: NDArray[np.bool_]
    scale: float

    def expected(self) -> Array:
        """The results, (streams, tokens, heads, length); zeros for a token that sees nothing."""
        group = self.queries.shape[1] // self.keys.shape[1]
        keys, values = (np.repeat(x.astype(np.float64), group, axis=1) for x in (self.keys, self.values))
        scores = np.einsum("shtd,shcd->shtc", self.queries.astype(np.float64), keys) * self.scale
        scores = np.where(self.seen[:, None], scores, -np.inf)
        weights = np.exp(scores - np.maximum(scores.max(axis=-1, keepdims=True), -1e300))
        weights /= np.maximum(weights.sum(axis=-1, keepdims=True), 1e-300)
        results: Array = np.einsum("shtc,shcd->sthd", weights, values)
        return results


class Ggml:
    """As much of ggml as makes an attention of a case, and nrvna's function to compute it."""

    def __init__(self, kernels: Path, base_library: Path) -> None:
        self.kernels = ctypes.CDLL(str(kernels))
        base = ctypes.CDLL(str(base_library))
        pointer = ctypes.c_void_p
        for function in ("ggml_init", "ggml_new_tensor_4d", "ggml_flash_attn_ext", "ggml_get_data"):
            getattr(base, function).restype = pointer
        base.ggml_init.argtypes = [InitParams]
        base.ggml_free.argtypes = base.ggml_get_data.argtypes = [pointer]
        base.ggml_new_tensor_4d.argtypes = [pointer, ctypes.c_int, *4 * (ctypes.c_int64,)]
        base.ggml_flash_attn_ext.argtypes = [*5 * (pointer,), *3 * (ctypes.c_float,)]
        self.kernels.ggml_compute_forward_flash_attn_ext.argtypes = [pointer, pointer]
        self.kernels.nrvna_tiled_attentions.restype = ctypes.c_int64
        self._base = base

    def attend(self, case: Case, *, threads: int = 1, alone: bool = False) -> Array:
        """The results as nrvna's kernel computes them. Skips the test where it declines."""
        base = self._base
        context = base.ggml_init(InitParams(64 << 20, None, False))

        def tensor(values: Array, kind: int) -> int:
            made = base.ggml_new_tensor_4d(context, kind, *values.shape[::-1])
            packed = np.ascontiguousarray(values, np.float16 if kind == F16 else np.float32)
            ctypes.memmove(base.ggml_get_data(made), packed.ctypes.data, packed.nbytes)
            return int(made)

        try:
            mask = np.where(case.seen, 0.0, -np.inf)[:, None]
            inputs = tensor(case.queries, F32), tensor(case.keys, F16), tensor(case.values, F16), tensor(mask, F16)
            node = base.ggml_flash_attn_ext(context, *inputs, case.scale, 0.0, 0.0)
            before = self.kernels.nrvna_tiled_attentions()
            self.kernels.nrvna_compute_rows_alone(alone)
            for thread in range(threads):
                self.kernels.ggml_compute_forward_flash_attn_ext(ctypes.byref(Params(thread, threads)), node)
            if self.kernels.nrvna_tiled_attentions() == before:
                pytest.skip("no attention of nrvna's own for this processor")
            streams, heads, tokens, length = case.queries.shape
            found = np.empty((streams, tokens, heads, length), np.float32)
            ctypes.memmove(found.ctypes.data, base.ggml_get_data(node), found.nbytes)
            return found
        finally:
            self.kernels.nrvna_compute_rows_alone(False)
            base.ggml_free(context)


@pytest.fixture(scope="module")
def ggml(kernels_file: Path) -> Ggml:
    return Ggml(kernels_file, load_library(llama_dir()).build.directory / "libggml-base.so")


def random_case(
    seed: int, *, streams: int, groups: int, heads: int, tokens: int, cells: int, length: int, density: float
) -> Case:
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return random.standard_normal(shape).astype(np.float16)

    keys, values = normal(streams, groups, cells, length), normal(streams, groups, cells, length)
    # Cells come in runs as well as singly, as sequences leave them in a cache.
    runs = np.repeat(random.random((streams, tokens, -(-cells // 16))) < density, 16, axis=2)[:, :, :cells]
    seen = runs ^ (random.random((streams, tokens, cells)) < 0.05)
    return Case(normal(streams, groups * heads, tokens, length), keys, values, seen, length**-0.5)


cases = st.builds(
    random_case,
    st.integers(0, 2**32),
    streams=st.integers(1, 3),
    groups=st.integers(1, 3),
    heads=st.sampled_from([1, 2, 3, 5, 7, 30]),
    tokens=st.integers(1, 20),
    cells=st.integers(1, 130),
    length=st.sampled_from([64, 80, 96, 128, 256]),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)


@given(case=cases, threads=st.integers(1, 3), alone=st.booleans())
def test_attention_is_what_its_definition_says(ggml: Ggml, case: Case, threads: int, alone: bool) -> None:
    found = ggml.attend(case, threads=threads, alone=alone)
    assert np.abs(found - case.expected()).max() < 2e-5


@given(case=cases, data=st.data())
def test_a_row_computed_alone_has_the_bits_that_it_has_among_others(
    ggml: Ggml, case: Case, data: st.DataObject
) -> None:
    token = data.draw(st.integers(0, case.queries.shape[2] - 1))
    one = Case(case.queries[:, :, [token]], case.keys, case.values, case.seen[:, [token]], case.scale)
    together = ggml.attend(case, alone=True, threads=2)[:, [token]]
    assert ggml.attend(one, alone=True).tobytes() == together.tobytes()


def test_large_scores_do_not_overflow(ggml: Ggml) -> None:
    case = random_case(1, streams=1, groups=1, heads=3, tokens=4, cells=100, length=64, density=1.0)
    steep = Case(case.queries * np.float16(30), case.keys * np.float16(30), case.values, case.seen, 1.0)
    found = ggml.attend(steep)
    assert np.isfinite(found).all()
    assert np.abs(found - steep.expected()).max() < 1e-2
