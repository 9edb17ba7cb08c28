"""Reading a JSON schema: which shapes may stand at which places.

A place of the schema, or several that must hold together, comes apart into terms: lists of keywords of which all
hold, one for each way through ``anyOf`` and ``oneOf``. Each term admits one shape for each type. The shapes of
properties and items are worked out when they are asked for, so that a schema may refer to itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nrvna.grammar.document import KEPT, MAX_REFERENCES, Document, Pointer, brief, child, refuse
from nrvna.grammar.keywords import (
    Term,
    admits,
    counts_of,
    number_of,
    stated,
    text_of,
    types_of,
    types_spoken_of,
    values_of,
)
from nrvna.grammar.shapes import Anything, Array, Comparison, Object, Places, Shape, Unspoken, Values

# Ways through anyOf and oneOf that are told apart.
MAX_TERMS = 500

# One way through a schema, and a shape that it admits.
Alternative = tuple[Term, Shape | Unspoken]


class Shapes:
    """The shapes of a document's places. Raises GrammarError, with the place, for what a grammar cannot keep."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._found: dict[Places, list[Alternative]] = {}
        self._known: dict[Places, list[Shape]] = {}
        self._terms: dict[Pointer, list[Term]] = {}

    def canonical(self, places: Iterable[Pointer]) -> Places:
        """The same places, each once, without those that demand nothing and past plain references."""
        found = []
        for place in places:
            for _ in range(MAX_REFERENCES):
                schema = self._document.at(place)
                if not isinstance(schema, dict) or "$ref" not in schema or _demands(schema) != ["$ref"]:
                    break
                place = self._document.target(place)
            else:
                refuse(place, "this reference leads back to itself, or on and on")
            if schema is not True and not (isinstance(schema, dict) and not _demands(schema)):
                found.append(place)
        return tuple(dict.fromkeys(found))

    def is_impossible(self, places: Places) -> bool:
        """Whether one of the places says so outright."""
        return any(self._document.at(place) is False for place in places)

    def of(self, places: Places) -> list[Shape]:
        """What may stand at these places, which are canonical; there is always something."""
        if not places:
            return [Anything()]
        if places not in self._known:
            alternatives = self._alternatives(places)
            self._check_one_of(alternatives)
            shapes = [shape for shape in _shapes_of(alternatives) if not isinstance(shape, Unspoken)]
            if not shapes:
                refuse(places[0], "nothing satisfies this schema: its demands exclude each other")
            self._known[places] = shapes
        return self._known[places]

    def _alternatives(self, places: Places) -> list[Alternative]:
        if places not in self._found:
            terms = self._terms_of_all(places, ())
            self._found[places] = [(term, shape) for term in terms for shape in self._shapes(term)]
        return self._found[places]

    # Terms.

    def _terms_of_all(self, places: Iterable[Pointer], trail: tuple[Pointer, ...]) -> list[Term]:
        terms = [Term()]
        for place in places:
            terms = _both(terms, self._terms_of(place, trail), place)
        return terms

    def _terms_of(self, place: Pointer, trail: tuple[Pointer, ...]) -> list[Term]:
        if place in trail:
            refuse(place, "this schema refers to itself before anything else: nothing can satisfy it")
        if len(trail) > MAX_REFERENCES:
            refuse(place, f"more than {MAX_REFERENCES} schemas that refer to each other before anything else")
        if place not in self._terms:
            schema = self._document.at(place)
            if isinstance(schema, bool):
                self._terms[place] = [Term()] if schema else []
            else:
                self._terms[place] = self._come_apart(place, schema, (*trail, place))
        return self._terms[place]

    def _come_apart(self, place: Pointer, schema: dict[str, Any], trail: tuple[Pointer, ...]) -> list[Term]:
        terms = [Term()]
        own = [Term(((place, schema),))]
        # Properties keep the order in which the schema names them, its own among those that it takes over.
        keywords = [keyword for keyword in schema if keyword in ("$ref", "allOf", "anyOf", "oneOf", "properties")]
        for keyword in keywords if "properties" in schema else ["", *keywords]:
            if keyword in ("properties", ""):
                more = own
            elif keyword == "$ref":
                more = self._terms_of(self._document.target(place), trail)
            else:
                members = [child(place, keyword, number) for number in range(self._length(place, keyword))]
                if keyword == "allOf":
                    more = self._terms_of_all(members, trail)
                else:
                    more = [
                        term._replace(through=(*term.through, (place, number))) if keyword == "oneOf" else term
                        for number, member in enumerate(members)
                        for term in self._terms_of(member, trail)
                    ]
            terms = _both(terms, more, place)
        return terms

    def _length(self, place: Pointer, keyword: str) -> int:
        schema = self._document.at(place)
        assert isinstance(schema, dict)
        if not isinstance(schema[keyword], list) or not schema[keyword]:
            refuse(child(place, keyword), f"a list of schemas is wanted, not {brief(schema[keyword])}")
        return len(schema[keyword])

    # Shapes.

    def _shapes(self, term: Term) -> list[Shape | Unspoken]:
        types = types_of(term)
        values = values_of(term)
        if values is not None:
            admitted = tuple(value for value in values if admits(term, types, value))
            return [Values(admitted)] if admitted else []
        unspoken: list[Unspoken] = []
        if types is None:
            # Such schemas speak of one type and mean that one, though others would satisfy them.
            types = types_spoken_of(term)
            if not types:
                return [Anything()]
            unspoken.append(Unspoken(frozenset(types)))
        constants: list[Any] = [None] if "null" in types else []
        constants += [True, False] if "boolean" in types else []
        found: list[Shape | None] = [Values(tuple(constants)) if constants else None]
        if "string" in types:
            found.append(text_of(term))
        if "number" in types or "integer" in types:
            found.append(number_of(term, integer="number" not in types))
        if "array" in types:
            found.append(self._array(term))
        if "object" in types:
            found.append(self._object(term))
        return [*(shape for shape in found if shape is not None), *unspoken]

    def _array(self, term: Term) -> Array | None:
        least, most = counts_of(term, "minItems", "maxItems")
        firsts: list[list[Pointer]] = []
        rests: list[Pointer | None] = []
        for place, schema in term.facts:
            first, rest = self._items(place, schema)
            firsts.append(first)
            rests.append(rest)
            if rest is not None and self.is_impossible((rest,)):
                most = min(len(first), len(first) if most is None else most)
        count = max(map(len, firsts))
        places = []
        for number in range(count):
            here = [first[number] if number < len(first) else rest for first, rest in zip(firsts, rests, strict=True)]
            places.append(self.canonical(place for place in here if place is not None))
            if self.is_impossible(places[-1]):
                most = min(number, number if most is None else most)
        said = [rest for rest in rests if rest is not None]
        cut = bool(count) and not said and least <= count
        if cut:
            # As with properties: what comes behind the last one that is named was not asked for.
            most = min(count, count if most is None else most)
        if most is not None and most < least:
            return None
        return Array(tuple(places[:most]), self.canonical(said), least, most, cut)

    def _items(self, place: Pointer, schema: dict[str, Any]) -> tuple[list[Pointer], Pointer | None]:
        """The places of the first items, and that of the others if the schema names one."""
        listed = "prefixItems" if "prefixItems" in schema else "items"
        others = "items" if listed == "prefixItems" else "additionalItems"
        if not isinstance(schema.get(listed), list):
            if listed == "prefixItems":
                refuse(child(place, listed), "a list of schemas is wanted: a single one is called items")
            return [], child(place, "items") if "items" in schema else None
        first = [child(place, listed, number) for number in range(len(schema[listed]))]
        return first, child(place, others) if others in schema else None

    def _object(self, term: Term) -> Object | None:
        names: dict[str, None] = {}
        required: dict[str, Pointer] = {}
        for place, schema in term.facts:
            properties = schema.get("properties", {})
            if not isinstance(properties, dict):
                refuse(child(place, "properties"), f"an object is wanted, not {brief(properties)}")
            names.update(dict.fromkeys(properties))
            needed = schema.get("required", [])
            if not isinstance(needed, list) or not all(isinstance(name, str) for name in needed):
                refuse(child(place, "required"), f"a list of names is wanted, not {brief(needed)}")
            required.update((name, child(place, "required")) for name in needed if name not in required)
        others = [child(place, "additionalProperties") for place, _ in stated(term, "additionalProperties")]
        other: Places | None = self.canonical(others)
        if (names and not others) or self.is_impossible(other or ()):
            # What was not named was not asked for, though the schema would let it be.
            other = None
        places, impossible = {}, set()
        for name in (*names, *(name for name in required if name not in names)):
            here = []
            for place, schema in term.facts:
                if name in schema.get("properties", {}):
                    here.append(child(place, "properties", name))
                elif "additionalProperties" in schema:
                    here.append(child(place, "additionalProperties"))
                elif name not in names and other is None:
                    refuse(required[name], f"{name!r} is required, but is not among the properties")
            found = self.canonical(here)
            if self.is_impossible(found):
                if name in required:
                    return None
                impossible.add(name)
            else:
                places[name] = found
        return Object(places, frozenset(required), other, frozenset(impossible))

    # oneOf: an alternative may only be taken if no other one holds as well.

    def _check_one_of(self, alternatives: list[Alternative]) -> None:
        comparison = Comparison(lambda places: _shapes_of(self._alternatives(places)) if places else [Anything()])
        for number, (term, shape) in enumerate(alternatives):
            for other_term, other_shape in alternatives[number + 1 :]:
                others = dict(other_term.through)
                for place, chosen in term.through:
                    if others.get(place, chosen) != chosen and not (
                        comparison.exclude(shape, other_shape) and comparison.exclude(other_shape, shape)
                    ):
                        refuse(
                            child(place, "oneOf"),
                            f"alternatives {chosen} and {others[place]} may both hold, which a grammar cannot "
                            "exclude: use anyOf, or tell them apart by a const",
                        )


def _demands(schema: dict[str, Any]) -> list[str]:
    """The keywords that demand something of a value."""
    return [keyword for keyword in schema if keyword in KEPT]


def _both(terms: list[Term], more: list[Term], place: Pointer) -> list[Term]:
    if len(terms) * len(more) > MAX_TERMS:
        refuse(place, f"more than {MAX_TERMS} combinations of alternatives: make fewer of them")
    found = []
    for one in terms:
        for two in more:
            through = tuple(dict.fromkeys((*one.through, *two.through)))
            # Two alternatives of the same oneOf exclude each other.
            if len(dict(through)) == len(through):
                found.append(Term(tuple({fact[0]: fact for fact in (*one.facts, *two.facts)}.values()), through))
    return found


def _shapes_of(alternatives: list[Alternative]) -> list[Shape | Unspoken]:
    # By what they look like: True and 1 are equal in Python.
    return list({repr(shape): shape for _, shape in alternatives}.values())
