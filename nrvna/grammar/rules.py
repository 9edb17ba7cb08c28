"""Writing a grammar: its rules and their names, literals, classes of characters and long repetitions."""

from __future__ import annotations

import re
from collections.abc import Iterable

# As many repetitions of one item as are written in one piece: llama.cpp makes a rule of each, 2,000 at most.
_PIECE = 1_000
# More than this many rules' worth of text is written once and named.
_WORTH_A_NAME = 4

_PLAIN_NAME = re.compile(r"[a-zA-Z0-9-]+")
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9]+")

# Code points, both ends included.
Ranges = tuple[tuple[int, int], ...]
LAST_CODE_POINT = 0x10FFFF


class Rules:
    """The rules of a grammar in the making. ``reserved`` names are given to no others than those defined by them."""

    def __init__(self, reserved: Iterable[str] = ()) -> None:
        self._reserved = frozenset(reserved)
        self._bodies: dict[str, str] = {}
        self._named: dict[str, str] = {}
        self._uses: dict[str, int] = {}

    def reserve(self, hint: str) -> str:
        """A new name, much like ``hint``, whose rule is to follow."""
        stem = _NOT_IN_NAMES.sub("-", hint).strip("-")[:40] or "part"
        name = stem
        while name in self._bodies or name in self._reserved:
            self._uses[stem] = self._uses.get(stem, 1) + 1
            name = f"{stem}-{self._uses[stem]}"
        self._bodies[name] = ""
        return name

    def has(self, name: str) -> bool:
        return name in self._bodies

    def define(self, name: str, body: str) -> None:
        self._bodies[name] = body

    def add(self, hint: str, body: str) -> str:
        """The name of the rule with this body; a new one, much like ``hint``, if there is none yet."""
        if body not in self._named:
            name = self.reserve(hint)
            self.define(name, body)
            self._named[body] = name
        return self._named[body]

    def repeat(self, item: str, least: int, most: int | None) -> str:
        """A name, class, literal or group that many times; ``most`` None has no limit."""
        if (least, most) == (1, 1):
            return item
        if not _PLAIN_NAME.fullmatch(item) and max(least, most or 0) > _WORTH_A_NAME:
            item = self.add("part", item)
        if most is None:
            if least <= 1:
                return item + "*+"[least]
            return f"{self._exactly(item, least - 1)} {item}+" if least > _PIECE else f"{item}{{{least},}}"
        if least == 0:
            return self._up_to(item, most)
        return f"{self._exactly(item, least)} {self._up_to(item, most - least)}".rstrip()

    def _exactly(self, item: str, count: int) -> str:
        pieces, rest = divmod(count, _PIECE)
        piece = self.add(f"{item}-{_PIECE}", f"{item}{{{_PIECE}}}") if pieces else ""
        return " ".join(_times(part, times) for part, times in ((piece, pieces), (item, rest)) if times)

    def _up_to(self, item: str, most: int) -> str:
        if most <= 1:
            return f"{item}?" * most
        if most <= _PIECE:
            return f"{item}{{0,{most}}}"
        pieces, rest = divmod(most, _PIECE)
        head = self._exactly(item, most - rest)
        # Either all the pieces and some of the rest, or fewer pieces and less than another one.
        short = f"{self._up_to(head.partition('{')[0], pieces - 1)} {self._up_to(item, _PIECE - 1)}".strip()
        return self.add(f"{item}-{most}", f"{head} {self._up_to(item, rest)} | {short}")

    def text(self) -> str:
        return "".join(f"{name} ::= {body}\n" for name, body in self._bodies.items())


def _times(item: str, count: int) -> str:
    return item if count == 1 else f"{item}{{{count}}}"


def group(body: str) -> str:
    """Something of several alternatives or items, made one."""
    return f"({body})"


def either(alternatives: Iterable[str]) -> str:
    """Alternatives, in parentheses if there are several."""
    found = list(dict.fromkeys(alternatives))
    return found[0] if len(found) == 1 else group(" | ".join(found))


def literal(text: str) -> str:
    """This text and no other."""
    return '"' + "".join(_escaped(char, '"\\') for char in text) + '"'


def character_class(ranges: Ranges) -> str:
    """One character of these; there must be one."""
    parts = []
    for low, high in ranges:
        first, last = (_escaped(chr(code), '[]\\"-^') for code in (low, high))
        parts.append(first if low == high else first + last if low + 1 == high else f"{first}-{last}")
    return f"[{''.join(parts)}]"


def _escaped(char: str, special: str) -> str:
    code = ord(char)
    if char in special and char != "^":
        return f"\\{char}"
    if char.isprintable() and char not in special:
        return char
    return f"\\x{code:02X}" if code < 0x100 else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


def complement(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """All other code points."""
    found, next_free = [], 0
    for low, high in union(ranges):
        if low > next_free:
            found.append((next_free, low - 1))
        next_free = high + 1
    if next_free <= LAST_CODE_POINT:
        found.append((next_free, LAST_CODE_POINT))
    return tuple(found)


def union(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The same code points, in order and without overlaps."""
    found: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        else:
            found.append((low, high))
    return tuple(found)


def intersection(one: Iterable[tuple[int, int]], other: Iterable[tuple[int, int]]) -> Ranges:
    """The code points in both."""
    return complement((*complement(one), *complement(other)))
