"""Grammars: the verdict is llama.cpp's, with a position, and nothing that llama.cpp would not survive gets there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import llama_cases
import pytest
from constraint import Constraint, Verdicts
from hypothesis import given, settings
from hypothesis import strategies as st

from nrvna.errors import GrammarError, JobError
from nrvna.grammar.gbnf import MAX_ALIKE, MAX_BYTES, MAX_ELEMENTS, MAX_NESTING, MAX_RULES, check_gbnf
from nrvna.grammar.graph import MAX_DESCENT, MAX_WAYS
from nrvna.llama import Model

Rounds = Callable[..., int]

# Why nrvna refuses what llama.cpp would take, or die of.
STRICTER = (
    "exclude each other",
    "what comes before may be empty",
    "no rule is named 'root'",
    "in so many ways",
    f"more than {MAX_WAYS:,} ways",
    f"more than {MAX_DESCENT:,} others",
    f"more than {MAX_RULES:,} rules",
    f"more than {MAX_ELEMENTS:,} elements",
    f"more than {MAX_NESTING} groups",
    f"more than {MAX_ALIKE} of",
)


@pytest.fixture(scope="module")
def verdicts(model_file: Path) -> Iterator[Verdicts]:
    with Verdicts(model_file, patience_s=20) as asked:
        yield asked


@pytest.fixture(scope="module")
def is_token(model: Model) -> Callable[[str], bool]:
    return lambda text: len(model.tokenize(text, add_special=False, parse_special=True)) == 1


def reason(text: str, is_token: Callable[[str], bool] | None = None) -> str | None:
    try:
        check_gbnf(text, is_token)
    except GrammarError as error:
        return str(error)
    return None


@pytest.mark.parametrize("number", range(len(llama_cases.grammars())))
def test_the_verdict_on_llama_cpps_own_grammars_is_llama_cpps(number: int, verdicts: Verdicts) -> None:
    grammar = llama_cases.grammars()[number]
    assert ("bad" if reason(grammar) else "good") == verdicts.of(grammar)


def test_llama_cpps_cases_hold_good_and_bad_grammars() -> None:
    bad = [grammar for grammar in llama_cases.grammars() if reason(grammar)]
    assert len(bad) >= 8
    assert len(llama_cases.grammars()) - len(bad) >= 100


FRAGMENTS = [
    *'"[](){}|*+?.<>!#^-\\,:=_ \t\n\r',
    *("::=", "root", "root ::= ", "a ::= ", '"a"', "[a-z]", "[^", "{2}", "{1,3}", "{,3}", "{2000}", "{2001}", "{0}"),
    *("{3,2}", "{0,0}", "\\x41", "\\u00", "\\U0010FFFF", "\\-", "<[5]>", "!<[5]>", "<[", "<|im_end|>", "é", "東"),
    *('""', "[]", "( )", "()*", "# note\n", "\r\n", "0", "17"),
]


@st.composite
def mutants(draw: st.DrawFn) -> str:
    """Grammars of llama.cpp's with pieces cut out, doubled, exchanged or put in."""
    short = [grammar for grammar in llama_cases.grammars() if len(grammar) < 600]
    text = draw(st.sampled_from(short))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.sampled_from([0, 0, 1, 1, 2, 5, 20])))
        put = draw(st.one_of(st.sampled_from(FRAGMENTS), st.just(""), st.just(2 * text[start:end])))
        text = text[:start] + put + text[end:]
    return text


@st.composite
def assembled(draw: st.DrawFn) -> str:
    """Grammars of a few rules, many of them right up to one slip."""
    names = ["root", "a", "b", "c"]
    item = st.recursive(
        st.sampled_from(['"x"', '""', "[0-9]", "[^a]", ".", "<[7]>", "[]", *names]),
        lambda inner: st.one_of(
            st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{0}", "{1,}", "{0,3}"])).map("".join),
            st.lists(inner, max_size=3).map(lambda items: f"({' '.join(items)})"),
            st.tuples(inner, inner).map(lambda both: f"({both[0]} | {both[1]})"),
        ),
        max_leaves=5,
    )
    alternatives = st.lists(st.lists(item, max_size=3).map(" ".join), min_size=1, max_size=3).map(" | ".join)
    order = draw(st.permutations(names[: draw(st.integers(1, 4))]))
    rules = [f"{name} ::= {draw(alternatives)}" for name in order]
    return "\n".join(rules)


