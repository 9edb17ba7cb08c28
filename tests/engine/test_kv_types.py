"""The engine with a KV cache of another format: answers, memory, and what is on record of interrupted ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nrvna.config import Config, Sampling
from nrvna.engine.engine import Engine
from nrvna.engine.layout import plain
from nrvna.engine.runner import Runner
from nrvna.engine.work import Request
from nrvna.errors import SettingError
from nrvna.job import Receipt

PROMPTS = [f"Describe the number {number} in a few words." for number in range(8)]
SHARED = "You answer questions about a village with a mill, a bridge and nine houses. " * 8
SAMPLING = Sampling(temp=0.0, predict=12, ignore_eos=True, seed=1)


def runner_of(model_file: Path, **settings: object) -> Runner:
    return Runner(model_file, Config(**{"parallel": 4, "ctx": 1024, **settings}))  # type: ignore[arg-type]


def request(name: str, prompt: str, sampling: Sampling = SAMPLING, system: str | None = None) -> Request:
    return Request(name, prompt, "", system, sampling)


def run(runner: Runner, requests: list[Request]) -> dict[str, tuple[str, Receipt]]:
    engine = Engine(runner, {})
    for one in requests:
        engine.add(one)
    answers = {}
    while not engine.is_idle:
        for event in engine.step():
            if event.receipt:
                answers[event.id] = (event.answer, event.receipt)
    return answers


@pytest.fixture(scope="module")
def small(model_file: Path) -> Iterator[Runner]:
    made = runner_of(model_file, kv_type="q8_0")
    yield made
    made.model.close()


@pytest.mark.slow
def test_jobs_behind_one_context_are_answered_from_a_cache_of_half_the_size(model_file: Path, small: Runner) -> None:
    whole = runner_of(model_file)
    jobs = [request(prompt, prompt, SAMPLING, system=SHARED) for prompt in PROMPTS]
    expected, found = run(whole, jobs), run(small, jobs)
    whole.model.close()
    assert small.shape.cells == whole.shape.cells
    assert 0.5 < small.shape.kv_bytes / whole.shape.kv_bytes < 0.54
    assert {receipt.kv_type for _, receipt in found.values()} == {"q8_0"}
    assert {receipt.kv_type for _, receipt in expected.values()} == {"f16"}
    assert all(receipt.generated_tokens == 12 for _, receipt in found.values())
    assert sorted(receipt.cached_tokens or 0 for _, receipt in found.values())[1] > 100
    # Eight bits round little: most greedy answers begin with the same words.
    alike = sum(found[name][0].split()[:2] == expected[name][0].split()[:2] for name in PROMPTS)
    assert alike >= len(PROMPTS) // 2


def test_an_answer_begun_in_one_format_does_not_go_on_in_another(model_file: Path, small: Runner) -> None:
    whole = runner_of(model_file)
    engine = Engine(whole, {})
    engine.add(request("a", PROMPTS[0], replace(SAMPLING, temp=0.8)))
    begun = engine.start()["a"]
    tokens = [event.token for _ in range(6) for event in engine.step()]
    record = {"key": begun.key, "seed": begun.seed, "tokens": tokens, "draws": [1] * len(tokens)}
    for runner, kept in ((whole, len(tokens)), (small, 0)):
        other = Engine(runner, {})
        other.add(replace(request("a", PROMPTS[0], replace(SAMPLING, temp=0.8)), resume=record))
        assert other.start()["a"].kept == kept
    whole.model.close()


@pytest.mark.slow
def test_in_reproducible_mode_answers_are_the_same_alone_and_among_others(model_file: Path) -> None:
    own = runner_of(model_file, kv_type="q8_0", reproducible=1)
    jobs = [request(prompt, prompt, replace(SAMPLING, temp=0.8)) for prompt in PROMPTS[:4]]
    assert own.is_reproducible
    together = {name: answer for name, (answer, _) in run(own, jobs).items()}
    alone = {one.id: run(own, [one])[one.id][0] for one in jobs}
    own.model.close()
    assert together == alone


def test_the_cache_is_never_divided_for_plain_attention_which_cannot_read_it(small: Runner) -> None:
    small.has_tiled_attention = False
    run(small, [request(prompt, prompt, SAMPLING, system=SHARED) for prompt in PROMPTS])
    assert small.layout.flash_attention is None


@pytest.mark.parametrize(("wish", "used"), [("on", True), ("off", False)])
def test_flash_attention_is_as_it_was_asked_for(model_file: Path, wish: str, used: bool) -> None:
    own = runner_of(model_file, flash_attention=wish)
    answers = run(own, [request(prompt, prompt, SAMPLING) for prompt in PROMPTS])
    assert own.layout.flash_attention is used
    assert own.has_tiled_attention is (used and own.has_tiled_attention)
    assert own.layout != plain(4, own.shape.cells)
    own.model.close()
    assert len(answers) == len(PROMPTS)


def test_a_format_that_needs_flash_attention_is_refused_where_that_is_off() -> None:
    with pytest.raises(SettingError, match=r"NRVNA_KV_TYPE is q8_0, which needs flash attention, but .* is off"):
        Config(kv_type="q8_0", flash_attention="off")


def test_a_step_is_computed_in_as_small_parts_as_were_asked_for(model_file: Path) -> None:
    own = runner_of(model_file, micro_batch=64)
    assert (own.micro_batch, own.batch_tokens) == (64, 512)
    answers = run(own, [request("long", "word " * 600, SAMPLING)])
    own.model.close()
    assert answers["long"][1].generated_tokens == 12
