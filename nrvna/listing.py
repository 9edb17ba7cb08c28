"""The list of jobs, one a line: what people want to know at a glance, and the same for programs, in JSON."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from os.path import join
from typing import NamedTuple

from nrvna.columns import columns_of, fit, pad
from nrvna.durations import ago
from nrvna.files import read_head
from nrvna.job import Job, JobState
from nrvna.lines import head_line
from nrvna.selection import Glance, queued_at, read_order, resettled
from nrvna.terminal import printable, terminal

SHOWN = 20
# So many lines are made before the first of them is printed.
_AT_ONCE = 200
# Of prompt and answer no more than this is looked at, in bytes.
_HEAD_BYTES = 4096
# With less room for them, ids are shown by their end.
_FULL_ID_COLUMNS = 110
_PIPE_COLUMNS = 160
# The least for prompt and answer: with less, tokens and age give way.
_LEAST_WORDS = 12
_COLOURS = {"failed": "\x1b[31m", "cut": "\x1b[33m", "running": "\x1b[32m"}
_ARROW = " → "
_DIM, _PLAIN = "\x1b[2m", "\x1b[m"


class Row(NamedTuple):
    """``name`` is what the job is shown as, ``age_s`` seconds since it was queued; of texts the first line."""

    name: str
    word: str
    age_s: float
    tokens: int | None
    prompt: str
    answer: str


def row_of(glance: Glance, job: Job, name: str) -> Row:
    """What is shown of a job."""
    workspace = glance.workspace
    prompt = read_head(join(job.directory, "prompt.txt"), _HEAD_BYTES)
    if not prompt and (moved := resettled(workspace, job)):
        job, prompt = moved, read_head(join(moved.directory, "prompt.txt"), _HEAD_BYTES)
    word, tokens, answer = job.state.value, None, ""
    if job.state is JobState.DONE:
        receipt = workspace.receipt(job)
        if receipt:
            word = "cut" if receipt.was_cut else word
            tokens = receipt.generated_tokens
        answer = read_head(join(job.directory, "result.txt"), _HEAD_BYTES)
    elif job.state is JobState.FAILED:
        answer = read_head(join(job.directory, "error.txt"), _HEAD_BYTES)
    elif job.state is JobState.RUNNING:
        growing = workspace.progress(job)
        tokens, answer = len(growing.tokens) or None, growing.text
    elif glance.unfinished(read_order(workspace.about(job)).after):
        word = "waiting"
    age = glance.now - queued_at(job, {})
    return Row(name, word, age, tokens, first_line(prompt), first_line(answer))


def first_line(text: str) -> str:
    """The first line with something on it, as it may be shown."""
    return printable(head_line(text)).replace("\t", " ")


class Widths(NamedTuple):
    """Columns of names, of states and of counts of tokens."""

    names: int = 0
    words: int = 0
    counts: int = 0

    def around(self, rows: Sequence[Row]) -> Widths:
        """Wide enough for these rows too."""
        words = max((len(row.word) for row in rows), default=0)
        counts = max((len(str(row.tokens)) for row in rows if row.tokens is not None), default=0)
        return self._replace(words=max(self.words, words), counts=max(self.counts, counts))


class Table:
    """Rows as lines of so many columns at most, but for names, which are never cut."""

    def __init__(self, columns: int, *, colour: bool = False) -> None:
        self._columns = columns
        self._colour = colour

    def heading(self, widths: Widths) -> str:
        cells, room = self._layout(widths)
        head = [pad("job", cells[0]), pad("state", cells[1]), " age", "tokens".rjust(widths.counts)][: len(cells)]
        line = fit("  ".join([*head, fit("prompt → answer", room)]).rstrip(), self._columns)
        return f"{_DIM}{line}{_PLAIN}" if self._colour else line

    def lines(self, rows: Sequence[Row], widths: Widths) -> Iterator[str]:
        cells, room = self._layout(widths)
        for row in rows:
            word = row.word.ljust(widths.words)
            if self._colour and row.word in _COLOURS:
                word = f"{_COLOURS[row.word]}{word}{_PLAIN}"
            tokens = "" if row.tokens is None else str(row.tokens)
            head = [pad(row.name, widths.names), word, ago(row.age_s).rjust(4), tokens.rjust(widths.counts)]
            yield "  ".join([*head[: len(cells)], _words(row, room)]).rstrip()

    def _layout(self, widths: Widths) -> tuple[list[int], int]:
        """The widths of the cells that there is room for, and how much is left for prompt and answer."""
        cells = [widths.names, widths.words, 4, widths.counts]
        while len(cells) > 2 and self._columns - sum(cells) - 2 * len(cells) < _LEAST_WORDS:
            cells.pop()
        return cells, max(0, self._columns - sum(cells) - 2 * len(cells))


def _words(row: Row, room: int) -> str:
    """The beginnings of prompt and answer; what one leaves of its share of the room, the other gets."""
    if not row.answer:
        return fit(row.prompt, room)
    prompt = fit(row.prompt, max(room * 2 // 5, room - columns_of(_ARROW) - columns_of(row.answer)))
    rest = room - columns_of(prompt) - columns_of(_ARROW)
    return prompt + _ARROW + fit(row.answer, rest) if rest > 0 else fit(row.prompt, room)


def print_list(glance: Glance, jobs: Sequence[Job]) -> None:
    """On standard output; a terminal gets a heading, colours, and short names where it is narrow.

    The first lines of a long list are there at once: what may be wide further on gets its room from the beginning.
    """
    is_terminal = sys.stdout.isatty()
    columns = (os.get_terminal_size(sys.stdout.fileno()).columns or 80) if is_terminal else _PIPE_COLUMNS
    short = is_terminal and columns < _FULL_ID_COLUMNS
    names = glance.short_names(jobs) if short else {job.id: printable(job.id) for job in jobs}
    table = Table(columns, colour=is_terminal and terminal().has_colour)
    is_long = len(jobs) > _AT_ONCE
    widths = Widths(
        max(map(columns_of, names.values()), default=0), 7 if is_long else 0, 6 if is_long or is_terminal else 0
    )
    for start in range(0, len(jobs), _AT_ONCE):
        rows = [row_of(glance, job, names[job.id]) for job in jobs[start : start + _AT_ONCE]]
        widths = widths.around(rows)
        if is_terminal and not start:
            print(table.heading(widths))
        print("\n".join(table.lines(rows, widths)), flush=True)


def print_sum(glance: Glance, shown: int, *, filtered: bool, limit: int | None) -> None:
    """On a terminal a line that sums up what was listed."""
    if not sys.stderr.isatty():
        return
    total = len(glance)
    if not total:
        line = f'no jobs yet: wrk {glance.workspace.path} "a prompt" queues one'
    elif filtered:
        more = ": the newest; --all shows the others too" if shown == limit else ""
        line = f"{shown} of {total} jobs{more}"
    else:
        numbers = ", ".join(f"{number} {state}" for state, number in glance.counts().items())
        older = f"; {total - shown} older ones with --all" if shown < total else ""
        line = f"{total} {'job' if total == 1 else 'jobs'}: {numbers}{older}"
    print(line, file=sys.stderr)


def print_json(glance: Glance, jobs: Iterable[Job], *, as_lines: bool) -> None:
    """Each job's facts on a line of its own; together one array, or ``as_lines`` without what would make it one."""
    # Imported here: a list for people comes without them.
    from nrvna.facts import as_json, facts

    plain = sys.stdout.isatty()
    before = "" if as_lines else "["
    for job in jobs:
        sys.stdout.write(before + as_json(facts(glance, job), plain=plain))
        before = "\n" if as_lines else ",\n"
    if not as_lines:
        sys.stdout.write("[]\n" if before == "[" else "]\n")
    elif before:
        sys.stdout.write("\n")
