"""The engine as the daemon sees it: a child process and its messages. Standard library only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from nrvna.config import Config, engine_environment
from nrvna.engine.protocol import Unpacker, pack

_PIPE_BYTES = 1 << 16


class EngineProcess:
    """A running engine. It dies with its parent: its end of the pipe tells it. Nothing here ever waits for it.

    Raises OSError if it cannot be started.
    """

    def __init__(self, path: Path, model: dict[str, Any], config: Config) -> None:
        self._process = subprocess.Popen(
            # -P: modules of the user's current folder are not the engine's.
            [sys.executable, "-P", "-m", "nrvna.engine"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=engine_environment(config),
            # What Ctrl-C in the terminal means is for the daemon to say.
            process_group=0,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self.stdin = self._process.stdin.fileno()
        self.stdout = self._process.stdout.fileno()
        for descriptor in (self.stdin, self.stdout):
            os.set_blocking(descriptor, False)
        self._unpacker = Unpacker()
        self._outbox = bytearray()
        self.send({"path": str(path), "model": model, "config": config.to_dict()})

    @property
    def has_unsent(self) -> bool:
        """Whether :meth:`flush` has something to do once ``stdin`` can be written."""
        return bool(self._outbox)

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

    def wait(self) -> str:
        """Wait for its end, once it said its last, and say how it ended, in words."""
        code = self._process.wait()
        self._close()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def stop(self, patience_s: float) -> None:
        """End it: ask, then kill."""
        self._close()
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
