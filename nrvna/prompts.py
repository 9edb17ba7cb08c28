"""What a prompt is made of on a command line: words, files, what is piped in, a template with its fields."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence

from nrvna.errors import JobError, SettingError
from nrvna.order import MAX_PROMPT_BYTES, check_prompt, encode_prompt

_FIELD = re.compile(r"\{\{([A-Za-z_]\w*)\}\}|\{([A-Za-z_]\w*)\}")
_FENCE = re.compile(r"^[ ]{0,3}(`{3,})", re.MULTILINE)


def compose(words: Sequence[str], files: Sequence[bytes], last: bytes | None) -> bytes:
    """The words as a shell joins them, files below them, and below these the text that differs from job to job.

    What many prompts have in common stands first: it is computed once.
    """
    parts = [_encode(" ".join(words))] if words else []
    parts += files
    if last is not None:
        parts.append(last)
    return b"\n\n".join(parts)


def _encode(text: str) -> bytes:
    """A byte of an argument as it came in. Other halves of characters stay for check_prompt to refuse."""
    try:
        return os.fsencode(text)
    except UnicodeEncodeError:
        return encode_prompt(text)


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
        data = file.read(MAX_PROMPT_BYTES + 1)
    try:
        return check_prompt(data).decode()
    except JobError as error:
        raise JobError(str(error).replace("the prompt", path, 1)) from None


class Template:
    """A text with fields such as ``{path}``, which each job fills in; ``{{path}}`` stands for ``{path}`` itself.

    ``given_as`` is the option that it came by. Other braces, those of a JSON example too, stay as they are.
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
        """Raises SettingError if it names a field that there is not.

        ``{result}`` stays, as it is filled in once there is one.
        """

        def value(match: re.Match[str]) -> str:
            if match[1]:
                return f"{{{match[1]}}}"
            if match[2] in fields:
                found = fields[match[2]]
                return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
            if match[2] == "result":
                return match[0]
            raise SettingError(f"{self._given_as} names {match[0]}: there is {_listed(fields)}")

        return _FIELD.sub(value, self.text)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in names) or "no field"
