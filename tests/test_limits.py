"""What is tried next where memory is short: always something less, and in a fixed order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nrvna.errors import speaks_of_memory
from nrvna.limits import Limits


def steps(limits: Limits, asked_context: int = 0, *, endless: Limits) -> list[Limits]:
    """All that is tried one after another where nothing ever fits. ``endless`` is what an engine takes by itself."""
    found = []
    while smaller := limits.smaller(asked_context):
        found.append(smaller)
        # An engine that is not held back takes what it took at first.
        limits = Limits(
            min(smaller.parallel, endless.parallel), min(smaller.context, endless.context), smaller.layers
        )
    return found


def test_first_go_jobs_then_context_then_layers_and_last_comes_the_cpu() -> None:
    first = Limits(4, 4096, 8)
    tried = [str(limits) for limits in steps(first, endless=first)]
    assert tried[:5] == [
        "2 jobs at a time, 4096 tokens each, 8 layers on the GPU",
        "1 job at a time, 4096 tokens each, 8 layers on the GPU",
        "1 job at a time, 2048 tokens each, 8 layers on the GPU",
        "1 job at a time, 1024 tokens each, 8 layers on the GPU",
        "4 layers on the GPU",
    ]
    assert tried[-7:] == [
        "the CPU alone",
        "2 jobs at a time, 4096 tokens each",
        "1 job at a time, 4096 tokens each",
        "1 job at a time, 2048 tokens each",
        "1 job at a time, 1024 tokens each",
        "1 job at a time, 512 tokens each",
        "1 job at a time, 256 tokens each",
    ]


def test_a_context_that_was_asked_for_stays_while_layers_can_go() -> None:
    first = Limits(1, 8192, 2)
    tried = steps(first, 8192, endless=first)
    assert [limits.layers for limits in tried[:2]] == [1, 0]
    assert tried[2] == Limits(1, 4096, 0)


def test_weights_that_do_not_fit_lose_layers_at_once() -> None:
    assert Limits(1, 0, 33).smaller(0) == Limits(layers=16)
    assert Limits(1, 0, 0).smaller(0) is None


@given(parallel=st.integers(1, 256), context=st.integers(1, 1 << 24), layers=st.integers(0, 200), asked=st.booleans())
def test_it_ends_and_each_step_is_less_than_the_one_before(
    parallel: int, context: int, layers: int, asked: bool
) -> None:
    first = Limits(parallel, context, layers)
    tried = steps(first, context if asked else 0, endless=first)
    assert len(tried) < 300
    for before, after in zip([first, *tried], tried, strict=False):
        now = (after.layers, min(after.context, context), min(after.parallel, parallel))
        assert now < (before.layers, min(before.context, context), min(before.parallel, parallel))
    assert not tried or tried[-1].layers == 0


@given(parallel=st.integers(1, 256), context=st.integers(0, 1 << 24), layers=st.integers(0, 200))
def test_limits_come_back_from_what_is_sent(parallel: int, context: int, layers: int) -> None:
    limits = Limits(parallel, context, layers)
    assert Limits.from_dict(limits.to_dict()) == limits
    assert Limits.from_dict(None) == Limits()


def test_last_words_that_are_about_memory_are_told_from_others() -> None:
    for words in (
        "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc",
        "ggml-cuda.cu:98: CUDA error\nCUDA error: out of memory\n  current device: 0, in function alloc",
        "nrvna.errors.DecodeMemoryError: llama_decode returned -2: there is not the memory",
        "ggml.c:1644: GGML_ASSERT(ctx->mem_buffer != NULL) failed",
        "RuntimeError: can't start new thread",
    ):
        assert speaks_of_memory(words)
    for words in (
        "",
        "GGML_ASSERT(n_tokens <= n_batch) failed",
        "Segmentation fault",
        "CUDA error: invalid argument",
    ):
        assert not speaks_of_memory(words)
