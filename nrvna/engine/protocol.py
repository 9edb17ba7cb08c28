"""What daemon and engine say to each other: JSON objects, one a line, over the engine's stdin and stdout.

To the engine, first ``{"path", "model", "config"}``, then ``{"add": request}`` each; closing its stdin ends it.
From the engine, one key each:

    {"loading": 0.4}                      part of the model read
    {"ready": {...}}                      the shape it chose, in ``Ready``'s fields
    {"fatal": "reason"}                   it cannot start; it ends
    {"begins": id}                        the engine is at this job from now on, first to turn it into tokens
    {"waits": id}                         it is not at it any more: the job waits in it for a slot, then begins again
    {"joins": id, "leader": id}           it asks for the very same as another: both are computed once
    {"text": {id: "new text", ...}}       what a step added
    {"done": id, "answer": "...", "receipt": {...}}
    {"refused": id, "reason": "..."}      the job can never be answered
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Ready:
    """What an engine says of itself when it is ready."""

    description: str
    backend: str
    parallel: int
    context: int
    threads: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def pack(message: dict[str, Any]) -> bytes:
    """A message as a line. Escapes keep every string, also one with unpaired surrogates, in ASCII."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


class Unpacker:
    """Turns bytes, as they arrive, into messages."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that ``data`` completes. Raises ValueError for a line that is no JSON object."""
        *lines, rest = data.split(b"\n")
        if not lines:
            self._rest.append(rest)
            return []
        lines[0] = b"".join([*self._rest, lines[0]])
        self._rest = [rest]
        messages = [json.loads(line) for line in lines]
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("a message is no JSON object")
        return messages
