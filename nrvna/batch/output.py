"""``flw --batch``: a batch's answers as OpenAI's Batch API would write them, at any time."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from os.path import splitext
from typing import Any

from nrvna.batch.ledger import Ledger, batch_ids, find_batch
from nrvna.batch.response import Responses, State
from nrvna.errors import WorkspaceError
from nrvna.files import encode, whole_file
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

    Returns 0 if all is done, 1 if some requests failed, 3 if some are unfinished. Raises JobNotFoundError
    and WorkspaceError, also if a file cannot be written, which is then as it was before.
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
        writers = {State.COMPLETED: opened.enter_context(_writing(output))}
        waiting: list[tuple[State, bytes]] = []
        size = 0

        def write() -> None:
            # Whoever gets an answer may rely on it, also after a power cut in this very moment.
            workspace.confirm()
            for state, data in waiting:
                writers[state](data)
            waiting.clear()

        if errors is not None and os.path.lexists(errors):
            # What an earlier call wrote there may be over.
            writers[State.FAILED] = opened.enter_context(_writing(errors))
        for entry in ledger.entries():
            state, line = responses.line(entry)
            counts[state] += 1
            if state is State.FAILED and errors is not None and state not in writers:
                writers[state] = opened.enter_context(_writing(errors))
            if state in writers:
                data = _as_line(line)
                waiting.append((state, data))
                size += len(data)
            if len(waiting) >= _GROUP or size >= _GROUP_BYTES:
                write()
                size = 0
        write()
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


@contextmanager
def _writing(path: str) -> Iterator[Callable[[bytes], None]]:
    """A function that writes to a file of that name, see whole_file, or to standard output for "-".

    Raises WorkspaceError that names it if it cannot be written, and BrokenPipeError if nobody reads it any more.
    """
    try:
        if path == "-":
            yield _print_bytes
        else:
            with whole_file(path) as write:
                yield write
    except (WorkspaceError, BrokenPipeError):
        raise
    except OSError as error:
        raise WorkspaceError(f"cannot write {path}: {error.strerror}") from error


def _print_bytes(data: bytes) -> None:
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise WorkspaceError(f"standard output failed: {error.strerror}") from error


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
