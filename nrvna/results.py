"""The answers of jobs in the prompts of those that come after them: where they go, and how they get there.

A prompt's words say where, by ``{result}``, all of them, or ``{result:ID}``; ``{{result}}`` and ``{{result:ID}}`` are
text with a brace less on either side. Words are read once, when a job is queued, and ``job.json`` then has the places
in the prompt. So nothing else in it, no file and no text that was piped in, is ever taken for such a place. A prompt
without a record of its places, by an older version or by hand, has them wherever ``{result}`` stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from nrvna.errors import JobError
from nrvna.order import Order

_RESULT = re.compile(r"\{result(?::([^{}]*))?\}")
_WRITTEN = re.compile(r"\{(\{result(?::[^{}]*)?\})\}|\{result(?::[^{}]*)?\}")


def read_words(words: str) -> tuple[str, tuple[int, ...]]:
    """The text that words stand for, and the places in it, in characters, where answers go."""
    pieces: list[str] = []
    places: list[int] = []
    size = end = 0
    for match in _WRITTEN.finditer(words):
        before, piece = words[end : match.start()], match[1] or match[0]
        if not match[1]:
            places.append(size + len(before))
        pieces += (before, piece)
        size += len(before) + len(piece)
        end = match.end()
    return "".join([*pieces, words[end:]]), tuple(places)


def with_places(order: Order) -> Order:
    """The same with the places in its prompt on record; without such a record all of the prompt is words.

    Raises JobError if it wants the answer of a job that it does not come after.
    """
    if not order.after:
        return order
    prompt = order.prompt if isinstance(order.prompt, str) else order.prompt.decode()
    if order.results is None:
        prompt, places = read_words(prompt)
        order = order._replace(prompt=prompt, results=places)
    try:
        parents_named(prompt, order)
    except JobError as error:
        raise JobError(f"{error}: if it is text, put braces around it") from None
    return order


def parents_named(prompt: str, order: Order) -> list[str]:
    """The jobs whose answers a prompt wants. Raises JobError if it does not come after one of them."""
    named = (parent for match in _places(prompt, order) for parent in _named_by(match, order))
    return list(dict.fromkeys(named))


def fill_in(prompt: str, order: Order, answers: Mapping[str, str]) -> str:
    """The prompt with the answers that it wants. What an answer looks like is not read again.

    Raises JobError as :func:`parents_named`.
    """
    return "".join(_filled(prompt, order, answers))


def _filled(prompt: str, order: Order, answers: Mapping[str, str]) -> Iterator[str]:
    end = 0
    for match in _places(prompt, order):
        yield prompt[end : match.start()]
        yield "\n\n".join(answers[parent] for parent in _named_by(match, order))
        end = match.end()
    yield prompt[end:]


def _places(prompt: str, order: Order) -> Iterable[re.Match[str]]:
    if order.results is None:
        yield from _RESULT.finditer(prompt)
        return
    for place in order.results:
        match = _RESULT.match(prompt, place)
        if not match:
            raise JobError(f"at character {place} of the prompt is no {{result}}, as the job's results say")
        yield match


def _named_by(match: re.Match[str], order: Order) -> tuple[str, ...]:
    """All that it comes after, or one by its id, or by how that alone of them begins or ends."""
    name = match[1]
    if name is None:
        return order.after
    if name in order.after:
        return (name,)
    found = [parent for parent in order.after if name and (parent.startswith(name) or parent.endswith(name))]
    if len(found) != 1:
        raise JobError(f"{match[0]} names no job that this one comes after")
    return tuple(found)
