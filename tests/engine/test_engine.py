"""The engine on the real model."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nrvna.config import Config, Sampling
from nrvna.engine.engine import Engine, Request
from nrvna.engine.runner import Runner
from nrvna.errors import JobError
from nrvna.job import Receipt

GREEDY = Sampling(temp=0.0, predict=16)
PROMPTS = [f"Describe the number {number} in a few words." for number in range(8)]


def runner_of(model_file: Path, slots: int, context: int = 512) -> Runner:
    return Runner(model_file, Config(parallel=slots, ctx=context))


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
        engine.add(one)
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


def test_an_answer_is_the_same_alone_and_in_a_full_queue(runner: Runner) -> None:
    sampling = Sampling(temp=0.8, predict=24, seed=7)
    together = run(runner, [request(prompt, prompt, sampling) for prompt in PROMPTS])
    for prompt in PROMPTS[:3]:
        alone = run(runner, [request(prompt, prompt, sampling)])
        assert alone[prompt][0] == together[prompt][0]


def test_an_answer_is_the_same_at_any_number_of_slots_in_any_order(model_file: Path) -> None:
    digests = set()
    requests = [request(prompt, prompt, Sampling(predict=16, seed=n)) for n, prompt in enumerate(PROMPTS)]
    for slots in (1, 3, 8):
        random.Random(slots).shuffle(requests)
        own = runner_of(model_file, slots)
        answers = run(own, requests)
        own.model.close()
        digests.add(hashlib.sha256(repr(sorted((k, v[0]) for k, v in answers.items())).encode()).hexdigest())
    assert len(digests) == 1


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
    assert receipt.prompt_tokens == len(runner.prompts.encode("Say hello.", context=512))
    assert receipt.started and receipt.first_token
    assert receipt.queued < receipt.started <= receipt.first_token <= receipt.finished
    assert receipt.tokens_per_second and receipt.tokens_per_second > 0
    assert receipt.sampling is not None
    assert receipt.sampling == {
        "temp": 0.0,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.05,
        "repeat_penalty": 1.0,
        "predict": 3,
        "seed": receipt.sampling["seed"],
    }
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
    tokens = len(runner.prompts.encode(prompt, context=10_000))
    with pytest.raises(JobError, match=rf"the prompt has {tokens} tokens, but the context holds 512 .*NRVNA_CTX"):
        engine.add(request("a", prompt))
    assert engine.is_idle


def test_a_prompt_of_several_batches_is_answered_beside_others(model_file: Path) -> None:
    own = runner_of(model_file, 2, context=2048)
    long = "Here is a list of words: " + "apple pear " * 500 + "What is the second word?"
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
