"""What is kept of an unfinished answer: any head of the file, however it was damaged, is read for what it is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nrvna.progress import Progress, first_line, parse, token_line

TEXT = st.text(st.characters())
STEPS = st.lists(st.tuples(st.integers(0, 1 << 31), TEXT), max_size=8)


def file_of(steps: list[tuple[int, str]]) -> bytes:
    return first_line("key", 7) + b"".join(token_line(token, text) for token, text in steps)


@given(STEPS, st.data())
def test_a_file_cut_anywhere_yields_its_whole_lines(steps: list[tuple[int, str]], data: st.DataObject) -> None:
    whole = file_of(steps)
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    found = parse(cut)
    lines = max(0, cut.count(b"\n") - 1)
    kept = steps[:lines]
    assert found.tokens == tuple(token for token, _ in kept)
    assert found.text == "".join(text for _, text in kept)
    assert found.key == ("key" if b"\n" in cut else None)


@given(STEPS, st.data())
def test_cutting_where_it_says_leaves_so_many_tokens(steps: list[tuple[int, str]], data: st.DataObject) -> None:
    whole = file_of(steps)
    kept = data.draw(st.integers(0, len(steps)))
    found = parse(whole[: parse(whole).end_of(kept)])
    assert found.tokens == tuple(token for token, _ in steps[:kept])


@given(STEPS, st.data())
def test_damage_costs_what_comes_after_it_and_nothing_before(
    steps: list[tuple[int, str]], data: st.DataObject
) -> None:
    whole = file_of(steps)
    place = data.draw(st.integers(0, len(whole) - 1))
    length = data.draw(st.integers(1, 20))
    damaged = whole[:place] + bytes(length) + whole[place + length :]
    found = parse(damaged)
    before = max(0, whole[:place].count(b"\n") - 1)
    assert found.tokens[:before] == tuple(token for token, _ in steps[:before])
    assert len(found.tokens) <= max(before, 0)


@given(st.binary(max_size=200))
def test_nothing_that_a_file_holds_is_an_error(data: bytes) -> None:
    assert isinstance(parse(data), Progress)


def test_text_that_is_another_jobs_too_can_be_watched_and_not_resumed() -> None:
    data = first_line(None, 0) + token_line(None, "so far ") + token_line(5, "and on")
    found = parse(data)
    assert (found.key, found.tokens, found.text) == (None, (), "so far and on")
