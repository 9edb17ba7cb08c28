"""``flw --batch``: a batch's answers as OpenAI's Batch API would write them, at any time."""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from os.path import dirname, join, realpath, split, splitext
from typing import Any

from nrvna.batch.ledger import Ledger, batch_ids, find_batch
from nrvna.batch.response import Responses, State
from nrvna.files import encode, replace, sync
from nrvna.terminal import printable
from nrvna.workspace import Workspace

DONE, FAILED, USAGE, NOT_READY = 0, 1, 2, 3

# Lines that are written together, and bytes.
_GROUP, _GROUP_BYTES = 500, 4 * 1024 * 1024
_LINE_BREAKS = "\x85\u2028\u2029"
_POLL_S, _SHOW_EVERY_S, _WARN_AFTER_S = 0.05, 0.5, 2.0


def write_batch(
    workspace: Workspace,
    batch: str,
    output: str | None,
    *,
    errors: str | None = None,
    wait: bool = False,
    as_json: bool = False,
) -> int:
    """Write what there is of a batch, in the order of its requests: answers to ``output``, the others to ``errors``.

    ``batch`` is its id, or how that begins. Each file is replaced as a whole; "-" is standard output. Without an
    ``output`` the counts are printed, as JSON if asked for; without ``errors`` these go beside it, as
    "out_errors.jsonl" beside "out.jsonl", where there are any. With ``wait``, once all is finished.

    Returns 0 if all is done, 1 if some requests failed, 3 if some are unfinished. Raises JobNotFoundError,
    WorkspaceError, and OSError, with its filename, if a file cannot be written.
    """
    ledger = Ledger(workspace, find_batch(workspace, batch))
    if wait:
        _wait(workspace, ledger)
    responses = Responses(workspace, ledger)
    if ledger.head is None:
        print(f"flw: nothing of {ledger.id} is queued yet: wrk --batch with its file goes on there", file=sys.stderr)
        return NOT_READY
    if output is None:
        counts = _count(responses, ledger)
        _print_counts(ledger, counts, as_json=as_json)
    else:
        counts = _write(workspace, responses, ledger, output, errors)
    if counts[State.NOT_QUEUED]:
        about = f"{_number(counts[State.NOT_QUEUED], 'request')} not queued, as wrk was interrupted"
        print(f"flw: {about}: wrk --batch {printable(ledger.head.file)} goes on there", file=sys.stderr)
    if counts[State.NOT_QUEUED] or counts[State.IN_PROGRESS]:
        return NOT_READY
    return FAILED if counts[State.FAILED] else DONE


def list_batches(workspace: Workspace) -> int:
    """``flw --batches``: each on a line, the one that was made last at the end. Raises WorkspaceError."""
    ledgers = [Ledger(workspace, each) for each in batch_ids(workspace)]
    counted = [(ledger, _count(Responses(workspace, ledger), ledger)) for ledger in ledgers]
    for ledger, counts in sorted(counted, key=lambda pair: pair[0].head.created if pair[0].head else 0):
        if ledger.head:
            _print_counts(ledger, counts, as_json=False)
    return DONE


def _count(responses: Responses, ledger: Ledger) -> Counter[State]:
    """How many requests are in each state. Raises WorkspaceError."""
    counts = Counter(responses.state(entry) for entry in ledger.entries())
    counts[_unknown(responses)] += _total(ledger) - len(ledger)
    return counts


def _unknown(responses: Responses) -> State:
    """The state of requests that are in no ledger."""
    return State.IN_PROGRESS if responses.is_being_queued else State.NOT_QUEUED


def _total(ledger: Ledger) -> int:
    return max(ledger.head.requests, len(ledger)) if ledger.head else len(ledger)


def _print_counts(ledger: Ledger, counts: Counter[State], *, as_json: bool) -> None:
    head, total = ledger.head, _total(ledger)
    settled = counts[State.COMPLETED] + counts[State.FAILED]
    if as_json:
        about = {
            "id": ledger.id,
            "file": head.file if head else None,
            "created_at": head.created if head else None,
            "status": State.COMPLETED if settled == total else State.IN_PROGRESS,
            "request_counts": {
                "total": total,
                "completed": counts[State.COMPLETED],
                "failed": counts[State.FAILED],
            },
        }
        print(json.dumps(about))
        return
    parts = [f"{counts[State.COMPLETED]} completed", f"{counts[State.FAILED]} failed"]
    if settled < total:
        parts.append(f"{total - settled} in progress")
    made = f"{datetime.fromtimestamp(head.created):%Y-%m-%d %H:%M}" if head else ""
    print(f"{ledger.id}  {made}  {printable(head.file) if head else ''}: {', '.join(parts)} of {total}")


