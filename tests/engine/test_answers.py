"""What may be asked of an answer: where it ends, what it must look like, what it is chosen from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conversations import tokens_of
from make_models import make_adapter

from nrvna.config import Config, Sampling
from nrvna.engine.engine import Engine, Event, Joined
from nrvna.engine.runner import Runner
from nrvna.engine.work import Request
from nrvna.errors import GrammarError, JobError
from nrvna.job import Receipt
from nrvna.task import Task

GREEDY = Sampling(temp=0.0, predict=32)
PROMPT = "Count from one to nine."


@pytest.fixture(scope="module")
def runner(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    adapter = make_adapter(tmp_path_factory.mktemp("lora") / "adapter.gguf")
    made = Runner(model_file, Config(parallel=4, ctx=1024, reproducible=1, lora=(f"odd={adapter}",)))
    yield made
    made.model.close()


def request(
    task: Task | None = None, sampling: Sampling = GREEDY, *, name: str = "a", prompt: str = PROMPT
) -> Request:
    return Request(name, prompt, "", None, sampling, task or Task())


def run(runner: Runner, *requests: Request) -> dict[str, Event]:
    """How each of them ended; what was told on the way adds up to the answer."""
    engine = Engine(runner, {"path": "m"})
    for one in requests:
        assert engine.add(one) is None
    told = {one.id: "" for one in requests}
    ends: dict[str, Event] = {}
    while not engine.is_idle:
        for event in engine.step():
            told[event.id] += event.text
            if event.receipt:
                ends[event.id] = event
    for name, end in ends.items():
        if end.receipt and not end.receipt.error and not end.receipt.probabilities and not end.receipt.resumed_tokens:
            assert told[name] == end.answer
    return ends


def interrupted(runner: Runner, asked: Request, cut: int) -> tuple[list[Event], dict[str, object]]:
    """All that happens to a request, and what is on record of it after so many tokens."""
    engine = Engine(runner, {"path": "m"})
    engine.add(asked)
    start = engine.start()["a"]
    events: list[Event] = []
    while not engine.is_idle:
        events += engine.step()
    tokens = {"tokens": [event.token for event in events[:cut]], "draws": [event.draws for event in events[:cut]]}
    return events, {"key": start.key, "seed": start.seed, **tokens}


def answer(runner: Runner, task: Task | None = None, sampling: Sampling = GREEDY) -> tuple[str, Receipt]:
    end = run(runner, request(task, sampling))["a"]
    assert end.receipt
    return end.answer, end.receipt


def prompt_of(runner: Runner, asked: Request) -> str:
    work = Engine(runner, {"path": "m"}).read(asked)
    return runner.model.detokenize(work.sequences[0].prompt, special=True)


def test_an_empty_system_message_takes_the_place_of_the_templates_own(runner: Runner) -> None:
    asked = request(Task(messages=(("system", ""),)), prompt="")
    assert prompt_of(runner, asked) == (
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"
    )
    informed = prompt_of(runner, replace(asked, system="Be brief."))
    assert informed == prompt_of(runner, replace(request(prompt=""), system="Be brief."))


# Where it ends.


def test_a_stop_string_ends_the_answer_before_it_and_the_receipt_names_it(runner: Runner) -> None:
    whole, _ = answer(runner)
    stop = whole[10:14]
    cut, receipt = answer(runner, sampling=replace(GREEDY, stop=("never there", stop)))
    assert cut == whole[: whole.index(stop)]
    assert (receipt.finish_reason, receipt.stopped_by) == ("stop", stop)


def test_an_answer_does_not_end_before_its_least_tokens(runner: Runner) -> None:
    prompt, sampling = "What is 2+2?", replace(GREEDY, predict=80)
    short = run(runner, request(prompt=prompt, sampling=sampling))["a"].receipt
    assert short and short.finish_reason == "stop" and short.generated_tokens
    least = short.generated_tokens + 20
    long = run(runner, request(prompt=prompt, sampling=replace(sampling, min_tokens=least)))["a"].receipt
    assert long and (long.generated_tokens or 0) >= least


# What it must look like.


def test_an_answer_follows_a_grammar(runner: Runner) -> None:
    text, receipt = answer(runner, Task(grammar='root ::= "<" [a-c]{3} ">"'))
    assert len(text) == 5 and set(text[1:-1]) <= set("abc") and text[0] + text[-1] == "<>"
    assert receipt.finish_reason == "stop"


@pytest.mark.parametrize("temp", [0.0, 1.5])
def test_an_answer_follows_a_json_schema(runner: Runner, temp: float) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "size": {"enum": ["small", "large"]}},
        "required": ["city", "size"],
        "additionalProperties": False,
    }
    text, receipt = answer(runner, Task(json_schema=json.dumps(schema)), Sampling(temp=temp, seed=5, predict=200))
    found = json.loads(text)
    assert set(found) == {"city", "size"} and found["size"] in ("small", "large")
    assert receipt.task and json.loads(receipt.task["json_schema"]) == schema


def test_a_grammar_that_is_none_is_refused_with_the_place(runner: Runner) -> None:
    with pytest.raises(GrammarError, match="line 2"):
        Engine(runner, {}).add(request(Task(grammar='root ::= a\na ::= "x')))


def test_a_grammar_beside_answers_without_one_rules_its_own_alone(runner: Runner) -> None:
    free, _ = answer(runner)
    ends = run(runner, request(name="free"), request(Task(grammar='root ::= "no"'), name="bound"))
    assert (ends["free"].answer, ends["bound"].answer) == (free, "no")


def test_two_jobs_that_differ_in_their_grammar_are_two_answers(runner: Runner) -> None:
    engine = Engine(runner, {})
    assert engine.add(request(Task(grammar='root ::= "a"'), name="a")) is None
    assert engine.add(request(Task(grammar='root ::= "b"'), name="b")) is None
    assert engine.add(request(Task(grammar='root ::= "b"'), name="c")) == Joined("b", "")


@pytest.mark.parametrize("cut", [1, 3, 7])
def test_a_constrained_answer_that_was_interrupted_goes_on_to_the_same_bytes(runner: Runner, cut: int) -> None:
    task = Task(json_schema='{"type": "array", "items": {"enum": ["red", "blue", "green"]}, "maxItems": 6}')
    asked = request(task, Sampling(temp=1.5, seed=3, predict=100))
    events, record = interrupted(runner, asked, cut)
    assert any(event.draws == 2 for event in events), "the grammar refused nothing: it shows nothing"
    resumed = run(runner, replace(asked, resume=record))["a"]
    assert resumed.receipt and resumed.receipt.resumed_tokens == cut
    assert resumed.answer == events[-1].answer


def test_tokens_on_record_that_the_grammar_forbids_are_not_taken_over(runner: Runner) -> None:
    asked = request(Task(grammar='root ::= "yes" | "no"'))
    engine = Engine(runner, {"path": "m"})
    engine.add(asked)
    start = engine.start()["a"]
    tokens = runner.model.tokenize("maybe not", add_special=False)
    record = {"key": start.key, "seed": start.seed, "tokens": tokens, "draws": [1] * len(tokens)}
    end = run(runner, replace(asked, resume=record))["a"]
    assert end.answer in ("yes", "no")
    assert end.receipt and end.receipt.resumed_tokens == 0


# What it is chosen from.

CHOICES = ("positive", "negative", "neutral", "not sure", "not")


def test_a_choice_is_the_likeliest_and_all_have_their_probabilities(runner: Runner) -> None:
    task = Task(choices=CHOICES)
    end = run(runner, request(task, prompt="Is this review positive, negative or neutral? I love it!"))["a"]
    assert end.receipt and end.receipt.probabilities
    assert tuple(end.receipt.probabilities) == CHOICES
    assert sum(end.receipt.probabilities.values()) == pytest.approx(1, abs=1e-4)
    assert end.answer == max(CHOICES, key=end.receipt.probabilities.__getitem__)
    assert (end.receipt.generated_tokens, end.receipt.finish_reason) == (0, "stop")


def test_choices_beside_other_jobs_get_the_probabilities_that_they_get_alone(runner: Runner) -> None:
    alone = run(runner, request(Task(choices=CHOICES)))["a"].receipt
    both = run(runner, request(name="other", prompt="Tell me a story."), request(Task(choices=CHOICES), name="b"))
    beside = both["b"].receipt
    assert alone and beside and alone.probabilities == beside.probabilities


def test_the_prompt_of_a_choice_is_computed_once(runner: Runner) -> None:
    engine = Engine(runner, {})
    prompt = "word " * 150
    engine.add(request(Task(choices=CHOICES), prompt=prompt))
    computed = 0
    while not engine.is_idle:
        engine.start()
        computed += sum(chunk.count for chunk in engine._scheduler.plan())
        engine.step()
    assert computed < len(tokens_of(runner.prompts, prompt)) + 16 * len(CHOICES)


# With what.


def test_copies_of_a_prompt_with_other_seeds_differ_and_share_their_prefill(runner: Runner) -> None:
    prompt = "Write a sentence about the sea, and use the words of a sailor: " * 4
    asked = [
        request(sampling=Sampling(temp=1.5, seed=seed, predict=12), name=str(seed), prompt=prompt)
        for seed in range(4)
    ]
    ends = run(runner, *asked)
    assert len({end.answer for end in ends.values()}) == 4
    receipts = [end.receipt for end in ends.values() if end.receipt]
    cached = sorted(receipt.cached_tokens or 0 for receipt in receipts)
    assert cached[0] == 0
    assert cached[1:] == [(receipts[0].prompt_tokens or 0) - 1] * 3


def test_an_adapter_changes_its_own_jobs_alone(runner: Runner) -> None:
    def asked(number: int) -> Request:
        task = Task(lora="odd" if number % 2 else None, choices=("red", "green", "blue"))
        return request(task, name=str(number), prompt=f"What colour has number {number // 2}?")

    alone = [run(runner, asked(number))[str(number)].receipt for number in range(6)]
    together = run(runner, *map(asked, range(6)))
    found = [receipt.probabilities for receipt in alone if receipt]
    assert all(found[number] != found[number + 1] for number in (0, 2, 4))
    assert [end.receipt.probabilities for end in (together[str(n)] for n in range(6)) if end.receipt] == found


def test_an_adapter_that_nobody_brought_is_refused(runner: Runner) -> None:
    with pytest.raises(JobError, match="no adapter 'even': nrvnad was started with odd"):
        Engine(runner, {}).add(request(Task(lora="even")))


# Thinking first.

THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}"
)


@pytest.fixture(scope="module")
def thinker(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """The model behind a template that opens a thought, which it does not know how to end."""
    path = tmp_path_factory.mktemp("template") / "thinks.jinja"
    path.write_text(THINKS)
    made = Runner(model_file, Config(parallel=4, ctx=1024, reproducible=1, chat_template=str(path)))
    yield made
    made.model.close()


# It is no thinker: it would end its answer in its thought.
TALKING = replace(GREEDY, predict=60, min_tokens=25)


def test_a_model_that_ends_its_answer_in_its_thought_has_given_none(thinker: Runner) -> None:
    end = run(thinker, request())["a"]
    assert end.receipt and end.receipt.finish_reason == "thinking"
    assert (end.receipt.error or "").startswith("the model ended within its thought, after 8 tokens")


def test_a_thought_that_never_ends_is_a_failure_and_is_kept(thinker: Runner) -> None:
    end = run(thinker, request(sampling=replace(GREEDY, min_tokens=32)))["a"]
    assert end.receipt and end.receipt.finish_reason == "thinking"
    assert (end.receipt.error or "").startswith("the model was still thinking when it was cut at its 32th token")
    assert end.answer == ""
    assert end.beside["reasoning.txt"].strip()
    assert end.receipt.reasoning_tokens == 32


def test_a_thought_that_has_used_up_its_budget_is_ended_and_the_answer_comes(thinker: Runner) -> None:
    end = run(thinker, request(sampling=replace(TALKING, reasoning_budget=10)))["a"]
    assert end.receipt and end.receipt.error is None
    marks = thinker.prompts.tokens_of("</think>")
    assert end.receipt.reasoning_tokens == 10 + len(marks)
    assert end.beside["reasoning.txt"] and end.answer.strip()
    assert "</think>" not in end.answer and b"</think>" not in end.beside["reasoning.txt"]


def test_without_a_budget_for_thought_the_answer_comes_at_once(thinker: Runner) -> None:
    end = run(thinker, request(sampling=replace(GREEDY, reasoning_budget=0)))["a"]
    assert end.receipt and not end.receipt.error
    assert "reasoning.txt" not in end.beside and end.answer


def test_a_template_variable_turns_the_thought_off(thinker: Runner) -> None:
    end = run(thinker, request(Task(template_kwargs={"enable_thinking": False})))["a"]
    assert end.receipt and end.receipt.reasoning_tokens is None
    assert end.answer


def test_a_grammar_rules_the_answer_and_not_the_thought(thinker: Runner) -> None:
    task = Task(grammar='root ::= "yes" | "no"')
    end = run(thinker, request(task, replace(TALKING, reasoning_budget=12)))["a"]
    assert end.answer in ("yes", "no")
    assert end.receipt and end.receipt.finish_reason == "stop"
    assert len(end.beside["reasoning.txt"]) > 10


def test_a_choice_is_made_without_a_thought(thinker: Runner) -> None:
    end = run(thinker, request(Task(choices=("yes", "no"))))["a"]
    assert end.answer in ("yes", "no") and not end.beside


@pytest.mark.slow
@pytest.mark.parametrize("cut", [4, 11, 13, 14, 20])
def test_an_answer_interrupted_in_thought_or_behind_it_goes_on_to_the_same_bytes(thinker: Runner, cut: int) -> None:
    sampling = Sampling(temp=1.2, seed=9, predict=60, min_tokens=15, reasoning_budget=10)
    task = Task(json_schema='{"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 3, "maxItems": 5}')
    asked = request(task, sampling)
    events, record = interrupted(thinker, asked, cut)
    resumed = run(thinker, replace(asked, resume=record))["a"]
    assert resumed.receipt and resumed.receipt.resumed_tokens == cut
    assert (resumed.answer, resumed.beside) == (events[-1].answer, events[-1].beside)


# Too long.


@pytest.mark.parametrize(
    ("where", "head", "tail"), [("left", False, True), ("right", True, False), ("middle", True, True)]
)
def test_a_prompt_that_is_too_long_is_shortened_as_asked_and_leaves_room_for_the_answer(
    runner: Runner, where: str, head: bool, tail: bool
) -> None:
    prompt = "first " + "word " * 1500 + "last"
    engine = Engine(runner, {"path": "m"})
    engine.add(request(sampling=replace(GREEDY, predict=8, overflow=f"truncate-{where}"), prompt=prompt))
    [(sequence, work)] = engine._works.items()
    text = runner.model.detokenize(sequence.prompt)
    assert ("first" in text, "last" in text) == (head, tail)
    said = work.notes["truncated"]
    assert said["where"] == where and 0 < said["removed"] < said["of"]
    assert 1024 - 16 <= len(sequence.prompt) + 8 <= 1024


@pytest.mark.parametrize(
    "task", [Task(choices=("certainly", "certainly not")), Task(grammar='root ::= "no"')], ids=["choices", "grammar"]
)
def test_what_is_added_to_a_prompt_that_just_fits_has_room_or_the_job_is_refused(thinker: Runner, task: Task) -> None:
    shortest = 1024 - len(tokens_of(thinker.prompts, ""))
    refused = taken = 0
    for words in range(shortest - 12, shortest + 2):
        try:
            Engine(thinker, {}).add(request(task, prompt=" word" * words))
            taken += 1
        except JobError:
            refused += 1
    assert taken and refused


def test_a_conversation_goes_through_the_template_message_by_message(runner: Runner) -> None:
    task = Task(system="Be brief.", messages=(("user", "My name is Zoe."), ("assistant", "Hello Zoe!")))
    engine = Engine(runner, {"path": "m"})
    engine.add(request(task, prompt="What is my name?"))
    text = runner.model.detokenize(next(iter(engine._works)).prompt, special=True)
    places = [text.index(part) for part in ("Be brief.", "My name is Zoe.", "Hello Zoe!", "What is my name?")]
    assert places == sorted(places)
    assert text.count("<|im_start|>") == 5


def test_a_prompt_may_be_another_roles_than_the_users(runner: Runner) -> None:
    engine = Engine(runner, {"path": "m"})
    engine.add(request(Task(messages=(("user", "Count."),), role="system"), prompt="In French."))
    text = runner.model.detokenize(next(iter(engine._works)).prompt, special=True)
    assert text.endswith(
        "<|im_start|>user\nCount.<|im_end|>\n<|im_start|>system\nIn French.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_raw_prompt_goes_to_the_model_as_it_is(runner: Runner) -> None:
    engine = Engine(runner, {"path": "m"})
    engine.add(request(Task(raw=True), prompt="Once upon"))
    [sequence] = engine._works
    assert sequence.prompt == runner.model.tokenize("Once upon")
