"""Many prompts in one call of ``wrk``: a job for each line of a file, or for each file of some."""

from __future__ import annotations

import glob
import os
import select
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from nrvna.errors import JobError, JsonError, SettingError, SubmitError
from nrvna.jsontext import read_json
from nrvna.lines import Lines
from nrvna.order import MAX_PROMPT_BYTES, Order, check_prompt, copies, encode_prompt
from nrvna.prompts import Part, Template, compose, part_of_words, quoted_file, read_file
from nrvna.workspace import Workspace

# Jobs that wait for the disk together: many, so that it is asked seldom; few, so that a pipe's ids come steadily.
GROUP = 200
_GROUP_BYTES = 16 * 1024 * 1024
_SHOW_AFTER_S = 2.0
# What a template can name of a line, and of a file.
LINE_FIELDS = ("line", "number")
FILE_FIELDS = ("file", "path", "name", "stem", "text")


class Row(NamedTuple):
    """What makes a job of a pile its own. ``label`` says where it comes from, ``fields`` are those of a template.

    ``text`` gives what goes under the words where there is no template, ``asks`` is an object that asks for a job.
    """

    label: str
    fields: Mapping[str, object]
    text: Callable[[], bytes] | None = None
    asks: Mapping[str, Any] | None = None


class Recipe(NamedTuple):
    """How rows become jobs. ``orders`` are what is asked of each of a prompt's copies, without the prompt.

    ``key`` and ``tags`` may have fields, as ``template`` has.
    """

    words: Sequence[str]
    files: Sequence[bytes]
    template: Template | None
    orders: Sequence[Order]
    key: Template | None = None
    tags: Sequence[Template] = ()

    def jobs(self, row: Row) -> list[Order]:
        """Raises JobError or SettingError for what cannot be asked, OSError for a file that cannot be read."""
        prompt, orders = self._prompt(row)
        key = self.key.fill(row.fields) if self.key else None
        tags = [tag.fill(row.fields) for tag in self.tags]
        made = copies(check_prompt(prompt.text), orders, tags, key, prompt.results)
        for order in made:
            order.check()
        return made

    def _prompt(self, row: Row) -> tuple[Part, Sequence[Order]]:
        """The prompt of a row's jobs, and what is asked of each of these beside."""
        orders, last = self.orders, []
        if self.template:
            return compose([self.template.part(row.fields), *map(Part, self.files)]), orders
        if row.asks is not None:
            # Imported here: it takes longer than most piles.
            from nrvna.asked import read_object

            text, orders = read_object(row.asks, orders)
            last = [part_of_words(text, waits=bool(orders[0].after), encode=encode_prompt)]
        elif row.text:
            last = [Part(row.text())]
        words = [part_of_words(" ".join(self.words), waits=bool(orders[0].after))] if self.words else []
        return compose([*words, *map(Part, self.files), *last]), orders


def lines(descriptor: int) -> Iterator[list[Row]]:
    """A row for each line, as many at a time as are there, up to a group; blank ones are left out."""
    for group in _grouped_lines(descriptor):
        yield [
            Row(f"line {number}", {"line": _text(line), "number": number}, partial(bytes, line))
            for number, line in group
        ]


def objects(descriptor: int) -> Iterator[list[Row | JobError]]:
    """A row for each line that is a JSON object, and an error for each that is none."""
    for group in _grouped_lines(descriptor):
        yield [_object(number, line) for number, line in group]


def files(patterns: Sequence[str]) -> Iterator[list[Row]]:
    """A row for each file that one of the patterns matches. Raises SettingError for one that matches none."""
    names: list[str] = []
    for pattern in patterns:
        found = sorted(name for name in glob.iglob(pattern, recursive=True) if os.path.isfile(name))
        if not found:
            _check_readable(pattern)
            raise SettingError(f"--each {pattern!r} matches no file")
        names += found
    rows = [Row(name, _FileFields(name), partial(quoted_file, name)) for name in dict.fromkeys(names)]
    for start in range(0, len(rows), GROUP):
        yield rows[start : start + GROUP]


