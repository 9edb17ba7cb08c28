"""``wrk``: queue prompts. Prints the jobs' ids, and returns at once."""

from __future__ import annotations

import argparse
import errno
import fcntl
import os
import select
import sys
import termios
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from nrvna.arguments import Parser
from nrvna.errors import JobError, NoFolderError, SettingError, SubmitError, WorkspaceError
from nrvna.terminal import abandon_stdout, open_streams
from nrvna.workspace import MAX_PROMPT_BYTES, Workspace, check_prompt

EPILOG = """\
examples:
  wrk ~/work "Explain what a B-tree is."       queue a prompt
  git diff | wrk ~/work "Review this:" -       the words, then standard input
  wrk ~/work < prompt.txt                      standard input alone
  wrk ~/work "Translate:" --lines words.txt    a job for each line, the words before it
  wrk ~/work "Good news?" --choices yes,no     one of these, with probabilities
  wrk ~/work "Say hi." --temp 0 --stop .       settings of this job's own
  id=$(wrk ~/work "Name a prime."); flw -w ~/work $id
  wrk --init ~/work                            make a workspace without starting a daemon

exit codes: 0 queued, 1 the workspace could not be written, 2 usage, or a prompt that cannot run
"""

# Jobs that wait for the disk together: many, so that it is asked seldom; few, so that a pipe's ids come steadily.
GROUP = 200
# With these alone, nothing is asked but an answer to the prompt.
_PLAIN_OPTIONS = ("-", "--", "--lines", "--model", "--init")
_GROUP_BYTES = 16 * 1024 * 1024
_SHOW_AFTER_S = 2.0


def compose_prompt(words: list[str], piped: bytes | None) -> bytes:
    """The words as a shell joins them, and below them what was piped in, if anything was."""
    parts = [os.fsencode(" ".join(words))] if words else []
    if piped is not None:
        parts.append(piped)
    return b"\n\n".join(parts)


def read_piped() -> bytes:
    """All of standard input, or just more than a prompt may have."""
    return sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)


def pipe_is_waiting() -> bool:
    """Whether somebody wrote to standard input through a pipe."""
    try:
        waiting = fcntl.ioctl(sys.stdin.fileno(), termios.FIONREAD, b"\0" * 4)
        return not sys.stdin.isatty() and int.from_bytes(waiting, sys.byteorder) > 0
    except (OSError, ValueError):
        return False


def grouped_lines(descriptor: int) -> Iterator[list[tuple[int, bytes]]]:
    """Lines with their numbers, as many at a time as are there, up to a group; blank ones are left out.

    Of a line that is too long for a prompt only so much is kept that this can be told.
    """
    group: list[tuple[int, bytes]] = []
    number, size, rest = 0, 0, b""
    while data := os.read(descriptor, 1 << 16):
        *lines, rest = (rest + data).split(b"\n")
        rest = rest[: MAX_PROMPT_BYTES + 1]
        for line in lines:
            number += 1
            if line.strip():
                group.append((number, line.removesuffix(b"\r")))
                size += len(line)
            if len(group) >= GROUP or size >= _GROUP_BYTES:
                yield group
                group, size = [], 0
        # Whoever writes slowly still gets each id as soon as the line is there.
        if group and not select.select([descriptor], (), (), 0)[0]:
            yield group
            group, size = [], 0
    if rest.strip():
        group.append((number + 1, rest))
    if group:
        yield group


class Order(NamedTuple):
    """What is asked of every prompt of a call: ``settings`` for each of its copies, a model, a task."""

    settings: list[dict[str, Any]]
    model: str | None
    task: dict[str, Any]

    def submit(self, workspace: Workspace, prompts: list[bytes]) -> list[str]:
        """Queue the prompts, copies of one behind each other. Raises as Workspace.submit_all."""
        copies = [prompt for prompt in prompts for _ in self.settings]
        return workspace.submit_all(copies, self.settings * len(prompts), self.model, self.task)


def read_order(options: argparse.Namespace, *, asks: bool) -> Order:
    """Raises SettingError, JobError or OSError for what cannot be asked."""
    if not asks:
        return Order([{}], options.model, {})
    from nrvna import ask

    return Order(ask.settings_of(options), options.model, ask.task_of(options))


