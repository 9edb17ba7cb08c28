"""Patterns: the same texts as Python's re finds them in, as they stand within a JSON string."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import pytest
from constraint import Constraint
from hypothesis import given, settings
from hypothesis import strategies as st

from nrvna.errors import GrammarError
from nrvna.grammar.pattern import length, parse_pattern, spelled, with_length
from nrvna.grammar.schema import schema_to_gbnf
from nrvna.llama import Model

Rounds = Callable[..., int]


class Spelling(NamedTuple):
    """A pattern as JSON schemas have it, and as Python has it."""

    ecma: str
    python: str


ALPHABET = 'aab0_ \n\t"\\/-é日'
SAME_IN_BOTH = [
    *("a", "b", "0", '"', "é", "/", "[ab]", "[^a]", "[a-c0-9]", '[^\\n"]', "[\\]\\\\-]"),
    *("\\n", "\\\\", "\\x61", "\\u00e9", "[-a]"),
]
# Python's own sets hold more than ASCII.
ATOMS = [
    *(Spelling(text, text) for text in SAME_IN_BOTH),
    Spelling(".", "[^\\n\\r\u2028\u2029]"),
    Spelling("\\/", "/"),
    Spelling("\\d", "[0-9]"),
    Spelling("\\D", "[^0-9]"),
    Spelling("[\\d_]", "[0-9_]"),
    Spelling("[^\\d\\n]", "[^0-9\\n]"),
    Spelling("\\w", "[A-Za-z0-9_]"),
    Spelling("\\W", "[^A-Za-z0-9_]"),
    Spelling("[^]", "[\\s\\S]"),
    Spelling("\\u{65e5}", "日"),
    Spelling("\\cJ", "\\n"),
]
COUNTS = st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "{1,}", "{0}", "*?", "+?", "{1,2}?"])


def joined(spellings: list[Spelling], by: str = "") -> Spelling:
    return Spelling(by.join(one.ecma for one in spellings), by.join(one.python for one in spellings))


PIECES = st.recursive(
    st.sampled_from(ATOMS),
    lambda inner: st.one_of(
        st.tuples(inner, COUNTS).map(lambda both: Spelling(*(f"(?:{one}){both[1]}" for one in both[0]))),
        st.lists(inner, max_size=3).map(joined),
        st.lists(inner, min_size=1, max_size=3).map(
            lambda some: Spelling(*(f"({one})" for one in joined(some, "|")))
        ),
    ),
    max_leaves=6,
)


@st.composite
def patterns(draw: st.DrawFn) -> Spelling:
    alternatives = []
    for _ in range(draw(st.integers(1, 2))):
        piece, start, end = draw(PIECES), draw(st.booleans()), draw(st.booleans())
        ecma, python = (f"{'^' * start}{one}" for one in piece)
        alternatives.append(Spelling(ecma + "$" * end, python + "\\Z" * end))
    return joined(alternatives, "|")


def test_random_patterns_admit_what_python_finds_them_in(model: Model, rounds: Rounds) -> None:
    seen = {True: 0, False: 0}

    @settings(max_examples=rounds(quick=150, ci=500, long=10000), database=None, deadline=None)
    @given(patterns(), st.lists(st.text(ALPHABET, max_size=5), min_size=5, max_size=5), st.data())
    def agrees(pattern: Spelling, texts: list[str], data: st.DataObject) -> None:
        constraint = Constraint(model, schema_to_gbnf({"type": "string", "pattern": pattern.ecma}))
        matching = data.draw(st.from_regex(pattern.python))
        for text in (*texts, matching):
            spelling = f'"{spelled(text)}"'
            if model.detokenize(model.tokenize(spelling, add_special=False)) != spelling:
                continue
            expected = re.search(pattern.python, text) is not None
            seen[expected] += 1
            assert constraint.admits(spelling) == expected, (pattern, text)

    agrees()
    assert min(seen.values()) > sum(seen.values()) / 10


def test_the_length_of_what_matches_is_known(rounds: Rounds) -> None:
    @settings(max_examples=rounds(quick=200, ci=500, long=10000), database=None, deadline=None)
    @given(PIECES.flatmap(lambda piece: st.tuples(st.just(piece), st.from_regex(piece.python, fullmatch=True))))
    def within(sample: tuple[Spelling, str]) -> None:
        least, most = length(parse_pattern(f"^(?:{sample[0].ecma})$"))
        assert least <= len(sample[1])
        assert most is None or len(sample[1]) <= most

    within()


@pytest.mark.parametrize(
    ("pattern", "least", "most", "admitted", "refused"),
    [
        ("^[a-z]+$", 2, 3, ["ab", "abc"], ["a", "abcd", ""]),
        ("^.*$", 0, 2, ["", "ab"], ["abc"]),
        ("^[0-9]{2}$", 1, 5, ["12"], ["1", "123"]),
    ],
)
def test_a_pattern_may_go_with_a_length(
    pattern: str, least: int, most: int, admitted: list[str], refused: list[str], model: Model
) -> None:
    schema = {"type": "string", "pattern": pattern, "minLength": least, "maxLength": most}
    constraint = Constraint(model, schema_to_gbnf(schema))
    assert all(constraint.admits(f'"{text}"') for text in admitted)
    assert not any(constraint.admits(f'"{text}"') for text in refused)


def test_a_length_that_cannot_be_counted_in_a_pattern_is_not_kept() -> None:
    assert with_length(parse_pattern("^(ab|c)+$"), 1, 10) is None
    assert with_length(parse_pattern("[a-z]"), 1, 10) is None
    assert with_length(parse_pattern("^[a-z]{5}$"), 6, 10) is None


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("^(?=a)a$", "character 2: a grammar cannot look ahead or behind"),
        ("^(?<!a)a$", "character 2: a grammar cannot look ahead or behind"),
        ("^(a)\\1$", "character 5: a grammar does not know \\1"),
        ("\\bword", "character 1: a grammar does not know \\b"),
        ("\\p{L}", "character 1: a grammar does not know \\p"),
        ("^a(b$", "character 5: a grammar knows $ at the ends of a pattern alone"),
        ("^a(b", "character 3: this ( is never closed"),
        ("a)b", "character 2: this ) closes nothing"),
        ("a^b", "character 2: a grammar knows ^ at the ends of a pattern alone"),
        ("[a-", "character 1: this [ is never closed"),
        ("[z-a]", "character 2: no range of characters"),
        ("[]a", "character 1: no character is in this class"),
        ("*a", "character 1: there is nothing before this * to repeat"),
        ("a**", "character 3: a repetition of a repetition"),
        ("a{2", "character 2: no repetition"),
        ("a{3,2}", "character 2: the most is less than the least"),
        ("a{1000000}", "character 2: more than 100,000 repetitions"),
        ("a}", "character 2: write \\} for the character itself"),
        ("\\ud800", "character 1: half a character"),
        ("(" * 50 + ")" * 50, "character 41: more than 40 groups"),
        ("a" * 10_001, "character 1: a pattern of 10,001 characters"),
    ],
)
def test_what_is_not_supported_is_refused_where_it_stands(pattern: str, message: str) -> None:
    with pytest.raises(GrammarError) as caught:
        parse_pattern(pattern)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "pattern", ["((((a{1000}){1000}){1000}){1000}){1000}", "(((a?)*)+)*", "[^x]{100000}", "(a|b)+c" * 900]
)
def test_large_patterns_make_no_large_grammars(pattern: str, model: Model) -> None:
    grammar = schema_to_gbnf({"type": "string", "pattern": pattern})
    assert len(grammar) < 40_000
    Constraint(model, grammar)


def test_a_pattern_that_would_be_tried_in_all_combinations_is_refused() -> None:
    with pytest.raises(GrammarError, match=r"^#: too much for a grammar: more than 16 of .+ in a row"):
        schema_to_gbnf({"type": "string", "pattern": "^" + "[a-z]?" * 30 + "$"})
