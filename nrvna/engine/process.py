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

_READ_BYTES = 1 << 16


class EngineProcess:
    """A running engine. It dies with its parent: its end of the pipe tells it."""

    def __init__(self, path: Path, model: dict[str, Any], config: Config) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nrvna.engine"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=engine_environment(config),
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin = self._process.stdin.fileno()
        self.descriptor = self._process.stdout.fileno()
        os.set_blocking(self.descriptor, False)
        self._unpacker = Unpacker()
        self.send({"path": str(path), "model": model, "config": config.to_dict()})

    def send(self, message: dict[str, Any]) -> None:
        """Tell it something. That it died meanwhile is for :meth:`receive` to find out."""
        data = memoryview(pack(message))
        try:
            while data:
                data = data[os.write(self._stdin, data) :]
        except BrokenPipeError:
            return

    def receive(self) -> list[dict[str, Any]] | None:
        """What it said since, without waiting; None once it is gone and everything it said was taken."""
        try:
            data = os.read(self.descriptor, _READ_BYTES)
        except BlockingIOError:
            return []
        return self._unpacker.feed(data) if data else None

    def wait(self) -> str:
        """Wait for its end and say how it ended, in words."""
        code = self._process.wait()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def stop(self, patience_s: float) -> None:
        """End it: ask, then kill."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
