"""What the tests with a toy engine share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import until
from zygote import StartToy, ToyDaemon, Zygote


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    """Forks daemons with toy engines; at the end none of these engines may be left."""
    made = Zygote(os.urandom(8).hex())
    yield made
    made.close()
    until(lambda: not made.engines(), "the end of all engines", 5)


@pytest.fixture
def toy_model(tmp_path: Path) -> Path:
    """A file for the daemon to take for a model."""
    path = tmp_path / "toy.gguf"
    path.write_bytes(b"GGUF")
    return path


@pytest.fixture
def start_toy(zygote: Zygote, toy_model: Path, tmp_path: Path) -> Iterator[StartToy]:
    """Starts daemons with toy engines, and ends those that still run when the test is over."""
    started: list[ToyDaemon] = []

    def start(workspace: str, *options: str, pace: dict[str, float] | None = None, wait: bool = True) -> ToyDaemon:
        log = tmp_path / f"toy-{len(started)}.log"
        log.touch()
        daemon = ToyDaemon(zygote.daemon(workspace, toy_model, log, *options, pace=pace), log)
        started.append(daemon)
        if wait:
            daemon.wait_log("ready:")
        return daemon

    yield start
    for daemon in started:
        daemon.child.kill()
        assert "Traceback" not in daemon.log
