"""What people give as text: where it begins, and what its lines are."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrvna.lines import Lines, head_line, lines_of


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("a", [(1, "a")]),
        ("a\n", [(1, "a")]),
        ("a\r\nb\n", [(1, "a"), (2, "b")]),
        ("a\n\n \t\r\nb", [(1, "a"), (4, "b")]),
        ("a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g\rh", [(1, "a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g\rh")]),
        ("\x0c\n\u2028\n\u3000\na", [(4, "a")]),
        ("\ufeffa\n\ufeffb", [(1, "a"), (2, "\ufeffb")]),
        ("\ufeff\na", [(2, "a")]),
    ],
)
def test_a_newline_ends_a_line_and_blank_ones_count(text: str, lines: list[tuple[int, str]]) -> None:
    assert lines_of(text) == lines


@given(st.binary(), st.lists(st.integers(0, 100)), st.integers(0, 20))
def test_lines_are_the_same_wherever_the_text_is_cut(data: bytes, cuts: list[int], longest: int) -> None:
    whole, parts = Lines(longest), Lines(longest)
    places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    found = [line for start, end in pairwise(places) for line in parts.feed(data[start:end])]
    assert found + parts.close() == whole.feed(data) + whole.close()


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("inner", [b"x", b"\r"])
def test_a_line_that_is_too_long_can_be_told(mark: bytes, end: bytes, inner: bytes) -> None:
    for length in range(8, 20):
        lines = Lines(10)
        data = mark + b"x" + inner * (length - 2) + b"x"
        [(number, line)] = lines.feed(data + end) + lines.close()
        assert number == 1
        assert line == data.removeprefix(mark) if length <= 10 else len(line) > 10


def test_the_first_line_is_the_first_with_something_on_it() -> None:
    assert head_line(" \n\r\n one \u2028 still one\r\ntwo") == "one \u2028 still one"
    assert head_line("\n") == ""
