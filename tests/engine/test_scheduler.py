"""The scheduler alone: no model, only numbers of tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrvna.engine.scheduler import Chunk, Scheduler
from nrvna.engine.sequence import Sequence


def sequence(name: str, prompt: int, max_tokens: int = 4) -> Sequence:
    return Sequence(name, list(range(prompt)), max_tokens)


def advance(scheduler: Scheduler, plan: list[Chunk], *, ends: bool = False) -> list[Sequence]:
    """Do to the sequences what decoding and sampling a plan would; returns those that finished."""
    finished = []
    for chunk in plan:
        chunk.sequence.n_past += chunk.count
        if chunk.output:
            chunk.sequence.append(7, ends=ends, context=scheduler.context)
            if chunk.sequence.finish_reason:
                scheduler.release(chunk.sequence)
                finished.append(chunk.sequence)
    return finished


def test_a_batch_mixes_the_next_tokens_with_chunks_of_prompts() -> None:
    scheduler = Scheduler(slots=2, context=100, budget=8)
    scheduler.add(sequence("running", 3))
    scheduler.admit()
    advance(scheduler, scheduler.plan())
    scheduler.add(sequence("new", 20))
    scheduler.admit()
    plan = scheduler.plan()
    assert [(chunk.sequence.id, chunk.count, chunk.output) for chunk in plan] == [
        ("running", 1, True),
        ("new", 7, False),
    ]


def test_a_long_prompt_never_holds_a_running_sequence_back() -> None:
    scheduler = Scheduler(slots=2, context=1000, budget=16)
    scheduler.add(sequence("running", 1, max_tokens=50))
    scheduler.admit()
    advance(scheduler, scheduler.plan())
    scheduler.add(sequence("long", 500))
    scheduler.admit()
    for _ in range(20):
        plan = scheduler.plan()
        assert plan[0].sequence.id == "running"
        advance(scheduler, plan)


def test_only_the_last_chunk_of_a_prompt_asks_for_a_token() -> None:
    scheduler = Scheduler(slots=1, context=100, budget=4)
    scheduler.add(sequence("one", 10))
    scheduler.admit()
    outputs = []
    for _ in range(3):
        plan = scheduler.plan()
        outputs.append([(chunk.count, chunk.output) for chunk in plan])
        advance(scheduler, plan)
    assert outputs == [[(4, False)], [(4, False)], [(2, True)]]


def test_sequences_start_in_the_order_they_came() -> None:
    scheduler = Scheduler(slots=2, context=100, budget=8)
    for name in "abcd":
        scheduler.add(sequence(name, 2))
    assert [one.id for one in scheduler.admit()] == ["a", "b"]
    assert scheduler.admit() == []


def test_a_released_slot_goes_to_the_next_in_line() -> None:
    scheduler = Scheduler(slots=1, context=100, budget=8)
    first, second = sequence("first", 2), sequence("second", 2)
    scheduler.add(first)
    scheduler.add(second)
    scheduler.admit()
    scheduler.release(first)
    assert scheduler.admit() == [second]
    assert second.slot == 0


@pytest.mark.parametrize("prompt", [0, 100, 101])
def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused(prompt: int) -> None:
    with pytest.raises(ValueError, match=f"{prompt} prompt tokens in a context of 100"):
        Scheduler(slots=1, context=100, budget=8).add(sequence("x", prompt))


def test_a_budget_below_the_number_of_slots_is_refused() -> None:
    with pytest.raises(ValueError, match="a budget of 3"):
        Scheduler(slots=4, context=100, budget=3)


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "reason", "generated"),
    [(5, 3, "length", 3), (5, 100, "context", 15), (19, 100, "context", 1), (19, 1, "length", 1)],
)
def test_a_sequence_ends_at_the_first_limit_it_meets(
    prompt: int, max_tokens: int, reason: str, generated: int
) -> None:
    scheduler = Scheduler(slots=1, context=20, budget=8)
    one = sequence("one", prompt, max_tokens)
    scheduler.add(one)
    scheduler.admit()
    while not one.finish_reason:
        advance(scheduler, scheduler.plan())
    assert (one.finish_reason, len(one.generated)) == (reason, generated)


def test_the_token_that_ends_an_answer_is_no_part_of_it() -> None:
    one = sequence("one", 2)
    one.append(9, ends=True, context=100)
    assert (one.finish_reason, one.generated) == ("stop", [])


@dataclass
class Seen:
    """What the model would have been given, per sequence."""

    tokens: dict[str, list[int]] = field(default_factory=dict)

    def take(self, plan: list[Chunk]) -> None:
        for chunk in plan:
            seen = self.tokens.setdefault(chunk.sequence.id, [])
            assert chunk.sequence.n_past == len(seen)
            pending = chunk.sequence.pending(chunk.count)
            assert len(pending) == chunk.count
            seen += pending


JOBS = st.lists(st.tuples(st.integers(1, 39), st.integers(1, 12)), min_size=1, max_size=30)


@given(jobs=JOBS, slots=st.integers(1, 6), budget=st.integers(6, 64), arrivals=st.data())
def test_every_sequence_is_decoded_whole_once_and_in_order(
    jobs: list[tuple[int, int]], slots: int, budget: int, arrivals: st.DataObject
) -> None:
    context = 40
    scheduler = Scheduler(slots=slots, context=context, budget=budget)
    waiting = [sequence(str(number), *job) for number, job in enumerate(jobs)]
    everyone, seen, admitted = list(waiting), Seen(), []
    while waiting or len(scheduler):
        for _ in range(arrivals.draw(st.integers(0 if len(scheduler) else 1, 3))):
            if waiting:
                scheduler.add(waiting.pop(0))
        admitted += scheduler.admit()
        plan = scheduler.plan()
        used = [chunk.sequence.slot for chunk in plan]
        assert plan, "a step with work to do does none"
        assert sum(chunk.count for chunk in plan) <= budget
        assert len(set(used)) == len(used) <= slots
        assert all(slot is not None and 0 <= slot < slots for slot in used)
        assert all(chunk.sequence.n_past + chunk.count <= context for chunk in plan)
        seen.take(plan)
        advance(scheduler, plan)
    assert [one.id for one in admitted] == [one.id for one in everyone]
    for one in everyone:
        assert one.finish_reason in ("length", "context")
        # The last token is sampled and never decoded.
        assert seen.tokens[one.id] == (one.prompt + one.generated)[:-1]


@given(jobs=JOBS, slots=st.integers(1, 4))
def test_a_running_sequence_gains_a_token_in_every_step(jobs: list[tuple[int, int]], slots: int) -> None:
    scheduler = Scheduler(slots=slots, context=64, budget=8)
    for number, job in enumerate(jobs):
        scheduler.add(sequence(str(number), *job))
    while len(scheduler):
        scheduler.admit()
        plan = scheduler.plan()
        decoding = {chunk.sequence for chunk in plan if not chunk.sequence.is_prefilling}
        before = {one: len(one.generated) for one in decoding}
        advance(scheduler, plan)
        assert all(len(one.generated) == before[one] + 1 for one in decoding)
