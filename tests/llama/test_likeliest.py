"""A token from the likeliest alone is the one that llama.cpp's samplers choose from all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nrvna.llama import (
    Batch,
    Context,
    Draw,
    Dry,
    Greedy,
    Link,
    LogitBias,
    MinP,
    MinTokens,
    Model,
    Penalties,
    Sampler,
    Temperature,
    TopK,
    TopP,
    Typical,
    load_library,
)

NEVER = float("-inf")
USUAL = [TopK(40), TopP(0.95), MinP(0.05), Temperature(0.8), Draw(1)]
CHAINS: dict[str, list[Link]] = {
    "usual": USUAL,
    "hot": [TopK(100), Temperature(3.0), Draw(1)],
    "a large k": [TopK(400), Temperature(3.0), Draw(1)],
    "the largest k": [TopK(512), Temperature(3.0), Draw(1)],
    "one": [TopK(1), Draw(1)],
    "typical": [TopK(40), Typical(0.9), Temperature(2.0), Draw(1)],
    "repeat": [Penalties(64, repeat=1.3), *USUAL],
    "rewarded": [Penalties(64, repeat=0.5, frequency=-2.0), *USUAL],
    "dry": [Dry(2.0, allowed_length=1), *USUAL],
    "penalties and dry": [Penalties(32, 1.2, 0.5, 0.5), Dry(2.0, last_n=16), TopK(60), Temperature(2.0), Draw(1)],
    "greedy": [Penalties(64, repeat=1.5), Greedy()],
    "greedy, frequency": [Penalties(8, frequency=2.0), Dry(5.0, allowed_length=1), Greedy()],
    "bias": [LogitBias(((7, 30.0), (40_000, 12.0), (5, NEVER), (49_151, 25.0))), TopK(10), Temperature(9.0), Draw(1)],
    "no end yet": [MinTokens(12), TopK(20), Temperature(3.0), Draw(1)],
}


class Whole(Sampler):
    """Always looks at all logits, as llama.cpp does."""

    def _choose_likeliest(self, _: NDArray[np.float32]) -> int | None:
        return None


class Counting(Sampler):
    """Counts the tokens for which it did not."""

    quick = 0

    def _choose_likeliest(self, logits: NDArray[np.float32]) -> int | None:
        token = super()._choose_likeliest(logits)
        self.quick += token is not None
        return token


@pytest.fixture(scope="module")
def decoded(model: Model) -> Iterator[tuple[Context, int]]:
    """A context that holds a prompt, and the row of its logits."""
    with Context(model, n_ctx=256, flash_attention=False) as made:
        batch = Batch(256)
        index = batch.add(model.tokenize("One, two, three, one, two, three, one, two"), position=0)
        made.decode(batch)
        yield made, index


def rows(context: Context, index: int) -> dict[str, NDArray[np.float32]]:
    """The model's own logits, and others."""
    own = context.logits(index).copy()
    random = np.random.default_rng(7)
    noise = random.normal(0, 3, len(own)).astype(np.float32)
    impossible = noise.copy()
    impossible[random.random(len(own)) < 0.9] = NEVER
    return {
        "the model's": own,
        "noise": noise,
        "many alike": np.round(noise),
        "some alike": np.round(own, 2),
        "all alike": np.zeros_like(own),
        "mostly impossible": impossible,
        "rising": np.linspace(-20, 20, len(own), dtype=np.float32),
        "negative": -np.abs(noise) - 1,
    }


@pytest.mark.parametrize("links", CHAINS.values(), ids=CHAINS)
def test_a_chain_samples_the_same_tokens_from_the_likeliest_as_from_all(
    model: Model, decoded: tuple[Context, int], links: list[Link]
) -> None:
    context, index = decoded
    found = context.logits(index)
    before = found.copy()
    prompt = model.tokenize("One, two, three, one, two")
    for name, row in rows(context, index).items():
        # llama.cpp's own memory: what the samplers read.
        found[:] = row
        with Counting(model, links) as ours, Whole(model, links) as theirs:
            ours.accept(prompt)
            theirs.accept(prompt)
            tokens = [(ours.sample(context, index), theirs.sample(context, index)) for _ in range(40)]
            assert [own for own, _ in tokens] == [other for _, other in tokens], name
            assert ours.draws == theirs.draws
            # Among many there are equals more often.
            if name in ("the model's", "noise") and links not in (CHAINS["a large k"], CHAINS["the largest k"]):
                assert ours.quick > 30, name
    found[:] = before


def chosen(links: Sequence[Any], logits: NDArray[np.float32]) -> int:
    """What llama.cpp's samplers choose from all."""
    ffi, lib = load_library().ffi, load_library().lib
    data = ffi.new("llama_token_data[]", [(token, float(logit), 0.0) for token, logit in enumerate(logits)])
    candidates = ffi.new("llama_token_data_array *", {"data": data, "size": len(logits), "selected": -1})
    for link in links:
        lib.llama_sampler_apply(link, candidates)
    return int(candidates.data[candidates.selected].id)


@given(
    size=st.integers(2000, 7000),
    keep=st.integers(1, 60),
    decimals=st.sampled_from((0, 1, 3, 9)),
    seed=st.integers(0, 1 << 30),
    greedy=st.booleans(),
    accepted=st.integers(0, 20),
)
def test_whatever_the_vocabularys_size_the_token_is_the_same_or_there_is_none(
    model: Model, size: int, keep: int, decimals: int, seed: int, greedy: bool, accepted: int
) -> None:
    library = load_library()
    ffi, lib = library.ffi, library.lib
    random = np.random.default_rng(seed)
    logits = np.round(random.normal(0, 4, size), decimals).astype(np.float32)
    touched = [int(token) for token in random.choice(np.argsort(logits)[-100:], accepted, replace=False)]
    last: list[Link] = [Greedy()] if greedy else [TopK(keep), Temperature(2.0), Draw(seed)]
    found = []
    for _ in range(2):
        links = [link.make(model) for link in (Penalties(64, repeat=1.5), *last)]
        for token in touched:
            lib.llama_sampler_accept(links[0], token)
        found.append(links)
    ours = lib.nrvna_sample_likeliest(
        ffi.new("struct llama_sampler *[]", found[0]),
        *(len(found[0]), 1, 1 if greedy else keep),
        *(ffi.from_buffer("float[]", logits), size, touched, len(touched)),
    )
    assert ours in (-1, chosen(found[1], logits))
    assert ours != -1 or size < 2048 or decimals < 9
    for link in found[0] + found[1]:
        lib.llama_sampler_free(link)


@pytest.mark.parametrize("place", [0, 2047, 2048, 40_000, 49_151])
def test_logits_that_are_no_numbers_are_left_to_llama_cpp(place: int) -> None:
    library = load_library()
    lib, ffi = library.lib, library.ffi
    links = [lib.llama_sampler_init_greedy()]
    logits = np.full(49_152, float("nan"), np.float32)
    logits[place] = 3.0
    array = ffi.new("struct llama_sampler *[]", links)
    assert lib.nrvna_sample_likeliest(array, 1, 0, 1, ffi.from_buffer("float[]", logits), 49_152, [], 0) in (
        -1,
        place,
    )
    logits[place] = float("inf")
    assert lib.nrvna_sample_likeliest(array, 1, 0, 1, ffi.from_buffer("float[]", logits), 49_152, [], 0) == -1
    lib.llama_sampler_free(links[0])
