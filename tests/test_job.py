"""Ids and receipts."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrvna.errors import JobNotFoundError
from nrvna.job import Receipt, check_id, is_generated_id, new_id, order_of_time, timestamp


def test_ids_sort_in_the_order_they_were_made() -> None:
    ids = [new_id() for _ in range(1000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)


def test_a_new_id_is_a_valid_one() -> None:
    made = new_id()
    assert is_generated_id(made)
    assert check_id(made) == made


@given(st.integers(0, 4_000_000_000_000_000), st.integers(0, 4_000_000_000_000_000))
def test_the_order_of_times_is_the_order_of_their_texts(one: int, other: int) -> None:
    assert (one < other) == (order_of_time(one) < order_of_time(other))


@pytest.mark.parametrize("seconds", [-1e18, -62_135_596_801, 253_402_300_800, 1e18])
def test_a_time_that_no_date_has_is_the_nearest_that_one_has(seconds: float) -> None:
    assert timestamp(seconds) in ("0001-01-01T00:00:00.000Z", "9999-12-31T23:59:59.000Z")
    assert order_of_time(int(seconds) * 1_000_000)[:8] in ("00010101", "99991231")


@pytest.mark.parametrize("text", ["", ".", "..", "../x", "a/b", "/etc/passwd", ".hidden", "a\0b", "a\nb", "x" * 201])
def test_what_could_lead_out_of_the_workspace_is_no_id(text: str) -> None:
    with pytest.raises(JobNotFoundError):
        check_id(text)


@given(st.text())
def test_an_id_is_always_one_plain_folder_name(text: str) -> None:
    try:
        name = check_id(text)
    except JobNotFoundError:
        return
    assert "/" not in name
    assert name not in ("", ".", "..")
    assert not name.startswith(".")


def test_a_receipt_comes_back_as_it_was_written() -> None:
    receipt = Receipt("id", "stop", "2026-01-01T00:00:00.000Z", "2026-01-01T00:00:01.000Z", "0.1.0", prompt_tokens=3)
    assert Receipt.from_dict(json.loads(receipt.to_json())) == receipt


def test_a_receipt_of_a_later_version_is_read_without_its_new_fields() -> None:
    receipt = Receipt("id", "stop", "q", "f", "9.9")
    assert Receipt.from_dict({**receipt._asdict(), "invented_later": 1}) == receipt


@pytest.mark.parametrize(("reason", "cut"), [("stop", False), ("length", True), ("context", True), ("error", False)])
def test_a_receipt_says_whether_its_answer_was_cut(reason: str, cut: bool) -> None:
    assert Receipt("id", reason, "q", "f", "0.1.0").was_cut is cut
