"""A JSON schema as a document: its places, the references between them, and the keywords that a grammar can keep."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NoReturn

from nrvna.errors import GrammarError, JsonError
from nrvna.jsontext import check_value, read_json

MAX_BYTES = 256 * 1024
# Of a number.
MAX_DIGITS = 100
# References that follow upon each other.
MAX_REFERENCES = 100

# Where a schema stands in the document, as a JSON pointer: "" is all of it.
Pointer = str

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")

# What they speak of: a schema that names no type means the types that its keywords speak of.
KEYWORDS_OF = {
    "string": ("minLength", "maxLength", "pattern"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "array": ("items", "prefixItems", "additionalItems", "minItems", "maxItems"),
    "object": ("properties", "required", "additionalProperties"),
}
# All that demand something of a value and that a grammar can keep.
KEPT = {
    *(keyword for keywords in KEYWORDS_OF.values() for keyword in keywords),
    *("type", "enum", "const", "format", "nullable", "$ref", "allOf", "anyOf", "oneOf"),
}
# They say something about the schema or its user, nothing about the texts.
_ANNOTATIONS = {
    *("title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly"),
    *("$schema", "$comment", "$defs", "definitions", "$vocabulary", "$anchor"),
    *("contentEncoding", "contentMediaType", "contentSchema", "discriminator", "externalDocs", "xml"),
    *("markdownDescription", "enumDescriptions", "markdownEnumDescriptions", "enumNames", "defaultSnippets"),
}
# Keywords that do nothing if they have this value.
_IDLE = {
    "uniqueItems": False,
    "minProperties": 0,
    "minContains": 0,
    "dependentRequired": {},
    "dependentSchemas": {},
    "dependencies": {},
    "patternProperties": {},
    "propertyNames": True,
    "unevaluatedProperties": True,
    "unevaluatedItems": True,
}
_BEYOND_A_GRAMMAR = {
    *_IDLE,
    *("multipleOf", "maxProperties", "not", "if", "then", "else", "contains", "maxContains"),
    *("$dynamicRef", "$recursiveRef", "$dynamicAnchor", "$recursiveAnchor"),
}


def read_schema(text: str) -> object:
    """A schema from JSON text. Raises GrammarError, with line and column, for what is no JSON."""
    if len(text) > MAX_BYTES:
        raise GrammarError(f"the schema has {len(text):,} characters, more than {MAX_BYTES:,}: make it smaller")

    def refuse(constant: str) -> NoReturn:
        raise GrammarError(f"{constant} is no number in JSON: remove it from the schema")

    try:
        return read_json(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise GrammarError(f"line {error.lineno}, column {error.colno}: no JSON: {error.msg}") from None
    except GrammarError:
        raise
    except JsonError as error:
        raise GrammarError(f"the schema {error}") from None
    except ValueError:
        raise GrammarError("a number in the schema has too many digits: write a shorter one") from None


class Document:
    """A schema whose values are JSON of a sane size. Raises GrammarError."""

    def __init__(self, schema: object) -> None:
        self._root = schema
        self._found: dict[Pointer, Any] = {}
        _check_json(schema)
        if isinstance(schema, dict):
            self._id = schema.get("$id", schema.get("id"))
        else:
            self._id = None

    def at(self, pointer: Pointer) -> dict[str, Any] | bool:
        """The schema at this place, its keywords looked over; raises GrammarError if it is none."""
        if pointer not in self._found:
            schema = self._value(pointer)
            if isinstance(schema, dict):
                self._check_keywords(pointer, schema)
            elif not isinstance(schema, bool):
                refuse(pointer, f"a schema is an object, true or false, not {brief(schema)}")
            self._found[pointer] = schema
        found: dict[str, Any] | bool = self._found[pointer]
        return found

    def target(self, pointer: Pointer) -> Pointer:
        """Where the reference of the schema at this place leads."""
        schema = self.at(pointer)
        assert isinstance(schema, dict)
        reference, place = schema["$ref"], child(pointer, "$ref")
        if not isinstance(reference, str):
            refuse(place, f"a reference is a text, not {brief(reference)}")
        base, mark, fragment = reference.partition("#")
        if not mark or (base and base != str(self._id).rstrip("#")) or (fragment and not fragment.startswith("/")):
            refuse(place, f"only references within the schema, such as #/$defs/name, are followed, not {reference!r}")
        target = fragment
        if "%" in fragment:
            from urllib.parse import unquote

            target = unquote(fragment)
        try:
            self._value(target)
        except (LookupError, ValueError):
            refuse(place, f"there is nothing at {reference!r} in the schema")
        return target

    def _value(self, pointer: Pointer) -> object:
        value: Any = self._root
        for step in _steps(pointer):
            if isinstance(value, list):
                if not (step.isascii() and step.isdecimal()) or len(step) > 9:
                    raise LookupError(step)
                value = value[int(step)]
            elif isinstance(value, dict):
                value = value[step]
            else:
                raise LookupError(step)
        return value

    def _check_keywords(self, pointer: Pointer, schema: dict[str, Any]) -> None:
        for keyword, value in schema.items():
            place = child(pointer, keyword)
            if keyword in KEPT or keyword in _ANNOTATIONS or keyword.startswith("x-"):
                continue
            if keyword in ("$id", "id"):
                # Below the root it would change what references mean.
                if pointer:
                    refuse(place, "a grammar is made of one schema, without others in it: remove this")
            elif keyword in _IDLE and same(value, _IDLE[keyword]):
                continue
            elif keyword in _BEYOND_A_GRAMMAR:
                refuse(place, f"a grammar cannot keep {keyword}: remove it and check the answers yourself")
            else:
                refuse(place, f"unknown keyword {keyword!r}: remove it, or name it x-… if it is a remark")


def refuse(pointer: Pointer, reason: str) -> NoReturn:
    raise GrammarError(f"#{pointer}: {reason}")


def child(pointer: Pointer, *steps: str | int) -> Pointer:
    """The place below another one."""
    return pointer + "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)


def last_name(pointer: Pointer) -> str:
    """The last step of a place that is a name of the user's, as far as one can tell."""
    names = [step for step in _steps(pointer) if not step.isdecimal() and step not in KEPT | _ANNOTATIONS]
    return names[-1] if names else ""


