"""Lists of choices as they are written on a command line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrvna.errors import GrammarError, JobError
from nrvna.grammar.choices import MAX_CHOICES, check_choices, parse_choices


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("yes,no", ["yes", "no"]),
        (" yes , no,  don't know\n", ["yes", "no", "don't know"]),
        ('"yes, but",no', ["yes, but", "no"]),
        ("yes\\, but,no", ["yes, but", "no"]),
        ('" a "," b"', [" a ", " b"]),
        ("a\\ ,\\ b", ["a ", " b"]),
        ('say \\"yes\\",C:\\\\x', ['say "yes"', "C:\\x"]),
        ('12" by "6,7', ["12 by 6", "7"]),
        ("日本,🦀", ["日本", "🦀"]),
        ("a,b\\", ["a", "b\\"]),
    ],
)
def test_commas_part_the_choices(text: str, choices: list[str]) -> None:
    assert parse_choices(text) == choices


@given(st.lists(st.text(st.characters(exclude_characters="\0"), min_size=1), min_size=2, unique=True))
def test_any_text_can_be_a_choice_in_quotes(choices: list[str]) -> None:
    quoted = ['"' + choice.replace("\\", "\\\\").replace('"', '\\"') + '"' for choice in choices]
    assert parse_choices(" , ".join(quoted)) == choices


@given(st.lists(st.text(st.characters(exclude_characters="\0"), min_size=1), min_size=2, unique=True))
def test_any_text_can_be_a_choice_with_backslashes(choices: list[str]) -> None:
    assert parse_choices(",".join("".join(f"\\{character}" for character in choice) for choice in choices)) == choices


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("yes", "a single choice leaves nothing to choose"),
        ("", "choice 1 is empty"),
        ("yes,,no", "choice 2 is empty"),
        ("yes,no, ", "choice 3 is empty"),
        ("yes,no,yes", "choices 1 and 3 are both 'yes'"),
        ("yes, yes", "choices 1 and 2 are both 'yes'"),
        ('yes,"no', 'choice 2 has a " without another'),
        ("a,b\0", "choice 2 has a NUL character"),
        (",".join(map(str, range(MAX_CHOICES + 1))), "1,001 choices are more than 1,000"),
    ],
)
def test_a_list_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(GrammarError) as caught:
        parse_choices(text)
    assert str(caught.value).startswith(message)
    assert isinstance(caught.value, JobError)


def test_as_many_as_allowed_are_taken() -> None:
    assert len(parse_choices(",".join(map(str, range(MAX_CHOICES))))) == MAX_CHOICES
    check_choices([str(number) for number in range(MAX_CHOICES)])
