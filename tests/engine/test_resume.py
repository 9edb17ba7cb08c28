"""Answers that were interrupted, on the real model: they go on where they stopped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conversations import tokens_of

from nrvna.config import Config, Sampling
from nrvna.engine.engine import Engine, Joined, Start
from nrvna.engine.runner import Runner
from nrvna.engine.work import Request
from nrvna.job import Receipt

TOKENS = 40
SEEDED = Sampling(temp=0.8, repeat_penalty=1.1, predict=TOKENS, seed=42, ignore_eos=True)
DRAWN = replace(SEEDED, seed=None)
SHARED = "You answer questions about a village with a mill, a bridge and nine houses. " * 4
PROMPT = "Tell me about the mill."
CRABS = "Write ten crab emojis: 🦀🦀🦀🦀🦀🦀🦀🦀"
MODEL = {"path": "/models/one.gguf", "size": 1, "mtime_ns": 2}


@pytest.fixture(scope="module")
def runner(model_file: Path) -> Iterator[Runner]:
    made = Runner(model_file, Config(parallel=4, ctx=1024, reproducible=1))
    assert made.findings and made.findings.resuming
    yield made
    made.model.close()


def record(start: Start, tokens: list[Any]) -> dict[str, Any]:
    return {"key": start.key, "seed": start.seed, "tokens": tokens, "draws": [1] * len(tokens)}


class Outcome(NamedTuple):
    """What became of a request, and the tokens and pieces of text that were told before its end."""

    answer: str
    receipt: Receipt
    start: Start
    tokens: list[int]
    texts: list[str]

    def record(self, count: int) -> dict[str, Any]:
        """What is on record of it if it is interrupted after so many tokens."""
        return record(self.start, self.tokens[:count])


def run(runner: Runner, *requests: Request, model: dict[str, Any] = MODEL) -> list[Outcome]:
    engine = Engine(runner, model)
    starts: dict[str, Start] = {}
    ends: dict[str, tuple[str, Receipt]] = {}
    tokens: dict[str, list[int]] = {one.id: [] for one in requests}
    texts: dict[str, list[str]] = {one.id: [] for one in requests}
    for one in requests:
        assert engine.add(one) is None
    while not engine.is_idle:
        starts.update(engine.start())
        for event in engine.step():
            texts[event.id].append(event.text)
            if event.receipt:
                ends[event.id] = (event.answer, event.receipt)
            else:
                tokens[event.id].append(event.token)
    return [Outcome(*ends[one.id], starts[one.id], tokens[one.id], texts[one.id]) for one in requests]


def request(
    prompt: str = PROMPT,
    sampling: Sampling = SEEDED,
    system: str | None = None,
    resume: object = None,
    name: str | None = None,
) -> Request:
    return Request(name or prompt, prompt, "", system, sampling, resume=resume)


def start(runner: Runner, one: Request) -> Start:
    """How a request starts, without answering it."""
    engine = Engine(runner, MODEL)
    assert engine.add(one) is None
    return engine.start()[one.id]


@pytest.fixture(scope="module")
def whole(runner: Runner) -> Outcome:
    """The answer that nobody interrupted."""
    [outcome] = run(runner, request())
    assert len(outcome.tokens) == TOKENS - 1
    return outcome


@pytest.mark.parametrize("cut", [1, 2, 17, 38, 39])
def test_an_interrupted_answer_goes_on_to_the_same_bytes(runner: Runner, whole: Outcome, cut: int) -> None:
    [resumed] = run(runner, request(resume=whole.record(cut)))
    assert resumed.answer == whole.answer
    assert resumed.start == Start(whole.start.key, 42, cut)
    assert resumed.tokens == whole.tokens[cut:]
    assert resumed.texts == whole.texts[cut:]
    assert (resumed.receipt.resumed_tokens, resumed.receipt.generated_tokens) == (cut, TOKENS)
    assert whole.receipt.resumed_tokens == 0


@pytest.mark.slow
def test_it_does_so_among_neighbours_and_behind_a_shared_prefix(runner: Runner) -> None:
    prompts = ["Tell me about the bridge.", "Who lives in the houses?", PROMPT, "What is the river called?", "Hello!"]
    requests = [request(prompt, replace(SEEDED, seed=seed), SHARED) for seed, prompt in enumerate(prompts)]
    wholes = [run(runner, one)[0] for one in requests]
    cuts = [3, 0, 20, 39, 11]
    together = run(
        runner,
        *(replace(one, resume=done.record(cut)) for one, done, cut in zip(requests, wholes, cuts, strict=True)),
    )
    assert [one.answer for one in together] == [one.answer for one in wholes]
    assert [one.receipt.resumed_tokens for one in together] == cuts
    prefix = len(tokens_of(runner.prompts, "", SHARED, limit=1024))
    cached = sorted(one.receipt.cached_tokens or 0 for one in together)
    assert cached[0] == 0
    assert all(prefix - 16 < tokens < prefix + 16 for tokens in cached[1:])


@pytest.mark.slow
def test_it_does_so_deep_in_the_cache_where_the_prompt_takes_several_steps(runner: Runner) -> None:
    long = "Here is a list of words: " + "apple pear " * 280 + "What is it about?"
    [whole] = run(runner, request(long))
    for cut in (5, 30):
        neighbour, resumed = run(runner, request("Hello!"), request(long, resume=whole.record(cut)))
        assert neighbour.receipt.resumed_tokens == 0
        assert resumed.answer == whole.answer


@pytest.mark.parametrize("cut", [3, 4, 5])
def test_a_character_that_was_cut_arrives_whole(runner: Runner, cut: int) -> None:
    crabs = request(CRABS, Sampling(temp=0.0, predict=12))
    [whole] = run(runner, crabs)
    # Three tokens a crab: two of them add nothing yet.
    assert whole.texts[:6] == ["", "", "🦀", "", "", "🦀"]
    [resumed] = run(runner, replace(crabs, resume=whole.record(cut)))
    assert resumed.texts == whole.texts[cut:]
    assert resumed.answer == whole.answer == "🦀" * 4


def test_a_drawn_seed_is_adopted(runner: Runner) -> None:
    [drawn] = run(runner, request(sampling=DRAWN))
    [resumed] = run(runner, request(sampling=DRAWN, resume=drawn.record(9)))
    assert resumed.answer == drawn.answer
    assert resumed.start == Start(drawn.start.key, drawn.start.seed, 9)
    assert resumed.receipt.sampling and resumed.receipt.sampling["seed"] == drawn.start.seed


def test_nothing_on_record_yet_still_gives_the_seed(runner: Runner) -> None:
    [drawn] = run(runner, request(sampling=DRAWN))
    [resumed] = run(runner, request(sampling=DRAWN, resume=drawn.record(0)))
    assert (resumed.answer, resumed.start) == (drawn.answer, Start(drawn.start.key, drawn.start.seed, 0))


@pytest.mark.parametrize(
    "changed",
    [
        request(PROMPT + "!"),
        request(system=SHARED),
        request(sampling=replace(SEEDED, seed=43)),
        request(sampling=replace(SEEDED, temp=0.7)),
        request(sampling=replace(SEEDED, predict=41)),
    ],
)
def test_another_prompt_or_setting_starts_afresh(runner: Runner, whole: Outcome, changed: Request) -> None:
    fresh = start(runner, replace(changed, resume=whole.record(20)))
    assert fresh == start(runner, changed)
    assert fresh.kept == 0


def test_another_model_starts_afresh_and_draws_another_seed(runner: Runner) -> None:
    [drawn] = run(runner, request(sampling=DRAWN))
    [other] = run(runner, request(sampling=DRAWN, resume=drawn.record(20)), model={**MODEL, "size": 7})
    assert other.start.kept == 0
    assert other.start.seed != drawn.start.seed


def test_a_model_that_was_moved_goes_on(runner: Runner, whole: Outcome) -> None:
    [moved] = run(runner, request(resume=whole.record(20)), model={**MODEL, "path": "/elsewhere/two.gguf"})
    assert (moved.answer, moved.start.kept) == (whole.answer, 20)


def test_answers_with_and_without_reproducible_mode_are_kept_apart(whole: Outcome, model_file: Path) -> None:
    own = Runner(model_file, Config(parallel=2, ctx=1024))
    [other] = run(own, request(resume=whole.record(20)))
    assert other.start.kept == 0
    [resumed] = run(own, request(resume=other.record(20)))
    own.model.close()
    assert (resumed.start.kept, resumed.receipt.generated_tokens) == (20, TOKENS)
    assert resumed.answer.startswith("".join(other.texts[:20]))


@pytest.mark.parametrize(
    "record",
    [
        [],
        "resume",
        7,
        {},
        {"key": None},
        {"seed": None},
        {"seed": True},
        {"seed": -1},
        {"seed": 1 << 32},
        {"seed": "42"},
        {"tokens": None},
        {"tokens": "abc"},
        {"tokens": {"0": 1}},
        {"draws": [1]},
        {"draws": [1] * 19 + [99]},
    ],
)
def test_a_record_that_makes_no_sense_is_passed_over(runner: Runner, whole: Outcome, record: Any) -> None:
    damaged = {**whole.record(20), **record} if record and isinstance(record, dict) else record
    assert start(runner, request(resume=damaged)) == whole.start


@pytest.mark.parametrize("bad", [-1, 10**6, 10**30, 1.5, None, True, "7", [1], {"a": 1}])
def test_tokens_are_taken_up_to_the_first_that_cannot_be_one(runner: Runner, whole: Outcome, bad: object) -> None:
    tokens = [*whole.tokens[:5], bad, *whole.tokens[6:20]]
    assert start(runner, request(resume=record(whole.start, tokens))) == whole.start._replace(kept=5)


def test_tokens_are_taken_up_to_the_one_that_would_end_the_answer(runner: Runner, whole: Outcome) -> None:
    tokens = [*whole.tokens[:5], runner.model.eos, *whole.tokens[5:]]
    [resumed] = run(runner, request(resume=record(whole.start, tokens)))
    assert (resumed.answer, resumed.start.kept) == (whole.answer, 5)


def test_of_more_tokens_than_there_may_be_one_is_left_to_sample(runner: Runner, whole: Outcome) -> None:
    [resumed] = run(runner, request(resume=record(whole.start, whole.tokens * 100)))
    assert resumed.start.kept == TOKENS - 1
    assert (resumed.receipt.finish_reason, resumed.receipt.generated_tokens) == ("length", TOKENS)


@pytest.mark.slow
def test_of_more_tokens_than_the_context_holds_one_is_left_to_sample(runner: Runner) -> None:
    endless = request("word " * 950, replace(SEEDED, predict=10_000))
    [first] = run(runner, endless)
    assert first.receipt.finish_reason == "context"
    [resumed] = run(runner, replace(endless, resume=record(first.start, first.tokens * 2)))
    assert resumed.start.kept == len(first.tokens)
    assert (resumed.receipt.finish_reason, resumed.answer) == ("context", first.answer)


def test_an_answer_of_one_token_has_none_to_take_over(runner: Runner) -> None:
    one = request(sampling=replace(SEEDED, predict=1))
    [first] = run(runner, one)
    [again] = run(runner, replace(one, resume=record(first.start, [5, 6])))
    assert (again.answer, again.start.kept) == (first.answer, 0)


def test_where_resuming_changes_the_bits_the_seed_makes_the_same_answer_afresh(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    [drawn] = run(runner, request(sampling=DRAWN))
    assert runner.findings
    monkeypatch.setattr(runner, "findings", replace(runner.findings, resuming=False))
    [again] = run(runner, request(sampling=DRAWN, resume=drawn.record(20)))
    assert (again.answer, again.start) == (drawn.answer, Start(drawn.start.key, drawn.start.seed, 0))


def test_identical_jobs_that_were_interrupted_are_one_from_there_on(runner: Runner, whole: Outcome) -> None:
    engine = Engine(runner, MODEL)
    assert engine.add(request(resume=whole.record(20), name="first")) is None
    so_far = "".join(whole.texts[:20])
    assert engine.add(request(resume=whole.record(30), name="second")) == Joined("first", so_far)
    assert engine.add(request(name="third")) == Joined("first", so_far)
    assert engine.start().keys() == {"first"}
    ends = {}
    while not engine.is_idle:
        ends.update({event.id: event for event in engine.step() if event.receipt})
    assert [ends[name].answer for name in ("first", "second", "third")] == [whole.answer] * 3
    assert engine.tally.tokens == TOKENS - 20


def test_a_job_interrupted_twice_goes_on_from_what_both_attempts_made(runner: Runner, whole: Outcome) -> None:
    [second] = run(runner, request(resume=whole.record(10)))
    again = record(second.start, whole.tokens[:10] + second.tokens[:15])
    [third] = run(runner, request(resume=again))
    assert (third.answer, third.start.kept) == (whole.answer, 25)
