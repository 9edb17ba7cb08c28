"""What may be asked of a job."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrvna.errors import JobError
from nrvna.order import Order

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
    results=st.none(),
)
PLACES = st.lists(st.integers(0, 1000), max_size=3, unique=True).map(lambda places: tuple(sorted(places)))


@given(ORDERS)
def test_what_was_asked_is_read_back_from_the_jobs_file(order: Order) -> None:
    assert Order.read(json.loads(json.dumps(order.about()))) == order


@given(ORDERS, PLACES)
def test_where_answers_go_is_read_back_where_there_are_some(order: Order, places: tuple[int, ...]) -> None:
    asked = order._replace(results=places)
    found = Order.read(json.loads(json.dumps(asked.about())))
    assert found == (asked if order.after else order)


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
        ({"results": (2, 2)}, "the job's results must be places in its prompt, one behind the other"),
        ({"results": (-1,)}, "the job's results must be places"),
        ({"results": (True,)}, "the job's results must be places"),
        ({"results": (10**30,)}, "the job's results must be places"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(JobError, match=complaint):
        Order(b"", **fields).about()
    if "after" not in fields:
        with pytest.raises(JobError, match=complaint):
            Order.read(fields)
