"""Numbers between bounds: just these, digit by digit."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

import pytest
from constraint import Constraint
from hypothesis import given, settings
from hypothesis import strategies as st

from nrvna.grammar.numerals import Bound, decimals, integers
from nrvna.llama import Model

Rounds = Callable[..., int]

WHOLE = st.one_of(st.integers(-130, 130), st.integers(-(10**6), 10**6), st.sampled_from([10**15, 10**17, -(10**16)]))
EXACT = st.builds(lambda number, places: Decimal(number) / 10**places, st.integers(-3000, 3000), st.integers(0, 4))


def constraint(model: Model, alternatives: list[str]) -> Constraint | None:
    return Constraint(model, f"root ::= {' | '.join(alternatives)}") if alternatives else None


def test_integers_between_bounds_are_admitted_and_no_others(model: Model, rounds: Rounds) -> None:
    @settings(max_examples=rounds(quick=100, ci=300, long=5000), database=None, deadline=None)
    @given(WHOLE | st.none(), WHOLE | st.none(), st.lists(st.integers(-300, 300), min_size=12, max_size=12))
    def exact(low: int | None, high: int | None, offsets: list[int]) -> None:
        asked = constraint(model, integers(low, high))
        bounds = [bound for bound in (low, high) if bound is not None] or [0]
        near = [bound + offset for bound in bounds for offset in (-10, -1, 0, 1, 10)]
        for number in (*near, *(bounds[0] + offset for offset in offsets)):
            # Without a bound there are as many digits as the other bound has, and 16 at least.
            digits = max(16, *(len(str(abs(bound))) for bound in bounds)) if low is None or high is None else 99
            expected = (low is None or low <= number) and (high is None or number <= high)
            expected = expected and len(str(abs(number))) <= digits
            assert (asked is not None and asked.admits(str(number))) == expected, (low, high, number)

    exact()


def test_numbers_between_bounds_are_admitted_and_no_others(model: Model, rounds: Rounds) -> None:
    bounds = st.builds(Bound, EXACT, st.booleans())

    @settings(max_examples=rounds(quick=100, ci=300, long=5000), database=None, deadline=None)
    @given(bounds | st.none(), bounds | st.none(), st.lists(EXACT, min_size=12, max_size=12))
    def exact(low: Bound | None, high: Bound | None, offsets: list[Decimal]) -> None:
        given_bounds = [bound.value for bound in (low, high) if bound is not None]
        if not given_bounds or (low and high and low.value >= high.value):
            return
        asked = constraint(model, decimals(low, high))
        assert asked is not None
        steps = [Decimal(step).scaleb(-places) for step in (-1, 0, 1) for places in (0, 1, 3, 5)]
        for number in (
            *(bound + step for bound in given_bounds for step in steps),
            *(given_bounds[0] + o for o in offsets),
        ):
            expected = (low is None or number > low.value or (number == low.value and not low.open)) and (
                high is None or number < high.value or (number == high.value and not high.open)
            )
            assert asked.admits(format(number, "f")) == expected, (low, high, number)

    exact()


@pytest.mark.parametrize("text", ["01", "+1", "1.", ".5", "1e2", "--1", "1.2.3", "", "0x1"])
def test_what_is_no_number_in_json_is_not_admitted(model: Model, text: str) -> None:
    for alternatives in (integers(-500, None), decimals(Bound(Decimal(-500)), None)):
        asked = constraint(model, alternatives)
        assert asked is not None
        assert not asked.admits(text)


def test_what_is_less_on_paper_is_less_as_a_double(model: Model) -> None:
    asked = constraint(model, decimals(None, Bound(Decimal("12345.5"), True)))
    assert asked is not None
    assert asked.admits("12345.4999999999")
    assert float("12345.4999999999999999") == 12345.5
    assert not asked.admits("12345.4999999999999999")
