"""What the folder's side can do: durable submits a second, one by one and in bulk, the list and the claims of a long
queue, results filed a second.

No model and no engine. Prints the table that RESULTS.md holds.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from nrvna.job import Receipt
from nrvna.lease import Lease
from nrvna.workspace import Workspace

BIN = Path(sys.executable).parent


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def in_bulk(workspace: Workspace, jobs: int) -> float:
    """``wrk --lines``, as a process."""
    lines = Path(workspace.path).with_name("lines.txt")
    lines.write_text("".join(f"Describe the number {number}.\n" for number in range(jobs)))
    command = [str(BIN / "wrk"), workspace.path, "--lines", str(lines)]
    return seconds(lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True))


def one_by_one(workspace: Workspace, jobs: int) -> float:
    """In one process; a ``wrk`` for each adds its start-up."""
    return seconds(lambda: [workspace.submit(f"Describe the number {number}.") for number in range(jobs)])


def flushes(workspace: Workspace, jobs: int) -> int | None:
    """How often ``wrk --lines`` waits for the disk; None where strace is not installed."""
    lines, counts = (Path(workspace.path).with_name(name) for name in ("lines.txt", "counts.txt"))
    lines.write_text("".join(f"Describe the number {number}.\n" for number in range(jobs)))
    traced = ["strace", "-f", "-e", "trace=fsync,fdatasync,syncfs,sync", "-o", str(counts)]
    with suppress(FileNotFoundError):
        command = [*traced, str(BIN / "wrk"), workspace.path, "--lines", str(lines)]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        return counts.read_text().count("sync")
    return None


def listing(workspace: Workspace) -> float:
    """``flw WORKSPACE``, as a process."""
    return seconds(lambda: subprocess.run([BIN / "flw", workspace.path], stdout=subprocess.DEVNULL, check=True))


def claims_and_results(workspace: Workspace, jobs: int) -> tuple[float, float]:
    """Seconds for claiming the oldest jobs, and for filing an answer for each."""
    lease = Lease(workspace, {"path": "no model"})
    claims = []

    def claim() -> None:
        for _ in range(jobs):
            claims.append(lease.claim())  # noqa: PERF401 - timed as a daemon does it

    def finish() -> None:
        for claim in claims:
            assert claim is not None
            receipt = Receipt(claim.id, "stop", claim.queued, claim.queued, "0")
            lease.finish(claim, "an answer\n" * 20, receipt)

    took = seconds(claim), seconds(finish)
    lease.close()
    return took


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000, help="queued at once (default 10000)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the file system to measure (default the temporary folder)")
    options = parser.parse_args()
    some = max(1, options.jobs // 20)
    samples: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        samples.setdefault(name, []).append(value)

    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="nrvna-folder-", dir=options.folder) as folder:
            workspace = Workspace(Path(folder) / "workspace")
            workspace.create()
            add("jobs queued a second, one by one", some / one_by_one(workspace, some))
            add("jobs queued a second, `wrk --lines`", options.jobs / in_bulk(workspace, options.jobs))
            add(f"seconds for `flw` to list {options.jobs + some} queued jobs", listing(workspace))
            claiming, filing = claims_and_results(workspace, some)
            add("jobs claimed a second", some / claiming)
            add("results filed a second", some / filing)
    with tempfile.TemporaryDirectory(prefix="nrvna-folder-", dir=options.folder) as folder:
        workspace = Workspace(Path(folder) / "workspace")
        workspace.create()
        waits = flushes(workspace, options.jobs)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {datetime.now():%Y-%m-%d}\n")
    print("| | median | least | most |\n|---|---|---|---|")
    for name, values in samples.items():
        cells = (statistics.median(values), min(values), max(values))
        print(f"| {name} | {' | '.join(f'{cell:.2f}' if cell < 10 else f'{cell:.0f}' for cell in cells)} |")
    print(
        f"\nwaits for the disk of {options.jobs} jobs queued with `wrk --lines`: {waits or 'not measured: no strace'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
