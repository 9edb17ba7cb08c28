"""Shapes: kinds of values that a JSON schema admits, each with what is demanded of it, and which exclude others."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple

from nrvna.grammar.document import Pointer, identity
from nrvna.grammar.numerals import Bound
from nrvna.grammar.pattern import Node, length

# How deep objects are compared.
_COMPARED_DEPTH = 3
_MAX_COMPARISONS = 1_000_000

# Places that must hold together; none of them is anything at all.
Places = tuple[Pointer, ...]


class Values(NamedTuple):
    """One of these values."""

    values: tuple[Any, ...]


class Text(NamedTuple):
    """A string of so many characters, with a pattern or without."""

    least: int
    most: int | None
    pattern: Node | None


class Number(NamedTuple):
    integer: bool
    low: Bound | None
    high: Bound | None


class Array(NamedTuple):
    """Items of ``first``, one place each, then of ``rest``; ``most`` None has no limit.

    ``cut``: the schema would allow more, which nobody asked for.
    """

    first: tuple[Places, ...]
    rest: Places
    least: int
    most: int | None
    cut: bool


class Object(NamedTuple):
    """Properties in this order; ``other`` ones than those named are of these places, or not there if None.

    ``impossible`` are names that no property may have.
    """

    properties: dict[str, Places]
    required: frozenset[str]
    other: Places | None
    impossible: frozenset[str]


class Anything(NamedTuple):
    """Any JSON value."""


class Unspoken(NamedTuple):
    """Values of other types than these: the schema lets them be, but does not speak of them, so none is made."""

    types: frozenset[str]


Shape = Values | Text | Number | Array | Object | Anything
_TYPE_NAMES: dict[type, str] = {Text: "string", Number: "number", Array: "array", Object: "object"}


class Comparison:
    """Tells shapes apart, as far as that can be told in sensible time. ``shapes_of`` are those of properties."""

    def __init__(self, shapes_of: Callable[[Places], list[Shape | Unspoken]]) -> None:
        self._shapes_of = shapes_of
        self._left = _MAX_COMPARISONS

    def exclude(self, shape: Shape | Unspoken, other: Shape | Unspoken, depth: int = _COMPARED_DEPTH) -> bool:
        """Whether no text that is made for a shape satisfies the schema of another one."""
        self._left -= 1
        if self._left < 0:
            return False
        if isinstance(shape, Unspoken):
            # No text is made for it.
            return True
        if isinstance(shape, Values):
            return all(_cannot_be(value, other) for value in shape.values)
        if isinstance(other, Values):
            return all(_cannot_be(value, shape) for value in other.values)
        if isinstance(shape, Anything) or isinstance(other, Anything):
            return False
        if isinstance(other, Unspoken):
            return _TYPE_NAMES[type(shape)] in other.types
        if isinstance(shape, Number) and isinstance(other, Number):
            return _are_apart(shape, other) or _are_apart(other, shape)
        if isinstance(shape, Text) and isinstance(other, Text):
            return _counts_are_apart(_lengths(shape), _lengths(other))
        if isinstance(shape, Array) and isinstance(other, Array):
            return _counts_are_apart((shape.least, shape.most), (other.least, None if other.cut else other.most))
        if isinstance(shape, Object) and isinstance(other, Object):
            return self._exclude_objects(shape, other, depth)
        return True

    def _exclude_objects(self, shape: Object, other: Object, depth: int) -> bool:
        if shape.other is None and other.required - shape.properties.keys():
            return True
        # A property that one of them requires, and that the other one would have differ.
        return depth > 0 and any(
            name in shape.properties
            and name in other.properties
            and all(
                self.exclude(one, another, depth - 1)
                for one in self._shapes_of(shape.properties[name])
                for another in self._shapes_of(other.properties[name])
            )
            for name in shape.required | other.required
        )


def _cannot_be(value: Any, shape: Shape | Unspoken) -> bool:
    """Whether a value is none of a shape's, as far as can be told."""
    kind = type_of(value)
    match shape:
        case Values(values):
            return identity(value) not in set(map(identity, values))
        case Text() if kind == "string":
            least, most = _lengths(shape)
            return len(value) < least or (most is not None and len(value) > most)
        case Number(integer) if kind in ("integer", "number"):
            return not is_within(value, shape) or (integer and kind != "integer")
        case Unspoken(types):
            return ("number" if kind == "integer" else kind) in types
        case Anything():
            return False
        case _:
            return kind != _TYPE_NAMES[type(shape)]


def type_of(value: Any) -> str:
    """The type of a JSON value; integer for a float without a fraction, too."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "integer" if value == int(value) else "number"
    return {type(None): "null", str: "string", list: "array", dict: "object"}[type(value)]


def _lengths(text: Text) -> tuple[int, int | None]:
    return length(text.pattern) if text.pattern is not None else (text.least, text.most)


def _counts_are_apart(one: tuple[int, int | None], other: tuple[int, int | None]) -> bool:
    return (one[1] is not None and one[1] < other[0]) or (other[1] is not None and other[1] < one[0])


def is_within(value: float, number: Number) -> bool:
    """Whether a number is between the bounds."""
    exact = Decimal(repr(value))
    low, high = number.low, number.high
    return (low is None or exact > low.value or (exact == low.value and not low.open)) and (
        high is None or exact < high.value or (exact == high.value and not high.open)
    )


def _are_apart(one: Number, other: Number) -> bool:
    """Whether the first ends before the second begins."""
    if one.high is None or other.low is None:
        return False
    return one.high.value < other.low.value or (
        one.high.value == other.low.value and (one.high.open or other.low.open)
    )
