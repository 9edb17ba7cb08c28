"""Progress of a long step: one line that rewrites itself on a terminal, a line now and then elsewhere.

And the commands that such steps run, none of which outlives this process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType

_QUIET_INTERVAL_S = 10.0
# From linux/prctl.h.
_PR_SET_PDEATHSIG = 1


class Step:
    """A named step of a script, as a context manager: ``with Step("fetching …") as step: step.show("3 of 9")``."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._terminal = sys.stderr.isatty()
        self._started = time.monotonic()
        self._last = self._started

    def __enter__(self) -> Step:
        if self._terminal:
            self.show("")
        else:
            print(f"{self._title} …", file=sys.stderr, flush=True)
        return self

    def show(self, detail: str) -> None:
        """Show where the step is; called as often as one likes."""
        now = time.monotonic()
        elapsed = f"{now - self._started:.0f} s"
        if self._terminal:
            print(f"\r\x1b[K{self._title} … {detail}  {elapsed}"[:118], end="", file=sys.stderr, flush=True)
        elif detail and now - self._last >= _QUIET_INTERVAL_S:
            self._last = now
            print(f"  {detail}  {elapsed}", file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        elapsed = time.monotonic() - self._started
        verdict = "done" if kind is None else "stopped" if kind is KeyboardInterrupt else "FAILED"
        head = "\r\x1b[K" if self._terminal else ""
        print(f"{head}{self._title} … {verdict} in {elapsed:.0f} s", file=sys.stderr, flush=True)


class CommandError(Exception):
    """A command that failed, with the end of what it printed and the log that holds all of it."""

    def __init__(self, command: Sequence[str], code: int, tail: str, log: Path) -> None:
        super().__init__(f"{Path(command[0]).name} failed with exit code {code}")
        self.tail = tail
        self.log = log


def ends_with_us() -> Callable[[], None] | None:
    """For a command's ``preexec_fn``: what ends this process ends the command too, where the kernel sees to it."""
    if sys.platform != "linux":
        return None
    return partial(_end_with, os.getpid(), ctypes.CDLL(None))


def _end_with(parent: int, system: ctypes.CDLL) -> None:
    system.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def run_compiler(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a compiler, its output kept. What ends the waiting, such as Ctrl-C, ends it with all that it started."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        process_group=0,
        preexec_fn=ends_with_us(),
    ) as process:
        try:
            output, errors = process.communicate()
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def run_logged(
    command: Sequence[str],
    log: Path,
    step: Step,
    describe: Callable[[str], str | None] = lambda _: None,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
) -> None:
    """Run a command with all its output in ``log``; ``describe`` turns a line of it into what the step shows.

    Raises CommandError if it fails. What ends the waiting, such as Ctrl-C, ends the command too and goes on its way.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    last_lines: list[str] = []
    with (
        log.open("a") as file,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=cwd,
            env=env,
            preexec_fn=ends_with_us(),
        ) as process,
    ):
        assert process.stdout is not None
        file.write(f"$ {' '.join(command)}\n")
        try:
            for line in process.stdout:
                file.write(line)
                last_lines = [*last_lines[-24:], line]
                if detail := describe(line):
                    step.show(detail)
        except BaseException:
            # A terminal's Ctrl-C reached it already; a signal to this process alone did not.
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
    if process.returncode:
        raise CommandError(command, process.returncode, "".join(last_lines), log)
