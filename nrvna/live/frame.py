"""A snapshot of a workspace drawn as lines. Pure: no clock, no terminal, no file."""

from __future__ import annotations

from typing import NamedTuple

from nrvna.columns import columns_of, fit, fit_end, pad
from nrvna.terminal import printable

# More running jobs than that are counted, not shown, however high the window is.
_MAX_RUNNING, _MAX_FAILURES = 16, 5
_ID_COLUMNS = 29
_NARROW_ID_COLUMNS = 6
_LEAST_WORDS = 8
_LEAST_BAR, _MOST_BAR = 6, 60
_NOTHING = "nothing to wait for: every job is finished"


class Running(NamedTuple):
    """A job that is being answered; ``age_s`` seconds since it was begun, ``tokens`` so far with the end of their
    text."""

    id: str
    age_s: float
    tokens: int
    last_words: str


class Failure(NamedTuple):
    id: str
    reason: str


class Server(NamedTuple):
    """A daemon by its model's name; not ``ready`` while it loads that."""

    model: str
    ready: bool


class Snapshot(NamedTuple):
    """How the jobs are doing that are watched; times in seconds.

    ``done``, ``failed`` and ``unfinished`` count them; ``running`` are those of the unfinished that are being
    answered, the oldest first, ``failures`` the last that failed, the newest first. ``tokens`` were generated since
    it began; what there is too little to go by for is None.
    """

    path: str
    done: int = 0
    failed: int = 0
    unfinished: int = 0
    running: tuple[Running, ...] = ()
    failures: tuple[Failure, ...] = ()
    servers: tuple[Server, ...] = ()
    elapsed_s: float = 0.0
    tokens: int = 0
    tokens_per_s: float | None = None
    left_s: float | None = None
    is_over: bool = False

    @property
    def total(self) -> int:
        return self.done + self.failed + self.unfinished


class Marks(NamedTuple):
    """What is drawn with; text that ``encoding`` cannot hold is shown escaped."""

    done: str
    failed: str
    open: str
    ellipsis: str
    encoding: str = "utf-8"


BLOCKS = Marks("█", "▒", "░", "…")
LETTERS = Marks("#", "x", ".", "...")


class Span(NamedTuple):
    """Some text, and what colour it has where there are colours: "good", "bad", "warning" or none."""

    text: str
    colour: str = ""


Line = tuple[Span, ...]


def text_of(line: Line) -> str:
    """A line without its colours."""
    return "".join(span.text for span in line)


def frame(snapshot: Snapshot, width: int, height: int, marks: Marks = BLOCKS) -> list[Line]:
    """The view as at most ``height`` lines of at most ``width`` columns, both at least 1; the most needed first."""
    if not snapshot.total:
        return [(Span(fit(_NOTHING, width, marks.ellipsis)),)]
    lines = [_progress(snapshot, width, marks), _numbers(snapshot, width, marks)]
    title = _title(snapshot, width, marks)
    # In a low window the jobs need the line more, unless nobody answers them.
    if title and (height > 5 or (height > 2 and not snapshot.servers)):
        lines.insert(0, title)
    room = height - len(lines)
    for section in _sections(snapshot, width, max(0, room), marks):
        lines += section
    return lines[:height]


def sentence(snapshot: Snapshot) -> str:
    """The same in one line, for a log; with the failures named once all is over."""
    if not snapshot.total:
        return _NOTHING
    parts = [f"{snapshot.done + snapshot.failed} of {snapshot.total} finished"]
    if snapshot.is_over:
        parts[0] += f" in {duration(snapshot.elapsed_s)}"
    parts += [f"{snapshot.failed} failed"] if snapshot.failed else []
    parts += _work_done(snapshot) if snapshot.is_over else _rates(snapshot)
    if not snapshot.is_over and not snapshot.servers:
        parts.append(f"no daemon answers them: nrvnad MODEL {snapshot.path}")
    line = ", ".join(parts)
    if snapshot.is_over and snapshot.failures:
        more = snapshot.failed - len(snapshot.failures)
        named = ", ".join(_plain(failure.id) for failure in snapshot.failures)
        line += f"; failed: {named}" + (f" and {more} more" if more > 0 else "")
    return line


