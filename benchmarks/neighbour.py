"""nrvna beside other work on the same cores: what it loses to busy loops, and what a compile loses to it.

For each niceness of the engine: generated tokens per second of a pile of jobs on the idle machine, and beside as many
busy loops as there are cores; seconds of as many compiles as there are cores, alone and beside a pile that does not
end. The variants take turns, round by round, so that a slow moment of the machine touches all of them; one daemon is
alive at a time. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from benchmarks import report
from benchmarks.contenders import BenchmarkError, check_alive, exit_code, running
from benchmarks.throughput import say
from benchmarks.workloads import Tokenizer, Writer
from nrvna.job import JobState
from nrvna.workspace import Workspace

CORES = os.cpu_count() or 1
POLL_S = 0.05
PROMPT_WORDS = 12
# Jobs kept in the queue while the compiles run.
PILE = 200
BUSY_LOOP = [sys.executable, "-c", "while True: pass"]
COMPILER = ["c++", "-std=c++17", "-O2", "-w", "-c"]
# A small compile tells how many instantiations this machine compiles in the time asked for.
TRIED_INSTANTIATIONS = 40
SOURCE = """
#include <algorithm>
#include <array>
#include <cstddef>
#include <map>
#include <string>
#include <utility>
#include <vector>

template <int N> std::size_t fill() {
    std::map<std::array<int, N>, std::string> words;
    for (int i = 0; i < 100; ++i) {
        std::array<int, N> key{};
        key[i % N] = i;
        words[key] += std::to_string(i);
    }
    std::vector<std::pair<std::string, std::array<int, N>>> pairs;
    for (const auto & entry : words) {
        pairs.emplace_back(entry.second, entry.first);
    }
    std::sort(pairs.begin(), pairs.end());
    return pairs.size() + pairs.front().first.size();
}

"""


@dataclass(frozen=True)
class Turn:
    """One variant's figures of one round: tokens/s, and seconds of the compiles."""

    idle: float
    busy: float
    alone: float
    beside: float
    was_cut: bool


