"""GBNF, the grammar language of llama.cpp: what of a text can be told to be wrong before llama.cpp sees it.

llama.cpp only says that a grammar is bad, and some bad ones hang or crash it. :func:`check_gbnf` reads the language
as llama.cpp does, up to the rules that it makes of groups and repetitions, so that both agree on what is a grammar.
It is stricter in three ways: it refuses what would never return or overrun the memory, what is larger than the limits
here and in graph.py, and a text without any rule, which llama.cpp takes for no grammar at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from nrvna.errors import GrammarError
from nrvna.grammar.graph import BAR, Fail, LeftEnds, Rule, derivable

# Of the text, in bytes of UTF-8.
MAX_BYTES = 256 * 1024
# Groups within groups: llama.cpp calls itself for each.
MAX_NESTING = 100
# Rules, those that stand for groups and repetitions included, and their elements: characters, references, bars.
MAX_RULES = 50_000
MAX_ELEMENTS = 500_000
# Items x? x? x? … alike: how many of them stand for a text llama.cpp finds out by trying all combinations.
MAX_ALIKE = 16
_HINT = "write how many of them there may be, such as x{0,20}"

# llama.cpp's own: repetitions of a rule, and of the rules that a group consists of.
MAX_REPETITIONS = 2_000
_MAX_TOKEN_ID, _MAX_COUNT = 2**32 - 1, 2**64 - 1

# Elements of a rule beside references and bars.
_CHARACTER, _MORE_OF_CLASS, _TOKEN = -2, -3, -4

_DIGITS = frozenset("0123456789")
_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")
_HEX = frozenset("0123456789abcdefABCDEF")
_HEX_ESCAPES = {"x": 2, "u": 4, "U": 8}
_OTHER_ESCAPES = frozenset('trn\\"[]-')
_ESCAPES = r"\n \r \t \\ \" \[ \] \- \xHH \uHHHH \UHHHHHHHH"
_END = "\0"

IsToken = Callable[[str], bool]


def check_gbnf(text: str, is_token: IsToken | None = None) -> None:
    """Raises GrammarError, with line and column, for a text that is no grammar with a rule ``root``.

    ``is_token`` tells whether a text such as ``<think>`` is one token of the model; without it any may be.
    """
    Grammar(text, is_token)


class Grammar:
    """A grammar that was read and found good, as the rules that llama.cpp makes of it. Raises GrammarError."""

    def __init__(self, text: str, is_token: IsToken | None = None) -> None:
        self._text = text
        reader = _Reader(text, is_token, self._fail)
        reader.read()
        self.rules = reader.rules
        self._numbers = reader.numbers
        self._names = list(reader.numbers)
        self._places = reader.places
        self._check_references()
        LeftEnds(self.rules, self._fail_at_rule).check()

    def endless_rules(self) -> list[str]:
        """The names of rules that no finite text follows: every way through them leads back to where it began."""
        finite = derivable(self.rules, through_characters=True)
        return [name for name, number in self._numbers.items() if number in self.rules and number not in finite]

    def _check_references(self) -> None:
        rules, numbers = self.rules, self._numbers
        for number in range(max(rules, default=-1) + 1):
            if number not in rules:
                self._fail(f"no rule is named {self._names[number]!r}", self._places[number])
        for rule in rules.values():
            for element in rule:
                if element >= 0 and element not in rules:
                    self._fail(f"no rule is named {self._names[element]!r}", self._places[element])
        # A reference that is repeated no times leaves its name behind.
        if numbers.get("root") not in rules:
            self._fail("no rule is named 'root': it says what the whole answer is", 0)

    def _fail_at_rule(self, reason: str, number: int) -> NoReturn:
        # What stands for a group or a repetition bears the name of the rule that it is in, and a number.
        self._fail(f"rule {self._names[number].partition('_')[0]!r} {reason}", self._places[number])

    def _fail(self, reason: str, offset: int) -> NoReturn:
        before = self._text[:offset]
        line, column = before.count("\n") + 1, offset - before.rfind("\n")
        raise GrammarError(f"line {line}, column {column}: {reason}")


class _Reader:
    """Reads the text once, from left to right: ``rules`` by their number, and ``places``, where each is defined."""

    def __init__(self, text: str, is_token: IsToken | None, fail: Fail) -> None:
        self.rules: dict[int, Rule] = {}
        self.numbers: dict[str, int] = {}
        self.places: list[int] = []
        self._text = text + _END
        self._is_token = is_token
        self._fail_at = fail
        self._at = 0
        self._depth = 0
        self._elements = 0
        self._check_text(text)

    def read(self) -> None:
        self._skip_space(newlines=True)
        if self._peek() == _END:
            self._fail("there is no rule in it")
        while self._peek() != _END:
            self._read_rule()

    def _check_text(self, text: str) -> None:
        if (nul := text.find(_END)) >= 0:
            self._fail("a NUL character ends the grammar: remove it", nul)
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            self._fail("half a character (a lone surrogate): remove it", error.start)
        if size > MAX_BYTES:
            self._fail(f"the grammar has {size:,} bytes, more than {MAX_BYTES:,}: make it smaller", 0)

    def _fail(self, reason: str, offset: int | None = None) -> NoReturn:
        self._fail_at(reason, self._at if offset is None else offset)

    # Characters.

    def _peek(self, ahead: int = 0) -> str:
        return self._text[self._at + ahead : self._at + ahead + 1]

    def _skip_space(self, *, newlines: bool) -> None:
        text = self._text
        blank = " \t\r\n" if newlines else " \t"
        while True:
            if text[self._at] == "#":
                while text[self._at] not in "\r\n\0":
                    self._at += 1
            elif text[self._at] in blank:
                self._at += 1
            else:
                return

    def _take_while(self, wanted: frozenset[str], what: str) -> str:
        start = self._at
        while self._text[self._at] in wanted:
            self._at += 1
        if start == self._at:
            self._fail(f"expecting {what}, not {self._found()}")
        return self._text[start : self._at]

    def _found(self) -> str:
        found = self._peek()
        return {_END: "the end", "\n": "the end of the line"}.get(found) or repr(found)

    def _skip_character(self, closing: str) -> None:
        """One character of a literal or a class that ends with ``closing``, or an escape."""
        start = self._at
        if self._peek() == _END:
            self._fail(f"the grammar ends before the {closing} that belongs to an earlier one")
        self._at += 1
        if self._text[start] != "\\":
            return
        kind = self._peek()
        if kind in _HEX_ESCAPES:
            self._at += 1
            for _ in range(_HEX_ESCAPES[kind]):
                if self._peek() not in _HEX:
                    self._fail(f"\\{kind} wants {_HEX_ESCAPES[kind]} hexadecimal digits", start)
                self._at += 1
        elif kind in _OTHER_ESCAPES:
            self._at += 1
        else:
            self._fail(
                f'unknown escape \\{kind.strip(_END)}: there are \\n \\r \\t \\\\ \\" \\[ \\] \\- \\x \\u \\U', start
            )

    # Rules.

    def _number_of(self, name: str, place: int) -> int:
        if name not in self.numbers:
            if len(self.numbers) >= MAX_RULES:
                self._fail(f"more than {MAX_RULES:,} rules, with those for groups and repetitions", place)
            self.numbers[name] = len(self.numbers)
            self.places.append(place)
        return self.numbers[name]

    def _new_number(self, name: str, place: int) -> int:
        return self._number_of(f"{name}_{len(self.numbers)}", place)

    def _count(self, elements: int, place: int) -> None:
        self._elements += elements
        if self._elements > MAX_ELEMENTS:
            self._fail(f"more than {MAX_ELEMENTS:,} elements, repetitions written out", place)

    def _read_rule(self) -> None:
        start = self._at
        name = self._take_while(_WORD, "the name of a rule")
        number = self._number_of(name, start)
        self.places[number] = start
        self._skip_space(newlines=False)
        if self._text[self._at : self._at + 3] != "::=":
            self._fail(f"expecting ::= after {name!r}, not {self._found()}")
        self._at += 3
        self._skip_space(newlines=True)
        self._read_alternatives(name, number, nested=False)
        if self._peek() not in ("\r", "\n", _END):
            self._fail(f"expecting the end of rule {name!r}, not {self._found()}")
        self._skip_space(newlines=True)

    def _read_alternatives(self, name: str, number: int, *, nested: bool) -> None:
        rule: Rule = []
        self._read_sequence(name, rule, nested=nested)
        while self._peek() == "|":
            self._at += 1
            rule.append(BAR)
            self._skip_space(newlines=True)
            self._read_sequence(name, rule, nested=nested)
        self._count(len(rule) + 1, self._at)
        self.rules[number] = rule

    def _read_sequence(self, name: str, rule: Rule, *, nested: bool) -> None:
        # Where the last item begins in the rule, and how many rules llama.cpp reckons it to consist of.
        last, weight = len(rule), 1
        written, before, alike = "", "", 0
        while True:
            start, kind = self._at, self._peek()
            if kind in "*+?{":
                bounds = self._read_bounds(nested=nested)
                weight = self._repeat(name, rule, last, weight, bounds, start)
                if bounds[0] == 0:
                    alike, before = alike + 1 if written == before else 1, written
                    if alike > MAX_ALIKE:
                        self._fail(f"more than {MAX_ALIKE} of {before} in a row that may be missing: {_HINT}", start)
                continue
            item: Rule
            item, item_weight = [], 1
            if kind == '"':
                item = self._read_literal()
            elif kind == "[":
                item = self._read_class()
            elif kind in "<!":
                self._read_token()
                item = [_TOKEN]
            elif kind in _WORD:
                item = [self._number_of(self._take_while(_WORD, "a name"), start)]
            elif kind == "(":
                item, item_weight = self._read_group(name)
            elif kind == ".":
                self._at += 1
                item = [_CHARACTER]
            else:
                return
            written = self._text[start : self._at]
            self._skip_space(newlines=nested)
            last, weight = len(rule), item_weight
            rule += item

    def _read_literal(self) -> Rule:
        self._at += 1
        item = []
        while self._peek() != '"':
            self._skip_character('"')
            item.append(_CHARACTER)
        self._at += 1
        return item

    def _read_class(self) -> Rule:
        self._at += 1
        if self._peek() == "^":
            self._at += 1
        item: Rule = []
        while self._peek() != "]":
            self._skip_character("]")
            item.append(_MORE_OF_CLASS if item else _CHARACTER)
            if self._peek() == "-" and self._peek(1) != "]":
                self._at += 1
                self._skip_character("]")
                item.append(_MORE_OF_CLASS)
        self._at += 1
        return item

    def _read_token(self) -> None:
        if self._peek() == "!":
            self._at += 1
        start = self._at
        if self._peek() != "<":
            self._fail(f"expecting a token such as <[10]> after !, not {self._found()}")
        self._at += 1
        if self._peek() == "[":
            self._at += 1
            digits = self._take_while(_DIGITS, "the number of a token")
            if len(digits.lstrip("0")) > 10 or int(digits) > _MAX_TOKEN_ID:
                self._fail("no token has so large a number", start)
            if self._text[self._at : self._at + 2] != "]>":
                self._fail(f"expecting ]> after the number of a token, not {self._found()}")
            self._at += 2
            return
        end = self._text.find(">", self._at)
        if end < 0:
            self._fail("the grammar ends before the > of this token", start)
        self._at = end + 1
        token = self._text[start : self._at]
        if self._is_token is not None and not self._is_token(token):
            self._fail(f"{token!r} is not one token of the model", start)

    def _read_group(self, name: str) -> tuple[Rule, int]:
        start = self._at
        self._depth += 1
        if self._depth > MAX_NESTING:
            self._fail(f"more than {MAX_NESTING} groups within each other")
        self._at += 1
        self._skip_space(newlines=True)
        known = len(self.numbers)
        number = self._new_number(name, start)
        self._read_alternatives(name, number, nested=True)
        # Names that occur in it for the first time count too.
        weight = len(self.numbers) - known
        if self._peek() != ")":
            self._fail(f"expecting the ) of a group, not {self._found()}")
        self._at += 1
        self._depth -= 1
        return [number], weight

    # Repetitions.

    def _read_bounds(self, *, nested: bool) -> tuple[int, int | None]:
        kind = self._peek()
        self._at += 1
        self._skip_space(newlines=nested)
        if kind != "{":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[kind]
        start = self._at
        least = self._read_count(nested=nested)
        most: int | None = least
        if self._peek() == ",":
            self._at += 1
            self._skip_space(newlines=nested)
            most = self._read_count(nested=nested) if self._peek() in _DIGITS else None
        if self._peek() != "}":
            self._fail(f"expecting the }} of a repetition, not {self._found()}")
        self._at += 1
        self._skip_space(newlines=nested)
        if least > MAX_REPETITIONS:
            self._fail(f"{least:,} repetitions are more than {MAX_REPETITIONS:,}", start)
        # llama.cpp would go on until it had no memory left.
        if most is not None and most < least:
            self._fail(f"at least {least:,} and at most {most:,} repetitions exclude each other", start)
        # So it is in llama.cpp: more than it can count is no limit.
        return least, None if most is not None and most > MAX_REPETITIONS else most

    def _read_count(self, *, nested: bool) -> int:
        start = self._at
        digits = self._take_while(_DIGITS, "how often to repeat")
        self._skip_space(newlines=nested)
        # Python refuses to read very long ones.
        if len(digits.lstrip("0")) > 20 or int(digits) > _MAX_COUNT:
            self._fail("no number of repetitions may be so large", start)
        return int(digits)

    def _repeat(
        self, name: str, rule: Rule, last: int, weight: int, bounds: tuple[int, int | None], place: int
    ) -> int:
        """Write the last item out as llama.cpp does; returns what it weighs now."""
        least, most = bounds
        if last == len(rule):
            self._fail("there is nothing before this to repeat", place)
        times = most or least or 1
        if weight * times > MAX_REPETITIONS:
            self._fail(
                f"repetitions of this group come to {weight * times:,} rules, more than {MAX_REPETITIONS:,}: "
                "give the group a name of its own",
                place,
            )
        item = rule[last:]
        optional = 1 if most is None else most - least
        self._count(len(item) * max(0, least - 1) + (len(item) + 3) * optional, place)
        if least == 0:
            del rule[last:]
        for _ in range(least - 1):
            rule += item
        follows: int | None = None
        for _ in range(optional):
            number = self._new_number(name, place)
            if most is None:
                follows = number
            self.rules[number] = [*item, *([] if follows is None else [follows]), BAR]
            follows = number
        if follows is not None:
            rule.append(follows)
        return weight * times
