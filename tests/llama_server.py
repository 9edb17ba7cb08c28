"""llama.cpp's own server as a real process, for golden tests."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from nrvna.llama.location import KERNELS


@contextmanager
def serving(
    peers: Path, model: Path, *options: str, log: Path, env: Mapping[str, str] | None = None
) -> Iterator[str]:
    """The address of a server with that model, which ends with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with log.open("w") as file:
        where = ["-m", str(model), "--host", "127.0.0.1", "--port", str(port)]
        command = [str(peers / "llama-server"), *where, "--threads", "2", *options]
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **(env or {})})
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()[-2000:]
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5)
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        yield address
    finally:
        process.kill()
        process.wait()


def serving_alike(peers: Path, model: Path, log: Path) -> AbstractContextManager[str]:
    """A server that computes as nrvna does in reproducible mode."""
    options = ["--parallel", "1", "--ctx-size", "1024", "--flash-attn", "on", "--jinja"]
    # Rows are computed as nrvna's, which the others of a batch must not change. Where cores are shared, libgomp's
    # threads would otherwise wait by turning in circles.
    rowwise = {"LD_PRELOAD": str(peers.parent / KERNELS), "NRVNA_ROWS_ALONE": "1", "GOMP_SPINCOUNT": "1000"}
    return serving(peers, model, *options, log=log, env=rowwise)


def ask(address: str, path: str, body: Mapping[str, Any]) -> Any:
    """What the server answers, read as JSON."""
    request = urllib.request.Request(address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)
