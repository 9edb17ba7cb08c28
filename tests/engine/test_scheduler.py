"""The scheduler alone: no model, only numbers of tokens."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrvna.engine.attention import plain_is_faster
from nrvna.engine.scheduler import MAX_OVERTAKEN, MIN_SHARED, Chunk, Move, Scheduler
from nrvna.engine.sequence import Sequence

_fresh = count()


def sequence(
    name: str, prompt: int, max_tokens: int = 4, head: tuple[int, ...] = (), *, cleared: bool = True
) -> Sequence:
    """A sequence whose prompt of so many tokens begins with ``head`` and goes on as no other does."""
    own = 1_000_000 + 1000 * next(_fresh)
    return Sequence(name, [*head, *range(own, own + prompt - len(head))], max_tokens, cleared=cleared)


def advance(scheduler: Scheduler, plan: list[Chunk], *, ends: bool = False) -> list[Sequence]:
    """Do to the sequences what decoding and sampling a plan would; returns those that finished."""
    finished = []
    scheduler.decoded(plan)
    for chunk in plan:
        if chunk.output:
            chunk.sequence.append(7, ends=ends, context=scheduler.context)
            if chunk.sequence.finish_reason:
                scheduler.release(chunk.sequence)
                finished.append(chunk.sequence)
    return finished


def test_a_batch_mixes_the_next_tokens_with_chunks_of_prompts() -> None:
    scheduler = Scheduler(parallel=2, context=100, budget=8)
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
    scheduler = Scheduler(parallel=2, context=1000, budget=16)
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
    scheduler = Scheduler(parallel=1, context=100, budget=4)
    scheduler.add(sequence("one", 10))
    scheduler.admit()
    outputs = []
    for _ in range(3):
        plan = scheduler.plan()
        outputs.append([(chunk.count, chunk.output) for chunk in plan])
        advance(scheduler, plan)
    assert outputs == [[(4, False)], [(4, False)], [(2, True)]]


def test_sequences_start_in_the_order_they_came() -> None:
    scheduler = Scheduler(parallel=2, context=100, budget=8)
    for name in "abcd":
        scheduler.add(sequence(name, 2))
    assert [one.id for one in scheduler.admit()] == ["a", "b"]
    assert scheduler.admit() == []


def test_a_higher_priority_goes_before_all_that_wait_with_a_lower_one() -> None:
    scheduler = Scheduler(parallel=1, context=100, budget=200)
    for name, priority in (("a", 0), ("b", -1), ("c", 0), ("d", 5), ("e", 5), ("f", 0)):
        scheduler.add(replace(sequence(name, 2), priority=priority))
    assert run(scheduler) == ["d", "e", "a", "c", "f", "b"]


def test_a_prefix_in_the_cache_does_not_make_up_for_a_lower_priority() -> None:
    scheduler = Scheduler(parallel=1, slots=2, context=100, budget=200)
    scheduler.add(sequence("leader", 50, head=HEAD))
    scheduler.admit()
    scheduler.add(sequence("alike", 50, head=HEAD))
    scheduler.add(replace(sequence("urgent", 50), priority=1))
    assert run(scheduler) == ["urgent", "alike"]


@settings(max_examples=200)
@given(st.lists(st.integers(-2, 2), max_size=20), st.integers(1, 4))
def test_nobody_starts_before_somebody_more_urgent_who_waits(priorities: list[int], parallel: int) -> None:
    scheduler = Scheduler(parallel=parallel, context=100, budget=200)
    for number, priority in enumerate(priorities):
        scheduler.add(replace(sequence(str(number), 50), priority=priority))
    while len(scheduler):
        waiting = [one.priority for one in scheduler.waiting]
        started = scheduler.admit()
        left = [one.priority for one in scheduler.waiting]
        assert sorted(waiting) == sorted([*left, *(one.priority for one in started)])
        assert all(one.priority >= max(left, default=one.priority) for one in started)
        advance(scheduler, scheduler.plan())


def test_a_released_slot_goes_to_the_next_in_line() -> None:
    scheduler = Scheduler(parallel=1, context=100, budget=8)
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
        Scheduler(parallel=1, context=100, budget=8).add(sequence("x", prompt))


def test_a_budget_below_the_number_of_slots_is_refused() -> None:
    with pytest.raises(ValueError, match="a budget of 3"):
        Scheduler(parallel=4, context=100, budget=3)


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "reason", "generated"),
    [(5, 3, "length", 3), (5, 100, "context", 15), (19, 100, "context", 1), (19, 1, "length", 1)],
)
def test_a_sequence_ends_at_the_first_limit_it_meets(
    prompt: int, max_tokens: int, reason: str, generated: int
) -> None:
    scheduler = Scheduler(parallel=1, context=20, budget=8)
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


HEAD = tuple(range(40))


def run(scheduler: Scheduler) -> list[str]:
    """Work until nothing is left; returns who started, in order."""
    started = []
    while len(scheduler):
        started += [one.id for one in scheduler.admit()]
        advance(scheduler, scheduler.plan())
    return started


def test_a_prompt_that_begins_as_one_in_the_cache_computes_only_the_rest() -> None:
    scheduler = Scheduler(parallel=2, context=100, budget=200)
    first, second = sequence("first", 60, head=HEAD), sequence("second", 50, head=HEAD)
    scheduler.add(first)
    scheduler.admit()
    advance(scheduler, scheduler.plan())
    scheduler.take_moves()
    scheduler.add(second)
    scheduler.admit()
    assert (second.n_past, second.n_cached) == (40, 40)
    assert scheduler.take_moves() == [Move(second.slot or 0, 40, first.slot)]
    assert [(chunk.sequence.id, chunk.count) for chunk in scheduler.plan()] == [("first", 1), ("second", 10)]


def test_prompts_that_begin_alike_and_wait_together_compute_it_once() -> None:
    scheduler = Scheduler(parallel=8, context=100, budget=200)
    together = [sequence(str(number), 50, head=HEAD) for number in range(8)]
    for one in together:
        scheduler.add(one)
    run(scheduler)
    assert [one.n_cached for one in together] == [0] + [40] * 7


def test_an_identical_prompt_still_computes_its_last_token() -> None:
    scheduler = Scheduler(parallel=1, context=100, budget=200)
    first, again = sequence("first", 40, head=HEAD), sequence("again", 40, head=HEAD)
    scheduler.add(first)
    scheduler.add(again)
    run(scheduler)
    assert again.n_cached == 39


def test_a_prefix_outlives_the_sequence_that_computed_it() -> None:
    scheduler = Scheduler(parallel=1, slots=3, context=100, budget=200)
    for name, head in (("a", HEAD), ("b", ()), ("c", HEAD)):
        scheduler.add(sequence(name, 50, head=head))
    third = scheduler.waiting[2]
    run(scheduler)
    assert third.n_cached == 40


def test_the_least_recently_used_prefix_is_the_one_that_goes() -> None:
    scheduler = Scheduler(parallel=1, slots=2, context=100, budget=200)
    old, new = tuple(range(100, 140)), tuple(range(200, 240))
    jobs = [sequence(name, 50, head=head) for name, head in (("a", old), ("b", new), ("c", ()), ("d", old))]
    for one in jobs:
        scheduler.add(one)
        run(scheduler)
    assert [one.n_cached for one in jobs] == [0, 0, 0, 0]
    late = sequence("e", 50, head=old)
    scheduler.add(late)
    run(scheduler)
    assert late.n_cached == 40


def test_fewer_common_tokens_than_worth_a_copy_are_computed_again() -> None:
    scheduler = Scheduler(parallel=1, slots=2, context=100, budget=200)
    for name in "ab":
        scheduler.add(sequence(name, 50, head=HEAD[: MIN_SHARED - 1]))
    second = scheduler.waiting[1]
    run(scheduler)
    assert second.n_cached == 0


def test_without_sharing_every_prompt_is_computed_whole() -> None:
    scheduler = Scheduler(parallel=2, context=100, budget=200, share=False)
    jobs = [sequence(name, 50, head=HEAD) for name in "abc"]
    for one in jobs:
        scheduler.add(one)
    assert run(scheduler) == ["a", "b", "c"]
    assert [one.n_cached for one in jobs] == [0, 0, 0]


def test_those_that_begin_alike_may_start_before_their_turn() -> None:
    scheduler = Scheduler(parallel=1, slots=2, context=100, budget=200)
    for name, head in (("a1", HEAD), ("b", ()), ("a2", HEAD), ("c", ()), ("a3", HEAD)):
        scheduler.add(sequence(name, 50, head=head))
    assert run(scheduler) == ["a1", "a2", "a3", "b", "c"]


def test_nobody_is_overtaken_for_ever() -> None:
    scheduler = Scheduler(parallel=1, slots=2, context=100, budget=200)
    scheduler.add(sequence("leader", 50, head=HEAD))
    scheduler.add(sequence("other", 50))
    for number in range(3 * MAX_OVERTAKEN):
        scheduler.add(sequence(str(number), 50, head=HEAD))
    assert run(scheduler).index("other") == MAX_OVERTAKEN + 1


def test_a_sequence_starts_only_if_all_it_may_come_to_hold_fits() -> None:
    scheduler = Scheduler(parallel=4, context=100, budget=200, cells=150)
    for name in "ab":
        scheduler.add(sequence(name, 50, max_tokens=40))
    assert [one.id for one in scheduler.admit()] == ["a"]
    advance(scheduler, scheduler.plan())
    assert scheduler.admit() == []


def test_shared_cells_are_counted_once() -> None:
    scheduler = Scheduler(parallel=4, context=100, budget=200, cells=100)
    for number in range(4):
        scheduler.add(sequence(str(number), 50, max_tokens=5, head=HEAD))
    assert len(scheduler.admit()) == 1
    advance(scheduler, scheduler.plan())
    assert len(scheduler.admit()) == 3


def test_a_cache_fuller_than_thought_forgets_first_what_only_rests_there() -> None:
    scheduler = Scheduler(parallel=2, slots=3, context=100, budget=200, cells=200)
    scheduler.add(sequence("done", 50))
    run(scheduler)
    running = [sequence(name, 50) for name in "ab"]
    for one in running:
        scheduler.add(one)
    scheduler.admit()
    scheduler.take_moves()
    assert scheduler.shed()
    assert scheduler.running == tuple(running)
    assert [move.keep for move in scheduler.take_moves()] == [0]


def test_shed_load_goes_on_where_it_was_once_another_has_ended() -> None:
    scheduler = Scheduler(parallel=2, context=100, budget=200)
    first, last = sequence("first", 50, max_tokens=9), sequence("last", 50, max_tokens=9)
    scheduler.add(first)
    scheduler.add(last)
    scheduler.admit()
    advance(scheduler, scheduler.plan())
    advance(scheduler, scheduler.plan())
    assert scheduler.shed()
    assert (scheduler.running, scheduler.waiting) == ((first,), (last,))
    assert not scheduler.shed()
    assert scheduler.admit() == []
    while not first.finish_reason:
        advance(scheduler, scheduler.plan())
    scheduler.admit()
    assert last.generated == [7, 7]
    assert last.pending(last.n_pending) == [*last.prompt, 7, 7]
    run(scheduler)
    assert (last.finish_reason, len(last.generated)) == ("length", 9)


def test_with_another_cache_everybody_starts_over_in_order() -> None:
    scheduler = Scheduler(parallel=2, context=100, budget=200, cells=150)
    jobs = [sequence(name, 30, max_tokens=9) for name in "abc"]
    for one in jobs:
        scheduler.add(one)
    scheduler.admit()
    advance(scheduler, scheduler.plan())
    scheduler.shed()
    scheduler.rearrange(parallel=2, cells=150)
    assert scheduler.waiting == tuple(jobs)
    assert [one.n_past for one in jobs] == [0, 0, 0]
    assert run(scheduler) == ["a", "b", "c"]
    assert [len(one.generated) for one in jobs] == [9, 9, 9]


def test_a_sequence_too_long_for_the_part_of_each_waits_for_another_cache() -> None:
    scheduler = Scheduler(parallel=4, context=100, budget=200, room=40)
    for name, answer in (("long", 60), ("short", 5)):
        scheduler.add(sequence(name, 30, max_tokens=answer))
    assert [one.id for one in scheduler.admit()] == ["short"]
    scheduler.rearrange(parallel=2, room=90)
    assert [one.id for one in scheduler.admit()] == ["short", "long"]


def test_those_that_are_left_become_neighbours_in_the_cache() -> None:
    scheduler = Scheduler(parallel=4, context=100, budget=200)
    jobs = [sequence(name, 5, max_tokens=tokens) for name, tokens in (("a", 1), ("b", 9), ("c", 1), ("d", 9))]
    for one in jobs:
        scheduler.add(one)
    scheduler.admit()
    advance(scheduler, scheduler.plan())
    scheduler.take_moves()
    scheduler.admit()
    assert [one.slot for one in scheduler.running] == [1, 0]
    assert scheduler.take_moves() == [Move(0, 5, 3), Move(3)]
    assert [chunk.sequence.id for chunk in scheduler.plan()] == ["d", "b"]


def test_who_is_not_cleared_holds_a_slot_while_the_others_go_on() -> None:
    scheduler = Scheduler(parallel=2, context=100, budget=200)
    held, free, third = (sequence(name, 20, cleared=name != "held") for name in ("held", "free", "third"))
    for one in (held, free, third):
        scheduler.add(one)
    assert scheduler.admit() == [held, free]
    for _ in range(free.max_tokens):
        assert not scheduler.is_held_up
        plan = scheduler.plan()
        assert [chunk.sequence for chunk in plan] == [free]
        advance(scheduler, plan)
    assert (held.n_past, scheduler.is_held_up, scheduler.plan()) == (0, True, [])
    assert scheduler.admit() == [third]
    assert not scheduler.is_held_up
    held.cleared = True
    assert {chunk.sequence for chunk in scheduler.plan()} == {held, third}


def test_who_was_cleared_stays_so_when_put_back() -> None:
    scheduler = Scheduler(parallel=2, context=100, budget=200)
    jobs = [sequence(name, 20, cleared=False) for name in "ab"]
    for one in jobs:
        scheduler.add(one)
    scheduler.admit()
    jobs[0].cleared = True
    scheduler.rearrange(parallel=2)
    assert not scheduler.is_held_up
    assert scheduler.admit() == jobs
    assert [chunk.sequence for chunk in scheduler.plan()] == jobs[:1]


def test_who_goes_on_with_an_answer_computes_prompt_and_answer_first() -> None:
    scheduler = Scheduler(parallel=2, context=100, budget=200)
    first, resumed = sequence("first", 60, head=HEAD), sequence("resumed", 50, max_tokens=9, head=HEAD)
    resumed.generated = [7] * 5
    scheduler.add(first)
    scheduler.admit()
    advance(scheduler, scheduler.plan())
    scheduler.add(resumed)
    scheduler.admit()
    assert resumed.n_cached == 40
    assert [(chunk.sequence.id, chunk.count, chunk.output) for chunk in scheduler.plan()] == [
        ("first", 1, True),
        ("resumed", 15, True),
    ]
    run(scheduler)
    assert (resumed.finish_reason, len(resumed.generated)) == ("length", 9)


def test_cells_that_cannot_hold_one_context_are_refused() -> None:
    with pytest.raises(ValueError, match="50 cells"):
        Scheduler(parallel=1, context=100, budget=8, cells=50)


@dataclass
class Cache:
    """The KV cache as llama.cpp would keep it: per slot its cells, each a token with an identity of its own."""

    slots: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    fresh: count[int] = field(default_factory=count)

    def apply(self, moves: list[Move]) -> None:
        for move in moves:
            source = self.slots.get(move.slot if move.source is None else move.source, [])
            assert move.keep <= len(source), "more is kept than there is"
            self.slots[move.slot] = source[: move.keep]

    def take(self, plan: list[Chunk]) -> None:
        for chunk in plan:
            one = chunk.sequence
            assert one.slot is not None
            held = self.slots.setdefault(one.slot, [])
            assert [token for token, _ in held] == (one.prompt + one.generated)[: one.n_past]
            pending = one.pending(chunk.count)
            assert len(pending) == chunk.count
            held += [(token, next(self.fresh)) for token in pending]

    @property
    def n_cells(self) -> int:
        return len({cell for held in self.slots.values() for cell in held})


# Prompt and answer in tokens, which of three heads the prompt begins with, how much of the answer is there already.
Jobs = list[tuple[int, int, int, int]]
JOBS = st.lists(
    st.tuples(st.integers(1, 39), st.integers(1, 12), st.integers(0, 2), st.integers(0, 6)), min_size=1, max_size=30
)
HEADS: tuple[tuple[int, ...], ...] = ((), tuple(range(20)), tuple(range(500, 530)))


def make(jobs: Jobs, *, cleared: bool = True) -> list[Sequence]:
    made = []
    for number, (prompt, answer, head, resumed) in enumerate(jobs):
        length = max(prompt, len(HEADS[head]) + 1)
        one = sequence(str(number), length, answer, HEADS[head], cleared=cleared)
        one.generated = [8] * min(resumed, answer - 1, 40 - length - 1)
        made.append(one)
    return made


@given(
    jobs=JOBS,
    parallel=st.integers(1, 6),
    spare=st.integers(0, 3),
    budget=st.integers(6, 64),
    cells=st.none() | st.integers(40, 200),
    share=st.booleans(),
    gated=st.booleans(),
    arrivals=st.data(),
)
def test_every_sequence_sees_its_own_tokens_and_the_cache_never_overflows(
    jobs: Jobs,
    parallel: int,
    spare: int,
    budget: int,
    cells: int | None,
    share: bool,
    gated: bool,
    arrivals: st.DataObject,
) -> None:
    scheduler = Scheduler(
        parallel=parallel, slots=parallel + spare, context=40, budget=budget, cells=cells, share=share
    )
    everyone = make(jobs, cleared=not gated)
    waiting, cache, admitted = list(everyone), Cache(), list[Sequence]()
    while waiting or len(scheduler):
        for _ in range(arrivals.draw(st.integers(0 if len(scheduler) else 1, 3))):
            if waiting:
                scheduler.add(waiting.pop(0))
        admitted += scheduler.admit()
        held = [one for one in scheduler.running if not one.cleared]
        if held:
            # Late and in any order, but nobody for ever.
            go = st.lists(st.sampled_from(held), min_size=int(scheduler.is_held_up), unique_by=id)
            for one in arrivals.draw(go):
                one.cleared = True
        plan = scheduler.plan()
        used = [chunk.sequence.slot for chunk in plan]
        assert plan, "a step with work to do does none"
        assert all(chunk.sequence.cleared for chunk in plan)
        assert all(one.n_past == one.n_cached for one in scheduler.running if not one.cleared)
        places = sorted(one.slot or 0 for one in scheduler.running)
        closed = share and cells is None and not scheduler.waiting
        assert not closed or places == list(range(len(places)))
        assert sum(chunk.count for chunk in plan) <= budget
        assert len(set(used)) == len(used) <= parallel
        assert used == sorted(used, key=lambda slot: slot or 0)
        cache.apply(scheduler.take_moves())
        cache.take(plan)
        assert cells is None or cache.n_cells <= cells
        advance(scheduler, plan)
    assert {one.id for one in admitted} == {one.id for one in everyone}
    for place, one in enumerate(admitted):
        assert one.finish_reason in ("length", "context")
        later = [other for other in admitted[:place] if int(other.id) > int(one.id)]
        assert len(later) == one.overtaken <= MAX_OVERTAKEN
    if not share and cells is None:
        assert [one.id for one in admitted] == [one.id for one in everyone]


@given(jobs=JOBS, parallel=st.integers(1, 4), cells=st.none() | st.integers(64, 200))
def test_a_running_sequence_gains_a_token_in_every_step(jobs: Jobs, parallel: int, cells: int | None) -> None:
    scheduler = Scheduler(parallel=parallel, context=64, budget=8, cells=cells)
    for one in make(jobs):
        scheduler.add(one)
    while len(scheduler):
        scheduler.admit()
        plan = scheduler.plan()
        decoding = {chunk.sequence for chunk in plan if not chunk.sequence.is_prefilling}
        before = {one: len(one.generated) for one in decoding}
        advance(scheduler, plan)
        assert all(len(one.generated) == before[one] + 1 for one in decoding)


@given(a=st.lists(st.integers(0, 2), max_size=12), b=st.lists(st.integers(0, 2), max_size=12))
def test_common_tokens_are_counted_up_to_the_first_that_differs(a: list[int], b: list[int]) -> None:
    same = 0
    while same < min(len(a), len(b)) and a[same] == b[same]:
        same += 1
    assert Sequence("a", a, 1).n_common(Sequence("b", b, 1)) == same


def test_plain_attention_is_for_long_prefixes_that_many_share() -> None:
    alike = [sequence(str(number), 600, head=tuple(range(560))) for number in range(8)]
    unlike = [sequence(str(number), 600) for number in range(8)]
    short = [sequence(str(number), 60, max_tokens=20, head=HEAD) for number in range(8)]
    assert plain_is_faster(alike)
    assert not plain_is_faster(unlike)
    assert not plain_is_faster(short)
    assert not plain_is_faster(alike[:2])
