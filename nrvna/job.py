"""A job as the folder's side sees it: its id, its state, its receipt.

Named tuples, not dataclasses, here and in workspace.py: importing and making those takes longer than all the rest of
what ``wrk`` does.
"""

from __future__ import annotations

import json
import os
import re
import time
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple

from nrvna import __version__
from nrvna.errors import JobNotFoundError

MAX_ID_BYTES = 200
# Fields of a receipt that others wrote, and that may be of any size. Of more than so many bytes each stands in a
# file of its own: receipt.json is read for each line of a list, and by older tools only up to 1 MiB.
LARGE_FIELDS = ("sampling", "task", "probabilities", "stopped_by", "error", "notes")
MAX_FIELD_BYTES = 32 * 1024
# Of such a file, and of an older receipt.json, which held all of it. No job.json grows that much on its way here.
MAX_PART_BYTES = 128 * 1024 * 1024
# The years 1 to 9999, which is all that a date can have.
_FIRST_S, _LAST_S = -62_135_596_800, 253_402_300_799
RECEIPT = "receipt.json"
_APART = "apart"
_GENERATED_ID = re.compile(r"\d{8}-\d{6}-\d{6}-[0-9a-f]{6}")


class JobState(StrEnum):
    """Where a job is. A job moves through them in this order, but for the last two, which exclude each other."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class Job(NamedTuple):
    """A job and the folder that held it when somebody looked; it may have moved since."""

    id: str
    state: JobState
    directory: str

    @property
    def is_finished(self) -> bool:
        return self.state in (JobState.DONE, JobState.FAILED)


class Receipt(NamedTuple):
    """What happened to a job: enough to judge its answer and to make it again.

    Times are ISO 8601 in UTC. ``finish_reason`` is "stop" (the model ended its answer), "length" (cut at the most
    tokens allowed), "context" (cut because the context was full), "error", "cancelled" or "timeout".
    ``cached_tokens`` of the prompt were computed for an earlier job already. ``generated_tokens`` leaves out the one
    that ends the answer; ``tokens_per_second`` is these over the time from start to finish, prefill and neighbours
    included. ``model`` names the file with its size and modification time, ``kv_type`` what keys and values were kept
    in. ``same_as`` is the job whose answer this is too, as both asked for the same. ``reproducible``: the engine saw
    at its start that answers of this model are the same whatever runs beside them; None where it was not asked to.
    ``resumed_tokens`` of the answer were generated before an interruption and taken over. ``attempts`` counts how
    often it was begun. ``sha256`` is of the answer's bytes.

    ``finish_reason`` is "thinking" where the model never came to an answer. ``stopped_by`` is the stop string that
    ended it, ``reasoning_tokens`` of those generated were thought, ``probabilities`` are those of each choice.
    ``task`` is what the job asked for beside prompt and sampling, ``notes`` what was done to its prompt: truncated,
    a system message folded into it, no template.
    """

    id: str
    finish_reason: str
    queued: str
    finished: str
    nrvna: str
    started: str | None = None
    first_token: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    generated_tokens: int | None = None
    tokens_per_second: float | None = None
    sampling: dict[str, Any] | None = None
    model: dict[str, Any] | None = None
    template: str | None = None
    llama_cpp: str | None = None
    kv_type: str | None = None
    same_as: str | None = None
    reproducible: bool | None = None
    resumed_tokens: int | None = None
    attempts: int | None = None
    sha256: str | None = None
    error: str | None = None
    stopped_by: str | None = None
    reasoning_tokens: int | None = None
    probabilities: dict[str, float] | None = None
    task: dict[str, Any] | None = None
    notes: dict[str, Any] | None = None

    @classmethod
    def of_failure(cls, job_id: str, queued: str, reason: str, finish_reason: str = "error") -> Receipt:
        """Of a job that ends without an answer, now."""
        return cls(job_id, finish_reason, queued, timestamp(time.time()), __version__, error=reason)

    @property
    def was_cut(self) -> bool:
        """Whether the answer ends where a limit was reached and not where the model ended it."""
        return self.finish_reason in ("length", "context")

    def to_json(self) -> str:
        """As its file has it; text that can be written anywhere, whatever is in it."""
        return _to_json(self._asdict()).decode()

    def to_files(self) -> dict[str, bytes]:
        """Its files, by their names: receipt.json, and one for each field that is large."""
        about: dict[str, Any] = self._asdict()
        files = {}
        for field in LARGE_FIELDS:
            if len(_to_json(about[field])) > MAX_FIELD_BYTES:
                part = _to_json(about[field], indent=None)
                about[field] = None
                # What nobody could read again is better left out.
                if len(part) <= MAX_PART_BYTES:
                    files[part_of_receipt(field)] = part
                    about.setdefault(_APART, {})[field] = part_of_receipt(field)
        return {**files, RECEIPT: _to_json(about)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Receipt:
        """Fields of a later version are passed over. Raises TypeError if one that is needed is missing."""
        return cls(**{name: value for name, value in content.items() if name in cls._fields})


def part_of_receipt(field: str) -> str:
    """The name of the file in which that field stands, if it is large."""
    return f"receipt.{field}.json"


def parts_of_receipt(content: object) -> list[str]:
    """The fields that do not stand in a receipt.json of this content but in files of their own."""
    apart = content.get(_APART) if isinstance(content, dict) else None
    return [field for field in LARGE_FIELDS if field in apart] if isinstance(apart, dict) else []


def _to_json(content: object, indent: int | None = 2) -> bytes:
    # Half a character can stand in a string alone, and there its escape reads back.
    return (json.dumps(content, ensure_ascii=False, indent=indent) + "\n").encode(errors="backslashreplace")


def timestamp(seconds: float) -> str:
    """Seconds since the epoch as the receipt writes them."""
    return _moment(seconds).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds_of(moment: object) -> float | None:
    """Seconds since the epoch of what :func:`timestamp` wrote, or somebody else; None for what is no such time."""
    try:
        return datetime.fromisoformat(moment).timestamp() if isinstance(moment, str) else None
    except (ValueError, OverflowError):
        return None


def _moment(seconds: float) -> datetime:
    """A file can be dated before the year 1, and after 9999."""
    return datetime.fromtimestamp(min(max(seconds, _FIRST_S), _LAST_S), UTC)


_last_id_us = 0


def new_id(after_us: int = 0) -> str:
    """An id that sorts by the time it was made, such as "20261122-130405-123456-7f3a2b" (UTC, then chance).

    It sorts after ``after_us``, in microseconds since the epoch, and after all that this process made before, within
    a microsecond or when the clock was set back.
    """
    global _last_id_us
    _last_id_us = max(time.time_ns() // 1000, after_us + 1, _last_id_us + 1)
    return f"{order_of_time(_last_id_us)}-{os.urandom(3).hex()}"


def time_of(generated_id: str) -> int:
    """When :func:`new_id` made it, in microseconds since the epoch. Raises ValueError if it made it at no time."""
    day, clock, fraction, _ = generated_id.split("-")
    year, month, date = int(day[:4]), int(day[4:6]), int(day[6:])
    hour, minute, second = int(clock[:2]), int(clock[2:4]), int(clock[4:])
    moment = datetime(year, month, date, hour, minute, second, tzinfo=UTC)
    return round(moment.timestamp()) * 1_000_000 + int(fraction)


def order_of_time(microseconds: int) -> str:
    """The part of an id that sorts, for a time in microseconds since the epoch."""
    moment = _moment(microseconds // 1_000_000)
    return f"{moment.year:04}{moment:%m%d-%H%M%S}-{microseconds % 1_000_000:06d}"


def is_generated_id(name: str) -> bool:
    """Whether :func:`new_id` made it, as opposed to somebody who made a folder by hand."""
    return _GENERATED_ID.fullmatch(name) is not None


def check_id(text: str) -> str:
    """The id itself, if it can be one: a folder's name that cannot lead out of the workspace.

    Raises JobNotFoundError otherwise.
    """
    # Halves of characters are not printable either: what is left can be encoded.
    fits = text.isprintable() and 0 < len(text.encode()) <= MAX_ID_BYTES
    if not fits or text.startswith(".") or "/" in text:
        raise JobNotFoundError(f"{text[:80]!r} is no job id: it looks like 20261122-130405-123456-7f3a2b")
    return text
