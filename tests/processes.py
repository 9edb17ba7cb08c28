"""Real processes for the tests: the daemon, and the command line tools."""

from __future__ import annotations

import fcntl
import os
import pty
import resource
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

PATIENCE_S = 60.0


def until(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait until a condition holds; fail the test, saying what was waited for, if it does not."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience_s:.0f} s for {what}"
        time.sleep(0.01)


def command(
    name: str, *arguments: str | Path, stdin: bytes = b"", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m nrvna.<name>`` and return what it printed and its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", f"nrvna.{name}", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        env={**os.environ, **(env or {})},
        timeout=PATIENCE_S,
        check=False,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, *(os.fsdecode(part) for part in (done.stdout, done.stderr))
    )


def on_terminal(
    *arguments: str | Path, columns: int = 0, env: dict[str, str] | None = None, keys: bytes = b""
) -> str:
    """What a command shows on a terminal, standard output and error together; ``keys`` are typed at its start."""
    controller, terminal = pty.openpty()
    if columns:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {**os.environ, **(env or {})}
    with subprocess.Popen(
        [str(part) for part in arguments], stdin=terminal, stdout=terminal, stderr=terminal, env=environment
    ):
        os.close(terminal)
        if keys:
            os.write(controller, keys)
        shown = b""
        # The end of the other side is an error here.
        with suppress(OSError):
            while data := os.read(controller, 1000):
                shown += data
    os.close(controller)
    return shown.decode().replace("\r\n", "\n")


def limit_growth(pid: int, slack: int) -> None:
    """Let a process take so many more bytes of address space than it has, and no more."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + slack
    resource.prlimit(pid, resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))


def is_running(pid: int) -> bool:
    """Whether a process is more than a number that nobody has asked about its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children_of(pid: int) -> list[int]:
    """In the order in which they were started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class DaemonProcess:
    """``nrvnad`` as a process of its own, with its log in a file and so many bytes of ``address_space``."""

    def __init__(
        self,
        model: Path,
        workspace: Path | str,
        options: Sequence[str],
        log: Path,
        address_space: int | None = None,
        program: Sequence[str] = (sys.executable, "-m", "nrvna.daemon"),
    ) -> None:
        self._log = log
        command = [*program, str(model), str(workspace), *options]
        if address_space:
            # Its engine inherits the limit.
            command = ["sh", "-c", f'ulimit -v {address_space // 1024}; exec "$@"', "sh", *command]
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_ready(self) -> None:
        self.wait_log("ready:")

    def wait_log(self, text: str) -> None:
        def said() -> bool:
            assert text in self.log or self.process.poll() is None, f"the daemon ended: {self.log}"
            return text in self.log

        until(said, f"{text!r} in the daemon's log")

    def engine_pid(self) -> int:
        """The process that holds the model."""
        [engine] = self.engine_pids()
        return engine

    def engine_pids(self) -> list[int]:
        """Where there are several, in the order in which they were started."""
        return children_of(self.process.pid)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end, and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def kill(self) -> None:
        """End it without a chance to clean up."""
        self.process.kill()
        self.process.wait()
