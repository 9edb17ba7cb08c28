#!/usr/bin/env python3
"""How long a user waits: start-up of wrk and flw, and from wrk to the first token and to the result.

A real daemon with the quickstart's model, idle between jobs. Prints the tables that RESULTS.md holds.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from nrvna.job import Receipt
from nrvna.workspace import Workspace

BIN = Path(sys.executable).parent
PROMPT = "Say only the word: yes"
# A benchmark of what users have: Python caches their bytecode.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def run(*command: str | Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    return done.stdout.strip()


def milliseconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return (time.perf_counter() - started) * 1000


def row(name: str, samples: Sequence[float]) -> str:
    ordered = sorted(samples)
    cells = [statistics.median(ordered), ordered[0], ordered[int(0.9 * (len(ordered) - 1))]]
    return f"| {name} | {' | '.join(f'{cell:.1f}' for cell in cells)} |"


def start_up(workspace: Workspace, rounds: int) -> list[str]:
    """The commands in turn, round by round, so that a slow moment of the machine touches all of them."""
    commands: dict[str, list[str | Path]] = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "wrk WORKSPACE PROMPT": [BIN / "wrk", workspace.path, PROMPT],
        "flw WORKSPACE, 20 jobs shown": [BIN / "flw", workspace.path],
        "wrk --help": [BIN / "wrk", "--help"],
    }
    samples: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            took = milliseconds(lambda command=command: run(*command))  # type: ignore[misc]
            if number:
                samples[name].append(took)
    return [row(name, samples[name]) for name in commands]


def seconds(text: str | None) -> float:
    assert text is not None
    return datetime.fromisoformat(text).timestamp()


def answer(workspace: Workspace) -> tuple[float, Receipt]:
    """Queue a job with wrk, collect it with flw -w; the time from wrk's start, and the receipt."""
    started = time.time()
    job_id = run(BIN / "wrk", workspace.path, PROMPT)
    run(BIN / "flw", "-w", workspace.path, job_id)
    receipt = workspace.receipt(workspace.find(job_id))
    assert receipt is not None
    return started, receipt


def latency(workspace: Workspace, rounds: int) -> list[str]:
    """From the start of wrk's process; the receipt's times are of the same clock, to the millisecond."""
    names = ("job queued", "claimed and started", "first token", "result written", "answer printed by flw -w")
    samples: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        started, receipt = answer(workspace)
        ended = time.time()
        if not number:
            continue
        moments = [seconds(receipt.queued), seconds(receipt.started), seconds(receipt.first_token)]
        for name, moment in zip(names, [*moments, seconds(receipt.finished), ended], strict=True):
            samples[name].append((moment - started) * 1000)
        time.sleep(0.3)
    return [row(name, samples[name]) for name in names]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a .gguf file, as scripts/fetch_model.py prints it")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nrvna-latency-") as folder:
        workspace = Workspace(Path(folder) / "workspace")
        workspace.create()
        head = "| milliseconds | median | least | 90th percentile |\n|---|---|---|---|"
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {datetime.now():%Y-%m-%d}\n")
        print("\n".join([head, *start_up(workspace, options.rounds)]))
        idle = Workspace(Path(folder) / "served")
        log = Path(folder) / "log"
        with log.open("w") as file:
            command = [str(BIN / "nrvnad"), str(options.model), idle.path]
            daemon = subprocess.Popen(command, stderr=file)
        try:
            while "ready" not in log.read_text():
                if daemon.poll() is not None:
                    print(log.read_text(), file=sys.stderr)
                    return 1
                time.sleep(0.1)
            print(
                "\n".join(["", head.replace("milliseconds", "since wrk began, ms"), *latency(idle, options.rounds)])
            )
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