def _write(
    workspace: Workspace, responses: Responses, ledger: Ledger, output: str, errors: str | None
) -> Counter[State]:
    """Write both files; how many requests are in each state."""
    if errors is None and output != "-":
        stem, ending = splitext(output)
        errors = f"{stem}_errors{ending}"
    counts: Counter[State] = Counter({_unknown(responses): _total(ledger) - len(ledger)})
    with ExitStack() as opened:
        answers = opened.enter_context(_File(output))
        failures = opened.enter_context(_File(errors)) if errors is not None else None
        waiting: list[tuple[_File, bytes]] = []
        size = 0

        def write() -> None:
            # Whoever gets an answer may rely on it, also after a power cut in this very moment.
            workspace.confirm()
            for file, line in waiting:
                file.write(line)
            waiting.clear()

        for entry in ledger.entries():
            state, line = responses.line(entry)
            counts[state] += 1
            file = {State.COMPLETED: answers, State.FAILED: failures}.get(state)
            if file is not None:
                data = _as_line(line)
                waiting.append((file, data))
                size += len(data)
            if len(waiting) >= _GROUP or size >= _GROUP_BYTES:
                write()
                size = 0
        write()
        if failures is not None:
            failures.commit(only_if_needed=True)
        answers.commit()
    _say_written(counts, output, errors)
    return counts


def _as_line(content: dict[str, Any]) -> bytes:
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    # Some programs, and Python's splitlines(), would end the line there. They can only stand in strings.
    for character in _LINE_BREAKS:
        text = text.replace(character, f"\\u{ord(character):04x}")
    return encode(text) + b"\n"


def _say_written(counts: Counter[State], output: str, errors: str | None) -> None:
    parts = [f"{_number(counts[State.COMPLETED], 'answer')} in {'standard output' if output == '-' else output}"]
    if counts[State.FAILED]:
        where = f"in {errors}" if errors is not None else "nowhere: name a file with --errors"
        parts.append(f"{_number(counts[State.FAILED], 'error')} {where}")
    if counts[State.IN_PROGRESS]:
        parts.append(f"{counts[State.IN_PROGRESS]} in progress")
    print(f"flw: {', '.join(parts)}", file=sys.stderr)


class _File:
    """A file of a user's, written beside its place and put there when it is whole.

    Where there is something else than a file, such as a pipe, or for "-", it is written to at once.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        # A link stays one.
        self._target = realpath(path)
        self._beside: str | None = None
        self._is_empty = True
        with _named(path):
            if path == "-":
                sys.stdout.flush()
                self._descriptor = os.dup(1)
            elif _is_special(self._target):
                self._descriptor = os.open(self._target, os.O_WRONLY | os.O_CLOEXEC)
            else:
                folder, name = split(self._target)
                self._beside = join(folder, f".{name}.{os.getpid()}")
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
                self._descriptor = os.open(self._beside, flags, 0o666)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
        if self._beside is not None:
            with suppress(OSError):
                os.unlink(self._beside)

    def write(self, data: bytes) -> None:
        self._is_empty = False
        view = memoryview(data)
        with _named(self._path):
            while view:
                view = view[os.write(self._descriptor, view) :]

    def commit(self, *, only_if_needed: bool = False) -> None:
        """Put it into its place. An empty one may be needed there only in place of an older one."""
        if self._beside is None or (only_if_needed and self._is_empty and not os.path.lexists(self._target)):
            return
        with _named(self._path):
            sync(self._beside)
            replace(self._beside, self._target)
            self._beside = None
            sync(dirname(self._target))


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Names the file in what the system refuses; a pipe that nobody reads any more stays what it is."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None


def _is_special(path: str) -> bool:
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def _wait(workspace: Workspace, ledger: Ledger) -> None:
    """Until all requests are settled that are queued, or that a living ``wrk`` is going to queue."""
    started = time.monotonic()
    is_shown = sys.stderr.isatty()
    show_at, warned = _SHOW_EVERY_S, False
    unsettled: set[int] = set()
    failed: set[int] = set()
    while True:
        looked = time.monotonic()
        responses = Responses(workspace, ledger)
        unsettled.update(responses.news)
        failed.difference_update(responses.news)
        states = {entry.line: responses.state(entry) for entry in ledger.entries(sorted(unsettled))}
        failed.update(line for line, state in states.items() if state is State.FAILED)
        unsettled = {line for line, state in states.items() if state in (State.IN_PROGRESS, State.NOT_QUEUED)}
        if not responses.is_being_queued and State.IN_PROGRESS not in states.values():
            break
        waited = time.monotonic() - started
        if is_shown and waited >= show_at:
            show_at = waited + _SHOW_EVERY_S
            about = f"{len(ledger) - len(unsettled)} of {_total(ledger)} requests"
            about += f", {len(failed)} failed" if failed else ""
            print(f"\r\x1b[K{about}  {waited:.0f} s", end="", file=sys.stderr, flush=True)
        if not warned and waited > _WARN_AFTER_S:
            warned = True
            if not workspace.peers():
                start = "\r\x1b[K" if is_shown else ""
                hint = f"start one: nrvnad MODEL {workspace.path}"
                print(f"{start}flw: still waiting, and no daemon answers it ({hint})", file=sys.stderr)
        # Looking at thousands of jobs takes a while: no more than a twentieth of a core goes into it.
        time.sleep(max(_POLL_S, 20 * (time.monotonic() - looked)))
    if is_shown:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
