"""Thought, answer and stop strings are told apart wherever the pieces of the text are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrvna.engine.answer import Answer
from nrvna.engine.reasoning import Reasoning

THINK = Reasoning("<think>", "</think>")
# Few letters, so that marks, stop strings and their heads come up by chance.
TEXT = st.text(st.sampled_from("<think>/ab\n"), max_size=60)


def read(answer: Answer, *pieces: str) -> str:
    """The text that it handed out for these pieces, and at their end."""
    return "".join([*map(answer.feed, pieces), answer.close()])


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted(min(place, len(text)) for place in places)
    return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]


def test_a_model_without_marks_answers_from_the_first_character() -> None:
    answer = Answer()
    assert answer.feed("<think>") == "<think>"


def test_a_thought_is_no_part_of_the_answer() -> None:
    answer = Answer(marks=THINK)
    assert read(answer, "<think>\nHm.\n</think>\n\nYes.") == "Yes."
    assert (answer.text, answer.reasoning) == ("Yes.", "Hm.")


def test_a_thought_that_the_prompt_has_opened_goes_on() -> None:
    answer = Answer(marks=THINK, thinking=True)
    assert read(answer, "Hm.</think>Yes.") == "Yes."
    assert answer.reasoning == "Hm."


def test_an_answer_without_a_thought_is_all_answer() -> None:
    answer = Answer(marks=THINK)
    assert read(answer, "  Yes, <think> is a tag.") == "  Yes, <think> is a tag."
    assert answer.reasoning == ""


def test_a_thought_that_never_ends_leaves_no_answer() -> None:
    answer = Answer(marks=THINK)
    assert read(answer, "<think>Hm. </thi") == ""
    assert answer.is_thinking
    assert answer.reasoning == "Hm. </thi"


def test_space_between_thought_and_answer_belongs_to_neither_however_it_comes() -> None:
    answer = Answer(marks=THINK, thinking=True)
    assert read(answer, " a ", "</think>", "\n", "\n ", "b ", "c") == "b c"
    assert answer.reasoning == "a"


def test_a_stop_string_may_span_pieces_and_is_no_part_of_the_answer() -> None:
    answer = Answer(stops=["END"])
    assert [answer.feed(piece) for piece in ("one E", "N", "D two", "three")] == ["one ", "", "", ""]
    assert (answer.text, answer.stopped_by) == ("one ", "END")


def test_what_only_looked_like_a_stop_string_is_answer_after_all() -> None:
    answer = Answer(stops=["END"])
    assert [answer.feed("one E"), answer.feed("Nd"), answer.close()] == ["one ", "ENd", ""]


def test_the_head_of_a_stop_string_at_the_end_is_answer() -> None:
    assert read(Answer(stops=["END"]), "one EN") == "one EN"


def test_the_stop_string_that_comes_first_counts() -> None:
    answer = Answer(stops=["two", "one"])
    assert read(answer, "zero one two") == "zero "
    assert answer.stopped_by == "one"


def test_a_stop_string_does_not_end_a_thought() -> None:
    answer = Answer(stops=["\n"], marks=THINK, thinking=True)
    assert read(answer, "a\nb</think>\n\nc\nd") == "c"
    assert answer.reasoning == "a\nb"


@given(TEXT, st.lists(st.integers(0, 60), max_size=8), st.booleans(), st.booleans())
def test_where_the_pieces_are_cut_changes_nothing(
    text: str, places: list[int], thinking: bool, has_marks: bool
) -> None:
    def fresh() -> Answer:
        return Answer(stops=["ab", "b\n"], marks=THINK if has_marks else None, thinking=thinking)

    whole, pieces = fresh(), fresh()
    shown = read(whole, text)
    assert read(pieces, *cut(text, places)) == shown == whole.text
    assert (pieces.reasoning, pieces.stopped_by) == (whole.reasoning, whole.stopped_by)


@given(TEXT, st.lists(st.integers(0, 60), max_size=8))
def test_without_marks_the_answer_is_what_stands_before_the_first_stop_string(text: str, places: list[int]) -> None:
    answer = Answer(stops=["ab", "b\n"])
    ends = [text.find(stop) for stop in ("ab", "b\n") if stop in text]
    assert read(answer, *cut(text, places)) == text[: min(ends, default=len(text))]


@pytest.mark.parametrize("stop", ["aab", "aaab"])
def test_a_stop_string_that_repeats_its_own_head_is_found(stop: str) -> None:
    answer = Answer(stops=[stop])
    assert read(answer, *f"aaaa{stop}x") == ("aaaa" + stop)[: ("aaaa" + stop).find(stop)]


CHANNELS = Reasoning("<|c|>analysis<|m|>", "<|s|>assistant<|c|>final<|m|>", "<|c|>final<|m|>")


@pytest.mark.parametrize(
    ("text", "reasoning"),
    [("<|c|>final<|m|>Yes.", ""), ("<|c|>analysis<|m|>Hm.<|s|>assistant<|c|>final<|m|>Yes.", "Hm."), ("Yes.", "")],
)
def test_what_begins_an_answer_without_a_thought_is_no_part_of_it(text: str, reasoning: str) -> None:
    answer = Answer(marks=CHANNELS)
    assert read(answer, *text) == "Yes."
    assert answer.reasoning == reasoning
