"""Which layout of the KV cache suits which jobs: numbers alone, no model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrvna.engine.layout import CELLS_STEP, Layout, best_layout, plain, streams, unified
from nrvna.engine.sequence import Sequence

PARALLEL, CELLS, CONTEXT = 32, 36_864, 4096


def jobs(count: int, prompt: int, answer: int, head: int = 0) -> list[Sequence]:
    """Prompts that begin with the same ``head`` tokens and differ then."""
    return [
        Sequence(
            str(number), [*range(head), *range(1000 * (number + 9), 1000 * (number + 9) + prompt - head)], answer
        )
        for number in range(count)
    ]


def best(sequences: list[Sequence], cells: int = CELLS) -> Layout:
    return best_layout(sequences, parallel=PARALLEL, cells=cells, context=CONTEXT)


@pytest.mark.parametrize(
    ("longest", "parallel", "room"), [(40, 32, 1024), (1000, 32, 1024), (1500, 16, 2304), (4000, 8, 4608)]
)
def test_each_gets_a_part_and_the_longest_in_sight_says_how_large(longest: int, parallel: int, room: int) -> None:
    found = best([*jobs(40, 50, 64), *jobs(1, longest - 30, 30)])
    assert (found.parallel, found.room, found.unified) == (parallel, room, False)


def test_where_parts_would_be_too_few_all_share_the_cells() -> None:
    assert best(jobs(40, 4000, 90), cells=4096) == unified(PARALLEL, 4096)


def test_a_cache_too_small_for_parts_is_shared() -> None:
    assert best([], cells=1024) == unified(PARALLEL, 1024)


def test_those_that_begin_alike_for_long_share_the_cells_and_are_not_too_many() -> None:
    found = best(jobs(40, 2040, 16, head=2000))
    assert found == plain(PARALLEL, CELLS)
    assert found.parallel == 16


@given(
    prompts=st.lists(st.integers(1, 1023), max_size=40),
    answer=st.integers(1, 5000),
    parallel=st.integers(1, 64),
    cells=st.integers(4, 400),
)
def test_whatever_is_chosen_holds_every_job_within_the_cells_that_there_are(
    prompts: list[int], answer: int, parallel: int, cells: int
) -> None:
    sequences = [Sequence(str(number), [number] * prompt, answer) for number, prompt in enumerate(prompts)]
    found = best_layout(sequences, parallel=parallel, cells=cells * CELLS_STEP, context=1024)
    assert found.cells <= cells * CELLS_STEP
    assert found.room % CELLS_STEP == 0
    assert 1 <= found.parallel <= min(parallel, found.slots)
    assert all(sequence.most_tokens(1024) <= found.room for sequence in sequences)


def test_a_layout_names_what_a_user_asks_of_it() -> None:
    assert str(streams(4, 4096)) == "4 jobs at a time, 1024 cells for each, flash attention"
    assert str(plain(4, 4096)) == "4 jobs at a time, 4096 cells for all, plain attention"
