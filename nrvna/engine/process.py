"""The engine as the daemon sees it: a child process and its messages. Standard library only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from nrvna import logs
from nrvna.config import Config
from nrvna.engine.protocol import Unpacker, pack
from nrvna.environment import engine_environment
from nrvna.limits import Limits

# -P: modules of the user's current folder are not the engine's.
COMMAND: Sequence[str] = (sys.executable, "-P", "-m", "nrvna.engine")
_PIPE_BYTES = 1 << 16
# What is kept of its log, to say why it died.
_TAIL_BYTES = 4096
_TAIL_LINES = 12
_EXIT_PATIENCE_S = 5.0


def run_engine(option: str, config: Config, stdout: int | None = None, **about: Any) -> CompletedProcess[bytes]:
    """Let an engine's process do the one thing that its option names, ``about`` what, and wait for its end.

    It ends with this process, and when the waiting is interrupted. Raises OSError if it cannot be started.
    """
    request = pack({"config": config.to_dict(), "parent": os.getpid(), **about})
    environment = engine_environment(config)
    return subprocess.run(
        [*COMMAND, option], input=request, stdout=stdout, env=environment, process_group=0, check=False
    )


class EngineProcess:
    """A running engine. It dies with its parent. Nothing here ever waits for it, but for its end.

    What it logs goes on to this process's standard error. ``share`` is which it is, of how many that share the
    machine, and ``name`` what its log calls it there. Raises OSError if it cannot be started.
    """

    def __init__(
        self,
        path: Path,
        model: dict[str, Any],
        config: Config,
        share: tuple[int, int] = (0, 1),
        name: str = "",
        limits: Limits | None = None,
    ) -> None:
        self._process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=engine_environment(config),
            # What Ctrl-C in the terminal means is for the daemon to say.
            process_group=0,
        )
        self.stdin, self.stdout, self.stderr = (pipe.fileno() for pipe in self._pipes())
        for descriptor in (self.stdin, self.stdout, self.stderr):
            os.set_blocking(descriptor, False)
        self._unpacker = Unpacker()
        self._logs_json = config.log_json
        self._sender = logs.engine(name)
        self._half_line = b""
        self._outbox = bytearray()
        self._tail = b""
        first = {"path": str(path), "model": model, "config": config.to_dict(), "share": list(share), "name": name}
        self.send(first | {"limits": limits.to_dict() if limits else None})

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_unsent(self) -> bool:
        """Whether :meth:`flush` has something to do once ``stdin`` can be written."""
        return bool(self._outbox)

    @property
    def last_words(self) -> str:
        """The end of its log."""
        lines = self._tail.decode("utf-8", "replace").rstrip("\n").split("\n")
        said = map(logs.message_of, lines) if self._logs_json else lines
        return "\n".join(list(said)[-_TAIL_LINES:])

    def forget_words(self) -> None:
        """Let :attr:`last_words` begin with what it logs from now on."""
        self.pass_on_log()
        self._tail = b""

    def send(self, message: dict[str, Any]) -> None:
        """Tell it something, now or with the next :meth:`flush`."""
        self._outbox += pack(message)
        self.flush()

    def flush(self) -> None:
        """Write what the pipe takes. That the engine died meanwhile is for :meth:`receive` to find out."""
        try:
            while self._outbox:
                del self._outbox[: os.write(self.stdin, bytes(self._outbox[:_PIPE_BYTES]))]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._outbox.clear()

    def receive(self) -> list[dict[str, Any]] | None:
        """What it said since, without waiting; None once it is gone and everything it said was taken."""
        try:
            data = os.read(self.stdout, _PIPE_BYTES)
        except BlockingIOError:
            return []
        return self._unpacker.feed(data) if data else None

    def pass_on_log(self) -> bool:
        """Take what it logged since, without waiting; False once it will log no more."""
        try:
            data = os.read(self.stderr, _PIPE_BYTES)
        except BlockingIOError:
            return True
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        # A log that cannot be written is no reason to stop.
        with suppress(OSError):
            os.write(2, self._as_objects(data) if self._logs_json else data)
        return bool(data)

    def _as_objects(self, data: bytes) -> bytes:
        """Whole lines of its log, each a JSON object: what libraries print on their own, as they abort, is none."""
        *lines, self._half_line = (self._half_line + data).split(b"\n")
        if not data and self._half_line:
            lines, self._half_line = [*lines, self._half_line], b""
        said = (line.decode("utf-8", "replace") for line in lines if line.strip())
        return "".join(f"{logs.wrapped(line, self._sender)}\n" for line in said).encode()

    def kill(self) -> None:
        """End it at once; :meth:`receive` then says that it is gone."""
        self._process.kill()

    def wait(self) -> str:
        """Its end, once it said its last, in words."""
        try:
            code = self._process.wait(_EXIT_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        # Its own children, if it had any, may hold the pipe open.
        for _ in range(_TAIL_BYTES):
            before = self._tail
            if not self.pass_on_log() or self._tail == before:
                break
        self._close()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def dismiss(self) -> None:
        """Ask it to end; :meth:`stop` is all that may follow."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def stop(self, patience_s: float) -> None:
        """End it: ask, then kill."""
        self.dismiss()
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.pass_on_log()
        self._close()

    def _pipes(self) -> list[Any]:
        process = self._process
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        return [process.stdin, process.stdout, process.stderr]

    def _close(self) -> None:
        for pipe in self._pipes():
            pipe.close()
