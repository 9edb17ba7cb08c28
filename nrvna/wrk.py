"""``wrk``: queue a prompt. Prints the job's id, and returns at once."""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
import termios
from contextlib import suppress
from functools import partial

from nrvna.errors import JobError, WorkspaceError
from nrvna.terminal import abandon_stdout, open_streams
from nrvna.workspace import MAX_PROMPT_BYTES, Workspace

EPILOG = """\
examples:
  wrk ~/work "Explain what a B-tree is."       queue a prompt
  git diff | wrk ~/work "Review this:" -       the words, then standard input
  wrk ~/work < prompt.txt                      standard input alone
  id=$(wrk ~/work "Name a prime."); flw -w ~/work $id
  wrk --init ~/work                            make a workspace without starting a daemon

exit codes: 0 queued, 1 the workspace could not be written, 2 usage, or a prompt that cannot run
"""


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


def encouragement(workspace: Workspace, job_id: str) -> str:
    """What to do next, for a person."""
    with suppress(WorkspaceError):
        if not workspace.peers():
            return f"queued, and waiting for a daemon: nrvnad MODEL {workspace.path}"
    return f"queued; collect the answer with: flw -w {workspace.path} {job_id}"


def main(argv: list[str] | None = None) -> int:
    open_streams()
    parser = argparse.ArgumentParser(
        prog="wrk",
        description="Queue a prompt in a workspace and print the job's id. A daemon (nrvnad) answers it.",
        epilog=EPILOG,
        # With a width given, argparse does not import shutil to ask the terminal for its own.
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, width=100),
    )
    parser.add_argument("workspace", metavar="WORKSPACE", help="the workspace's folder")
    parser.add_argument("prompt", nargs="*", metavar="PROMPT", help="words of the prompt; a last - is standard input")
    parser.add_argument("--init", action="store_true", help="make the workspace first if it does not exist")
    options = parser.parse_args(argv)
    words: list[str] = options.prompt
    workspace = Workspace(options.workspace)
    try:
        if options.init:
            workspace.create()
            if not words:
                return 0
        try:
            workspace.check()
        except WorkspaceError as error:
            parser.exit(2, f"wrk: {error}\n")
        piped = None
        if words[-1:] == ["-"] or (not words and not sys.stdin.isatty()):
            words = words[:-1]
            piped = read_piped()
        elif not words:
            parser.exit(2, "wrk: no prompt: name one after the workspace, or pipe one in\n")
        elif pipe_is_waiting():
            # In a shell's loop it is the loop's: it is left alone, but not without a word.
            print("wrk: standard input is not part of this prompt; a last - would put it there", file=sys.stderr)
        job_id = workspace.submit(compose_prompt(words, piped))
    except JobError as error:
        parser.exit(2, f"wrk: {error}\n")
    except WorkspaceError as error:
        parser.exit(1, f"wrk: {error}\n")
    except KeyboardInterrupt:
        return 130
    try:
        print(job_id, flush=True)
    except OSError as error:
        abandon_stdout()
        parser.exit(1, f"wrk: {job_id} is queued, but standard output failed: {error.strerror}\n")
    if sys.stderr.isatty():
        print(encouragement(workspace, job_id), file=sys.stderr)
    return 0


def run() -> None:
    """The installed command ``wrk``."""
    sys.exit(main())


if __name__ == "__main__":
    run()
