"""The engine on the real model."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from conversations import tokens_of

from nrvna.config import Config, Sampling
from nrvna.engine.engine import Engine, Joined
from nrvna.engine.layout import plain, streams, unified
from nrvna.engine.runner import Runner
from nrvna.engine.work import Request
from nrvna.errors import DecodeMemoryError, JobError
from nrvna.job import Receipt
from nrvna.limits import Limits

GREEDY = Sampling(temp=0.0, predict=16)
PROMPTS = [f"Describe the number {number} in a few words." for number in range(8)]


def runner_of(model_file: Path, parallel: int, context: int = 512, *, reproducible: bool = False) -> Runner:
    return Runner(model_file, Config(parallel=parallel, ctx=context, reproducible=int(reproducible)))


@pytest.fixture(scope="module")
def runner(model_file: Path) -> Iterator[Runner]:
    made = runner_of(model_file, 4)
    yield made
    made.model.close()


def request(name: str, prompt: str, sampling: Sampling = GREEDY, system: str | None = None) -> Request:
    return Request(name, prompt, "2026-01-01T00:00:00.000Z", system, sampling)


def run(runner: Runner, requests: list[Request]) -> dict[str, tuple[str, Receipt]]:
    """Answer requests to the end; checks on the way that pieces add up to answers."""
    engine = Engine(runner, {"path": "model"})
    for one in requests:
        assert engine.add(one) is None
    answers: dict[str, tuple[str, Receipt]] = {}
    pieces = {one.id: "" for one in requests}
    while not engine.is_idle:
        for event in engine.step():
            pieces[event.id] += event.text
            if event.receipt:
                assert pieces[event.id] == event.answer
                answers[event.id] = (event.answer, event.receipt)
    return answers


def test_more_requests_than_slots_are_all_answered(runner: Runner) -> None:
    answers = run(runner, [request(str(number), prompt) for number, prompt in enumerate(PROMPTS)])
    assert len(answers) == len(PROMPTS)
    assert all(answer and receipt.generated_tokens for answer, receipt in answers.values())


def test_an_unset_seed_is_drawn_and_its_receipt_makes_the_answer_again(runner: Runner) -> None:
    unset = Sampling(temp=1.5, predict=24)
    first, first_receipt = run(runner, [request("a", PROMPTS[0], unset)])["a"]
    other, other_receipt = run(runner, [request("a", PROMPTS[0], unset)])["a"]
    assert first_receipt.sampling and other_receipt.sampling
    assert first_receipt.sampling["seed"] != other_receipt.sampling["seed"]
    assert first != other
    again, _ = run(runner, [request("a", PROMPTS[0], Sampling(**first_receipt.sampling))])["a"]
    assert again == first


def test_the_receipt_tells_what_happened(runner: Runner) -> None:
    _, receipt = run(runner, [request("a", "Say hello.", replace(GREEDY, predict=3))])["a"]
    assert (receipt.id, receipt.finish_reason, receipt.generated_tokens) == ("a", "length", 3)
    assert receipt.prompt_tokens == len(tokens_of(runner.prompts, "Say hello.", limit=512))
    assert receipt.started and receipt.first_token
    assert receipt.queued < receipt.started <= receipt.first_token <= receipt.finished
    assert receipt.tokens_per_second and receipt.tokens_per_second > 0
    assert receipt.sampling is not None
    assert receipt.sampling == asdict(replace(GREEDY, predict=3, seed=receipt.sampling["seed"]))
    assert (receipt.model, receipt.template) == ({"path": "model"}, "model")
    assert receipt.llama_cpp == runner.build.commit
    assert receipt.error is None


def test_an_answer_that_ends_by_itself_says_stop(runner: Runner) -> None:
    answer, receipt = run(runner, [request("a", "Say only the word: yes", replace(GREEDY, predict=200))])["a"]
    assert receipt.finish_reason == "stop"
    assert "<|im_end|>" not in answer


def test_an_answer_that_fills_the_context_says_so(model_file: Path) -> None:
    own = runner_of(model_file, 1, context=256)
    prompt = "Count upwards for ever: " + " ".join(map(str, range(60)))
    _, receipt = run(own, [request("a", prompt, replace(GREEDY, predict=10_000))])["a"]
    assert receipt.finish_reason == "context"
    assert receipt.prompt_tokens and receipt.generated_tokens
    assert receipt.prompt_tokens + receipt.generated_tokens == own.shape.context == 256
    own.model.close()


def test_a_prompt_longer_than_the_context_is_refused_with_both_counts(runner: Runner) -> None:
    engine = Engine(runner, {})
    prompt = "word " * 600
    tokens = len(tokens_of(runner.prompts, prompt, limit=10_000))
    with pytest.raises(JobError, match=rf"the prompt has {tokens} tokens, but 511 fit beside the answer.*NRVNA_CTX"):
        engine.add(request("a", prompt))
    assert engine.is_idle


@pytest.mark.slow
def test_a_prompt_of_several_batches_is_answered_beside_others(model_file: Path) -> None:
    own = runner_of(model_file, 2, context=2048)
    long = "Here is a list of words: " + "apple pear " * 300 + "What is the second word?"
    alone = run(own, [request("long", long)])["long"][0]
    together = run(own, [request("short", PROMPTS[0]), request("long", long), request("third", PROMPTS[1])])
    assert together["long"][0] == alone
    own.model.close()


@pytest.mark.parametrize(("tokens", "answer"), [(39, "🦀" * 13), (40, "🦀" * 13 + "\ufffd")])
def test_characters_that_span_tokens_arrive_whole(runner: Runner, tokens: int, answer: str) -> None:
    engine = Engine(runner, {})
    engine.add(request("a", "Write ten crab emojis: 🦀🦀🦀🦀🦀🦀🦀🦀", replace(GREEDY, predict=tokens)))
    texts = []
    while not engine.is_idle:
        texts += [event.text for event in engine.step()]
    # Three tokens a crab: two of them add nothing yet; what the limit cuts is marked.
    assert texts[:6] == ["", "", "🦀", "", "", "🦀"]
    assert "".join(texts) == answer


def test_nothing_of_a_job_is_decoded_before_its_go_while_others_go_on(runner: Runner) -> None:
    engine = Engine(runner, {}, gated=True)
    sampling = replace(GREEDY, ignore_eos=True)
    engine.add(request("first", PROMPTS[0], sampling))
    assert engine.step() == []
    assert engine.start().keys() == {"first"}
    assert engine.is_held_up and engine.step() == []
    engine.go(["first"])
    assert [event.id for event in engine.step()] == ["first"]
    engine.add(request("second", PROMPTS[1], sampling))
    engine.add(request("joined", PROMPTS[1], sampling))
    assert engine.start().keys() == {"second"}
    assert engine.start() == {}
    for _ in range(3):
        assert [event.id for event in engine.step()] == ["first"]
    engine.go(["nobody", "joined", "second"])
    assert sorted(event.id for event in engine.step()) == ["first", "joined", "second"]
    while not engine.is_idle:
        engine.step()


def test_a_gated_engine_starts_the_next_in_line_when_a_slot_is_free(model_file: Path) -> None:
    own = runner_of(model_file, 1)
    engine = Engine(own, {}, gated=True)
    for name, prompt in zip("ab", PROMPTS, strict=False):
        engine.add(request(name, prompt, replace(GREEDY, predict=2)))
    begun: list[str] = []
    while not engine.is_idle:
        begun += engine.start()
        engine.go(begun)
        engine.step()
    assert begun == ["a", "b"]
    own.model.close()


SHARED = "You are a careful librarian. " * 20


def test_jobs_with_one_context_compute_it_once(runner: Runner) -> None:
    answers = run(runner, [request(prompt, prompt, system=SHARED) for prompt in PROMPTS])
    cached = sorted(receipt.cached_tokens or 0 for _, receipt in answers.values())
    context = len(tokens_of(runner.prompts, "", SHARED, limit=512))
    assert cached[0] == 0
    assert all(context - 16 < tokens < context + 16 for tokens in cached[1:])


def test_identical_jobs_are_computed_once_and_each_gets_a_receipt(runner: Runner) -> None:
    engine = Engine(runner, {})
    assert engine.add(request("first", PROMPTS[0])) is None
    assert engine.add(request("second", PROMPTS[0])) == Joined("first", "")
    texts = {event.id: event.text for event in engine.step()}
    late = engine.add(request("third", PROMPTS[0]))
    assert late == Joined("first", texts["first"])
    texts["third"] = late.text
    receipts = {}
    while not engine.is_idle:
        for event in engine.step():
            texts[event.id] += event.text
            if event.receipt:
                receipts[event.id] = event.receipt
                assert event.answer
    assert engine.tally.tokens == receipts["first"].generated_tokens
    assert texts["first"] == texts["second"] == texts["third"]
    assert [receipts[name].same_as for name in ("first", "second", "third")] == [None, "first", "first"]
    assert receipts["third"].cached_tokens == receipts["third"].prompt_tokens


def test_jobs_that_are_alike_but_meant_to_differ_are_computed_each(runner: Runner) -> None:
    engine = Engine(runner, {})
    drawn, seeded = Sampling(temp=0.8, predict=4), Sampling(temp=0.8, predict=4, seed=1)
    requests = [("a", drawn), ("b", drawn), ("c", seeded), ("d", replace(seeded, seed=2))]
    assert [engine.add(request(name, PROMPTS[0], sampling)) for name, sampling in requests] == [None] * 4
    while not engine.is_idle:
        engine.step()


def test_an_identical_job_that_comes_after_the_end_is_computed_again(runner: Runner) -> None:
    engine = Engine(runner, {})
    for _ in range(2):
        assert engine.add(request("a", PROMPTS[0])) is None
        while not engine.is_idle:
            engine.step()


def test_an_answer_goes_on_to_the_limit_if_it_must_not_end(runner: Runner) -> None:
    sampling = replace(GREEDY, predict=40, ignore_eos=True)
    _, receipt = run(runner, [request("a", "Say only the word: yes", sampling)])["a"]
    assert (receipt.finish_reason, receipt.generated_tokens) == ("length", 40)


@pytest.mark.slow
def test_a_cache_fuller_than_thought_loses_no_job(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = runner_of(model_file, 4, 256)
    own.use(unified(4, own.shape.cells))
    # The scheduler is told of twice the cells that there are.
    own.layout = replace(own.layout, cells=2 * own.layout.cells, parallel=8)
    monkeypatch.setattr(own, "layout_for", lambda _: own.layout)
    requests = [
        request(prompt, "word " * 150 + prompt, replace(GREEDY, predict=40, ignore_eos=True)) for prompt in PROMPTS
    ]
    answers = run(own, [replace(one, prompt=f"{n} {one.prompt}") for n, one in enumerate(requests)])
    own.model.close()
    assert len(answers) == len(PROMPTS)
    assert all(receipt.generated_tokens == 40 for _, receipt in answers.values())


def without_tiles(runner: Runner) -> Runner:
    """As on a processor for which nrvna has no attention of its own, where the cache is divided as jobs need it."""
    runner.has_tiled_attention = False
    runner.use(runner.layout_for(()))
    return runner


def test_our_own_attention_reads_one_cache_for_all(model_file: Path) -> None:
    own = runner_of(model_file, 8, 512)
    if not own.has_tiled_attention:
        pytest.skip("no attention of nrvna's own for this processor")
    assert own.layout == unified(8, own.shape.cells)
    run(own, [request(prompt, prompt, system=SHARED * 2) for prompt in PROMPTS])
    assert own.layout == unified(8, own.shape.cells)
    own.model.close()


def test_what_jobs_share_decides_the_attention(model_file: Path) -> None:
    own = without_tiles(runner_of(model_file, 8, 512))
    assert own.layout == streams(8, own.shape.cells)
    together = run(own, [request(prompt, prompt, system=SHARED * 2) for prompt in PROMPTS])
    assert own.layout == plain(8, own.shape.cells)
    assert sorted(receipt.cached_tokens or 0 for _, receipt in together.values())[1] > 200
    own.model.close()


@pytest.mark.slow
def test_longer_jobs_get_larger_parts_of_the_cache(model_file: Path) -> None:
    # Without a context asked for, the cache is smaller than a whole context for each.
    own = without_tiles(Runner(model_file, Config(parallel=8)))
    assert own.layout.room < own.shape.context
    answers = run(own, [request("short", PROMPTS[0]), request("long", "word " * 2000)])
    assert own.layout.parallel < 8
    assert own.layout.room > 2000
    assert [receipt.finish_reason for _, receipt in answers.values()] == ["length", "length"]
    own.model.close()


@pytest.mark.slow
def test_jobs_that_run_when_the_cache_is_divided_anew_go_on_where_they_were(model_file: Path) -> None:
    own = without_tiles(Runner(model_file, Config(parallel=8)))
    sampling = replace(GREEDY, predict=12, ignore_eos=True)
    short = [request(prompt, prompt, sampling) for prompt in PROMPTS]
    expected = {name: answer for name, (answer, _) in run(own, short).items()}
    engine = Engine(own, {})
    for one in short:
        engine.add(one)
    events = [event for _ in range(5) for event in engine.step()]
    before = own.layout
    engine.add(request("long", "word " * 2000))
    while not engine.is_idle:
        events += engine.step()
    own.model.close()
    assert own.layout.room > before.room
    answers = {event.id: event.answer for event in events if event.receipt}
    assert answers.pop("long")
    assert answers == expected
    assert "".join(event.text for event in events if event.id == PROMPTS[0]) == expected[PROMPTS[0]]


def test_a_dropped_request_makes_room_wherever_it_was(model_file: Path) -> None:
    own = runner_of(model_file, 1)
    engine = Engine(own, {})
    long = replace(GREEDY, predict=200, ignore_eos=True)
    for name, prompt in zip(("running", "waiting", "last"), PROMPTS, strict=False):
        engine.add(request(name, prompt, long if name != "last" else GREEDY))
    engine.step()
    for name in ("running", "waiting", "never there"):
        engine.drop(name)
    finished = []
    while not engine.is_idle:
        finished += [event.id for event in engine.step() if event.receipt]
    own.model.close()
    assert finished == ["last"]


def test_a_dropped_request_leaves_those_who_asked_the_same_their_answer(runner: Runner) -> None:
    engine = Engine(runner, {})
    engine.add(request("first", PROMPTS[0]))
    engine.add(request("second", PROMPTS[0]))
    engine.step()
    engine.drop("first")
    events = []
    while not engine.is_idle:
        events += engine.step()
    [receipt] = [event.receipt for event in events if event.receipt]
    assert (receipt.id, receipt.same_as) == ("second", None)


@pytest.mark.slow
@pytest.mark.parametrize(("asked", "most"), [(0, 512), (256, 256), (1024, 1024)])
def test_a_step_computes_as_many_tokens_of_a_long_prompt_as_were_asked_for(
    model_file: Path, asked: int, most: int
) -> None:
    runner = Runner(model_file, Config(parallel=1, ctx=2048, batch_tokens=asked))
    engine = Engine(runner, {"path": "model"})
    engine.add(request("a", "word " * 1500, replace(GREEDY, predict=1)))
    steps = 0
    while not engine.is_idle:
        engine.step()
        steps += 1
    tokens = len(tokens_of(runner.prompts, "word " * 1500, limit=2048))
    # With the last of them comes the answer's only token.
    assert steps == -(-tokens // most)
    runner.model.close()


class Failing:
    """llama.cpp's functions, but that some decodes find no memory. On a CPU nothing makes llama_decode say so: where
    ggml's own buffers do not come, the process ends."""

    def __init__(self, lib: Any, failures: Container[int]) -> None:
        self._lib = lib
        self._failures = failures
        self.decodes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lib, name)

    def llama_decode(self, *arguments: Any) -> int:
        self.decodes += 1
        return -2 if self.decodes in self._failures else int(self._lib.llama_decode(*arguments))


