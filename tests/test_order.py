"""What may be asked of a job, and how other jobs' answers get into its prompt."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrvna.errors import JobError
from nrvna.order import Order, fill_in, parents_named

IDS = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=30)
TAGS = st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1, max_size=20)
ORDERS = st.builds(
    Order,
    st.just(b""),
    settings=st.just({}),
    task=st.just({}),
    model=st.none() | IDS,
    tags=st.lists(TAGS, max_size=3).map(tuple),
    priority=st.integers(-100, 100),
    after=st.lists(IDS, max_size=3).map(tuple),
    key=st.none() | TAGS,
    timeout=st.none() | st.floats(0.001, 1e6),
    batch=st.none() | IDS,
)


@given(ORDERS)
def test_what_was_asked_is_read_back_from_the_jobs_file(order: Order) -> None:
    assert Order.read(json.loads(json.dumps(order.about()))) == order


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"tags": ("two words",)}, r"the tag 'two words' must be a word"),
        ({"tags": ("a,b",)}, "must be a word"),
        ({"tags": ("",)}, "must be a word"),
        ({"tags": ("x",) * 33}, "at most 32 tags, not 33"),
        ({"priority": 101}, "the priority is 101, but must be a whole number from -100 to 100"),
        ({"priority": 1.5}, "the priority is 1.5"),
        ({"priority": True}, "the priority is True"),
        ({"after": ("../up",)}, "cannot come after a job of that id: '../up' is no job id"),
        ({"after": (7,)}, "7 is no id of a job to come after"),
        ({"key": ""}, "the key is ''"),
        ({"key": "x" * 1001}, "text of up to 1000 bytes"),
        ({"timeout": 0}, "the timeout is 0, but must be seconds"),
        ({"timeout": "60"}, "the timeout is '60'"),
        ({"timeout": float("nan")}, "the timeout is nan"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(JobError, match=complaint):
        Order(b"", **fields).about()
    if "after" not in fields:
        with pytest.raises(JobError, match=complaint):
            Order.read(fields)


def test_result_is_the_answer_of_the_job_before() -> None:
    assert fill_in("Sum up: {result}!", ["one"], {"one": "2 + 2"}) == "Sum up: 2 + 2!"


def test_result_of_several_is_all_their_answers_in_order() -> None:
    assert fill_in("{result}", ["b", "a"], {"a": "A", "b": "B"}) == "B\n\nA"


def test_result_with_an_id_is_that_jobs_answer_also_by_how_its_id_begins() -> None:
    assert fill_in("{result:20-b}/{result:20-a1}", ["20-a1", "20-b2"], {"20-a1": "A", "20-b2": "B"}) == "B/A"


def test_what_looks_like_a_result_in_an_answer_stays_as_it_is() -> None:
    assert fill_in("{result}", ["a"], {"a": "{result} {result:b} \\1"}) == "{result} {result:b} \\1"


@pytest.mark.parametrize("name", ["c", "20", "", "20-a1 "])
def test_the_result_of_a_job_that_it_does_not_come_after_is_refused(name: str) -> None:
    with pytest.raises(JobError, match="names no job that this one comes after"):
        parents_named(f"{{result:{name}}}", ["20-a1", "20-b2"])


@given(st.text(), st.lists(IDS, min_size=1, max_size=3, unique=True))
def test_a_prompt_that_names_no_result_stays_as_it_is(prompt: str, after: list[str]) -> None:
    plain = prompt.replace("{result", "")
    assert parents_named(plain, after) == []
    assert fill_in(plain, after, {}) == plain
