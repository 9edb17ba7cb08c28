"""The lines of a batch file with their numbers, and what must be known of all of them before the first is queued."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from nrvna.errors import JobError
from nrvna.jsontext import read_json
from nrvna.lines import Lines
from nrvna.order import MAX_PROMPT_BYTES

# A prompt's bytes may be written as escapes.
MAX_LINE_BYTES = 4 * MAX_PROMPT_BYTES
_CHUNK_BYTES = 1 << 16
_SHOWN = 5


class Survey(NamedTuple):
    """What a file is: the SHA-256 of its content, in hex, and how many requests it holds, good and bad."""

    digest: str
    requests: int


def numbered_lines(file: BinaryIO, digest: Any = None) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1 on; ``digest`` is fed all that is read.

    Of a line that is too long only so much is kept that this can be told.
    """
    lines = Lines(MAX_LINE_BYTES)
    while data := file.read(_CHUNK_BYTES):
        if digest is not None:
            digest.update(data)
        for number, line in lines.feed(data):
            yield number, line.strip()
    for number, line in lines.close():
        yield number, line.strip()


def survey(file: BinaryIO) -> Survey:
    """Read a file once, in bounded memory: some tens of bytes for each line.

    Raises JobError, with the numbers of their lines, if requests have the same custom_id, or if there are none.
    """
    digest = hashlib.sha256()
    seen: dict[bytes, int] = {}
    twice: list[str] = []
    requests = 0
    for number, line in numbered_lines(file, digest):
        requests += 1
        custom_id = _custom_id(line)
        if custom_id is None:
            continue
        known = hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        first = seen.setdefault(known, number)
        if first != number:
            twice.append(f"{custom_id[:80]!r} in lines {first} and {number}" if len(twice) < _SHOWN else "")
    if twice:
        more = f", and {len(twice) - _SHOWN} more" if len(twice) > _SHOWN else ""
        raise JobError(
            f"the same custom_id stands there twice: {', '.join(filter(None, twice))}{more}; nothing was queued"
        )
    if not requests:
        raise JobError("there is no request in it: it must have a JSON object on each line")
    return Survey(digest.hexdigest(), requests)


def _custom_id(line: bytes) -> str | None:
    try:
        custom_id = read_json(line.decode())["custom_id"]
    except (ValueError, LookupError, TypeError):
        return None
    return custom_id if isinstance(custom_id, str) else None
