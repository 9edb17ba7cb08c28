"""The cases of llama.cpp's own tests of grammars and schemas, read out of the pinned source."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from build_llama import Pin, PinnedSource

# A string in pieces: text, and the numbers of tokens.
Parts = list[str | int]

_LEXEMES = re.compile(
    r"""(?P<space>\s+|//[^\n]*)
    | R"(?P<fence>[^(\s]*)\((?P<raw>.*?)\)(?P=fence)"
    | (?P<text>"(?:[^"\\\n]|\\.)*")
    | (?P<word>\w+)
    | (?P<mark>.)""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0"}


class GrammarCase(NamedTuple):
    grammar: str
    passing: list[Parts]
    failing: list[Parts]


class SchemaCase(NamedTuple):
    name: str
    schema: str
    passing: list[str]
    failing: list[str]


class Conversion(NamedTuple):
    """A schema and the grammar that llama.cpp makes of it; None where it refuses."""

    name: str
    schema: str
    grammar: str | None


@cache
def tree() -> Path:
    return PinnedSource(Pin.read()).tree()


@cache
def grammars() -> list[str]:
    """All texts that llama.cpp's tests and examples parse as grammars, good and bad ones."""
    lexemes = _lexemes((tree() / "tests" / "test-grammar-parser.cpp").read_text())
    found = [str(lexeme) for lexeme in lexemes if isinstance(lexeme, _String) and "::=" in lexeme]
    found += [case.grammar for case in grammar_cases()]
    # Those of the integration test that stand in variables.
    source = (tree() / "tests" / "test-grammar-integration.cpp").read_text()
    found += re.findall(r'grammar_str =\s*R"""\((.*?)\)"""', source, re.DOTALL)
    found += re.findall(r'_str = R"""\((.*?)\)"""', source, re.DOTALL)
    found += [case.grammar for case in conversions() if case.grammar]
    found += [path.read_text() for path in sorted((tree() / "grammars").glob("*.gbnf"))]
    return list(dict.fromkeys(found))


@cache
def grammar_cases() -> list[GrammarCase]:
    calls = _calls("test-grammar-integration.cpp", "test_grammar")
    return [GrammarCase(_text(grammar), passing, failing) for _, grammar, passing, failing in calls]


@cache
def schema_cases() -> list[SchemaCase]:
    calls = _calls("test-grammar-integration.cpp", "test_schema")
    return [
        SchemaCase(
            _text(name), _text(schema), [_text(parts) for parts in passing], [_text(parts) for parts in failing]
        )
        for name, schema, passing, failing in calls
    ]


@cache
def conversions() -> list[Conversion]:
    found = []
    for ((status, name, schema, grammar),) in _calls("test-json-schema-to-grammar.cpp", "test"):
        found.append(Conversion(_text(name), _text(schema), _text(grammar) if status == ["SUCCESS"] else None))
    return found


def _text(parts: Parts) -> str:
    (text,) = parts
    assert isinstance(text, str)
    return text


def _calls(file: str, name: str) -> Iterator[list[Any]]:
    """The arguments of each call of a function: strings and lists of strings."""
    lexemes = list(_lexemes((tree() / "tests" / file).read_text()))
    for place, lexeme in enumerate(lexemes[:-1]):
        # A call follows a statement, a definition what it returns.
        if lexeme == name and lexemes[place + 1] == "(" and place and lexemes[place - 1] in (";", "{", "}"):
            yield _list(lexemes, place + 2, ")")[0]


class _String(str):
    """A string literal, to be told from a word or a mark of the same characters."""


def _lexemes(source: str) -> Iterator[str]:
    source = re.sub(r"/\*.*?\*/", "", source, flags=re.DOTALL)
    for match in _LEXEMES.finditer(source):
        if match["raw"] is not None:
            yield _String(match["raw"])
        elif match["text"] is not None:
            yield _String(
                re.sub(
                    r"\\(.)", lambda escape: _ESCAPES.get(escape[1], escape[1]), match["text"][1:-1], flags=re.DOTALL
                )
            )
        elif match["space"] is None:
            yield match[0]


def _list(lexemes: list[str], place: int, closing: str) -> tuple[list[Any], int]:
    found: list[Any] = []
    while lexemes[place] != closing or isinstance(lexemes[place], _String):
        item, behind = _expression(lexemes, place)
        if behind == place:
            raise ValueError(f"no list of strings: {lexemes[place]!r}")
        place = behind
        found.append(item)
        if lexemes[place] == "," and not isinstance(lexemes[place], _String):
            place += 1
    return found, place + 1


def _expression(lexemes: list[str], place: int) -> tuple[Any, int]:
    """A list in braces, or a sum of strings and tokens as their parts; what is neither as the word it is."""
    if lexemes[place] == "{" and not isinstance(lexemes[place], _String):
        return _list(lexemes, place + 1, "}")
    parts: Parts = []
    while True:
        lexeme = lexemes[place]
        if isinstance(lexeme, _String):
            parts.append(str(lexeme))
        elif lexeme == "token":
            parts.append(int(lexemes[place + 2]))
            place += 3
        elif lexeme in (",", ")", "}"):
            return parts, place
        elif lexeme != "+":
            parts.append(lexeme)
        place += 1
