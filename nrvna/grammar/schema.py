"""JSON schemas as grammars: every text that follows the grammar is JSON that satisfies the schema.

What a grammar cannot keep is refused, with its place in the schema; only what demands nothing (titles, descriptions,
defaults) is passed over. Not every JSON text that would satisfy the schema follows the grammar:

- Properties come in the order in which the schema names them, no other ones unless ``additionalProperties`` says so,
  and no items behind the last one that ``prefixItems`` names unless ``items`` says so.
- A schema that names no type means the types that its keywords speak of.
- Between parts stands nothing, a space, or one or two line breaks with up to 20 blanks.
- Numbers have up to 16 digits before and after the point and exponents of two digits; none where there are bounds.
- Characters in names of properties, in constants and where there is a pattern are written in one way each.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from nrvna.errors import GrammarError
from nrvna.grammar.document import Document, last_name, read_schema
from nrvna.grammar.gbnf import Grammar
from nrvna.grammar.numerals import DIGITS, decimals, integers
from nrvna.grammar.pattern import spelled, write, write_characters
from nrvna.grammar.reading import Shapes
from nrvna.grammar.rules import LAST_CODE_POINT, Rules, complement, either, group, literal
from nrvna.grammar.shapes import Anything, Array, Number, Object, Places, Shape, Text, Values

__all__ = ["read_schema", "schema_to_gbnf"]

# Rules for places of the schema, alone or joined.
MAX_PLACES = 5_000
# Characters of the names of properties that other properties must differ from.
MAX_OTHER_NAMES = 10_000

# What all grammars share, each with what it needs.
_COMMON = {
    "ws": '"" | " " | "\\n" "\\n"? [ \\t]{0,20}',
    "value": 'object | array | string | number | "true" | "false" | "null"',
    "object": '"{" ws (string ws ":" ws value ("," ws string ws ":" ws value)* ws)? "}"',
    "array": '"[" ws (value ("," ws value)* ws)? "]"',
    "string": '"\\"" char* "\\""',
    # Two escapes may make one character: half of one is no text.
    "char": r'[ !#-\[\]-~\x80-\uD7FF\uE000-\U0010FFFF] | "\\" (["\\/bfnrt] | "u" code)',
    "code": r"[0-9abcefABCEF] hex{3} | [dD] [0-7] hex{2} | pair",
    "pair": r'[dD] [89abAB] hex hex "\\u" [dD] [c-fC-F] hex hex',
    "hex": "[0-9a-fA-F]",
    "number": f'integer ("." [0-9]{{1,{DIGITS}}})? ([eE] [-+]? [0-9]{{1,2}})?',
    "integer": f'"-"? ("0" | [1-9] [0-9]{{0,{DIGITS - 1}}})',
}
_NEEDS = {
    "value": ("object", "array", "string", "number"),
    "object": ("ws", "string", "value"),
    "array": ("ws", "value"),
    "string": ("char",),
    "char": ("code",),
    "code": ("hex", "pair"),
    "number": ("integer",),
}
# So many literals are tried one by one; of more, those that begin alike are put together, in so many steps.
_FEW_LITERALS, _STEPS = 8, 8


def schema_to_gbnf(schema: object) -> str:
    """The grammar of a JSON schema, as Python values. Raises GrammarError, with the place in the schema."""
    writer = _Writer(Document(schema))
    text = writer.write()
    try:
        endless = Grammar(text).endless_rules()
    except GrammarError as error:
        raise GrammarError(f"#: too much for a grammar: {str(error).partition(': ')[2]}") from None
    if endless:
        raise GrammarError(f"#: no finite text satisfies {endless[0]!r}: something that it requires contains itself")
    return text


class _Writer:
    """Writes the rules of one document, a rule for each place that needs one."""

    def __init__(self, document: Document) -> None:
        self._shapes = Shapes(document)
        self._rules = Rules(reserved=_COMMON)
        self._names: dict[Places, str] = {}
        self._waiting: deque[tuple[str, Sequence[Shape]]] = deque()

    def write(self) -> str:
        places = self._shapes.canonical(("",))
        self._names[places] = self._rules.reserve("root")
        self._waiting.append(("root", self._shapes.of(places)))
        while self._waiting:
            name, shapes = self._waiting.popleft()
            self._rules.define(name, self._body(shapes))
        return self._rules.text()

    def _common(self, name: str) -> str:
        """The name of a rule that all grammars share."""
        if not self._rules.has(name):
            self._rules.define(name, _COMMON[name])
            for needed in _NEEDS.get(name, ()):
                self._common(needed)
        return name

    def _name(self, places: Places) -> str:
        """The rule for some places that must hold together, which are canonical."""
        if places not in self._names:
            shapes = self._shapes.of(places)
            hint = last_name(places[0]) if places else ""
            if all(isinstance(shape, (Anything, Values, Text, Number)) for shape in shapes):
                body = self._body(shapes)
                # Many are the same string or number.
                self._names[places] = body if self._rules.has(body) else self._rules.add(hint, body)
            else:
                self._names[places] = self._rules.reserve(hint)
                self._waiting.append((self._names[places], shapes))
            if len(self._names) > MAX_PLACES:
                raise GrammarError(f"#: more than {MAX_PLACES:,} different parts: make the schema smaller")
        return self._names[places]

    def _body(self, shapes: Iterable[Shape]) -> str:
        return " | ".join(dict.fromkeys(alternative for shape in shapes for alternative in self._alternatives(shape)))

    def _alternatives(self, shape: Shape) -> list[str]:
        match shape:
            case Anything():
                return [self._common("value")]
            case Values(values):
                return self._values(values)
            case Text():
                return [self._text(shape)]
            case Number():
                return self._number(shape)
            case Array():
                return [self._array(shape)]
            case Object():
                return [self._object(shape)]

    # Constants.

    def _values(self, values: tuple[Any, ...]) -> list[str]:
        plain = [_spelled_value(value) for value in values if not isinstance(value, (list, dict))]
        return [*_literals(plain), *(self._constant(value) for value in values if isinstance(value, (list, dict)))]

    def _constant(self, value: Any) -> str:
        if not isinstance(value, (list, dict)):
            return literal(_spelled_value(value))
        ws = self._common("ws")
        if isinstance(value, list):
            items, opening, closing = [self._constant(item) for item in value], "[", "]"
        else:
            items, opening, closing = (
                [
                    f"{literal(_spelled_value(key))} {ws} {literal(':')} {ws} {self._constant(item)}"
                    for key, item in value.items()
                ],
                "{",
                "}",
            )
        inside = f" {literal(',')} {ws} ".join(items)
        return " ".join(filter(None, (literal(opening), ws, inside and f"{inside} {ws}", literal(closing))))

    # Strings and numbers.

    def _text(self, text: Text) -> str:
        if text.pattern is not None:
            body = write(text.pattern, self._rules, lambda: self._common("char"))
            return " ".join(filter(None, (literal('"'), body, literal('"'))))
        if (text.least, text.most) == (0, None):
            return self._common("string")
        body = self._rules.repeat(self._common("char"), text.least, text.most)
        return " ".join(filter(None, (literal('"'), body, literal('"'))))

    def _number(self, number: Number) -> list[str]:
        low, high = number.low, number.high
        if low is None and high is None:
            return [self._common("integer" if number.integer else "number")]
        if not number.integer:
            return decimals(low, high)
        return integers(None if low is None else int(low.value), None if high is None else int(high.value))

    # Arrays.

    def _array(self, array: Array) -> str:
        ws = self._common("ws")
        comma = f"{literal(',')} {ws}"
        count, least, most = len(array.first), array.least, array.most
        if most == 0:
            return f"{literal('[')} {ws} {literal(']')}"
        behind = ""
        if most is None or most > count:
            item = self._name(array.rest)
            more = self._rules.add("more", f"{comma} {item}")
            # The first item of all stands without a comma.
            done = max(count, 1)
            behind = self._rules.repeat(more, max(0, least - done), None if most is None else most - done)
            if not count:
                behind = f"{item} {behind}"
        for number in reversed(range(count)):
            behind = f"{self._name(array.first[number])} {behind}".rstrip()
            if number:
                behind = f"{comma} {behind}"
                if number >= least:
                    behind = self._rules.add("more", behind) + "?"
        items = f"{behind} {ws}"
        return f"{literal('[')} {ws} {items if least else group(items) + '?'} {literal(']')}"

    # Objects.

    def _object(self, shape: Object) -> str:
        ws = self._common("ws")
        comma = f"{literal(',')} {ws}"
        # Alternatives for all members from some property on, of which there must be one if any is required.
        following: list[str] = []
        must_follow = False
        if shape.other is not None:
            other = self._rules.add("other-pair", self._other_pair(shape))
            following = [f"{other} ({comma} {other})*"]
        for name, places in reversed(shape.properties.items()):
            if following and name not in shape.required:
                # It stands in two places: behind this property, and in its stead.
                following = [self._rules.add(f"behind-{name}", " | ".join(following))]
            rest = f"{comma} {either(following)}" if following else ""
            if rest and not must_follow:
                rest = group(rest) + "?"
            member = f"{literal(_spelled_value(name))} {ws} {literal(':')} {ws} {self._name(places)} {rest}".rstrip()
            if name in shape.required:
                following, must_follow = [member], True
            else:
                following = [member, *following]
        if not following:
            return f"{literal('{')} {ws} {literal('}')}"
        members = f"{either(following)} {ws}"
        return f"{literal('{')} {ws} {members if must_follow else group(members) + '?'} {literal('}')}"

    def _other_pair(self, shape: Object) -> str:
        assert shape.other is not None
        ws = self._common("ws")
        named = [*shape.properties, *shape.impossible]
        if sum(map(len, named)) > MAX_OTHER_NAMES:
            raise GrammarError(
                f"#: names of more than {MAX_OTHER_NAMES:,} characters beside additionalProperties: make it false"
            )
        key = self._rules.add("other-key", self._other_key(named)) if named else self._common("string")
        return f"{key} {ws} {literal(':')} {ws} {self._name(shape.other)}"

    def _other_key(self, names: list[str]) -> str:
        """The name of a property that is none of these, as a trie of rules."""
        any_character = self._rules.add("key-char", " | ".join(write_characters(((0, LAST_CODE_POINT),))))
        children: list[dict[str, int]] = [{}]
        ends = set()
        for name in names:
            node = 0
            for char in name:
                if char not in children[node]:
                    children[node][char] = len(children)
                    children.append({})
                node = children[node][char]
            ends.add(node)
        rules = [""] * len(children)
        # Children were made after their parents.
        for node in reversed(range(len(children))):
            others = write_characters(complement((ord(char), ord(char)) for char in children[node]))
            found = [f"{literal(spelled(char))} {rules[below]}" for char, below in children[node].items()]
            found.append(f"{either(others)} {any_character}*")
            rules[node] = self._rules.add("key", " | ".join([*found, *([] if node in ends else ['""'])]))
        return f"{literal(chr(0x22))} {rules[0]} {literal(chr(0x22))}"


def _spelled_value(value: Any) -> str:
    """A string, number or constant as JSON."""
    return f'"{spelled(value)}"' if isinstance(value, str) else json.dumps(value)


def _literals(texts: list[str], steps: int = _STEPS) -> list[str]:
    """Alternatives for some texts; many are put together by their heads, so that not all are tried at once."""
    if len(texts) <= _FEW_LITERALS or not steps:
        return [literal(text) for text in texts]
    by_head: dict[str, list[str]] = {}
    for text in texts:
        by_head.setdefault(text[:1], []).append(text)
    found = []
    for alike in by_head.values():
        first, last = min(alike), max(alike)
        head = first[: next((place for place, char in enumerate(first) if char != last[place]), len(first))]
        found.append(f"{literal(head)} {either(_literals([text[len(head) :] for text in alike], steps - 1))}")
    return found
