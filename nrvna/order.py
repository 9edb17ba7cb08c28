"""What is asked of a job: its prompt, and what its ``job.json`` holds beside."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

from nrvna.errors import JobError, JobNotFoundError, JsonError, shown
from nrvna.job import check_id
from nrvna.jsontext import check_text

MAX_PROMPT_BYTES = 16 * 1024 * 1024
# Of job.json, in which earlier messages and documents stand.
MAX_ABOUT_BYTES = 16 * 1024 * 1024
MAX_TAGS, MAX_PARENTS, MAX_KEY_BYTES = 32, 10_000, 1000
MAX_PRIORITY = 100
MAX_TIMEOUT_S = 366 * 24 * 3600
_TAG = re.compile(r"[^\s,]{1,64}")
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Order(NamedTuple):
    """One job to be.

    ``settings`` are fields of Sampling that it has otherwise than the daemon, ``task`` is what
    :class:`nrvna.task.Task` reads; the daemon checks both. ``model`` leaves it to a daemon whose model file has that
    name. ``tags`` are words to find it by. A higher ``priority``, from -100 to 100, starts earlier. It starts once
    the jobs ``after`` which it comes are done, and fails if one of them does. Of all orders with one ``key`` a
    workspace makes one job. ``timeout`` is how many seconds it may be at work before it is given up. ``batch`` is the
    batch that it is a line of. ``results`` are the places in its prompt, in characters, where answers of the jobs
    before it go, None where the prompt itself has to say: see results.py.
    """

    prompt: str | bytes
    settings: Mapping[str, Any] = _NOTHING
    model: str | None = None
    task: Mapping[str, Any] = _NOTHING
    tags: tuple[str, ...] = ()
    priority: int = 0
    after: tuple[str, ...] = ()
    key: str | None = None
    timeout: float | None = None
    batch: str | None = None
    results: tuple[int, ...] | None = None

    def about(self) -> dict[str, Any]:
        """What ``job.json`` holds of it. Raises JobError for what cannot be."""
        self.check()
        given = {name: getattr(self, name) for name in self._fields[2:]}
        kept = {name: value for name, value in given.items() if value not in (None, (), 0, {})}
        kept.pop("results", None)
        if self.after and self.results is not None:
            # That there are none must be known, too.
            kept["results"] = self.results
        return {"settings": dict(self.settings), **kept, **({"task": dict(self.task)} if self.task else {})}

    @classmethod
    def read(cls, about: Mapping[str, Any]) -> Order:
        """What stands in a ``job.json``, whoever made it; prompt, settings and task are read elsewhere.

        Raises JobError, naming what cannot be.
        """
        tags, after, model = about.get("tags", ()), about.get("after", ()), about.get("model")
        results = about.get("results")
        if not all(isinstance(each, list | tuple) for each in (tags, after, () if results is None else results)):
            raise JobError("the job's tags, after and results must be lists")
        order = cls(
            b"",
            model=model if isinstance(model, str) else None,
            tags=tuple(tags),
            priority=about.get("priority", 0),
            after=tuple(after),
            key=about.get("key"),
            timeout=about.get("timeout"),
            batch=about.get("batch"),
            results=None if results is None else tuple(results),
        )
        order.check()
        return order

    def check(self) -> None:
        """Raises JobError, naming what cannot be."""
        if len(self.tags) > MAX_TAGS:
            raise JobError(f"a job has at most {MAX_TAGS} tags, not {len(self.tags)}")
        for tag in self.tags:
            if not isinstance(tag, str) or not _TAG.fullmatch(tag) or not tag.isprintable():
                raise JobError(f"the tag {shown(tag)} must be a word: up to 64 characters without spaces and commas")
        if type(self.priority) is not int or abs(self.priority) > MAX_PRIORITY:
            allowed = f"a whole number from -{MAX_PRIORITY} to {MAX_PRIORITY}"
            raise JobError(f"the priority is {shown(self.priority)}, but must be {allowed}")
        _check_parents(self.after)
        if self.key is not None and not _is_key(self.key):
            raise JobError(f"the key is {shown(self.key)}, but must be text of up to {MAX_KEY_BYTES} bytes")
        seconds = self.timeout
        if seconds is not None and not (type(seconds) in (int, float) and 0 < seconds <= MAX_TIMEOUT_S):
            raise JobError(f"the timeout is {shown(seconds)}, but must be seconds, more than 0 and up to a year")
        if self.batch is not None and not isinstance(self.batch, str):
            raise JobError("the job's batch must be text")
        if self.results and not _are_places(self.results):
            raise JobError("the job's results must be places in its prompt, one behind the other")
        for name in ("model", "batch"):
            try:
                check_text(getattr(self, name) or "")
            except JsonError as error:
                raise JobError(f"the {name} {error}") from None


def copies(
    prompt: bytes,
    orders: Iterable[Order],
    tags: Iterable[str],
    key: str | None,
    results: tuple[int, ...] | None = None,
) -> list[Order]:
    """A prompt's copies, of which ``orders`` say what is asked of each; every copy has a key of its own."""
    return [
        order._replace(
            prompt=prompt,
            results=results,
            tags=tuple(dict.fromkeys((*tags, *order.tags))),
            key=order.key if key is None else key if number == 0 else f"{key} #{number + 1}",
        )
        for number, order in enumerate(orders)
    ]


def _check_parents(after: tuple[str, ...]) -> None:
    if len(after) > MAX_PARENTS:
        raise JobError(f"a job comes after at most {MAX_PARENTS} others, not {len(after)}")
    for parent in after:
        if not isinstance(parent, str):
            raise JobError(f"{shown(parent)} is no id of a job to come after")
        try:
            check_id(parent)
        except JobNotFoundError as error:
            raise JobError(f"it cannot come after a job of that id: {error}") from None


def _are_places(results: tuple[int, ...]) -> bool:
    return all(type(place) is int for place in results) and all(
        before < place for before, place in pairwise((-1, *results, MAX_PROMPT_BYTES))
    )


def _is_key(key: object) -> bool:
    try:
        return isinstance(key, str) and 0 < len(key.encode()) <= MAX_KEY_BYTES
    except UnicodeEncodeError:
        return False


def encode_prompt(text: str) -> bytes:
    """Text as UTF-8; what that cannot hold stays, for :func:`check_prompt` to refuse."""
    return text.encode("utf-8", "surrogatepass")


def may_be_empty(task: object) -> bool:
    """Whether a job's prompt may be: it is, where the task names its role, a message like those before it."""
    return isinstance(task, Mapping) and "role" in task


def check_prompt(data: bytes, *, may_be_empty: bool = False) -> bytes:
    """The prompt itself, if it can run. Raises JobError: empty, too large, a NUL byte, or invalid UTF-8."""
    if len(data) > MAX_PROMPT_BYTES:
        raise JobError(f"the prompt has {len(data)} bytes, more than the {MAX_PROMPT_BYTES} allowed")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise JobError(f"the prompt is not UTF-8: byte {data[error.start]:#04x} at position {error.start}") from None
    if "\0" in text:
        raise JobError(f"the prompt holds a NUL byte at position {data.index(0)}")
    if not may_be_empty and not text.strip():
        raise JobError("the prompt is empty")
    return data