def duration(seconds: float) -> str:
    """Some time in one unit, such as "14 s" or "2 h"."""
    for size, unit, most in ((1, "s", 100), (60, "min", 100), (3600, "h", 48)):
        if round(seconds / size) < most:
            return f"{max(0, round(seconds / size))} {unit}"
    return f"{round(seconds / 86400)} d"


# Lines from the top.


def _title(snapshot: Snapshot, width: int, marks: Marks) -> Line | None:
    """Which workspace, and who serves it."""
    if not snapshot.servers:
        if snapshot.is_over:
            return None
        command = f"nrvnad MODEL {snapshot.path}"
        for text in (f"no daemon answers these jobs, start one: {command}", f"no daemon: {command}"):
            if columns_of(_shown(text, marks)) <= width:
                break
        return (Span(fit(_shown(text, marks), width, marks.ellipsis), "warning"),)
    names = [server.model for server in snapshot.servers]
    models = ", ".join(
        f"{name} ({names.count(name)} daemons)" if names.count(name) > 1 else name for name in dict.fromkeys(names)
    )
    if not any(server.ready for server in snapshot.servers):
        models += " (being loaded)"
    for text in (f"{snapshot.path}, served by {models}", models):
        if columns_of(_shown(text, marks)) <= width:
            break
    return (Span(fit(_shown(text, marks), width, marks.ellipsis)),)


def _progress(snapshot: Snapshot, width: int, marks: Marks) -> Line:
    """The bar, and what it says in numbers."""
    finished = f"{snapshot.done + snapshot.failed}/{snapshot.total}"
    failed = f", {snapshot.failed} failed" if snapshot.failed else ""
    numbers = len(finished) + len(failed)
    size = min(_MOST_BAR, width - numbers - 2)
    if size < _LEAST_BAR:
        if numbers > width:
            return (Span(fit(finished + failed, width, marks.ellipsis)),)
        return (Span(finished), Span(failed, "bad")) if failed else (Span(finished),)
    bad = _share(snapshot.failed, snapshot.total, size)
    good = min(_share(snapshot.done, snapshot.total, size), size - bad)
    # Full means finished, and nothing else.
    if snapshot.unfinished and good + bad == size:
        good, bad = (good - 1, bad) if good else (good, bad - 1)
    if not snapshot.unfinished and snapshot.total:
        good = size - bad
    rest = marks.open * (size - good - bad)
    line = (Span(marks.done * good, "good"), Span(marks.failed * bad, "bad"), Span(f"{rest}  {finished}"))
    return (*line, Span(failed, "bad")) if failed else line


