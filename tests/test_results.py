"""Where the answers of jobs go in the prompts of those that come after them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrvna.errors import JobError
from nrvna.order import Order
from nrvna.results import fill_in, parents_named, read_words, with_places

WORDS = st.lists(st.sampled_from(["{", "}", "é", ":", "{result}", "{{result}}"])).map("".join)
IDS = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=30)


def asking(prompt: str, *after: str) -> Order:
    return with_places(Order(prompt, after=after))


def filled(order: Order, answers: dict[str, str]) -> str:
    assert isinstance(order.prompt, str)
    return fill_in(order.prompt, order, answers)


def test_result_is_the_answer_of_the_job_before() -> None:
    assert filled(asking("Sum up: {result}!", "one"), {"one": "2 + 2"}) == "Sum up: 2 + 2!"


def test_result_of_several_is_all_their_answers_in_order() -> None:
    assert filled(asking("{result}", "b", "a"), {"a": "A", "b": "B"}) == "B\n\nA"


def test_result_with_an_id_is_that_jobs_answer_also_by_how_its_id_begins() -> None:
    order = asking("{result:20-b}/{result:20-a1}", "20-a1", "20-b2")
    assert filled(order, {"20-a1": "A", "20-b2": "B"}) == "B/A"


def test_what_looks_like_a_result_in_an_answer_stays_as_it_is() -> None:
    assert filled(asking("{result}", "a"), {"a": "{result} {result:b} \\1"}) == "{result} {result:b} \\1"


@pytest.mark.parametrize(
    ("words", "text", "places"),
    [
        ("é {result} {result:a}", "é {result} {result:a}", (2, 11)),
        ("{{result}} {result}", "{result} {result}", (9,)),
        ("{{result:>10}}", "{result:>10}", ()),
        ("{{{result}}}", "{{result}}", ()),
        ("{{result} {result}}", "{{result} {result}}", (1, 10)),
        ('{"a": {result}} {path} {} {{path}}', '{"a": {result}} {path} {} {{path}}', (6,)),
    ],
)
def test_a_result_with_another_pair_of_braces_is_text(words: str, text: str, places: tuple[int, ...]) -> None:
    assert read_words(words) == (text, places)


def test_only_the_places_on_record_are_filled() -> None:
    order = Order("{result} {result} {result:>10}", after=("a",), results=(9,))
    assert filled(with_places(order), {"a": "A"}) == "{result} A {result:>10}"


def test_a_prompt_without_a_record_of_its_places_is_filled_wherever_result_stands() -> None:
    assert fill_in("{result} {{result}}", Order(b"", after=("a",)), {"a": "A"}) == "A {A}"


@pytest.mark.parametrize("place", [0, 2, 100, 2**20])
def test_a_place_where_no_result_stands_is_refused(place: int) -> None:
    order = Order(b"", after=("a",), results=(place,))
    with pytest.raises(JobError, match=f"at character {place} of the prompt is no {{result}}"):
        fill_in("a{result}", order, {"a": "A"})


@pytest.mark.parametrize("name", ["c", "20", "", "20-a1 ", ">10"])
def test_the_result_of_a_job_that_it_does_not_come_after_is_refused(name: str) -> None:
    with pytest.raises(JobError, match="names no job that this one comes after: if it is text, put braces around it"):
        asking(f"{{result:{name}}}", "20-a1", "20-b2")


@given(st.text(), st.lists(IDS, min_size=1, max_size=3, unique=True))
def test_a_prompt_that_names_no_result_stays_as_it_is(prompt: str, after: list[str]) -> None:
    plain = prompt.replace("{result", "")
    order = asking(plain, *after)
    assert parents_named(plain, order) == []
    assert (order.prompt, filled(order, {})) == (plain, plain)


@given(WORDS, WORDS)
def test_where_answers_go_is_the_same_whatever_stands_around(words: str, data: str) -> None:
    text, places = read_words(words)
    order = Order(text + data, after=("a",), results=places)
    pieces = [text[start:end] for start, end in zip([0, *(p + 8 for p in places)], [*places, len(text)], strict=True)]
    assert filled(order, {"a": "A"}) == "A".join(pieces) + data
