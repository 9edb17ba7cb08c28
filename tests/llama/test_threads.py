"""What the binding lets several threads do at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from nrvna.llama import Batch, Context, Draw, Greedy, Model, Sampler, Temperature, TopK

PROMPTS = ("The capital of France is", "Once upon a time", "One, two, three,", "def main():")


def logits_of(model: Model, text: str, steps: int = 8) -> list[NDArray[np.float32]]:
    """The logits of some greedy steps, in a context of their own."""
    tokens, found = model.tokenize(text), []
    with Context(model, n_ctx=256, threads=1, flash_attention=False) as context:
        batch = Batch(64)
        last = batch.add(tokens, position=0)
        for position in range(len(tokens), len(tokens) + steps):
            context.decode(batch)
            found.append(context.logits(last).copy())
            batch.clear()
            last = batch.add([int(found[-1].argmax())], position=position)
    return found


def test_contexts_of_one_model_may_decode_at_once(model: Model) -> None:
    alone = [logits_of(model, text) for text in PROMPTS]
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        together = list(pool.map(lambda text: logits_of(model, text), PROMPTS))
    np.testing.assert_array_equal(together, alone)


def test_the_sequences_of_a_batch_may_be_sampled_at_once(model: Model) -> None:
    prompts = [model.tokenize(text) for text in PROMPTS]
    with Context(model, n_ctx=256, n_seq_max=len(prompts), kv_unified=True) as context:
        batch = Batch(128)
        lasts = [batch.add(tokens, position=0, sequence=number) for number, tokens in enumerate(prompts)]
        context.decode(batch)
        context.logits(lasts[0])

        def sample(number: int) -> list[int]:
            with Sampler(model, [Temperature(1.5), Draw(seed=number)]) as sampler:
                return [sampler.sample(context, lasts[number]) for _ in range(20)]

        alone = [sample(number) for number in range(len(prompts))]
        with ThreadPoolExecutor(len(prompts)) as pool:
            assert list(pool.map(sample, range(len(prompts)))) == alone


def test_a_text_may_be_tokenised_while_another_is_decoded(model: Model) -> None:
    text = "It was the best of times, it was the worst of times. " * 200
    tokens = model.tokenize(text)
    with ThreadPoolExecutor(1) as pool:
        decoding = pool.submit(logits_of, model, PROMPTS[0], 32)
        while not decoding.done():
            assert model.tokenize(text) == tokens
        assert len(decoding.result()) == 32


def test_a_sampler_sees_what_was_written_into_the_logits(model: Model) -> None:
    greedy, drawing = Sampler(model, [Greedy()]), Sampler(model, [TopK(1), Draw(seed=1)])
    with Context(model, n_ctx=256) as context, greedy, drawing:
        batch = Batch(64)
        last = batch.add(model.tokenize(PROMPTS[0]), position=0)
        context.decode(batch)
        context.logits(last)[100] = 1000
        assert (greedy.sample(context, last), drawing.sample(context, last)) == (100, 100)
