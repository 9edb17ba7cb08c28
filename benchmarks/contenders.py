"""nrvna as a contender, and what all contenders share."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.workloads import Job, Workload
from nrvna.errors import NrvnaError
from nrvna.workspace import Workspace

POLL_S = 0.02
LOADING_PATIENCE_S = 600.0
STOPPING_PATIENCE_S = 10.0
# Before the timed part, and without the workload's context: a cache is to be filled while the clock runs.
WARM_UP = Job("Hello.", 4)


class BenchmarkError(Exception):
    """Why nothing can be measured, in one line for the user."""


def exit_code(name: str, action: Callable[[], None]) -> int:
    """Run a benchmark: 0; 1 with the reason in one line; 130 after Ctrl-C. SIGTERM cleans up too, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        action()
    except (BenchmarkError, NrvnaError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


@dataclass(frozen=True)
class Sample:
    """One contender's turn at one workload. ``cached_tokens`` are those of the prompts that needed no prefill.

    What a contender does not tell is None. ``note`` says how the seconds came about, where they were not simply
    measured.
    """

    seconds: float
    generated_tokens: int
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    note: str = ""


class Contender(Protocol):
    """Something that answers workloads."""

    @property
    def name(self) -> str: ...

    def measure(self, workload: Workload) -> Sample | None:
        """One turn; None if the contender cannot express the workload. Raises BenchmarkError."""


def environment() -> dict[str, str]:
    """The shell's, without its settings of nrvna and llama.cpp: what is measured stands in the command line."""
    prefixes = ("NRVNA_", "LLAMA_")
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(prefixes) or name == "NRVNA_LLAMA_DIR"
    }


@contextmanager
def running(command: Sequence[str], log: Path, is_ready: Callable[[], bool]) -> Iterator[subprocess.Popen[bytes]]:
    """A process, from when it is ready to serve until the block ends. Raises BenchmarkError if it never is."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment())
    try:
        deadline = time.monotonic() + LOADING_PATIENCE_S
        while not is_ready():
            check_alive(process, log)
            if time.monotonic() > deadline:
                raise BenchmarkError(f"{log.stem} was not ready after {LOADING_PATIENCE_S:.0f} s: {last_line(log)}")
            time.sleep(POLL_S)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOPPING_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def check_alive(process: subprocess.Popen[bytes], log: Path) -> None:
    """Raises BenchmarkError, with the last line of its log, if the process has ended."""
    if process.poll() is not None:
        raise BenchmarkError(f"{log.stem} ended with {process.returncode}: {last_line(log)}")


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


class Nrvna:
    """A daemon that stays up over all rounds, on a workspace of its own.

    Timed: from the first job submitted until the last one lies in output/, result and receipt included.
    """

    name = "nrvna"

    def __init__(self, workspace: Workspace, process: subprocess.Popen[bytes], log: Path) -> None:
        self._workspace = workspace
        self._process = process
        self._log = log

    @classmethod
    @contextmanager
    def started(cls, model: Path, options: Sequence[str], folder: Path) -> Iterator[Nrvna]:
        """A daemon that serves until the block ends; its workspace and its log lie in ``folder``."""
        log = folder / "nrvnad.log"
        workspace = Workspace(folder / "workspace")
        command = [sys.executable, "-m", "nrvna.daemon", str(model), workspace.path, *options]
        with running(command, log, lambda: b"ready:" in log.read_bytes()) as process:
            yield cls(workspace, process, log)

    def measure(self, workload: Workload) -> Sample:
        self._answer([WARM_UP])
        context = Path(self._workspace.context_file)
        if workload.context is not None:
            context.write_text(workload.context)
        try:
            started = time.perf_counter()
            ids = self._answer(workload.jobs)
            seconds = time.perf_counter() - started
        finally:
            context.unlink(missing_ok=True)
        sample = self._sample(seconds, ids, workload)
        # The daemon stays up: its finished jobs are not to make the polling of the next turn slower.
        for job in self._workspace.jobs():
            shutil.rmtree(job.directory)
        return sample

    def _answer(self, jobs: Sequence[Job]) -> list[str]:
        """Submit the jobs, wait until all are done, and return their ids."""
        ids = []
        for job in jobs:
            settings = {"temp": 0.0, "predict": job.predict, "ignore_eos": True}
            ids.append(self._workspace.submit(job.prompt, settings=settings))
        awaited = set(ids)
        while not awaited <= self._entries("output"):
            for job_id in awaited & self._entries("failed"):
                reason = self._workspace.answer(self._workspace.find(job_id)).strip()
                raise BenchmarkError(f"nrvna failed a job: {reason}")
            check_alive(self._process, self._log)
            time.sleep(POLL_S)
        return ids

    def _entries(self, folder: str) -> set[str]:
        with os.scandir(Path(self._workspace.path) / folder) as entries:
            return {entry.name for entry in entries}

    def _sample(self, seconds: float, ids: Sequence[str], workload: Workload) -> Sample:
        """What the receipts say. Raises BenchmarkError if an answer has not the length that was asked for."""
        generated = prompt = 0
        cached: int | None = None
        for job_id, job in zip(ids, workload.jobs, strict=True):
            receipt = self._workspace.receipt(self._workspace.find(job_id))
            if receipt is None or receipt.generated_tokens != job.predict:
                found = receipt and receipt.generated_tokens
                raise BenchmarkError(f"nrvna generated {found} tokens for a job of {job.predict}")
            generated += receipt.generated_tokens
            prompt += receipt.prompt_tokens or 0
            # Not every version's receipts have it.
            of_job: int | None = getattr(receipt, "cached_tokens", None)
            if of_job is not None:
                cached = (cached or 0) + of_job
        return Sample(seconds, generated, prompt, cached)