def _share(part: int, total: int, size: int) -> int:
    """So many of ``size``: rounded down, but one where there is anything at all."""
    return max(1, part * size // total) if part and total else 0


def _numbers(snapshot: Snapshot, width: int, marks: Marks) -> Line:
    if snapshot.is_over:
        parts = [f"all finished in {duration(snapshot.elapsed_s)}", *_work_done(snapshot)]
    else:
        parts = _rates(snapshot)
        running, waiting = len(snapshot.running), snapshot.unfinished - len(snapshot.running)
        parts += [f"{running} running"] if running else []
        parts += [f"{waiting} waiting"] if waiting > 0 else []
    while len(parts) > 1 and len(", ".join(parts)) > width:
        parts.pop()
    return (Span(fit(", ".join(parts), width, marks.ellipsis)),)


def _rates(snapshot: Snapshot) -> list[str]:
    parts = []
    if snapshot.tokens_per_s is not None:
        parts.append(f"{snapshot.tokens_per_s:,.0f} tokens/s")
    if snapshot.left_s is not None:
        parts.append(f"about {duration(max(1, snapshot.left_s))} left")
    return parts


def _work_done(snapshot: Snapshot) -> list[str]:
    if not snapshot.tokens:
        return []
    speed = [f"{snapshot.tokens / snapshot.elapsed_s:,.0f} tokens/s"] if snapshot.elapsed_s >= 1 else []
    return [f"{snapshot.tokens:,} tokens", *speed]


# Lines of jobs.


def _sections(snapshot: Snapshot, width: int, room: int, marks: Marks) -> list[list[Line]]:
    """The running jobs and the newest failures, in so many lines."""
    failures, running = snapshot.failures[:_MAX_FAILURES], snapshot.running
    for_failures = min(len(failures), max(1, room // 3) if running else room)
    for_running = min(len(running), _MAX_RUNNING, room - for_failures)
    lines = _running(running, for_running, width, marks)
    return [lines, _failures(failures[:for_failures], width, marks)]


def _running(running: tuple[Running, ...], room: int, width: int, marks: Marks) -> list[Line]:
    if room <= 0:
        return []
    shown = running if len(running) <= room else running[: max(1, room - 1)]
    id_columns = min(_ID_COLUMNS, max(columns_of(_shown(job.id, marks)) for job in shown))
    ages = [duration(job.age_s) for job in shown]
    counts = [f"{job.tokens:,} token{' ' if job.tokens == 1 else 's'}" for job in shown]
    if width < 72:
        counts = [f"{job.tokens}" for job in shown]
    age_columns, count_columns = max(map(len, ages)), max(map(len, counts))
    # What goes first where there is no room: the age, most of the id, the tokens.
    if width < id_columns + age_columns + count_columns + 6 + _LEAST_WORDS:
        age_columns = 0
    if width < id_columns + count_columns + 4 + _LEAST_WORDS:
        id_columns = _NARROW_ID_COLUMNS
    if width < id_columns + count_columns + 4 + _LEAST_WORDS:
        count_columns = 0
    lines: list[Line] = []
    for job, age, count in zip(shown, ages, counts, strict=True):
        cells = [pad(_id(job.id, id_columns, marks), id_columns)]
        cells += [age.rjust(age_columns)] if age_columns else []
        cells += [count.rjust(count_columns)] if count_columns else []
        head = "  ".join(cells) + "  "
        words = fit_end(_shown(job.last_words, marks), width - columns_of(head), marks.ellipsis)
        lines.append((Span(fit((head + words).rstrip(), width, marks.ellipsis)),))
    if len(running) > len(shown) and room > 1:
        lines.append((Span(fit(f"and {len(running) - len(shown)} more", width, marks.ellipsis)),))
    return lines


def _failures(failures: tuple[Failure, ...], width: int, marks: Marks) -> list[Line]:
    lines: list[Line] = []
    for failure in failures:
        columns = min(_ID_COLUMNS, columns_of(_shown(failure.id, marks)))
        if width < columns + len("failed") + 4 + 2 * _LEAST_WORDS:
            columns = _NARROW_ID_COLUMNS
        text = f"{_id(failure.id, columns, marks)}  {_shown(failure.reason, marks)}"
        head = "failed  "
        if width < len(head) + _NARROW_ID_COLUMNS + _LEAST_WORDS:
            lines.append((Span(fit(text, width, marks.ellipsis), "bad"),))
        else:
            lines.append((Span(head, "bad"), Span(fit(text, width - len(head), marks.ellipsis))))
    return lines


def _id(job_id: str, columns: int, marks: Marks) -> str:
    """A job's id; where it is too long its end, which is the part that is its own."""
    text = _shown(job_id, marks)
    return fit_end(text, columns, "" if columns == _NARROW_ID_COLUMNS else marks.ellipsis)


def _shown(text: str, marks: Marks) -> str:
    """A text on one line, of what the terminal can show."""
    line = _plain(text)
    return (
        line if marks.encoding == "utf-8" else line.encode(marks.encoding, "backslashreplace").decode(marks.encoding)
    )


def _plain(text: str) -> str:
    return " ".join(printable(text).split())