def queue_lines(
    workspace: Workspace, words: list[str], groups: Iterable[list[tuple[int, bytes]]], order: Order
) -> int:
    """``wrk --lines``: a job for each line, and its id as soon as it is safe; 2 if some cannot run.

    Raises SubmitError and WorkspaceError, with the ids printed that are queued.
    """
    started, total, refused = time.monotonic(), 0, 0
    shows = sys.stderr.isatty() and not sys.stdout.isatty()
    for group in groups:
        prompts = []
        for number, line in group:
            try:
                prompts.append(check_prompt(compose_prompt(words, line)))
            except JobError as error:
                refused += 1
                print(f"wrk: line {number}: {error}", file=sys.stderr)
        try:
            queued = order.submit(workspace, prompts)
        except SubmitError as error:
            print_ids(error.queued)
            raise
        print_ids(queued)
        total += len(queued)
        if shows and time.monotonic() - started > _SHOW_AFTER_S:
            print(f"\r\x1b[K{total} queued", end="", file=sys.stderr, flush=True)
    if shows:
        print(f"\r\x1b[K{total} queued", file=sys.stderr)
    return 2 if refused else 0


def print_ids(ids: list[str]) -> None:
    """Raises OSError if standard output does not take them."""
    if ids:
        print("\n".join(ids), flush=True)


def encouragement(workspace: Workspace, job_id: str) -> str:
    """What to do next, for a person."""
    with suppress(WorkspaceError):
        if not workspace.peers():
            return f"queued, and waiting for a daemon: nrvnad MODEL {workspace.path}"
    return f"queued; collect the answer with: flw -w {workspace.path} {job_id}"


def make_parser(*, everything: bool) -> Parser:
    """What wrk takes, with its help: all of it, or as little as most calls need, which is quicker."""
    parser = Parser(
        prog="wrk",
        usage="wrk [options] WORKSPACE [PROMPT ...]",
        description="Queue prompts in a workspace and print the jobs' ids. A daemon (nrvnad) answers them.",
        epilog=EPILOG,
    )
    parser.add_argument("workspace", metavar="WORKSPACE", help="the workspace's folder")
    parser.add_argument(
        "prompt", nargs="*", default=[], metavar="PROMPT", help="words of the prompt; a last - is standard input"
    )
    parser.add_argument("--lines", metavar="FILE", help="a job for each line of FILE, - for standard input")
    parser.add_argument("--model", metavar="NAME", help="leave it to a daemon whose model file has this name")
    parser.add_argument("--init", action="store_true", help="make the workspace first if it does not exist")
    if everything:
        # Imported here: it takes longer than all the rest of what most calls do.
        from nrvna.ask import add_options

        add_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    open_streams()
    given = sys.argv[1:] if argv is None else argv
    asks = any(word.startswith("-") and word.split("=")[0] not in _PLAIN_OPTIONS for word in given)
    parser = make_parser(everything=asks)
    options = parser.parse_args(given)
    words: list[str] = options.prompt
    workspace = Workspace(options.workspace)
    queued: list[str] = []
    try:
        if options.model == "":
            raise SettingError("--model is '', but must be the name of a daemon's model file")
        order = read_order(options, asks=asks)
    except (SettingError, JobError) as error:
        parser.exit(2, f"wrk: {error}\n")
    except OSError as error:
        parser.exit(2, f"wrk: cannot read {error.filename}: {error.strerror}\n")
    try:
        if options.init:
            workspace.create()
            if not words and options.lines is None:
                return 0
        try:
            workspace.check()
        except WorkspaceError as error:
            parser.exit(2, f"wrk: {error}\n")
        if options.lines is not None:
            return queue_lines(workspace, words, grouped_lines(_open_lines(parser, options.lines)), order)
        piped = None
        if words[-1:] == ["-"] or (not words and not sys.stdin.isatty()):
            words = words[:-1]
            piped = read_piped()
        elif not words:
            parser.exit(2, "wrk: no prompt: name one after the workspace, or pipe one in\n")
        elif pipe_is_waiting():
            # In a shell's loop it is the loop's: it is left alone, but not without a word.
            print("wrk: standard input is not part of this prompt; a last - would put it there", file=sys.stderr)
        queued = order.submit(workspace, [check_prompt(compose_prompt(words, piped))])
        print_ids(queued)
    except JobError as error:
        parser.exit(2, f"wrk: {error}\n")
    except WorkspaceError as error:
        parser.exit(2 if isinstance(error, NoFolderError) else 1, f"wrk: {error}\n")
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        abandon_stdout()
        about = f"{queued[0]} is queued, but " if queued else ""
        parser.exit(1, f"wrk: {about}standard output failed: {error.strerror}\n")
    if sys.stderr.isatty():
        print(encouragement(workspace, queued[0]), file=sys.stderr)
    return 0


def _open_lines(parser: argparse.ArgumentParser, path: str) -> int:
    if path == "-":
        return sys.stdin.fileno()
    try:
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        parser.exit(2, f"wrk: cannot read {path}: {error.strerror}\n")


def run() -> None:
    """The installed command ``wrk``."""
    sys.exit(main())


if __name__ == "__main__":
    run()
