"""JSON that comes in, from whomever: the one reader for all doors, and what nothing may hold that is asked of a job.

A parser that calls itself for each level ends in a RecursionError where its thread's stack has no more room, and what
was nested just less deep is too deep for the next who reads it, on another stack. So the depth has a limit, far from
what any stack has room for: :data:`MAX_DEPTH` for what is given, some more for the files and messages that it is put
into.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nrvna.errors import JsonError

# Of lists and objects in each other: of what is given, and of what it stands in.
MAX_DEPTH = 100
MAX_DEPTH_OF_FILES = 128
_CONTAINERS = (dict, list, tuple, Mapping)


def read_json(text: str | bytes, *, parse_constant: Callable[[str], Any] | None = None) -> Any:
    """What JSON text holds. Raises ValueError for no JSON; JsonError, which is one, for what is nested too deep."""
    try:
        content = json.loads(text, parse_constant=parse_constant)
    except RecursionError:
        raise _too_deep() from None
    # Most texts have not as many brackets as that takes.
    if _opened(text) > MAX_DEPTH_OF_FILES:
        for _ in _levels(content, MAX_DEPTH_OF_FILES):
            pass
    return content


def _opened(text: str | bytes) -> int:
    return text.count("[") + text.count("{") if isinstance(text, str) else text.count(b"[") + text.count(b"{")


def check_value(value: object, depth: int = MAX_DEPTH) -> None:
    """Raises JsonError for a value that is nested deeper than that, or holds a text that is none."""
    for level in _levels(value, depth):
        for each in level:
            if isinstance(each, str):
                check_text(each)
            elif isinstance(each, Mapping):
                for key in each:
                    check_text(str(key))


def check_text(text: str) -> None:
    """Raises JsonError if it is not made of characters: half a surrogate pair, as JSON can write it, is none.

    Nor is a byte of an argument that is not UTF-8, for which Python puts in another such half.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ord(text[error.start])
        what = f"the byte {half - 0xDC00:#04x}, which is not UTF-8" if 0xDC80 <= half < 0xDD00 else "half a character"
        raise JsonError(f"holds \\u{half:04x}, {what}: remove it") from None


def _levels(value: object, most: int) -> Iterator[list[Any]]:
    """The value, then what is in it, then what is in that. Raises JsonError if that is not all of it at last."""
    level = [value]
    for _ in range(most):
        yield level
        # Each once, by its identity: in a program's own values the same list may stand in many places.
        inner = {
            id(one): one
            for each in level
            if isinstance(each, _CONTAINERS)
            for one in (each.values() if isinstance(each, Mapping) else each)
        }
        if not inner:
            return
        level = list(inner.values())
    yield level
    if any(isinstance(each, _CONTAINERS) for each in level):
        raise _too_deep()


def _too_deep() -> JsonError:
    return JsonError(f"is nested more than {MAX_DEPTH} deep: make it flatter")
