"""The keywords that must hold together, and what they say of values, strings and numbers."""

from __future__ import annotations

from collections.abc import Callable
from decimal import ROUND_CEILING, Decimal
from typing import Any, NamedTuple

from nrvna.errors import GrammarError
from nrvna.grammar.document import KEYWORDS_OF, MAX_DIGITS, TYPES, Pointer, brief, child, identity, refuse
from nrvna.grammar.formats import FORMATS, INTEGER_FORMATS, NO_DEMAND
from nrvna.grammar.numerals import Bound
from nrvna.grammar.pattern import Node, parse_pattern, with_length
from nrvna.grammar.shapes import Number, Text, is_within, type_of

# What a grammar counts characters and items up to.
MAX_COUNT = 100_000
# Keywords that values of an enum are held to here.
_COMPARED = ("minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")

# A fact: a place and its keywords. A term: facts, and which alternative of each oneOf it goes through.
Fact = tuple[Pointer, dict[str, Any]]


class Term(NamedTuple):
    facts: tuple[Fact, ...] = ()
    through: tuple[tuple[Pointer, int], ...] = ()


def stated(term: Term, keyword: str) -> list[tuple[Pointer, Any]]:
    """Where a keyword stands in a term, and its value there."""
    return [(place, schema[keyword]) for place, schema in term.facts if keyword in schema]


# Types and values.


def types_of(term: Term) -> set[str] | None:
    """The types that are allowed, integers among numbers; None if that is not said."""
    found: set[str] | None = None
    for place, schema in term.facts:
        if "type" not in schema:
            continue
        named = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not named or not all(isinstance(name, str) and name in TYPES for name in named):
            refuse(child(place, "type"), f"a type is one of {', '.join(TYPES)}, or a list of some")
        types = {*named, *(["null"] if schema.get("nullable") is True else [])}
        # Integers are numbers.
        types |= {"integer"} if "number" in types else set()
        found = types if found is None else found & types
    return found


def types_spoken_of(term: Term) -> set[str]:
    """The types that the keywords say something about."""
    said = {keyword for _, schema in term.facts for keyword in schema}
    spoken = {kind for kind, keywords in KEYWORDS_OF.items() if said.intersection(keywords)}
    for _, name in stated(term, "format"):
        if name not in NO_DEMAND:
            spoken.add("number" if name in tuple(INTEGER_FORMATS) else "string")
    return spoken


def values_of(term: Term) -> list[Any] | None:
    """The values that enums and consts leave; None if there are none of these."""
    found: list[Any] | None = None
    for place, schema in term.facts:
        lists = [[schema["const"]]] if "const" in schema else []
        if "enum" in schema:
            if not isinstance(schema["enum"], list) or not schema["enum"]:
                refuse(child(place, "enum"), f"a list of values is wanted, not {brief(schema['enum'])}")
            lists.append(schema["enum"])
        for values in lists:
            named = {identity(value): value for value in values}
            found = list(named.values()) if found is None else [value for value in found if identity(value) in named]
    return found


def admits(term: Term, types: set[str] | None, value: Any) -> bool:
    """Whether the other keywords let a value of an enum or const be; refuses those that are not looked at here."""
    kind = type_of(value)
    if types is not None and kind not in types:
        return False
    speaking = KEYWORDS_OF.get("number" if kind == "integer" else kind, ())
    for place, schema in term.facts:
        for keyword in (*speaking, "format") if kind == "string" else speaking:
            if keyword in schema and keyword not in _COMPARED and schema[keyword] not in NO_DEMAND:
                refuse(child(place, keyword), f"a grammar cannot hold {brief(value)} of the enum to this: remove one")
    if kind == "string":
        least, most = counts_of(term, "minLength", "maxLength")
        return least <= len(value) and (most is None or len(value) <= most)
    if kind in ("integer", "number"):
        number = number_of(term, integer=False)
        return number is not None and is_within(value, number)
    return True


# Counts and strings.


