"""The engine's memory over many jobs: does it grow, and does it stay within what llama.cpp allocates and a bit more.

A real daemon answers short, different prompts; after every hundred of them the resident memory of its engine and of
itself is read. That of the engine counts the weights, which are mapped from their file, once they were read. The
sizes of llama.cpp's buffers are those that it logs. Prints Markdown tables. Linux only.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

from benchmarks import report
from benchmarks.contenders import BenchmarkError, check_alive, exit_code, running
from benchmarks.throughput import say
from benchmarks.workloads import Writer
from nrvna.workspace import Workspace

# Jobs queued beyond those that are finished, and finished jobs between two looks.
AHEAD = 200
EVERY = 100
# By then everything that is allocated once was.
SETTLED = 200
PROMPT_WORDS = 10
SETTINGS = {"temp": 0.0, "predict": 4, "ignore_eos": True}
POLL_S = 0.05
# The limit: so many times what llama.cpp allocates, and so many bytes for Python and the rest.
SHARE = 1.15
ALLOWANCE = 100_000_000
_BUFFER = re.compile(r"(model|KV|compute|output) buffer size = *([\d.]+) MiB")


class Sample(NamedTuple):
    """Resident memory in bytes when so many jobs were finished."""

    finished: int
    engine: int
    daemon: int


class Buffers(NamedTuple):
    """Bytes of llama.cpp's buffers."""

    weights: float
    kv: float
    compute: float
    output: float

    @property
    def limit(self) -> float:
        return SHARE * (self.weights + self.kv + self.compute) + ALLOWANCE


def buffers(log: str) -> Buffers:
    """What llama.cpp said of its buffers: of the weights, and of the context that was made last.

    Raises BenchmarkError if it said nothing.
    """
    weights, *contexts = log.split("constructing llama_context")
    if not contexts:
        raise BenchmarkError("llama.cpp logged no context: its words have changed")
    # The compute buffers may have been laid out more than once.
    cache, _, compute = contexts[-1].rpartition("reserving ...")
    found = Buffers(_sum("model", weights), _sum("KV", cache), _sum("compute", compute), _sum("output", cache))
    if not all((found.weights, found.kv, found.compute)):
        raise BenchmarkError(f"llama.cpp logged not all sizes of its buffers: {found}")
    return found


def _sum(kind: str, log: str) -> float:
    return sum(float(size) * 1024 * 1024 for name, size in _BUFFER.findall(log) if name == kind)


def engine_of(daemon: int) -> int:
    """The process id of a daemon's engine. Raises BenchmarkError."""
    children = Path(f"/proc/{daemon}/task/{daemon}/children").read_text().split()
    if len(children) != 1:
        raise BenchmarkError(f"the daemon has {len(children)} child processes, not an engine alone")
    return int(children[0])


def memory(pid: int, field: str) -> int:
    """A size that Linux tells of a process, in bytes. Raises BenchmarkError if that has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        text = ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise BenchmarkError(f"process {pid} ended while its memory was watched")


def work(workspace: Workspace, process: subprocess.Popen[bytes], log: Path, engine: int, jobs: int) -> list[Sample]:
    """Have so many jobs answered; a sample before the first and after every hundred."""
    writer = Writer("memory", len)
    submitted = 0
    samples: list[Sample] = []

    def look(finished: int) -> None:
        samples.append(Sample(finished, memory(engine, "VmRSS"), memory(process.pid, "VmRSS")))
        say(f"{finished} of {jobs} jobs: engine {_mb(samples[-1].engine)} MB")

    look(0)
    while samples[-1].finished < jobs:
        check_alive(process, log)
        counts = workspace.counts()
        finished = counts.done + counts.failed
        while submitted < min(jobs, finished + AHEAD):
            workspace.submit(writer.of_words(submitted, PROMPT_WORDS), settings=SETTINGS)
            submitted += 1
        if finished >= min(jobs, (samples[-1].finished // EVERY + 1) * EVERY):
            look(finished)
        else:
            time.sleep(POLL_S)
    return samples


def _mb(size: float) -> str:
    return f"{size / 1e6:.1f}"


def measure(model: Path, jobs: int, folder: Path) -> None:
    """Measure and print. Raises BenchmarkError or NrvnaError where that cannot be done."""
    log = folder / "nrvnad.log"
    workspace = Workspace(folder / "workspace")
    command = [sys.executable, "-m", "nrvna.daemon", str(model), workspace.path, "--llama-log-level", "info"]
    with running(command, log, lambda: b" ready: " in log.read_bytes()) as process:
        engine = engine_of(process.pid)
        samples = work(workspace, process, log, engine, jobs)
        failed = workspace.counts().failed
        peak, peak_of_daemon = (memory(pid, "VmHWM") for pid in (engine, process.pid))
    print("| jobs finished | engine RSS, MB | daemon RSS, MB |\n|---|---|---|")
    for sample in samples:
        print(f"| {sample.finished} | {_mb(sample.engine)} | {_mb(sample.daemon)} |")
    if failed:
        print(f"\n{failed} of the jobs failed.")
    sizes = buffers(log.read_text(errors="replace"))
    rows = {
        "weights, as llama.cpp reports them": sizes.weights,
        "KV cache": sizes.kv,
        "compute buffers": sizes.compute,
        "output buffer, not in the limit": sizes.output,
        f"limit: {SHARE} x (weights + KV + compute) + {ALLOWANCE / 1e6:.0f}": sizes.limit,
        "engine, peak (VmHWM)": peak,
        "daemon, peak (VmHWM)": peak_of_daemon,
    }
    first = next((sample for sample in samples if sample.finished >= SETTLED), samples[-1])
    last = samples[-1]
    if first is not last:
        span = f"growth from job {first.finished} to job {last.finished}"
        rows[f"engine, {span}"] = last.engine - first.engine
        rows[f"daemon, {span}"] = last.daemon - first.daemon
    print("\n| | MB |\n|---|---|")
    for name, size in rows.items():
        print(f"| {name} | {_mb(size)} |")
    verdict = "within" if peak <= sizes.limit else "above"
    print(f"\nThe engine's peak is {verdict} the limit; it counts the mapped weights as far as they were read.")


def run(options: argparse.Namespace) -> None:
    facts = report.machine()
    print(
        f"{facts['processor']}, {facts['physical_cores']} physical cores, {date.today()}; {options.model.name}. "
        f"{PROMPT_WORDS} words a prompt, {SETTINGS['predict']} tokens an answer, at most {AHEAD} jobs ahead.\n",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="nrvna-memory-") as folder:
        measure(options.model, options.jobs, Path(folder))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="a .gguf file")
    parser.add_argument("--jobs", type=int, default=2000)
    options = parser.parse_args(argv)
    return exit_code("memory", lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