def _steps(pointer: Pointer) -> Iterator[str]:
    for step in pointer.split("/")[1:]:
        yield step.replace("~1", "/").replace("~0", "~")


def brief(value: object) -> str:
    """A value for a message."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else text[:59] + "…"


def same(one: object, other: object) -> bool:
    """Whether two JSON values are equal: 1 and 1.0 are, 1 and true are not."""
    return identity(one) == identity(other)


def identity(value: object) -> object:
    """What two JSON values share if and only if they are equal; it can be a key of a dict."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return type(value).__name__, value
    if isinstance(value, (int, float)):
        return "number", value
    if isinstance(value, list):
        return "array", tuple(identity(item) for item in value)
    assert isinstance(value, dict)
    return "object", frozenset((key, identity(item)) for key, item in value.items())


def _check_json(schema: object) -> None:
    try:
        check_value(schema)
    except JsonError as error:
        raise GrammarError(f"the schema {error}") from None
    todo: list[Any] = [schema]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            if not all(isinstance(key, str) for key in value):
                raise GrammarError("the keys of a schema are texts: others are no JSON")
            todo += value.values()
        elif isinstance(value, list):
            todo += value
        elif isinstance(value, float):
            if value - value != 0:
                raise GrammarError(f"{value} is no number in JSON: remove it from the schema")
        elif isinstance(value, int) and abs(value) >= 10**MAX_DIGITS:
            raise GrammarError(f"a number of more than {MAX_DIGITS} digits is in the schema: write a shorter one")
        elif not (value is None or isinstance(value, (str, bool, int))):
            raise GrammarError(f"{value!r} is no JSON value: a schema is made of JSON values")