@pytest.mark.parametrize("kind", [mutants, assembled])
def test_the_verdict_on_mutants_is_llama_cpps(
    kind: Callable[[], st.SearchStrategy[str]], verdicts: Verdicts, is_token: Callable[[str], bool], rounds: Rounds
) -> None:
    seen = {"good": 0, "bad": 0}

    @settings(max_examples=rounds(quick=100, ci=2000, long=20000), database=None)
    @given(kind())
    def agrees(grammar: str) -> None:
        why = reason(grammar, is_token)
        if why is None:
            assert verdicts.of(grammar) == "good"
        elif not any(words in why for words in STRICTER) and "\0" not in grammar and "no rule in it" not in why:
            assert verdicts.of(grammar) == "bad", why
        seen["bad" if why else "good"] += 1

    agrees()
    assert min(seen.values()) > sum(seen.values()) / 10


HANG_OR_CRASH = {
    "a root that is repeated no times": "a ::= root{0}",
    "a maximum below the minimum": 'root ::= "a"{2,1}',
    "left recursion behind a rule that may be empty": 'root ::= a root "x" | "y"\na ::= b\nb ::= "q" |',
    "rules that double at each step": "root ::= a0\n"
    + "\n".join(f"a{i} ::= a{i + 1} | a{i + 1}" for i in range(40))
    + '\na40 ::= "x"',
    "groups in groups": f"root ::= {'(' * 30000}{')' * 30000}",
}


@pytest.mark.parametrize("name", HANG_OR_CRASH)
def test_what_llama_cpp_does_not_survive_is_refused(name: str, model_file: Path) -> None:
    assert reason(HANG_OR_CRASH[name])
    with Verdicts(model_file, patience_s=1) as impatient:
        assert impatient.of(HANG_OR_CRASH[name]) == "fatal"


OVERSIZED = {
    f"{MAX_BYTES:,}": "root ::= #" + "x" * MAX_BYTES,
    f"{MAX_NESTING}": f"root ::= {'(' * (MAX_NESTING + 1)}{')' * (MAX_NESTING + 1)}",
    f"{MAX_RULES:,}": "root ::= " + '"a"{0,2000} "b"{0,2000} ' * 13,
    f"{MAX_ELEMENTS:,}": f'root ::= "{"a" * 1000}"{{501}}',
    f"{MAX_DESCENT:,}": "root ::= a0\n" + "\n".join(f"a{i} ::= a{i + 1}" for i in range(5000)) + '\na5000 ::= "x"',
    f"{MAX_WAYS:,}": "root ::= a0\n"
    + "\n".join(f'a{i} ::= a{i + 1} "x" | a{i + 1} "y"' for i in range(14))
    + '\na14 ::= "x"',
}


def test_items_alike_that_may_be_missing_are_to_be_counted() -> None:
    assert reason("root ::= " + "[a-z]? " * MAX_ALIKE) is None
    assert reason("root ::= " + '"a"? "b"* ' * 30) is None
    assert reason("root ::= " + "word? " * 17 + '\nword ::= "x"') == (
        "line 1, column 110: more than 16 of word in a row that may be missing: "
        "write how many of them there may be, such as x{0,20}"
    )


@pytest.mark.parametrize("limit", OVERSIZED)
def test_what_is_too_large_is_refused_with_the_limit(limit: str) -> None:
    assert f"more than {limit}" in (reason(OVERSIZED[limit]) or "")


