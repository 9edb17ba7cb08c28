"""How long flw takes in a workspace with many jobs: the list, a part of it, one job by the end of its id, sums.

No model: the jobs are made here, as a daemon leaves them, nine in ten of them done. Prints the table that RESULTS.md
holds. Each command is a process whose output is read.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from nrvna.job import Receipt, order_of_time, timestamp
from nrvna.order import Order
from nrvna.workspace import Workspace

BIN = Path(sys.executable).parent
_WORDS = ("the", "queue", "is", "a", "folder", "and", "a", "job", "one", "in", "it", "whose", "state", "where")


def fill(workspace: Workspace, jobs: int, chance: random.Random) -> str:
    """Make the jobs, a second apart and the last one now; returns the id of one in the middle."""
    names = []
    now = time.time()
    for at in range(jobs):
        queued = now - (jobs - at)
        name = f"{order_of_time(round(queued * 1_000_000))}-{chance.randrange(1 << 24):06x}"
        names.append(name)
        kind = "failed" if at % 20 == 7 else "input" if at % 20 == 13 else "output"
        folder = Path(workspace.path) / kind / name
        folder.mkdir()
        tags = ("rare",) if at % 100 == 0 else ("common",)
        (folder / "prompt.txt").write_text(_text(chance, 120))
        about = {"queued": timestamp(queued), "nrvna": "0", **Order("", tags=tags).about()}
        (folder / "job.json").write_text(json.dumps(about))
        if kind != "input":
            _finish(folder, name, queued, chance)
    return names[jobs // 2]


def _finish(folder: Path, name: str, queued: float, chance: random.Random) -> None:
    is_done = folder.parent.name == "output"
    receipt = Receipt(
        id=name,
        finish_reason=chance.choice(("stop", "stop", "stop", "length")) if is_done else "error",
        queued=timestamp(queued),
        started=timestamp(queued + 3),
        first_token=timestamp(queued + 3.1),
        finished=timestamp(queued + 8),
        nrvna="0",
        prompt_tokens=150,
        cached_tokens=20,
        generated_tokens=200,
        tokens_per_second=40.0,
        sampling={"temp": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "predict": 512, "seed": 7},
        model={"path": "/models/model.gguf", "size": 98_000_000, "mtime_ns": 1},
        llama_cpp="b0",
        attempts=1,
        error=None if is_done else "the prompt has 9000 tokens and leaves no room for an answer",
    )
    (folder / "receipt.json").write_text(receipt.to_json())
    (folder / ("result.txt" if is_done else "error.txt")).write_text(
        _text(chance, 800) if is_done else receipt.error or ""
    )


def _text(chance: random.Random, length: int) -> str:
    text = ""
    while len(text) < length:
        text += chance.choice(_WORDS) + chance.choice((" ", " ", " ", " ", ".\n"))
    return text


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, check=False)
    took = time.perf_counter() - started
    # Such as a job that failed or is not ready.
    assert done.returncode in (0, 1, 3) and b"Traceback" not in done.stderr, done.stderr.decode()
    return took


def seconds_to_first_line(command: list[str]) -> float:
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        took = time.perf_counter() - started
        process.stdout.read()
    return took


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="on the file system to measure (default the temporary folder)")
    options = parser.parse_args()
    samples: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="nrvna-listing-", dir=options.folder) as folder:
        workspace = Workspace(Path(folder) / "workspace")
        workspace.create()
        job_id = fill(workspace, options.jobs, random.Random(1))
        calls = {
            "`flw WS`, the newest 20": [],
            "`flw WS --all`": ["--all"],
            "`flw WS --state failed`, the newest 20": ["--state", "failed"],
            "`flw WS --tag rare`, the newest 20": ["--tag", "rare"],
            "`flw WS ID`, the whole id": [job_id],
            "`flw WS ID`, its last 6 characters": [job_id[-6:]],
            "`flw WS --jsonl`, all": ["--jsonl"],
        }
        commands = {name: [str(BIN / "flw"), workspace.path, *more] for name, more in calls.items()}
        commands["`flw stats WS`"] = [str(BIN / "flw"), "stats", workspace.path]
        commands["`flw --help`, for the start alone"] = [str(BIN / "flw"), "--help"]
        for _ in range(options.rounds):
            for name, command in commands.items():
                samples.setdefault(name, []).append(seconds(command))
            name = "`flw WS --all`"
            samples.setdefault(f"{name}, its first lines", []).append(seconds_to_first_line(commands[name]))
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {datetime.now():%Y-%m-%d}\n")
    print(f"| seconds among {options.jobs:,} jobs | median | least | most |\n|---|---|---|---|")
    for name, values in samples.items():
        print(f"| {name} | {statistics.median(values):.3f} | {min(values):.3f} | {max(values):.3f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
