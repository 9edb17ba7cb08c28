"""The columns that a text takes, measured against what terminal emulators go by."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wcwidth import wcwidth

from nrvna.columns import columns_of, fit, fit_end, pad

SURROGATES = range(0xD800, 0xE000)
# Letters, marks, wide ones and joiners more often than chance would have them.
texts = st.text(
    st.one_of(st.sampled_from("ae東京ガｶ\u0301\u200d\ufe0f\u20e3👨🦀❤🇯🇵한\u1112\u1161\u11ab"), st.characters())
)


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("", 0),
        ("abc", 3),
        ("naïve", 5),
        ("nai\u0308ve", 5),
        ("東京", 4),
        ("ｶﾀｶﾅ", 4),
        ("한국", 4),
        ("\u1112\u1161\u11ab", 2),
        ("🦀", 2),
        ("❤\ufe0f", 2),
        ("zero\u200bwidth", 9),
        ("…→█", 3),
    ],
)
def test_a_text_takes_the_columns_that_a_terminal_gives_it(text: str, columns: int) -> None:
    assert columns_of(text) == columns


@pytest.mark.slow
def test_no_character_takes_more_columns_than_counted() -> None:
    printable = (chr(code) for code in range(32, 0x110000) if code not in SURROGATES and not 127 <= code < 160)
    assert [f"U+{ord(char):04X}" for char in printable if wcwidth(char) > columns_of(char)] == []


@pytest.mark.parametrize(
    ("text", "columns", "beginning", "end"),
    [
        ("abcdef", 6, "abcdef", "abcdef"),
        ("abcdef", 4, "abc…", "…def"),
        ("abc", 1, "…", "…"),
        ("abc", 0, "", ""),
        ("", 0, "", ""),
        ("東京都", 6, "東京都", "東京都"),
        ("東京都", 5, "東京…", "…京都"),
        ("東京都", 4, "東…", "…都"),
        ("ae\u0301o", 2, "a…", "…o"),
        ("e\u0301ae\u0301", 2, "e\u0301…", "…e\u0301"),
    ],
)
def test_a_text_is_cut_between_characters(text: str, columns: int, beginning: str, end: str) -> None:
    assert (fit(text, columns), fit_end(text, columns)) == (beginning, end)


def test_where_there_is_no_ellipsis_dots_take_its_place() -> None:
    assert fit("abcdef", 5, "...") == "ab..."
    assert fit("abcdef", 2, "...") == ""


@given(texts, st.integers(0, 12))
def test_what_is_cut_fits_and_is_the_head_or_tail_of_the_text(text: str, columns: int) -> None:
    head, tail = fit(text, columns), fit_end(text, columns)
    assert columns_of(head) <= columns and columns_of(tail) <= columns
    if columns_of(text) > columns > 0:
        assert head.endswith("…") and tail.startswith("…")


@given(st.text(st.sampled_from("ab東京🦀é")), st.integers(1, 12))
def test_no_more_is_cut_than_needed(text: str, columns: int) -> None:
    head, tail = fit(text, columns), fit_end(text, columns)
    if columns_of(text) <= columns:
        assert head == tail == text
    else:
        # A wide character may leave one column empty.
        assert min(columns_of(head), columns_of(tail)) >= columns - 1


def test_marks_without_end_are_cut_like_letters() -> None:
    assert len(fit("e" + "\u0301" * 100_000, 10)) < 20
    assert len(fit_end("e" + "\u0301" * 100_000, 10)) < 200


@pytest.mark.parametrize("letter", ["a", "東", "é"])
def test_cutting_a_huge_text_looks_at_what_it_keeps(letter: str) -> None:
    text = letter * (1 << 22)
    started = time.process_time()
    fit(text, 80)
    fit_end(text, 80)
    assert time.process_time() - started < 0.2


def test_padding_counts_columns() -> None:
    assert pad("東京", 6) == "東京  "
    assert pad("abc", 2) == "abc"
