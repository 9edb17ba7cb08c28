"""What daemon and engine say to each other: JSON objects, one a line, over the engine's stdin and stdout.

To the engine, first ``{"path", "model", "config", "share", "name", "limits"}``, where ``share`` is which of its
daemon's engines it is and how many those are, ``name`` tells it from them, and ``limits`` are the fields of
``Limits`` or null; then these; closing its stdin ends it:

    {"add": {"id", "prompt", "queued", "system", "sampling", "task", "priority", "resume"}}
                                          a job, with its task (see task.py); "resume" is null or what is on record of
                                          an interrupted attempt: {"key", "seed", "tokens": [id, ...],
                                          "draws": [1, ...]} from its "starts" and "new"
    {"go": [id, ...]}                     the starts of these are on record: they may be decoded from now on
    {"drop": id}                          it was cancelled: nothing more is wanted of it

From the engine, one key each that names the kind, the first where there are several:

    {"loading": 0.4}                      part of the model read
    {"tries": {...}}                      what it takes memory for next, in ``Limits``'s fields, also later on: if it
                                          dies for want of memory, it was too much
    {"ready": {...}}                      the shape it chose, in ``Ready``'s fields
    {"fatal": "reason"}                   it cannot start; it ends
    {"reads": id}                         it is at turning this prompt into tokens, several at once if one takes long:
                                          if it dies now, it may have been of that
    {"waits": id}                         it is not at it any more: the job waits in it for a slot
    {"joins": id, "leader": id, "text": "..."}
                                          it asks for the very same as another: both are computed once, and there is
                                          this much text already. It never starts by itself
    {"starts": {id: {"key", "seed", "kept"}, ...}}
                                          there is room for these; nothing of them is decoded before their go. Of the
                                          tokens to resume it goes on from the first "kept"; those and the new ones
                                          belong to "key", with the "seed" in force
    {"new": {id: [token, "text", draws], ...}}
                                          what a step added to unfinished answers, the text often empty, and how many
                                          random numbers were drawn for it. Comes after every step, also if it added
                                          nothing: the engine is alive
    {"done": id, "answer": "...", "receipt": {...}, "beside": {name: "base64", ...}}
                                          what the last step added is in the answer and was not told as new: so the
                                          tokens on record always leave one to sample. Files may stand beside the
                                          answer. A receipt with an error is of a job that failed in its own way
    {"refused": id, "reason": "..."}      the job can never be answered
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nrvna.jsontext import read_json


@dataclass(frozen=True)
class Share:
    """What a device holds of a model, in bytes: of a GPU with the memory it has left and in all, 0 for the host."""

    name: str
    weights: int
    free: int = 0
    total: int = 0


@dataclass(frozen=True)
class Ready:
    """What an engine says of itself when it is ready.

    ``device`` is what computes, as its makers call it. A model that ``writes`` does not only make vectors. Where a
    GPU computes, ``offloaded`` of ``layers`` are on it, and ``shares`` say what lies where; also as JSON has them.
    """

    description: str
    backend: str
    parallel: int
    context: int
    threads: int
    device: str = ""
    writes: bool = True
    layers: int = 0
    offloaded: int = 0
    shares: tuple[Share, ...] = ()

    def __post_init__(self) -> None:
        made = (share if isinstance(share, Share) else Share(**share) for share in self.shares)
        object.__setattr__(self, "shares", tuple(made))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def pack(message: dict[str, Any]) -> bytes:
    """A message as a line. Escapes keep every string, also one with unpaired surrogates, in ASCII."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def pack_files(files: Mapping[str, bytes]) -> dict[str, str]:
    """The contents of files, by name, as JSON can carry them."""
    return {name: base64.b64encode(content).decode() for name, content in files.items()}


def unpack_files(packed: Mapping[str, str]) -> dict[str, bytes]:
    """What :func:`pack_files` was given."""
    return {name: base64.b64decode(content) for name, content in packed.items()}


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
        messages = [read_json(line) for line in lines]
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("a message is no JSON object")
        return messages