@contextmanager
def processes(commands: Sequence[Sequence[str]]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that end with the block, and all that they started with them."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        started.extend(subprocess.Popen(command, process_group=0) for command in commands)
        yield started
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def write_source(path: Path, instantiations: int) -> None:
    lines = (f"template std::size_t fill<{number}>();\n" for number in range(1, instantiations + 1))
    path.write_text(SOURCE + "".join(lines))


def compile_seconds(source: Path, copies: int, meanwhile: Callable[[], None] = lambda: None) -> float:
    """Until the last of some compiles of the same file has ended. Raises BenchmarkError if one fails."""
    commands = [[*COMPILER, str(source), "-o", f"{source}.{number}.o"] for number in range(copies)]
    started = time.perf_counter()
    with processes(commands) as compiles:
        while any(process.poll() is None for process in compiles):
            meanwhile()
            time.sleep(POLL_S)
        seconds = time.perf_counter() - started
    if any(process.returncode for process in compiles):
        raise BenchmarkError("the compiler failed; what it said is above")
    return seconds


class Served:
    """A workspace with a daemon; the jobs' answers have ``tokens`` tokens each."""

    def __init__(self, workspace: Workspace, process: subprocess.Popen[bytes], log: Path, tokens: int) -> None:
        self._workspace = workspace
        self._process = process
        self._log = log
        self._tokens = tokens
        self._extra = 0

    def _submit(self, writer: Writer, index: int) -> str:
        settings = {"temp": 0.0, "predict": self._tokens, "ignore_eos": True}
        return self._workspace.submit(writer.of_words(index, PROMPT_WORDS), settings=settings)

    def rate(self, seed: str, jobs: int, count: Callable[[str], int], patience_s: float) -> tuple[float, bool]:
        """Generated tokens per second over a pile, submitting included, and whether it was cut.

        Where patience ends first, the pile stays and what ``count`` says of its answers so far is taken.
        """
        writer = Writer(seed, len)
        before = self._workspace.counts()
        started = time.perf_counter()
        ids = [self._submit(writer, index) for index in range(jobs)]
        while True:
            check_alive(self._process, self._log)
            counts, seconds = self._workspace.counts(), time.perf_counter() - started
            if counts.failed:
                raise BenchmarkError(f"nrvna failed {counts.failed} jobs")
            if counts.done - before.done >= jobs:
                return jobs * self._tokens / seconds, False
            if seconds >= patience_s:
                return sum(self._generated(job_id, count) for job_id in ids) / seconds, True
            time.sleep(POLL_S)

    def _generated(self, job_id: str, count: Callable[[str], int]) -> int:
        job = self._workspace.find(job_id)
        if job.state is JobState.DONE:
            return self._tokens
        return min(self._tokens, count(self._workspace.answer(job)))

    def top_up(self, writer: Writer) -> None:
        """Fill the queue up, so that the daemon is at work."""
        check_alive(self._process, self._log)
        for _ in range(PILE - self._workspace.counts().queued):
            self._submit(writer, self._extra)
            self._extra += 1


def turn(options: argparse.Namespace, source: Path, count: Callable[[str], int], nice: int, number: int) -> Turn:
    """One variant in one round; every variant has the same texts in it."""
    alone = compile_seconds(source, CORES)
    with tempfile.TemporaryDirectory(prefix="nrvna-neighbour-") as name:
        folder = Path(name)
        log = folder / "nrvnad.log"
        workspace = Workspace(folder / "workspace")
        command = [sys.executable, "-m", "nrvna.daemon", str(options.model), workspace.path, "--nice", str(nice)]
        with running(command, log, lambda: b" ready: " in log.read_bytes()) as process:
            served = Served(workspace, process, log, options.tokens)
            served.rate("warm-up", 1, count, math.inf)
            idle, _ = served.rate(f"idle {number}", options.jobs, count, math.inf)
            with processes([BUSY_LOOP] * CORES):
                busy, was_cut = served.rate(f"busy {number}", options.jobs, count, options.patience)
            writer = Writer(f"pile {number}", len)
            served.top_up(writer)
            beside = compile_seconds(source, CORES, lambda: served.top_up(writer))
    say(
        f"round {number}, nice {nice}: {idle:.1f} tokens/s idle, {busy:.1f} beside busy loops; "
        f"compile {alone:.1f} s alone, {beside:.1f} beside nrvna"
    )
    return Turn(idle, busy, alone, beside, was_cut)


def spread(samples: Sequence[float], digits: int = 1) -> str:
    """Median, least and most."""
    middle, least, most = (f"{of:.{digits}f}" for of in (statistics.median(samples), min(samples), max(samples)))
    return f"{middle} ({least} to {most})"


def row(nice: int, turns: Sequence[Turn]) -> str:
    cells = [
        str(nice),
        spread([one.idle for one in turns]),
        spread([one.busy for one in turns]),
        spread([100 * one.busy / one.idle for one in turns], 0),
        spread([one.alone for one in turns]),
        spread([one.beside for one in turns]),
        spread([one.beside / one.alone for one in turns], 2),
    ]
    return f"| {' | '.join(cells)} |"


def run(options: argparse.Namespace, folder: Path) -> None:
    """Measure and print. Raises BenchmarkError or NrvnaError where that cannot be done."""
    count = Tokenizer(options.model).count
    source = folder / "instantiations.cpp"
    write_source(source, TRIED_INSTANTIATIONS)
    per_second = TRIED_INSTANTIATIONS / compile_seconds(source, 1)
    instantiations = max(1, round(per_second * options.compile_seconds))
    write_source(source, instantiations)
    say(f"a compile has {instantiations} instantiations")
    turns: dict[int, list[Turn]] = {nice: [] for nice in options.nice}
    for number in range(1, options.rounds + 1):
        for nice in turns:
            turns[nice].append(turn(options, source, count, nice, number))
    facts = report.machine()
    print(
        f"{facts['processor']}, {facts['physical_cores']} physical cores, {date.today()}; {options.model.name}. "
        f"Piles of {options.jobs} jobs x {options.tokens} tokens; {CORES} busy loops; {CORES} compiles of "
        f"{instantiations} instantiations each. {options.rounds} rounds; median (least to most).\n"
    )
    print("| nice | idle, tokens/s | beside busy loops | % of idle | compile alone, s | beside nrvna, s | ratio |")
    print("|---|---|---|---|---|---|---|")
    for nice, taken in turns.items():
        print(row(nice, taken))
    if cut := sum(one.was_cut for taken in turns.values() for one in taken):
        print(
            f"\n{cut} of {sum(map(len, turns.values()))} piles beside busy loops were cut after "
            f"{options.patience:.0f} s: what they had generated by then counts."
        )


def numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.neighbour",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="a .gguf file")
    add("--nice", type=numbers, default=(0, 5, 10, 19), help="the variants (default 0,5,10,19)")
    add("--rounds", type=int, default=3)
    add("--jobs", type=int, default=24, help="of a pile that is timed (default 24)")
    add("--tokens", type=int, default=32, help="of each answer (default 32)")
    add("--patience", type=int, default=180, help="most seconds for a pile beside busy loops (default 180)")
    add("--compile-seconds", type=int, default=10, help="about what one compile takes alone (default 10)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="nrvna-compile-") as folder:
        return exit_code("neighbour", lambda: run(options, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