def _check_readable(pattern: str) -> None:
    """Raises OSError if the folder in which a pattern's matches would be may not be read: glob passes over such."""
    folder = os.path.dirname(pattern)
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    with suppress(FileNotFoundError, NotADirectoryError):
        os.listdir(folder or ".")


class _FileFields(Mapping[str, object]):
    """What a template can name of a file; it is read only for the fields that hold what is in it."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __getitem__(self, field: str) -> object:
        name = os.path.basename(self._path)
        match field:
            case "file":
                return quoted_file(self._path).decode(errors="surrogateescape")
            case "text":
                return read_file(self._path)
            case "path":
                return self._path
            case "name":
                return name
            case "stem":
                return os.path.splitext(name)[0]
        raise KeyError(field)

    def __contains__(self, field: object) -> bool:
        return field in FILE_FIELDS

    def __iter__(self) -> Iterator[str]:
        return iter(FILE_FIELDS)

    def __len__(self) -> int:
        return len(FILE_FIELDS)


def queue_pile(
    workspace: Workspace,
    groups: Iterable[Sequence[Row | JobError]],
    recipe: Recipe,
    tell: Callable[[list[str]], None],
) -> tuple[list[str], int]:
    """Queue a job for each row, and tell its id as soon as it is safe; the ids, and how many rows cannot run.

    Raises SubmitError and WorkspaceError, with the ids told that are queued.
    """
    started, ids, refused = time.monotonic(), [], 0
    shows = sys.stderr.isatty() and not sys.stdout.isatty()
    for group in groups:
        orders: list[Order] = []
        for row in group:
            try:
                if isinstance(row, JobError):
                    raise row
                orders += recipe.jobs(row)
            except (JobError, SettingError) as error:
                refused += 1
                label = f"{row.label}: " if isinstance(row, Row) else ""
                print(f"wrk: {label}{error}", file=sys.stderr)
            except OSError as error:
                refused += 1
                print(f"wrk: cannot read {error.filename}: {error.strerror}", file=sys.stderr)
        try:
            queued = workspace.submit_all(orders)
        except SubmitError as error:
            tell(error.queued)
            raise
        tell(queued)
        ids += queued
        if shows and time.monotonic() - started > _SHOW_AFTER_S:
            print(f"\r\x1b[K{len(ids)} queued", end="", file=sys.stderr, flush=True)
    if shows:
        print(f"\r\x1b[K{len(ids)} queued", file=sys.stderr)
    return ids, refused


def _grouped_lines(descriptor: int) -> Iterator[list[tuple[int, bytes]]]:
    """Lines with their numbers; of one that is too long for a prompt only so much that this can be told."""
    group: list[tuple[int, bytes]] = []
    lines, size = Lines(MAX_PROMPT_BYTES), 0
    while data := os.read(descriptor, 1 << 16):
        for number, line in lines.feed(data):
            group.append((number, line))
            size += len(line)
            if len(group) >= GROUP or size >= _GROUP_BYTES:
                yield group
                group, size = [], 0
        # Whoever writes slowly still gets each id as soon as the line is there.
        if group and not select.select([descriptor], (), (), 0)[0]:
            yield group
            group, size = [], 0
    group += lines.close()
    if group:
        yield group


def _text(line: bytes) -> str:
    return line.decode(errors="surrogateescape")


def _object(number: int, line: bytes) -> Row | JobError:
    try:
        content = read_json(line)
    except JsonError as error:
        return JobError(f"line {number} {error}")
    except ValueError as error:
        return JobError(f"line {number} is no JSON: {error}")
    if not isinstance(content, dict):
        return JobError(f"line {number} is no JSON object")
    return Row(f"line {number}", content, None, content)
