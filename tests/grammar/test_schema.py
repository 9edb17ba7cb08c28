"""JSON schemas: what follows the grammar satisfies the schema, what cannot be kept is refused where it stands."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Iterator
from datetime import date, datetime
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from uuid import UUID

import jsonschema
import llama_cases
import pytest
from constraint import Constraint
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from nrvna.errors import GrammarError
from nrvna.grammar.formats import FORMATS as FORMATS_KNOWN
from nrvna.grammar.schema import read_schema, schema_to_gbnf
from nrvna.llama import Model

Rounds = Callable[..., int]
Admits = Callable[[object, str], bool]


@pytest.fixture(scope="module")
def admits(model: Model) -> Admits:
    """Whether a text follows the grammar of a schema."""
    made: dict[str, Constraint] = {}

    def ask(schema: object, text: str) -> bool:
        key = json.dumps(schema)
        if key not in made:
            made[key] = Constraint(model, schema_to_gbnf(schema))
        return made[key].admits(text)

    return ask


def refusal(schema: object) -> str:
    with pytest.raises(GrammarError) as caught:
        schema_to_gbnf(schema)
    return str(caught.value)


# llama.cpp's own cases.


@pytest.mark.parametrize("case", llama_cases.schema_cases(), ids=lambda case: case.name)
def test_llama_cpps_strings_are_told_apart_as_by_its_own_tests(case: llama_cases.SchemaCase, admits: Admits) -> None:
    schema = json.loads(case.schema)
    if case.name == "required props":
        # llama.cpp passes over uniqueItems, which nrvna refuses.
        assert refusal(schema).startswith("#/properties/tags/uniqueItems: ")
        del schema["properties"]["tags"]["uniqueItems"]
    assert [text for text in case.passing if not admits(schema, text)] == []
    assert [text for text in case.failing if admits(schema, text)] == []


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


# Where the languages differ in all grammars: texts that follow only nrvna's, and only llama.cpp's. Some of those are
# no JSON: bare control characters in names, bare quotes where there is a pattern, zeros before negative integers.
OURS_ALONE = {
    r'" *\n*[ \t]*:': "blanks may come before the colon behind any name",
    r"[eE][-+]?0\d": "exponents may begin with a zero, as Python writes them",
    r"\\/": "a slash may be escaped",
}
THEIRS_ALONE = {
    r"[eE][-+]?\d{3}": "so large exponents are beyond most readers of numbers",
    r"-0(?![.\d])": "with bounds, zero has no sign",
    r"[\[{]\s+[\]}]": "nothing is surrounded by blanks once, not twice",
    r"\\u[dD][89a-fA-F]": "half a character is no text",
    r'"[^"]*\\u[^"]*"\s*:': "in names characters are written in one way",
    r"\x7f": "terminals mind a bare DEL",
}


class Difference(NamedTuple):
    """Which of the two languages holds texts that the other one does not, and why."""

    ours: bool
    theirs: bool
    why: str


# Cases that differ by intent. An empty schema of nrvna's is a refusal.
DIFFERENT = {
    "exotic formats": Difference(
        True, True, "tuples may be shorter; there is no 30th of February; seconds have fractions"
    ),
    "tuple1": Difference(True, False, "prefixItems demands no items, only what they are"),
    "tuple2": Difference(True, False, "prefixItems demands no items, only what they are"),
    "non-string enum": Difference(True, False, "blanks may stand within constants, too"),
    "regexp": Difference(True, False, "a dot may be a character that is escaped"),
    "regexp quote": Difference(True, False, "a quote within a string is escaped, or it is no JSON"),
    "regexp with top-level alternation": Difference(
        True, False, "^ and $ belong to the alternatives that they stand in"
    ),
    "optional props with empty name": Difference(True, True, "theirs confuses its rules, and wants a number"),
    "mix of allOf, anyOf and $ref (similar to https://json.schemastore.org/tsconfig.json)": Difference(
        True, True, "allOf requires no properties, and anyOf keeps its alternatives apart"
    ),
    "unanchored regexp": Difference(False, True, "theirs passes over patterns without ^ and $"),
}
REFUSED = {
    "string array": "prefixItems must be a list",
    "nullable string array": "prefixItems must be a list",
    "array with empty items and prefixItems": "prefixItems must be a list",
    "unsupported regexp in a property": "theirs passes over patterns that it does not know",
}
# What theirs passes over and nrvna keeps.
KEPT = {"regexp with unsupported shorthand"}


@pytest.mark.parametrize("case", llama_cases.conversions(), ids=lambda case: case.name)
def test_the_language_is_llama_cpps_but_for_explained_differences(
    case: llama_cases.Conversion, model: Model, rounds: Rounds
) -> None:
    schema = json.loads(case.schema)
    if case.grammar is None or case.name in REFUSED:
        refusal(schema)
        return
    ours, theirs = Constraint(model, schema_to_gbnf(schema)), Constraint(model, case.grammar)
    choices = random.Random(case.name)
    different = DIFFERENT.get(case.name, Difference(False, case.name in KEPT, ""))
    for one, other, differs, everywhere in (
        (ours, theirs, different.ours, OURS_ALONE),
        (theirs, ours, different.theirs, THEIRS_ALONE),
    ):
        walked = [one.walk(choices) for _ in range(rounds(quick=4, ci=20, long=200))]
        texts = [text for text in walked if text is not None]
        assert texts
        alone = [text for text in texts if not other.admits(text)]
        if one is ours:
            assert all(map(is_json, texts))
        explained = "|".join(everywhere)
        assert differs or [text for text in alone if is_json(text) and not re.search(explained, text)] == []


@pytest.mark.parametrize("name", [*DIFFERENT, *REFUSED, *KEPT])
def test_the_explained_differences_are_of_cases_that_there_are(name: str) -> None:
    assert name in {case.name for case in llama_cases.conversions()}


# Schemas at random, with instances that satisfy them.


class Sample(NamedTuple):
    schema: dict[str, Any]
    instances: st.SearchStrategy[Any]


NAMES = st.sampled_from(
    ["a", "b", "ab", "abc", "", "naïve", "日本", 'q"', "back\\slash", "new\nline", "$ref", "items", "🦀"]
)
# The bytes of what lies beyond are not all in the model's vocabulary.
CHARACTERS = st.characters(codec="utf-8", max_codepoint=0xFFFF, exclude_characters="\x7f")
WORDS = st.text(CHARACTERS, max_size=6)
PATTERNS = {
    "^[a-c]+$": "abccab",
    "^(foo|ba[rz]){2}$": "foobaz",
    "^a.c$": "a\\c",
    "[0-9]{2,3}x": "--12x--",
    "^\\w+@\\w+\\.(com|org)$": "me@home.org",
    "^[^\\d\\s]*$": 'x"y',
    "^$": "",
    "^\\u0041\\x42?\\t$": "A\t",
    "^(?:x{0,2}y*?)+z|^q$": "xxyyz",
}
FORMATS = {"date": "2024-02-29", "uuid": "123e4567-e89b-12d3-a456-426614174000", "ipv4": "127.0.0.1"}


@st.composite
def texts(draw: st.DrawFn) -> Sample:
    least, more = draw(st.integers(0, 3)), draw(st.integers(0, 5))
    sample: Sample = draw(
        st.sampled_from(
            [
                Sample({"type": "string"}, WORDS),
                Sample(
                    {"type": "string", "minLength": least, "maxLength": least + more},
                    st.text(CHARACTERS, min_size=least, max_size=least + more),
                ),
                *(Sample({"type": "string", "pattern": key}, st.just(value)) for key, value in PATTERNS.items()),
                *(Sample({"type": "string", "format": key}, st.just(value)) for key, value in FORMATS.items()),
            ]
        )
    )
    return sample


@st.composite
def numbers(draw: st.DrawFn) -> Sample:
    low = draw(st.integers(-(10**6), 10**6))
    high = low + draw(st.integers(1, 10**4))
    scale = draw(st.sampled_from([1, 10, 1000]))
    sample: Sample = draw(
        st.sampled_from(
            [
                Sample({"type": "integer"}, st.integers(-(10**15), 10**15)),
                Sample({"type": "integer", "minimum": low}, st.integers(low, low + 10**6)),
                Sample({"type": "integer", "exclusiveMaximum": high}, st.integers(high - 10**6, high - 1)),
                Sample({"type": "integer", "minimum": low, "maximum": high}, st.integers(low, high)),
                Sample({"type": "number"}, st.floats(-1e9, 1e9).map(lambda number: round(number, 6))),
                Sample(
                    {"type": "number", "minimum": low / scale, "exclusiveMaximum": high / scale},
                    st.integers(low, high - 1).map(lambda number: number / scale),
                ),
                Sample({"type": "number", "exclusiveMinimum": low / scale}, st.just((low + 1) / scale)),
            ]
        )
    )
    return sample


CONSTANTS = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-99, 99), WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(NAMES, inner, max_size=2)),
    max_leaves=4,
)


@st.composite
def constants(draw: st.DrawFn) -> Sample:
    values = draw(st.lists(CONSTANTS, min_size=1, max_size=12))
    kind = draw(st.sampled_from(["enum", "const"]))
    schema = {"enum": values} if kind == "enum" else {"const": values[0]}
    return Sample(schema, st.sampled_from(values if kind == "enum" else values[:1]))


LEAVES = st.one_of(
    texts(),
    numbers(),
    constants(),
    st.sampled_from([Sample({"type": "boolean"}, st.booleans()), Sample({"type": "null"}, st.none())]),
    st.just(Sample({"description": "anything"}, CONSTANTS)),
    st.just(Sample({"type": ["string", "null"], "minLength": 1}, st.none() | st.just("x"))),
)


@st.composite
def arrays(draw: st.DrawFn, inner: st.SearchStrategy[Sample]) -> Sample:
    item = draw(inner)
    least, more = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    schema: dict[str, Any] = {"type": "array", "items": item.schema}
    first = [draw(inner) for _ in range(draw(st.integers(0, 2)))]
    if first:
        schema["prefixItems"] = [sample.schema for sample in first]
    if draw(st.booleans()):
        schema |= {"minItems": least, "maxItems": least + more}
    else:
        least, more = 0, 4

    @st.composite
    def instances(draw: st.DrawFn) -> list[Any]:
        count = draw(st.integers(least, least + more))
        return [draw(first[place].instances if place < len(first) else item.instances) for place in range(count)]

    return Sample(schema, instances())


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[Sample]) -> Sample:
    names = draw(st.lists(NAMES, unique=True, max_size=4))
    properties = {name: draw(inner) for name in names}
    required = draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    others = draw(st.sampled_from(["absent", "false", "true", "schema"]))
    other = draw(inner)
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: sample.schema for name, sample in properties.items()},
        "required": required,
    }
    more: dict[str, Any] = {"absent": {}, "false": False, "true": True, "schema": other.schema}
    if others != "absent":
        schema["additionalProperties"] = more[others]

    @st.composite
    def instances(draw: st.DrawFn) -> dict[str, Any]:
        made = {name: draw(properties[name].instances) for name in names if name in required or draw(st.booleans())}
        if others in ("true", "schema"):
            keys = draw(st.lists(WORDS.filter(lambda key: key not in names), max_size=2, unique=True))
            made |= {key: draw(other.instances if others == "schema" else CONSTANTS) for key in keys}
        return made

    return Sample(schema, instances())


@st.composite
def alternatives(draw: st.DrawFn, inner: st.SearchStrategy[Sample]) -> Sample:
    samples = draw(st.lists(inner, min_size=1, max_size=3))
    kind = draw(st.sampled_from(["anyOf", "allOf one", "oneOf tagged"]))
    if kind == "allOf one":
        return Sample({"allOf": [samples[0].schema, {"title": "nothing"}, True]}, samples[0].instances)
    if kind == "anyOf":
        return Sample(
            {"anyOf": [sample.schema for sample in samples]}, st.one_of([sample.instances for sample in samples])
        )
    tagged = [
        {"type": "object", "properties": {"kind": {"const": number}, "of": sample.schema}, "required": ["kind"]}
        for number, sample in enumerate(samples)
    ]
    made = [
        sample.instances.map(lambda value, number=number: {"kind": number, "of": value})  # type: ignore[misc]
        for number, sample in enumerate(samples)
    ]
    return Sample({"oneOf": tagged}, st.one_of(made))


SAMPLES = st.recursive(
    LEAVES, lambda inner: st.one_of(arrays(inner), objects(inner), alternatives(inner)), max_leaves=5
)


@st.composite
def referring(draw: st.DrawFn) -> Sample:
    """A sample, also behind a reference, and as the leaves of a tree."""
    sample: Sample = draw(SAMPLES)
    kind = draw(st.sampled_from(["plain", "reference", "tree"]))
    if kind == "plain":
        return sample
    if kind == "reference":
        return Sample({"$ref": "#/$defs/a%20name", "$defs": {"a name": sample.schema}}, sample.instances)
    tree = {"type": "array", "items": {"anyOf": [{"$ref": "#/$defs/leaf"}, {"$ref": "#/$defs/tree"}]}, "maxItems": 2}
    leaves = sample.instances
    return Sample(
        {"$ref": "#/$defs/tree", "$defs": {"leaf": sample.schema, "tree": tree}},
        st.lists(st.one_of(leaves, st.lists(leaves, max_size=2)), max_size=2),
    )


def holds_pattern(_: object, pattern: str, instance: object, __: object) -> Iterator[jsonschema.ValidationError]:
    """As ECMA-262 has it, by which JSON schema goes: its digits are ten, where Python takes those of any script."""
    if isinstance(instance, str) and not re.search(pattern, instance, re.ASCII):
        yield jsonschema.ValidationError(f"{instance!r} does not match {pattern!r}")


Validator = jsonschema.validators.extend(  # type: ignore[no-untyped-call]
    jsonschema.Draft202012Validator, {"pattern": holds_pattern}
)

SLOW = {"suppress_health_check": list(HealthCheck), "database": None, "deadline": None}


def test_what_follows_the_grammar_is_json_that_satisfies_the_schema(model: Model, rounds: Rounds) -> None:
    ended = []

    @settings(max_examples=rounds(quick=25, ci=200, long=3000), **SLOW)  # type: ignore[arg-type]
    @given(referring(), st.integers(0, 2**32))
    def satisfies(sample: Sample, seed: int) -> None:
        choices = random.Random(seed)
        constraint = Constraint(model, schema_to_gbnf(sample.schema))
        validator = Validator(sample.schema)
        for _ in range(3):
            text = constraint.walk(choices)
            ended.append(text is not None)
            if text is not None:
                validator.validate(json.loads(text))

    satisfies()
    assert sum(ended) > len(ended) / 2


SCALARS = st.sampled_from(
    [
        *(
            {"type": "string", "minLength": 2},
            {"type": "string", "maxLength": 1},
            {"minLength": 1},
            {"pattern": "^a+$"},
        ),
        *({"type": "integer", "minimum": 3}, {"type": "number", "maximum": 2}, {"maximum": 5}, {"type": "integer"}),
        *(
            {"type": "null"},
            {"type": "boolean"},
            {"const": 1},
            {"const": "a"},
            {"enum": ["a", 1, None]},
            {},
            True,
            False,
        ),
        *({"type": ["string", "null"]}, {"enum": [True, 1.5, "aa", []]}, {"const": {"a": 1}}),
    ]
)


@st.composite
def loose_objects(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    properties = draw(st.dictionaries(st.sampled_from("abc"), inner, max_size=2))
    schema: dict[str, Any] = {"properties": properties} if draw(st.booleans()) else {}
    if draw(st.booleans()):
        schema["required"] = draw(st.lists(st.sampled_from("abc"), unique=True, max_size=2))
    if draw(st.booleans()):
        schema["additionalProperties"] = draw(st.one_of(st.booleans(), inner))
    return schema | draw(st.sampled_from([{"type": "object"}, {"type": "object"}, {}]))


@st.composite
def loose_arrays(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    schema: dict[str, Any] = draw(
        st.sampled_from([{"type": "array"}, {"minItems": 1}, {"type": "array", "maxItems": 2}])
    )
    if draw(st.booleans()):
        schema = schema | {"items": draw(inner)}
    if draw(st.booleans()):
        schema = schema | {"prefixItems": draw(st.lists(inner, min_size=1, max_size=2))}
    return schema


LOOSE = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        loose_objects(inner),
        loose_arrays(inner),
        st.builds(
            lambda key, some: {key: some},
            st.sampled_from(["allOf", "anyOf", "oneOf"]),
            st.lists(inner, min_size=1, max_size=3),
        ),
    ),
    max_leaves=6,
)


def test_however_schemas_are_joined_what_follows_satisfies_them(model: Model, rounds: Rounds) -> None:
    seen = {"kept": 0, "refused": 0}

    @settings(max_examples=rounds(quick=50, ci=500, long=10000), **SLOW)  # type: ignore[arg-type]
    @given(
        st.sampled_from(["allOf", "oneOf", "anyOf"]),
        st.lists(LOOSE, min_size=2, max_size=3),
        LOOSE,
        st.integers(0, 2**32),
    )
    def satisfies(keyword: str, members: list[Any], beside: Any, seed: int) -> None:
        schema = {keyword: members, **(beside if isinstance(beside, dict) else {})}
        try:
            grammar = schema_to_gbnf(schema)
        except GrammarError:
            seen["refused"] += 1
            return
        seen["kept"] += 1
        constraint, choices = Constraint(model, grammar), random.Random(seed)
        for _ in range(2):
            if (text := constraint.walk(choices, most=60)) is not None:
                Validator(schema).validate(json.loads(text))

    satisfies()
    assert min(seen.values()) > sum(seen.values()) / 10


def test_instances_of_a_schema_follow_its_grammar(model: Model, rounds: Rounds) -> None:
    @settings(max_examples=rounds(quick=50, ci=400, long=5000), **SLOW)  # type: ignore[arg-type]
    @given(referring().flatmap(lambda sample: st.tuples(st.just(sample.schema), sample.instances)), st.data())
    def follows(sample: tuple[dict[str, Any], Any], data: st.DataObject) -> None:
        schema, instance = sample
        Validator(schema).validate(instance)
        separators = data.draw(st.sampled_from([(",", ":"), (", ", ": "), None]))
        text = json.dumps(
            instance,
            ensure_ascii=False,
            separators=separators,
            indent=None if separators else data.draw(st.integers(0, 2)),
        )
        # Python writes very small floats with exponents, which no bounds go with; and this model lacks some bytes.
        assume(not re.search(r"\d[eE]", text) and model.detokenize(model.tokenize(text, add_special=False)) == text)
        assert Constraint(model, schema_to_gbnf(schema)).admits(text)

    follows()


# What the schema says, keyword by keyword.


@pytest.mark.parametrize(
    ("schema", "admitted", "refused"),
    [
        pytest.param(
            {"properties": {"b": {"type": "null"}, "a": {"type": "null"}}, "required": ["a"]},
            ['{"b":null,"a":null}', '{"a": null}', '{\n  "b": null,\n  "a": null\n}'],
            ['{"a":null,"b":null}', '{"b":null}', '{"a":null,}', '{"a":null,"a":null}', '{"b":null "a":null}'],
            id="properties in the order given",
        ),
        pytest.param(
            {"properties": {"a": {"type": "null"}}, "additionalProperties": {"type": "boolean"}},
            ['{"b":true}', '{"a":null,"b":true,"aa":false,"":true}', "{}"],
            ['{"a":true}', '{"b":true,"a":null}', '{"b":null}', '{"\\u0061":true}'],
            id="other properties never bear the name of one that is described",
        ),
        pytest.param(
            {"properties": {"a": False}, "additionalProperties": True},
            ['{"b":1}', "{}"],
            ['{"a":1}'],
            id="a property may be ruled out",
        ),
        pytest.param(
            {"type": "object", "required": ["x"]}, ['{"x":[1]}', '{"x":1,"y":2}'], ["{}", '{"y":1}'], id="required"
        ),
        pytest.param(
            {"prefixItems": [{"type": "null"}, {"type": "boolean"}], "items": {"type": "string"}, "minItems": 2},
            ["[null,true]", '[null,true,"a","b"]'],
            ["[null]", "[null,true,1]", "[true,null]"],
            id="the first items and the others",
        ),
        pytest.param(
            {"items": [{"type": "null"}], "additionalItems": False}, ["[]", "[null]"], ["[null,null]"], id="old pairs"
        ),
        pytest.param({"type": "array", "maxItems": 0}, ["[]", "[ ]"], ["[1]"], id="no items"),
        pytest.param({"type": "string", "minLength": 2}, ['"ab"', '"\\ud83d\\ude00x"', '"😀x"'],
                     ['"a"', '"\\ud83d\\ude00"', '"😀"'], id="a pair of escapes is one character"),
        pytest.param({"type": "string"}, ['"\\u0041\\/\\n"', '"\u2028"'],
                     ['"\\ud800"', '"\\x"', '"\n"', '"\t"', '"\x7f"'], id="strings are JSON"),
        pytest.param({"type": ["integer", "null"]}, ["1", "null", "-0"], ["1.5", "true", '"1"'], id="several types"),
        pytest.param({"type": "string", "nullable": True}, ["null", '"a"'], ["1"], id="nullable as in OpenAPI"),
        pytest.param({"type": "number"}, ["1", "-0.5", "1e-07", "2E+10"], ["1e", "1.", "01", "1e999"], id="numbers"),
        pytest.param({"type": "integer", "minimum": 0, "exclusiveMinimum": True}, ["1"], ["0"], id="draft 4 bounds"),
        pytest.param({"type": "integer", "minimum": 0.5, "maximum": 2.5}, ["1", "2"], ["0", "3"], id="round bounds"),
        pytest.param({"type": "integer", "format": "int32"}, ["2147483647"], ["2147483648"], id="int32"),
        pytest.param({"minimum": 3}, ["3", "3.5"], ["2", '"x"', "null"], id="a bound means a number"),
        pytest.param({"minLength": 1, "minItems": 1}, ['"a"', "[1]"], ['""', "[]", "1"], id="keywords of two types"),
        pytest.param({"const": {"a": [1, "é"]}}, ['{"a":[1,"é"]}', '{ "a" : [1, "é" ] }'], ['{"a":[1]}'], id="const"),
        pytest.param({"enum": ["a", 1, True, None, 1.5]}, ['"a"', "1", "true", "null", "1.5"], ["false"], id="enum"),
        pytest.param({"enum": ["a", "abc", 1, 7], "type": "string", "minLength": 2}, ['"abc"'], ['"a"', "1"],
                     id="an enum within a type"),
        pytest.param({"enum": [1, 5, 9.5], "maximum": 6, "allOf": [{"enum": [5, 9.5]}]}, ["5"], ["1", "9.5"],
                     id="enums that must both hold"),
        pytest.param({"enum": [f"item {number}" for number in range(300)]}, ['"item 0"', '"item 10"', '"item 299"'],
                     ['"item 300"', '"item "', '"item 1', '"item 2999"'], id="many constants"),
        pytest.param({"allOf": [{"pattern": "^a+$"}, {"pattern": "^a+$"}]}, ['"aa"'], ['"b"'], id="a pattern twice"),
        pytest.param(True, ["1", "{}"], ["", "x"], id="true"),
        pytest.param(
            {"allOf": [{"properties": {"a": {"type": "integer"}}, "required": ["a"]},
                       {"properties": {"a": {"minimum": 5}, "b": {"type": "null"}}}]},
            ['{"a":5}', '{"a":7,"b":null}'], ['{"a":4}', '{"b":null}', '{"a":5.5}'], id="allOf merges properties"),
        pytest.param(
            {"properties": {"a": {"type": "null"}}, "allOf": [{"properties": {"b": {"type": "null"}},
                                                               "additionalProperties": False}]},
            ['{"b":null}', "{}"], ['{"a":null}', '{"a":null,"b":null}'], id="allOf with a closed object"),
        pytest.param(
            {"type": "integer", "anyOf": [{"maximum": 3}, {"minimum": 7}], "minimum": 0},
            ["0", "3", "7"], ["-1", "5"], id="anyOf beside other demands"),
        pytest.param(
            {"oneOf": [{"type": "integer", "maximum": 3}, {"type": "integer", "minimum": 4}, {"type": "string"}]},
            ["3", "4", '"x"'], ["null"], id="oneOf of what is apart"),
        pytest.param(
            {"oneOf": [{"properties": {"k": {"const": "a"}, "v": {"type": "null"}}, "required": ["k", "v"]},
                       {"properties": {"k": {"const": "b"}}, "required": ["k"]}]},
            ['{"k":"a","v":null}', '{"k":"b"}'], ['{"k":"a"}', '{"k":"b","v":null}'],
            id="oneOf told apart by a const"),
        pytest.param(
            {"oneOf": [{"properties": {"a": {}}, "required": ["a"], "type": "object"},
                       {"properties": {"b": {}}, "required": ["b"], "type": "object"}]},
            ['{"a":1}', '{"b":1}'], ['{"a":1,"b":1}', "{}"], id="oneOf told apart by required names"),
        pytest.param(
            {"oneOf": [{"properties": {"k": {"const": "sum"}, "of": {"type": "array", "items": {"$ref": "#"}}},
                        "type": "object", "required": ["k", "of"]},
                       {"properties": {"k": {"const": "not"}, "of": {"$ref": "#"}},
                        "type": "object", "required": ["k", "of"]},
                       {"type": "integer"}]},
            ['{"k":"sum","of":[1,{"k":"not","of":2}]}', "1"], ['{"k":"not","of":[1]}', '{"k":"sum"}'],
            id="a tree of several kinds"),
        pytest.param(
            {"$ref": "#/$defs/list", "$defs": {"list": {"properties": {"head": {"type": "integer"},
             "tail": {"anyOf": [{"$ref": "#/$defs/list"}, {"type": "null"}]}}, "required": ["head", "tail"]}}},
            ['{"head":1,"tail":null}', '{"head":1,"tail":{"head":2,"tail":null}}'],
            ['{"head":1}', '{"head":1,"tail":{}}'], id="a list of pairs"),
        pytest.param(
            {"properties": {"a": {"type": "integer"}, "b": {"$ref": "#/properties/a"},
                            "c": {"$ref": "#/properties/x~1y"}, "x/y": {"type": "null"}}},
            ['{"a":1,"b":2,"c":null}'], ['{"b":null}'], id="references to any place"),
        pytest.param(
            {"$id": "https://example.com/s", "$ref": "https://example.com/s#/$defs/a",
             "$defs": {"a": {"type": "null"}}},
            ["null"], ["1"], id="a reference by the schema's own name"),
        pytest.param(
            {"title": "t", "description": "d", "default": 1, "examples": [1], "$comment": "c", "deprecated": True,
             "$schema": "https://json-schema.org/draft/2020-12/schema", "readOnly": True, "x-own": 1, "type": "null",
             "uniqueItems": False},
            ["null"], ["1"], id="annotations demand nothing"),
    ],
)  # fmt: skip
def test_a_schema_admits_what_it_says(
    schema: object, admitted: list[str], refused: list[str], admits: Admits
) -> None:
    assert [text for text in admitted if not admits(schema, text)] == []
    assert [text for text in refused if admits(schema, text)] == []


@pytest.mark.parametrize("limit", [1, 999, 1000, 1001, 2000, 2001, 3500])
@pytest.mark.parametrize("least", [0, 1, 1500])
def test_long_strings_and_arrays_are_counted(limit: int, least: int, admits: Admits) -> None:
    if least > limit:
        pytest.skip("no such schema")
    texts = {"type": "string", "minLength": least, "maxLength": limit}
    lists = {"type": "array", "items": {"const": 1}, "minItems": least, "maxItems": limit}
    for count in {0, 1, least - 1, least, (least + limit) // 2, limit, limit + 1} - {-1}:
        inside = least <= count <= limit
        assert admits(texts, f'"{"é" * count}"') == inside
        assert admits(lists, f"[{','.join('1' * count)}]") == inside


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"items": {"uniqueItems": True}}, "#/items/uniqueItems: a grammar cannot keep uniqueItems"),
        ({"properties": {"a/b": {"multipleOf": 3}}}, "#/properties/a~1b/multipleOf: a grammar cannot keep"),
        ({"minProperties": 1}, "#/minProperties: a grammar cannot keep"),
        ({"not": {}}, "#/not: a grammar cannot keep"),
        ({"patternProperties": {"a": True}}, "#/patternProperties: a grammar cannot keep"),
        ({"propertyNames": {"maxLength": 3}}, "#/propertyNames: a grammar cannot keep"),
        ({"dependentSchemas": {"a": True}}, "#/dependentSchemas: a grammar cannot keep"),
        ({"if": True, "then": False}, "#/if: a grammar cannot keep"),
        ({"contains": True}, "#/contains: a grammar cannot keep"),
        ({"unevaluatedProperties": False}, "#/unevaluatedProperties: a grammar cannot keep"),
        ({"$dynamicRef": "#a"}, "#/$dynamicRef: a grammar cannot keep"),
        ({"minLenght": 3}, "#/minLenght: unknown keyword 'minLenght'"),
        ({"type": "text"}, "#/type: a type is one of null, boolean,"),
        ({"type": []}, "#/type: a type is one of"),
        ({"enum": []}, "#/enum: a list of values is wanted, not []"),
        ({"anyOf": {}}, "#/anyOf: a list of schemas is wanted, not {}"),
        ({"required": "a"}, '#/required: a list of names is wanted, not "a"'),
        ({"properties": []}, "#/properties: an object is wanted, not []"),
        ({"properties": {"a": 3}}, "#/properties/a: a schema is an object, true or false, not 3"),
        ({"prefixItems": {}}, "#/prefixItems: a list of schemas is wanted"),
        ({"minLength": -1}, "#/minLength: a count is wanted, not -1"),
        ({"maxLength": 2.5}, "#/maxLength: a count is wanted, not 2.5"),
        ({"maxLength": 10**6}, "#/maxLength: a grammar counts up to 100,000"),
        ({"minimum": "1"}, '#/minimum: a number is wanted, not "1"'),
        ({"maximum": True}, "#/maximum: a number is wanted, not true"),
        ({"pattern": 3}, "#/pattern: a pattern is a text, not 3"),
        ({"pattern": "a(?!b)"}, "#/pattern: character 2: a grammar cannot look ahead"),
        ({"format": "color"}, '#/format: unknown format "color": there are date, time,'),
        ({"format": "date", "pattern": "^2"}, "#/format: a grammar cannot keep this and #/pattern too"),
        ({"pattern": "^(ab)*$", "maxLength": 9}, "#/pattern: a grammar cannot keep this and minLength"),
        ({"allOf": [{"pattern": "^ab$"}, {"pattern": "^(a|b)$"}]}, "#/allOf/1/pattern: a grammar cannot keep this"),
        ({"enum": ["a"], "pattern": "^a"}, '#/pattern: a grammar cannot hold "a" of the enum to this'),
        ({"enum": [{}], "properties": {}}, "#/properties: a grammar cannot hold {} of the enum to this"),
        (False, "#: nothing satisfies this schema"),
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, "#: nothing satisfies this schema"),
        ({"minLength": 3, "maxLength": 2}, "#: nothing satisfies this schema"),
        ({"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 2}, "#: nothing satisfies this schema"),
        ({"enum": [1], "type": "string"}, "#: nothing satisfies this schema"),
        ({"properties": {"a": False}, "required": ["a"]}, "#: nothing satisfies this schema"),
        ({"properties": {"a": {}}, "required": ["b"]}, "#/required: 'b' is required, but is not among"),
        ({"$ref": "#"}, "#: this reference leads back to itself"),
        ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "#: this schema refers to itself before anything else"),
        ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "#: no finite text satisfies 'root'"),
        ({"$ref": "other.json"}, "#/$ref: only references within the schema, such as #/$defs/name, are followed"),
        ({"$ref": "http://x/y#/a"}, "#/$ref: only references within the schema"),
        ({"$ref": "#/$defs/a"}, "#/$ref: there is nothing at '#/$defs/a' in the schema"),
        ({"$ref": 3}, "#/$ref: a reference is a text, not 3"),
        ({"items": {"$id": "http://x"}}, "#/items/$id: a grammar is made of one schema"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "#/oneOf: alternatives 0 and 1 may both hold"),
        ({"oneOf": [{"type": "null"}, {"minLength": 2}]}, "#/oneOf: alternatives 0 and 1 may both hold"),
        ({"type": "array", "oneOf": [{"prefixItems": [{}]}, {"minItems": 2, "items": {}}]}, "#/oneOf: alternative"),
        ({"oneOf": [{"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, {"properties": {"a": {"$ref": "#"}}}]},
         "#/oneOf: alternatives 0 and 1 may both hold"),
        ({"oneOf": [{"type": "null"}, {"required": ["a"], "properties": {"a": False}}]}, "#/oneOf: alternatives 0"),
        ({"oneOf": [True, {"type": "null"}]}, "#/oneOf: alternatives 0 and 1 may both hold"),
        ([], "#: a schema is an object, true or false, not []"),
        ({"const": float("nan")}, "nan is no number in JSON"),
        ({"const": {1, 2}}, "{1, 2} is no JSON value"),
        ({"const": 10**200}, "a number of more than 100 digits"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_where_it_stands(schema: object, message: str) -> None:
    assert refusal(schema).startswith(message)
    assert "\n" not in refusal(schema)


def test_what_nobody_refers_to_may_be_anything() -> None:
    schema_to_gbnf({"$defs": {"a": {"uniqueItems": True}}, "type": "null"})


def test_the_reference_within_an_alternative_of_one_of_takes_it_once(admits: Admits) -> None:
    pet = {"oneOf": [{"type": "string"}, {"type": "null"}]}
    schema = {"$defs": {"pet": pet}, "allOf": [{"$ref": "#/$defs/pet"}, {"$ref": "#/$defs/pet"}]}
    assert admits(schema, '"cat"')
    assert admits(schema, "null")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"type": "null"', "line 1, column 16: no JSON: Expecting ',' delimiter"),
        ('{\n "a": nul}', "line 2, column 7: no JSON: Expecting value"),
        ('{"const": NaN}', "NaN is no number in JSON"),
        ("[" * 100_000, "the schema is nested more than 100 deep"),
        (" " * 300_000, "the schema has 300,000 characters, more than 262,144"),
        ('{"const": ' + "9" * 5000 + "}", "a number in the schema has too many digits"),
    ],
)
def test_a_schema_that_is_no_json_is_refused_with_the_place(text: str, message: str) -> None:
    with pytest.raises(GrammarError) as caught:
        read_schema(text)
    assert str(caught.value).startswith(message)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


HOSTILE: dict[str, object] = {
    "nesting": nested(99_000),
    "alternatives": {"allOf": [{"anyOf": [{"minLength": a}, {"maxLength": a}]} for a in range(30)]},
    "references": {
        "$ref": "#/$defs/0",
        "$defs": {str(number): {"$ref": f"#/$defs/{number + 1}"} for number in range(5000)},
    },
    "all of all": {
        "$ref": "#/$defs/0",
        "$defs": {str(n): {"allOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(90)} | {"90": {"const": 1}},
    },
    "names": {"properties": {"x" * 60_000: True}, "additionalProperties": True},
    "properties": {"properties": {f"p{number}": {"type": "integer", "minimum": number} for number in range(6000)}},
    "constants": {"enum": [f"{number:05}" for number in range(20_000)]},
    "one of many": {
        "type": "object",
        "oneOf": [{"properties": {"k": {"const": number}}, "required": ["k"]} for number in range(450)],
    },
    "counts": {"items": nested(90), "minItems": 100_000, "maxItems": 100_000},
    "items": {"prefixItems": [{"const": number} for number in range(3000)]},
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_schemas_are_turned_or_refused_soon(name: str, model: Model) -> None:
    started = time.process_time()
    try:
        grammar = schema_to_gbnf(HOSTILE[name])
    except GrammarError:
        grammar = ""
    assert time.process_time() - started < 5
    if grammar:
        Constraint(model, grammar)


@pytest.mark.slow
def test_every_format_is_what_it_says(model: Model, rounds: Rounds) -> None:
    checks: dict[str, Callable[[str], object]] = {
        "date": date.fromisoformat,
        "time": lambda text: datetime.fromisoformat(f"2000-01-01T{text}"),
        "date-time": datetime.fromisoformat,
        "duration": re.compile(r"P(?=.)(\d+W|(\d+Y)?(\d+M)?(\d+D)?(T(?=.)(\d+H)?(\d+M)?(\d+S)?)?)").fullmatch,
        "uuid": UUID,
        "email": re.compile(r"[^@\s]+@([\w-]+\.)+[\w-]+").fullmatch,
        "hostname": re.compile(r"(?!-)[\w-]+(\.(?!-)[\w-]+)*").fullmatch,
        "ipv4": IPv4Address,
        "ipv6": IPv6Address,
        "uri": lambda text: urlsplit(text).hostname,
    }
    choices = random.Random(5)
    for name in FORMATS_KNOWN:
        constraint = Constraint(model, schema_to_gbnf({"type": "string", "format": name}))
        texts = [constraint.walk(choices) for _ in range(rounds(quick=10, ci=30, long=300))]
        for text in filter(None, texts):
            assert checks[name](json.loads(text)), (name, text)
        assert any(texts)


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        (
            "date",
            ["2024-02-29", "2000-02-29", "1999-12-31"],
            ["2023-02-29", "1900-02-29", "2024-04-31", "2024-13-01"],
        ),
        ("time", ["18:25:43.511Z", "00:00:00+02:00"], ["24:00:00Z", "18:25:43", "18:25Z"]),
        ("date-time", ["2012-04-23T18:25:43.511Z"], ["2012-04-23 18:25:43Z", "2012-04-31T18:25:43Z"]),
        ("duration", ["P1Y2M3DT4H5M6S", "PT5M", "P2W", "P1DT1S"], ["P", "PT", "1Y", "P1S"]),
        ("email", ["me@example.org", "a.b+c@d.example.com"], ["me", "@example.org", "me@", "a..b@example.org"]),
        ("uri", ["https://example.com/a?b=c#d", "http://localhost:8080"], ["example.com", "ftp://x", "http:// x"]),
        ("ipv4", ["255.0.10.199"], ["256.0.0.1", "1.2.3"]),
    ],
)
def test_a_format_knows_right_from_wrong(name: str, right: list[str], wrong: list[str], admits: Admits) -> None:
    schema = {"type": "string", "format": name}
    assert [text for text in right if not admits(schema, json.dumps(text))] == []
    assert [text for text in wrong if admits(schema, json.dumps(text))] == []
