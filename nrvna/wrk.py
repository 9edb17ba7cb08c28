"""``wrk``: queue a prompt. Prints the job's id, and returns at once."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial

from nrvna.errors import JobError, WorkspaceError
from nrvna.workspace import Workspace

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


def main(argv: list[str] | None = None) -> int:
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
        if words[-1:] == ["-"] or (not words and sys.stdin is not None and not sys.stdin.isatty()):
            words = words[:-1]
            piped = sys.stdin.buffer.read()
        if not words and piped is None:
            parser.exit(2, "wrk: no prompt: name one after the workspace, or pipe one in\n")
        job_id = workspace.submit(compose_prompt(words, piped))
    except JobError as error:
        parser.exit(2, f"wrk: {error}\n")
    except WorkspaceError as error:
        parser.exit(1, f"wrk: {error}\n")
    except KeyboardInterrupt:
        return 130
    print(job_id, flush=True)
    if sys.stderr.isatty():
        encouragement = f"queued; collect the answer with: flw -w {options.workspace} {job_id}"
        if not workspace.peers():
            encouragement = f"queued, and waiting for a daemon: nrvnad MODEL {options.workspace}"
        print(encouragement, file=sys.stderr)
    return 0


def run() -> None:
    """The installed command ``wrk``."""
    sys.exit(main())


if __name__ == "__main__":
    run()
