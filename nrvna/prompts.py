"""What a prompt is made of on a command line: words, files, what is piped in, a template with its fields."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from nrvna.errors import JobError, SettingError
from nrvna.lines import read_given
from nrvna.order import MAX_PROMPT_BYTES, check_prompt, encode_prompt

_FIELD = re.compile(r"\{(\{(?:[A-Za-z_]\w*|result:[^{}]*)\})\}|\{(?:([A-Za-z_]\w*)|result:[^{}]*)\}")
_BETWEEN = b"\n\n"
_FENCE = re.compile(r"^[ ]{0,3}(`{3,})", re.MULTILINE)


class Part(NamedTuple):
    """Of a prompt: its text, and the places in that, in characters, where answers of other jobs go."""

    text: bytes
    results: tuple[int, ...] = ()


def _encode(text: str) -> bytes:
    """A byte of an argument as it came in. Other halves of characters stay for check_prompt to refuse."""
    try:
        return os.fsencode(text)
    except UnicodeEncodeError:
        return encode_prompt(text)


def part_of_words(words: str, *, waits: bool, encode: Callable[[str], bytes] = _encode) -> Part:
    """Words as they are; of a job that ``waits`` for others they may say where the answers of these go."""
    results: tuple[int, ...] = ()
    if waits:
        # Imported here: few jobs come after others.
        from nrvna.results import read_words

        words, results = read_words(words)
    return Part(encode(words), results)


def compose(parts: Sequence[Part]) -> Part:
    """The parts of a prompt below each other: words, files, and last the text that differs from job to job.

    What many prompts have in common stands first: it is computed once.
    """
    text = _BETWEEN.join(part.text for part in parts)
    if not any(part.results for part in parts):
        return Part(text)
    results: list[int] = []
    size = 0
    for part in parts:
        results += [size + place for place in part.results]
        size += len(part.text.decode(errors="surrogateescape")) + len(_BETWEEN)
    return Part(text, tuple(results))


def quoted_file(path: str) -> bytes:
    """A text file with its name above it, fenced so that its end can be told.

    Raises OSError if it cannot be read, JobError if it is no text, or more than a prompt may have.
    """
    text = read_file(path)
    longest = max((len(fence) for fence in _FENCE.findall(text)), default=2)
    fence = "`" * (longest + 1)
    return f"{path}:\n{fence}\n{text.rstrip()}\n{fence}".encode(errors="surrogateescape")


def read_file(path: str) -> str:
    """A text file. Raises as :func:`quoted_file`."""
    with open(path, "rb") as file:
        data = read_given(file, MAX_PROMPT_BYTES)
    try:
        return check_prompt(data).decode()
    except JobError as error:
        raise JobError(str(error).replace("the prompt", path, 1)) from None


class Template:
    """A text with fields such as ``{path}``, which each job fills in; ``{{path}}`` stands for ``{path}`` itself.

    ``{result}`` and ``{result:ID}`` stay, as they are filled in once there is one. ``given_as`` is the option that it
    came by. Other braces, those of a JSON example too, stay as they are.
    """

    def __init__(self, text: str, given_as: str) -> None:
        self.text = text
        self._given_as = given_as
        self.names = {match[2] for match in _FIELD.finditer(text) if match[2]}

    def check(self, known: Sequence[str]) -> None:
        """Raises SettingError if it names a field that is not among these."""
        for name in sorted(self.names - {"result"} - set(known)):
            raise SettingError(f"{self._given_as} names {{{name}}}: there is {_listed(known)}")

    def fill(self, fields: Mapping[str, object]) -> str:
        """The text with its fields. Raises SettingError if it names one that there is not."""
        return "".join(piece for piece, _ in self._filled(fields))

    def part(self, fields: Mapping[str, object]) -> Part:
        """The same as a part of a prompt: nothing in a field is a place for an answer. Raises as :meth:`fill`."""
        pieces: list[str] = []
        results: list[int] = []
        size = 0
        for piece, is_result in self._filled(fields):
            if is_result:
                results.append(size)
            pieces.append(piece)
            size += len(piece)
        return Part(_encode("".join(pieces)), tuple(results))

    def _filled(self, fields: Mapping[str, object]) -> Iterator[tuple[str, bool]]:
        """Its pieces, and whether each is to become an answer."""
        end = 0
        for match in _FIELD.finditer(self.text):
            yield self.text[end : match.start()], False
            name = match[2]
            if match[1]:
                yield match[1], False
            elif name in fields:
                found = fields[name]
                yield found if isinstance(found, str) else json.dumps(found, ensure_ascii=False), False
            elif name in (None, "result"):
                yield match[0], True
            else:
                raise SettingError(f"{self._given_as} names {match[0]}: there is {_listed(fields)}")
            end = match.end()
        yield self.text[end:], False


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in names) or "no field"
