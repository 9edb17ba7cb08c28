"""What is known of an answer that is still being written: a file of lines, which may end or break anywhere.

    {"key": "9f…", "seed": 7}     what the tokens belong to, and the seed they were drawn with
    [5077, "Once"]                a token and the text it added, one line each
    [253, " upon", 2]             the same, where other than one random number was drawn for it

Nothing waits for the disk here. After a crash the file may be short, torn or full of zeros: what counts is its
longest head of whole, well-formed lines.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from nrvna.jsontext import read_json

# More are never drawn for a token: whoever wrote more would have them drawn again.
MAX_DRAWS = 8


class Progress(NamedTuple):
    """The head of a file of progress that can be used.

    ``ends`` holds for each of ``tokens`` the number of bytes up to the end of its line, ``head`` those of the first
    line, ``draws`` the random numbers drawn for each. A ``key`` of None: nothing can go on from here, as for an
    answer that is another job's too.
    """

    key: str | None = None
    seed: int = 0
    tokens: tuple[int, ...] = ()
    text: str = ""
    head: int = 0
    ends: tuple[int, ...] = ()
    draws: tuple[int, ...] = ()

    def end_of(self, kept: int) -> int:
        """Bytes of the file up to the end of its first ``kept`` tokens."""
        return self.ends[kept - 1] if kept else self.head


def first_line(key: str | None, seed: int) -> bytes:
    """What a new file begins with."""
    return _line({"key": key, "seed": seed})


def token_line(token: int | None, text: str, draws: int = 1) -> bytes:
    """What a step adds; a token of None stands for the text of several."""
    return _line([token, text] if draws == 1 else [token, text, draws])


def parse(data: bytes) -> Progress:
    """Never raises, whatever the data."""
    first, *lines = data.split(b"\n")
    # What follows the last line break is no whole line.
    if not lines:
        return Progress()
    del lines[-1]
    about = _object(first)
    key, seed = about.get("key"), about.get("seed")
    if not about or not isinstance(seed, int):
        return Progress()
    tokens: list[int] = []
    ends: list[int] = []
    draws: list[int] = []
    texts: list[str] = []
    resumable = isinstance(key, str)
    end = head = len(first) + 1
    for line in lines:
        end += len(line) + 1
        entry = _entry(line)
        if entry is None:
            break
        token, text, drawn = entry
        texts.append(text)
        if token is None:
            resumable = False
        else:
            tokens.append(token)
            ends.append(end)
            draws.append(drawn)
    if not resumable:
        return Progress(None, 0, (), "".join(texts), head)
    return Progress(str(key), seed, tuple(tokens), "".join(texts), head, tuple(ends), tuple(draws))


def pieces(data: bytes) -> tuple[int, str]:
    """How many tokens whole lines from anywhere in such a file hold, and the text they added. Never raises."""
    entries = [entry for line in data.split(b"\n") if (entry := _entry(line))]
    return sum(token is not None for token, _, _ in entries), "".join(text for _, text, _ in entries)


def _entry(line: bytes) -> tuple[int | None, str, int] | None:
    """A line's token, text and draws; None if it is no such line."""
    entry = _load(line)
    if not isinstance(entry, list) or len(entry) not in (2, 3) or not isinstance(entry[1], str):
        return None
    token, text, draws = entry if len(entry) == 3 else (*entry, 1)
    if not _is_count(draws) or draws > MAX_DRAWS or not (token is None or _is_count(token)):
        return None
    return token, text, draws


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _line(content: object) -> bytes:
    # ASCII: every string, also one with unpaired surrogates, survives.
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"


def _object(line: bytes) -> dict[str, Any]:
    content = _load(line)
    return content if isinstance(content, dict) else {}


def _load(line: bytes) -> object:
    try:
        return read_json(line)
    except ValueError:
        return None