def counts_of(term: Term, least: str, most: str) -> tuple[int, int | None]:
    """What the keywords of these names come to; None for no limit."""
    low, high = 0, None
    for keyword, pick in ((least, max), (most, min)):
        for place, value in stated(term, keyword):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0 or value != int(value):
                refuse(child(place, keyword), f"a count is wanted, not {brief(value)}")
            if value > MAX_COUNT:
                refuse(child(place, keyword), f"a grammar counts up to {MAX_COUNT:,}: remove this, or make it less")
            if pick is max:
                low = max(low, int(value))
            else:
                high = int(value) if high is None else min(high, int(value))
    return low, high


def text_of(term: Term) -> Text | None:
    """Strings; None if none satisfies the term."""
    least, most = counts_of(term, "minLength", "maxLength")
    if most is not None and most < least:
        return None
    # By what they look like: a tuple of one kind equals a tuple of another.
    different: dict[str, tuple[Pointer, Node]] = {}
    for keyword, read in _READERS.items():
        for place, value in stated(term, keyword):
            if (node := read(child(place, keyword), value)) is not None:
                different.setdefault(repr(node), (child(place, keyword), node))
    if len(different) > 1:
        (first, _), (second, _), *_ = different.values()
        refuse(second, f"a grammar cannot keep this and #{first} too: remove one")
    for place, node in different.values():
        shorter = with_length(node, least, most)
        if shorter is None:
            refuse(place, "a grammar cannot keep this and minLength or maxLength too: put the length into it")
        return Text(0, None, shorter)
    return Text(least, most, None)


def _pattern(place: Pointer, value: object) -> Node:
    if not isinstance(value, str):
        refuse(place, f"a pattern is a text, not {brief(value)}")
    try:
        return parse_pattern(value)
    except GrammarError as error:
        refuse(place, str(error))


def _format(place: Pointer, value: object) -> Node | None:
    if value in NO_DEMAND or value in tuple(INTEGER_FORMATS):
        return None
    if not isinstance(value, str) or value not in FORMATS:
        refuse(place, f"unknown format {brief(value)}: there are {', '.join(FORMATS)}; or write a pattern")
    return parse_pattern(FORMATS[value])


_READERS: dict[str, Callable[[Pointer, object], Node | None]] = {"pattern": _pattern, "format": _format}


# Numbers.


def number_of(term: Term, *, integer: bool) -> Number | None:
    """Numbers, or integers alone; None if none satisfies the term."""
    lows: list[Bound] = []
    highs: list[Bound] = []
    for place, schema in term.facts:
        for bounds, keyword, strict in (
            (lows, "minimum", "exclusiveMinimum"),
            (highs, "maximum", "exclusiveMaximum"),
        ):
            # Once, the strict one was true or false and spoke of the other.
            flag = schema.get(strict)
            if keyword in schema:
                bounds.append(Bound(_decimal(child(place, keyword), schema[keyword]), flag is True))
            if strict in schema and not (isinstance(flag, bool) and (keyword in schema or not flag)):
                bounds.append(Bound(_decimal(child(place, strict), flag), True))
        if schema.get("format") in tuple(INTEGER_FORMATS):
            least, most = INTEGER_FORMATS[schema["format"]]
            lows.append(Bound(Decimal(least)))
            highs.append(Bound(Decimal(most)))
    low = max(lows, key=lambda bound: (bound.value, bound.open), default=None)
    high = min(highs, key=lambda bound: (bound.value, not bound.open), default=None)
    if integer:
        low, high = low and Bound(_next_integer(low)), high and Bound(-_next_integer(Bound(-high.value, high.open)))
    if low and high and (low.value > high.value or (low.value == high.value and (low.open or high.open))):
        return None
    return Number(integer, low, high)


def _decimal(place: Pointer, value: object) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        refuse(place, f"a number is wanted, not {brief(value)}")
    number = Decimal(repr(value))
    if abs(number.adjusted()) > MAX_DIGITS or len(number.as_tuple().digits) > MAX_DIGITS:
        refuse(place, f"a grammar counts up to {MAX_DIGITS} digits: remove this, or make it less")
    return number


def _next_integer(low: Bound) -> Decimal:
    whole = low.value.to_integral_value(ROUND_CEILING)
    return whole + 1 if low.open and whole == low.value else whole