def test_a_grammar_at_the_limits_is_good(verdicts: Verdicts) -> None:
    large = f'root ::= {"(" * MAX_NESTING}"a"{")" * MAX_NESTING} b0 ' + '"a"{0,2000} "b"{0,2000} ' * 10 + "\n"
    large += (
        "\n".join(f"b{i} ::= b{i + 1}" for i in range(MAX_DESCENT - 10)) + f'\nb{MAX_DESCENT - 10} ::= "{"x" * 9999}"'
    )
    assert reason(large) is None
    assert verdicts.of(large) == "good"


def test_hostile_grammars_are_checked_soon() -> None:
    hostile = [
        *HANG_OR_CRASH.values(),
        *OVERSIZED.values(),
        "(" * MAX_BYTES,
        "a" * MAX_BYTES,
        "root ::= " + "x " * 100000,
    ]
    hostile += [
        "\n".join(f"r{i} ::= r{i}a{i}" for i in range(9000)),
        "root ::= " + "[" * 200000,
        'root ::= "' * 20000,
    ]
    hostile += [
        "root ::= " + '("x"? ' * 90 + ")*" * 90,
        "root ::= a{" + "9" * 200000 + "}",
        "root ::= <[" + "9" * 200000,
    ]
    for grammar in hostile:
        started = time.monotonic()
        reason(grammar)
        assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ('root ::= "a" [b', "line 1, column 16: the grammar ends before the ] that belongs to an earlier one"),
        ('root ::= "a"\nword := "b"', "line 2, column 6: expecting ::= after 'word', not ':'"),
        ("root ::= thing\n", "line 1, column 10: no rule is named 'thing'"),
        ('root ::= ("a"\n  | "b"\nnext ::= "c"', "line 3, column 6: expecting the ) of a group, not ':'"),
        ('# one\nroot ::= "\\d"', "line 2, column 11: unknown escape \\d"),
        ('start ::= "a"', "line 1, column 1: no rule is named 'root'"),
        ('root ::= item\nitem ::= item "," | "x"', "line 2, column 1: rule 'item' begins with itself"),
        ('root ::= "a"{3000}', "line 1, column 14: 3,000 repetitions are more than 2,000"),
        ("root ::= <[99999999999]>", "line 1, column 10: no token has so large a number"),
        ("", "line 1, column 1: there is no rule in it"),
        ("root ::= \0", "line 1, column 10: a NUL character"),
        ('root ::= "\ud800"', "line 1, column 11: half a character"),
    ],
)
def test_an_error_says_where_and_what(grammar: str, message: str) -> None:
    with pytest.raises(GrammarError, match=r"^line \d+, column \d+: .+$") as caught:
        check_gbnf(grammar)
    assert str(caught.value).startswith(message)
    assert isinstance(caught.value, JobError)


def test_the_name_of_a_token_is_checked_where_the_model_is_known(
    model: Model, is_token: Callable[[str], bool]
) -> None:
    check_gbnf("root ::= <|im_start|> <no such token>")
    check_gbnf("root ::= <|im_start|>", is_token)
    with pytest.raises(GrammarError, match="line 1, column 23: '<no such token>' is not one token of the model"):
        check_gbnf("root ::= <|im_start|> <no such token>", is_token)
    with pytest.raises(ValueError, match="refuses the grammar"):
        Constraint(model, "root ::= <no such token>")


@pytest.mark.parametrize("number", range(len(llama_cases.grammar_cases())))
def test_the_tests_read_grammars_as_llama_cpps_tests_do(number: int, model: Model) -> None:
    case = llama_cases.grammar_cases()[number]
    if any(isinstance(part, int) for part in case.passing[0]):
        pytest.skip("the numbers of its tokens are of no vocabulary")
    constraint = Constraint(model, case.grammar)
    assert all(constraint.admits("".join(map(str, parts))) for parts in case.passing)
    assert not any(constraint.admits("".join(map(str, parts))) for parts in case.failing)
