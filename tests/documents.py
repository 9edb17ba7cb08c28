"""What a page of the documentation tells its reader to type, command by command, and the files that it gives.

Taken from fenced blocks: in ``console`` a command stands behind ``$ ``, with what it prints below; ``sh`` and
``bash`` hold nothing but commands. A command may go on over lines, as the shell has it. A block of another language
is a file's content if the sentence before it ends with the file's name and a colon: "`words.txt` holds:"; a
``python`` block also if the next block begins with ``$ python NAME``.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
_NAMED = re.compile(r"`([\w./-]+\.\w+)`[^`]*:\s*\Z")
_EXIT_CODE = re.compile(r"#[^#]*\bexit code (\d+)")


class Block(NamedTuple):
    """A fenced block: the line of its first content, counted from 1, its language and lines, the text before it."""

    line: int
    language: str
    lines: list[str]
    before: str


class Command(NamedTuple):
    """What is typed at once, and what is shown below it; ``code`` is the exit code that it must have."""

    page: str
    line: int
    text: str
    shown: str
    code: int


class File(NamedTuple):
    """A file that a page gives its reader."""

    name: str
    content: str


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page, without the indentation that they have as parts of a list."""
    found = []
    for match in _FENCE.finditer(text):
        lines = [line.removeprefix(match[1]) for line in match[3].splitlines()]
        found.append(Block(text.count("\n", 0, match.start(3)) + 1, match[2], lines, text[: match.start()]))
    return found


def steps(page: str, text: str) -> list[Command | File]:
    """What a reader who follows a page does, in order."""
    found: list[Command | File] = []
    for block, following in pairwise([*blocks(text), None]):
        assert block
        if block.language in ("sh", "bash"):
            found += _script(page, block)
        elif block.language == "console":
            found += _session(page, block)
        elif name := _file_name(block, following):
            found.append(File(name, "\n".join(block.lines) + "\n"))
    return found


def _file_name(block: Block, following: Block | None) -> str | None:
    if named := _NAMED.search(block.before):
        return named[1]
    if block.language == "python" and following and following.language == "console":
        called = re.match(r"\$ python3? (\w+\.py)\b", following.lines[0] if following.lines else "")
        return called[1] if called else None
    return None


def _script(page: str, block: Block) -> Iterator[Command]:
    held: list[str] = []
    for number, line in enumerate(block.lines, block.line):
        if not held and (not line.strip() or line.startswith("#")):
            continue
        held.append(line)
        if is_complete("\n".join(held)) or number == block.line + len(block.lines) - 1:
            yield _command(page, number - len(held) + 1, "\n".join(held), "")
            held = []


def _session(page: str, block: Block) -> Iterator[Command]:
    lines = list(enumerate(block.lines, block.line))
    while lines:
        number, line = lines.pop(0)
        if not line.startswith("$ "):
            continue
        text = line[2:]
        while lines and not is_complete(text):
            text += "\n" + lines.pop(0)[1].removeprefix("> ")
        shown = []
        while lines and not lines[0][1].startswith("$ "):
            shown.append(lines.pop(0)[1])
        yield _command(page, number, text, "\n".join(shown))


def _command(page: str, line: int, text: str, shown: str) -> Command:
    stated = _EXIT_CODE.search(text)
    return Command(page, line, text, shown, int(stated[1]) if stated else 0)


def is_complete(text: str) -> bool:
    """Whether a shell would run it, rather than wait for another line."""
    if re.search(r"(?<!\\)(\\\\)*\\$", text):
        return False
    said = subprocess.run(["bash", "-n", "-c", text], capture_output=True, text=True, check=False).stderr
    return not re.search("unexpected end of file|unexpected EOF|delimited by end-of-file", said)


def pages(root: Path) -> dict[str, list[Command | File]]:
    """The pages of a checkout that tell their readers to type something, with what there is to do."""
    found = {}
    for path in [root / "README.md", *sorted((root / "docs").glob("*.md"))]:
        to_do = steps(str(path.relative_to(root)), path.read_text())
        if any(isinstance(step, Command) for step in to_do):
            found[str(path.relative_to(root))] = to_do
    return found
