"""Patterns of JSON schemas (ECMA 262) as a grammar: those that are regular, one character at a time.

There is no looking ahead or behind, no back reference, no word boundary and no property of Unicode. ``^`` and ``$``
may stand at the ends of the pattern or of its top alternatives; without them anything may come before or after.
Characters stand in the grammar as they are written within a JSON string, each in one way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, NoReturn

from nrvna.errors import GrammarError
from nrvna.grammar.rules import (
    LAST_CODE_POINT,
    Ranges,
    Rules,
    character_class,
    complement,
    either,
    group,
    intersection,
    literal,
    union,
)

MAX_CHARACTERS = 10_000
MAX_NESTING = 40
MAX_COUNT = 100_000

_DIGIT: Ranges = ((0x30, 0x39),)
_WORD: Ranges = (*_DIGIT, (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACE: Ranges = (
    *((0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029)),
    *((0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)),
)
_LINE_ENDS: Ranges = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
_SETS = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_CONTROLS = {"t": 0x09, "n": 0x0A, "v": 0x0B, "f": 0x0C, "r": 0x0D}
_HEX_DIGITS = {"x": 2, "u": 4}
_SURROGATES: Ranges = ((0xD800, 0xDFFF),)

# What a JSON string holds only as an escape; DEL may stand there, but terminals mind it.
_ESCAPED: Ranges = ((0x00, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0x7F, 0x7F))
_SHORT_ESCAPES = {0x08: "b", 0x09: "t", 0x0A: "n", 0x0C: "f", 0x0D: "r", 0x22: '"', 0x5C: "\\"}


class Characters(NamedTuple):
    """One character of these."""

    ranges: Ranges


class Sequence(NamedTuple):
    items: tuple[Node, ...]


class Alternatives(NamedTuple):
    items: tuple[Node, ...]


class Repeated(NamedTuple):
    item: Node
    least: int
    most: int | None


Node = Characters | Sequence | Alternatives | Repeated

_NOTHING = Sequence(())
ANYTHING = Repeated(Characters(((0, LAST_CODE_POINT),)), 0, None)


def parse_pattern(pattern: str) -> Node:
    """The texts that a pattern is found in. Raises GrammarError, with the character, for what is not supported."""
    return _Parser(pattern).parse()


def length(node: Node) -> tuple[int, int | None]:
    """The least and the most characters of a text; None for no limit."""
    if isinstance(node, Characters):
        return 1, 1
    if isinstance(node, Repeated):
        least, most = length(node.item)
        unlimited = node.most != 0 and most != 0 and (most is None or node.most is None)
        return least * node.least, None if unlimited else (most or 0) * (node.most or 0)
    bounds = [length(item) for item in node.items]
    limits = [most for _, most in bounds if most is not None]
    longest = None if len(limits) < len(bounds) else limits
    if isinstance(node, Alternatives):
        return min(least for least, _ in bounds), None if longest is None else max(longest)
    return sum(least for least, _ in bounds), None if longest is None else sum(longest)


def with_length(node: Node, least: int, most: int | None) -> Node | None:
    """The same pattern for texts of that many characters alone; None where a grammar cannot count them."""
    shortest, longest = length(node)
    if least <= shortest and (most is None or (longest is not None and longest <= most)):
        return node
    if isinstance(node, Repeated) and isinstance(node.item, Characters):
        low = max(node.least, least)
        high = min((limit for limit in (node.most, most) if limit is not None), default=None)
        if high is None or low <= high:
            return Repeated(node.item, low, high)
    return None


def write(node: Node, rules: Rules, any_character: Callable[[], str]) -> str:
    """The pattern as an item of a rule; ``any_character`` makes the rule for one that may be any."""
    if isinstance(node, Characters):
        return any_character() if node == ANYTHING.item else _write_characters(node.ranges)
    if isinstance(node, Repeated):
        return _write_repeated(node, rules, any_character)
    if isinstance(node, Alternatives):
        return either(write(item, rules, any_character) or '""' for item in node.items)
    parts: list[str] = []
    text = ""
    for item in node.items:
        single = isinstance(item, Characters) and len(item.ranges) == 1 and item.ranges[0][0] == item.ranges[0][1]
        if isinstance(item, Characters) and single:
            text += spelled(chr(item.ranges[0][0]))
            continue
        if text:
            parts.append(literal(text))
            text = ""
        parts.append(write(item, rules, any_character))
    parts += [literal(text)] if text else []
    return " ".join(filter(None, parts))


def _write_repeated(node: Repeated, rules: Rules, any_character: Callable[[], str]) -> str:
    item = write(node.item, rules, any_character)
    if node.most == 0 or not item:
        return ""
    return rules.repeat(item if isinstance(node.item, Characters) else group(item), node.least, node.most)


def _write_characters(ranges: Ranges) -> str:
    found = write_characters(ranges)
    return found[0] if len(found) == 1 and found[0].startswith("[") else group(" | ".join(found))


def spelled(text: str) -> str:
    """A text as it stands within a JSON string, in the way that grammars here know."""
    return "".join(_spelled_character(ord(char)) for char in text)


def _spelled_character(code: int) -> str:
    if code in _SHORT_ESCAPES:
        return "\\" + _SHORT_ESCAPES[code]
    if code < 0x20 or code == 0x7F or 0xD800 <= code <= 0xDFFF:
        return f"\\u{code:04x}"
    return chr(code)


def write_characters(ranges: Ranges) -> list[str]:
    """Alternatives for one character of these, as it stands within a JSON string."""
    plain = intersection(ranges, complement((*_ESCAPED, *_SURROGATES)))
    found = [character_class(plain)] if plain else []
    codes = [code for low, high in intersection(ranges, _ESCAPED) for code in range(low, high + 1)]
    short = union((ord(_SHORT_ESCAPES[code]),) * 2 for code in codes if code in _SHORT_ESCAPES)
    if short:
        found.append(f"{literal(chr(0x5C))} {character_class(short)}")
    for head in sorted({code >> 4 for code in codes if code not in _SHORT_ESCAPES}):
        tails = union(
            (ord(f"{code & 0xF:x}"),) * 2 for code in codes if code >> 4 == head and code not in _SHORT_ESCAPES
        )
        found.append(f"{literal(f'{chr(0x5C)}u00{head:x}')} {character_class(tails)}")
    return found


class _Parser:
    """Reads a pattern from left to right."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0
        self._depth = 0
        if len(pattern) > MAX_CHARACTERS:
            self._fail(f"a pattern of {len(pattern):,} characters, more than {MAX_CHARACTERS:,}")

    def parse(self) -> Node:
        alternatives = [self._top_alternative()]
        while self._take("|"):
            alternatives.append(self._top_alternative())
        if self._at < len(self._pattern):
            self._fail("this ) closes nothing")
        return _of_alternatives(alternatives)

    def _top_alternative(self) -> Node:
        head = [] if self._take("^") else [ANYTHING]
        items = self._items()
        tail = [] if self._take("$") else [ANYTHING]
        return _of_sequence([*head, *items, *tail])

    def _items(self) -> list[Node]:
        items: list[Node] = []
        while (char := self._peek()) and char not in "|)":
            if char == "$" and not self._depth and self._pattern[self._at + 1 : self._at + 2] in ("", "|"):
                break
            items.append(self._repetition(self._item()))
        return items

    def _item(self) -> Node:
        start, char = self._at, self._next()
        if char == "(":
            return self._group()
        if char == "[":
            return self._class()
        if char == ".":
            return Characters(complement(_LINE_ENDS))
        if char == "\\":
            return Characters(self._escape(in_class=False))
        if char in "^$":
            self._fail(f"a grammar knows {char} at the ends of a pattern alone", start)
        if char in "*+?":
            self._fail(f"there is nothing before this {char} to repeat", start)
        # Some engines take a brace that opens no repetition as itself, others do not.
        if char in "{}]":
            self._fail(f"write \\{char} for the character itself", start)
        return Characters(((ord(char), ord(char)),))

    def _group(self) -> Node:
        start = self._at - 1
        if self._take("?"):
            if self._take("<") and self._peek() not in ("=", "!"):
                end = self._pattern.find(">", self._at)
                if end < 0:
                    self._fail("the name of this group has no end", start)
                self._at = end + 1
            elif not self._take(":"):
                self._fail("a grammar cannot look ahead or behind", start)
        self._depth += 1
        if self._depth > MAX_NESTING:
            self._fail(f"more than {MAX_NESTING} groups within each other", start)
        alternatives = [_of_sequence(self._items())]
        while self._take("|"):
            alternatives.append(_of_sequence(self._items()))
        if not self._take(")"):
            self._fail("this ( is never closed", start)
        self._depth -= 1
        return _of_alternatives(alternatives)

    def _repetition(self, item: Node) -> Node:
        start = self._at
        bounds: tuple[int, int | None]
        if self._take("*"):
            bounds = 0, None
        elif self._take("+"):
            bounds = 1, None
        elif self._take("?"):
            bounds = 0, 1
        elif self._take("{"):
            bounds = self._counts(start)
        else:
            return item
        # Lazy or not, the same texts match.
        self._take("?")
        if self._peek() in ("*", "+", "?", "{") and self._peek():
            self._fail("a repetition of a repetition: put the inner one in parentheses")
        return _of_repetition(item, *bounds)

    def _counts(self, start: int) -> tuple[int, int | None]:
        end = self._pattern.find("}", self._at)
        least, comma, most = self._pattern[self._at : max(end, self._at)].partition(",")
        numbers = [least, most] if most else [least]
        if end < 0 or not least or not all(number.isascii() and number.isdecimal() for number in numbers):
            self._fail("no repetition: write {2}, {2,} or {2,5}", start)
        if any(len(number) > 9 or int(number) > MAX_COUNT for number in numbers):
            self._fail(f"more than {MAX_COUNT:,} repetitions, which is more than a grammar can count", start)
        self._at = end + 1
        if not comma:
            return int(least), int(least)
        if most and int(most) < int(least):
            self._fail("the most is less than the least", start)
        return int(least), int(most) if most else None

    def _class(self) -> Node:
        start = self._at - 1
        negated = self._take("^")
        ranges: list[tuple[int, int]] = []
        while not self._take("]"):
            if not self._peek():
                self._fail("this [ is never closed", start)
            place = self._at
            low = self._class_member()
            if self._peek() == "-" and self._pattern[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                high = self._class_member()
                if not _is_single(low) or not _is_single(high) or low[0][0] > high[0][0]:
                    self._fail("no range of characters", place)
                ranges.append((low[0][0], high[0][0]))
            else:
                ranges += low
        found = complement(ranges) if negated else union(ranges)
        if not found:
            self._fail("no character is in this class", start)
        return Characters(found)

    def _class_member(self) -> Ranges:
        char = self._next()
        return self._escape(in_class=True) if char == "\\" else ((ord(char), ord(char)),)

    def _escape(self, *, in_class: bool) -> Ranges:
        start, char = self._at - 1, self._next()
        if char.lower() in _SETS:
            chosen = _SETS[char.lower()]
            return chosen if char.islower() else complement(chosen)
        if char in _CONTROLS:
            return ((_CONTROLS[char],) * 2,)
        if char == "b" and in_class:
            return ((0x08, 0x08),)
        if char == "0" and not self._peek().isdecimal():
            return ((0, 0),)
        if char == "u" and self._take("{"):
            return self._code(max(0, self._pattern.find("}", self._at) - self._at), start, closing="}")
        if char in _HEX_DIGITS:
            return self._code(_HEX_DIGITS[char], start)
        if char == "c" and self._peek().isascii() and self._peek().isalpha():
            return ((ord(self._next()) % 32,) * 2,)
        if char.isalnum() or not char:
            self._fail(f"a grammar does not know \\{char}", start)
        return ((ord(char), ord(char)),)

    def _code(self, digits: int, start: int, closing: str = "") -> Ranges:
        text = self._pattern[self._at : self._at + digits]
        self._at += digits
        if len(text) != digits or not 0 < digits <= 8 or not all(char in "0123456789abcdefABCDEF" for char in text):
            self._fail("no hexadecimal number of a character", start)
        code = int(text, 16)
        if code > LAST_CODE_POINT or 0xD800 <= code <= 0xDFFF:
            self._fail("half a character, or none: write the character itself", start)
        if closing and not self._take(closing):
            self._fail("no hexadecimal number of a character", start)
        return ((code, code),)

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _next(self) -> str:
        char = self._peek()
        self._at += len(char)
        return char

    def _take(self, char: str) -> bool:
        if self._peek() != char:
            return False
        self._at += 1
        return True

    def _fail(self, reason: str, at: int | None = None) -> NoReturn:
        raise GrammarError(f"character {(self._at if at is None else at) + 1}: {reason}")


def _is_single(ranges: Ranges) -> bool:
    return len(ranges) == 1 and ranges[0][0] == ranges[0][1]


def _of_sequence(items: list[Node]) -> Node:
    return items[0] if len(items) == 1 else Sequence(tuple(items))


def _of_alternatives(items: list[Node]) -> Node:
    return items[0] if len(items) == 1 else Alternatives(tuple(items))


def _of_repetition(item: Node, least: int, most: int | None) -> Node:
    if length(item) == (0, 0):
        return _NOTHING
    if isinstance(item, Alternatives) and _NOTHING in item.items:
        item, least = _of_alternatives([other for other in item.items if other != _NOTHING]), 0
    # A repetition of what may be repeated anyway multiplies the ways to read the same text.
    if isinstance(item, Repeated) and item.least <= 1 and least <= 1 and most is None and item.most != 0:
        return Repeated(item.item, item.least * least, None)
    return Repeated(item, least, most)