@pytest.mark.slow
def test_a_decode_without_the_memory_goes_on_with_half_the_jobs_and_loses_none(model_file: Path) -> None:
    own = Runner(model_file, Config(parallel=8, ctx=256))
    sampling = replace(GREEDY, predict=24, ignore_eos=True)
    jobs = [request(prompt, prompt, sampling) for prompt in PROMPTS]
    expected = run(own, jobs)
    tried: list[Limits] = []
    failing = Failing(own._library.lib, {3, 9})
    limited = Runner(model_file, Config(parallel=8, ctx=256), on_try=tried.append)
    for_real, limited._library.lib = limited._library.lib, failing
    try:
        limited.use(limited.layout)
        failing.decodes = 0
        answers = run(limited, jobs)
    finally:
        limited._library.lib = for_real
    assert [(limits.parallel, limits.context) for limits in tried] == [(1, 0), (8, 256), (4, 256), (2, 256)]
    assert (limited.layout.parallel, limited.shape.cells) == (2, 512)
    assert {name: receipt.generated_tokens for name, (_, receipt) in answers.items()} == dict.fromkeys(PROMPTS, 24)
    # What was generated before is gone on from.
    alike = sum(answers[name][0].split()[:3] == expected[name][0].split()[:3] for name in PROMPTS)
    assert alike >= len(PROMPTS) - 2
    for runner in (own, limited):
        runner.model.close()


def test_a_decode_without_the_memory_for_a_single_job_ends_the_engine(model_file: Path) -> None:
    own = runner_of(model_file, 1, context=256)
    library = own._library
    for_real, library.lib = library.lib, Failing(library.lib, range(1000))
    try:
        own.use(own.layout)
        with pytest.raises(DecodeMemoryError, match="llama_decode returned -2: there is not the memory"):
            run(own, [request("a", PROMPTS[0])])
    finally:
        library.lib = for_real
        own.model.close()
