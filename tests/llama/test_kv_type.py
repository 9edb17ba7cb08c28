"""KV caches of other formats than f16, on the real model: their size, their copies, and what llama.cpp refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nrvna.errors import ContextError, DecodeError
from nrvna.llama import Batch, Context, Model, load_library
from nrvna.llama.model import KV_TYPES

PROMPT = list(range(100, 140))
SCRIPT = """
import logging, sys
from pathlib import Path
from nrvna.config import llama_dir
from nrvna.llama import Context, Model, load_library
load_library(llama_dir())
logging.basicConfig(level=logging.INFO, format="%(message)s")
model = Model(sys.argv[1])
Context(model, n_ctx=1024, kv_type=sys.argv[2])
print(f"{model.kv_cache_bytes(1024, sys.argv[2]) / 2**20:.2f}")
"""


def logits(context: Context, tokens: list[int], position: int = 0, sequence: int = 0) -> NDArray[np.float32]:
    batch = Batch(64)
    last = batch.add(tokens, position=position, sequence=sequence)
    context.decode(batch)
    return context.logits(last).copy()


def probabilities(row: NDArray[np.float32]) -> NDArray[np.float64]:
    likely = np.exp(row.astype(np.float64) - row.max())
    return np.asarray(likely / likely.sum())


@pytest.mark.parametrize("kv_type", ["q8_0", "q4_0"])
def test_it_takes_what_llama_cpp_makes_it_take(model_file: Path, kv_type: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(model_file), kv_type], capture_output=True, text=True, check=True
    )
    assert f"KV buffer size = {done.stdout.split()[0]:>8} MiB" in done.stderr


def test_eight_bits_take_about_half_the_memory_and_four_about_a_quarter(model: Model) -> None:
    whole = model.kv_cache_bytes(4096)
    # A block of 32 numbers has a scale of two bytes.
    assert model.kv_cache_bytes(4096, "q8_0") / whole == (32 + 2) / 64
    assert model.kv_cache_bytes(4096, "q4_0") / whole == (16 + 2) / 64


def test_eight_bits_change_little_of_what_is_likely_and_four_bits_more(model: Model) -> None:
    prompt = model.tokenize("The mill by the river was built of stone, and the bridge that leads to it of")
    found = {}
    for kv_type in KV_TYPES:
        with Context(model, n_ctx=256, kv_type=kv_type) as context:
            found[kv_type] = probabilities(logits(context, prompt))
    eight, four = (float(np.abs(found[kind] - found["f16"]).sum()) for kind in ("q8_0", "q4_0"))
    assert 0 < eight < 0.3
    assert eight < four


@pytest.mark.parametrize("kv_type", ["q8_0", "q4_0"])
@pytest.mark.parametrize("unified", [True, False])
def test_a_copied_head_is_followed_as_if_it_had_been_computed(model: Model, kv_type: str, unified: bool) -> None:
    head, tail = PROMPT[:30], PROMPT[30:]
    with Context(model, n_ctx=1024, n_seq_max=2, kv_unified=unified, kv_type=kv_type) as context:
        logits(context, head, sequence=1)
        computed = logits(context, tail, position=len(head), sequence=1)
        context.forget(1)
        logits(context, [*head, 7, 8, 9])
        context.copy(0, 1, len(head))
        copied = logits(context, tail, position=len(head), sequence=1)
        assert np.allclose(probabilities(copied), probabilities(computed), atol=1e-3)


def test_nrvnas_own_attention_leaves_it_to_llama_cpp(model: Model) -> None:
    library = load_library()
    with Context(model, n_ctx=256, kv_type="q8_0") as context:
        before = library.tiled_attentions
        logits(context, PROMPT)
        assert library.tiled_attentions == before


def test_without_flash_attention_it_is_refused_with_what_to_do(model: Model) -> None:
    with pytest.raises(ContextError, match="a KV cache of q8_0 needs flash attention, which is off: turn it on"):
        Context(model, n_ctx=256, kv_type="q8_0", flash_attention=False)


def test_heads_that_are_no_whole_blocks_are_refused_with_their_width(tiny_models: dict[str, Path]) -> None:
    with Model(tiny_models["decoding embedder"]) as narrow:
        width, _ = narrow.head_widths
        assert width % 32
        with pytest.raises(ContextError, match=f"heads of a multiple of 32, .* are {width} wide: take f16"):
            Context(narrow, n_ctx=256, kv_type="q8_0")


def test_a_format_that_is_none_is_an_error_that_names_those_there_are(model: Model) -> None:
    with pytest.raises(ValueError, match="'q9' is none of f16, q8_0, q4_0"):
        Context(model, n_ctx=256, kv_type="q9")
    with pytest.raises(ValueError, match="'q9' is none of"):
        model.kv_cache_bytes(1, "q9")


def test_more_outputs_than_there_is_room_for_are_an_error_and_no_abort(model: Model) -> None:
    with Context(model, n_ctx=512, n_seq_max=2, n_outputs_max=2) as context:
        batch = Batch(8)
        for sequence in range(2):
            batch.add([5, 6], position=0, sequence=sequence)
        context.decode(batch)
        assert context.logits(3).any()
        batch.add([7], position=2, sequence=1)
        with pytest.raises(DecodeError, match="3 outputs are more than this context's 2"):
            context.decode(batch)
    with pytest.raises(ContextError, match="1 outputs at most are too few for 2 sequences"):
        Context(model, n_ctx=512, n_seq_max=2, n_outputs_max=1)
