"""llama.cpp's own programs as contenders."""

from __future__ import annotations

import http.client
import json
import re
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from benchmarks.contenders import WARM_UP, BenchmarkError, Sample, environment, running
from benchmarks.workloads import Job, Tokenizer, Workload
from nrvna.config import llama_dir, wanted_backend
from nrvna.engine.layout import padded
from nrvna.llama.location import find_build

REQUEST_PATIENCE_S = 3600.0
# Tokens beside prompt and answer: a program may stop when its context is all but full.
CONTEXT_SPARE = 8
COMPLETIONS = 8
LARGEST_BATCH = 32


@dataclass(frozen=True)
class Setup:
    """What every peer is given. ``threads`` are the physical cores; logs go to ``folder``."""

    model: Path
    tokenizer: Tokenizer
    threads: int
    folder: Path


def program(name: str) -> str:
    """The path of one of llama.cpp's programs. Raises BenchmarkError if it is not built."""
    path = find_build(llama_dir(), wanted_backend()).directory / "bin" / name
    if not path.exists():
        raise BenchmarkError(f"{name} is not built: run `python scripts/build_llama.py --peers`")
    return str(path)


def _context(tokens: int) -> int:
    return padded(tokens + CONTEXT_SPARE)


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env=environment(),
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise BenchmarkError(f"{Path(command[0]).name} ended with {done.returncode}: {lines[-1]}")
    return done


@dataclass(frozen=True)
class Usage:
    """What llama-server says of one request, in tokens."""

    generated: int
    prompt: int
    cached: int


@dataclass(frozen=True)
class Server:
    """llama-server with so many slots, started for each turn and stopped after it; loading is not timed.

    Twice as many requests as slots wait or run at a time, so that a slot that comes free is filled at once. Timed:
    from the first request to the last response.
    """

    setup: Setup
    slots: int
    is_unified: bool = False
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"llama-server -np {self.slots}" + (" --kv-unified" if self.is_unified else "")

    def measure(self, workload: Workload) -> Sample:
        port = _free_port()
        clients = max(self.slots, min(len(workload.jobs), 2 * self.slots))
        log = self.setup.folder / "llama-server.log"
        with running(self._command(workload, port, clients), log, lambda: _is_healthy(port)):
            self._answer(port, [WARM_UP], None, 1)
            started = time.perf_counter()
            usages = self._answer(port, workload.jobs, workload.context, clients)
            seconds = time.perf_counter() - started
        return Sample(
            seconds,
            sum(usage.generated for usage in usages),
            sum(usage.prompt for usage in usages),
            sum(usage.cached for usage in usages),
        )

    def _command(self, workload: Workload, port: int, clients: int) -> list[str]:
        context = self.slots * _context(self.setup.tokenizer.longest(workload))
        command = [program("llama-server"), "-m", str(self.setup.model), "--host", "127.0.0.1", "--port", str(port)]
        command += ["-np", str(self.slots), "--ctx-size", str(context), "--threads", str(self.setup.threads)]
        # A connection that is kept open occupies one of the server's threads: with too few, requests would wait.
        command += ["--jinja", "--no-webui", "--threads-http", str(clients + 2)]
        return command + ["--kv-unified"] * self.is_unified + list(self.options)

    def _answer(self, port: int, jobs: Sequence[Job], context: str | None, clients: int) -> list[Usage]:
        """Ask for every job, each client one after the other over a connection of its own."""
        waiting = iter(jobs)
        lock = threading.Lock()

        def client() -> list[Usage]:
            usages: list[Usage] = []
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_PATIENCE_S)) as connection:
                while True:
                    with lock:
                        job = next(waiting, None)
                    if job is None:
                        return usages
                    usages.append(_ask(connection, job, context))

        pool = ThreadPoolExecutor(clients)
        try:
            futures = [pool.submit(client) for _ in range(clients)]
            return [usage for future in as_completed(futures) for usage in future.result()]
        finally:
            # Where one fails or the user interrupts, the others end when the server does: nobody waits for them here.
            pool.shutdown(wait=False)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_healthy(port: int) -> bool:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False


def _ask(connection: http.client.HTTPConnection, job: Job, context: str | None) -> Usage:
    """One chat completion. Raises BenchmarkError if it has not the length that was asked for."""
    system = [] if context is None else [{"role": "system", "content": context}]
    body = {
        "messages": [*system, {"role": "user", "content": job.prompt}],
        "temperature": 0,
        "max_tokens": job.predict,
        "ignore_eos": True,
        "cache_prompt": True,
        "stream": False,
    }
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise BenchmarkError(f"llama-server does not answer: {error or type(error).__name__}") from error
    if response.status != http.HTTPStatus.OK:
        raise BenchmarkError(f"llama-server answers {response.status}: {content.decode(errors='replace')[:300]}")
    usage: dict[str, Any] = json.loads(content)["usage"]
    if usage["completion_tokens"] != job.predict:
        raise BenchmarkError(f"llama-server generated {usage['completion_tokens']} tokens for a job of {job.predict}")
    cached = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
    return Usage(usage["completion_tokens"], usage["prompt_tokens"], cached)


@dataclass(frozen=True)
class Completion:
    """A process of llama-completion for each job, one after the other: what a shell's loop does.

    Loading the model is timed, llama.cpp's warm-up run is left out. A few jobs stand for all, as it is slow.
    """

    setup: Setup
    name: str = "llama-completion, one by one"

    def measure(self, workload: Workload) -> Sample:
        jobs = _sampled(workload)
        prompts = [len(prompt) for prompt in self.setup.tokenizer.prompts(workload)]
        started = time.perf_counter()
        for index in jobs:
            self._complete(workload.jobs[index], workload.context, prompts[index])
        factor = len(workload.jobs) / len(jobs)
        seconds = factor * (time.perf_counter() - started)
        note = f"{len(jobs)} of {len(workload.jobs)} jobs, scaled" if factor > 1 else ""
        return Sample(seconds, workload.generated_tokens, sum(prompts), note=note)

    def _complete(self, job: Job, context: str | None, prompt_tokens: int) -> None:
        command = [program("llama-completion"), "-m", str(self.setup.model), "-t", str(self.setup.threads)]
        command += ["-c", str(_context(prompt_tokens + job.predict)), "-n", str(job.predict), "--ignore-eos"]
        # Single turn: as a chat, with the model's template, and an end after the answer.
        command += ["--temp", "0", "--jinja", "--single-turn", "--no-warmup", "--perf", "--no-escape"]
        command += [] if context is None else ["-sys", context]
        told = re.search(r"\beval time = [^\n]*?/ +(\d+) runs", _run([*command, "-p", job.prompt]).stderr)
        # The first token comes of the prefill.
        generated = int(told[1]) + 1 if told else None
        if generated != job.predict:
            raise BenchmarkError(f"llama-completion generated {generated} tokens for a job of {job.predict}")


def _sampled(workload: Workload) -> list[int]:
    """The indices of a few jobs that stand for all: the middles of as many classes of size. All, if none can."""
    jobs = workload.jobs
    count = min(len(jobs), COMPLETIONS)
    if workload.sizes == "one huge":
        return list(range(len(jobs)))
    # About four characters make a token.
    by_size = sorted(range(len(jobs)), key=lambda index: len(jobs[index].prompt) / 4 + jobs[index].predict)
    return [by_size[(2 * part + 1) * len(jobs) // (2 * count)] for part in range(count)]


@dataclass(frozen=True)
class BatchedBench:
    """llama-batched-bench: the ceiling. It computes as many tokens, in the batch size that suits the machine best.

    Prompts of the mean length, of which the tokens common to all are computed once and the others in batches, without
    attending to the common ones; then the answers in batches. Nothing is tokenised, sampled or scheduled. It computes
    every answer: who answers equal jobs once may be faster.
    """

    setup: Setup
    batches: tuple[int, ...]
    name: str = "llama-batched-bench"

    def measure(self, workload: Workload) -> Sample | None:
        if workload.sizes != "alike":
            return None
        prompts = self.setup.tokenizer.prompts(workload)
        jobs, answer = len(prompts), workload.jobs[0].predict
        length = round(statistics.mean(map(len, prompts)))
        # The last token of a prompt is computed for each sequence in any case.
        common = min(_common(prompts), *(len(prompt) - 1 for prompt in prompts)) if jobs > 1 else 0
        batches = sorted({min(batch, jobs) for batch in (*self.batches, LARGEST_BATCH)})
        shared = self._bench(length, answer, batches, "-pps")
        apart = self._bench(length - common, 1, batches)
        best, seconds = min(
            (
                (batch, common / length * shared[batch]["t_pp"] + jobs / batch * (apart[batch]["t_pp"] + row["t_tg"]))
                for batch, row in shared.items()
            ),
            key=lambda pair: pair[1],
        )
        note = f"ceiling, at {best} sequences"
        return Sample(seconds, workload.generated_tokens, length * jobs, common * (jobs - 1), note)

    def _bench(self, prompt: int, answer: int, batches: Sequence[int], *options: str) -> dict[int, dict[str, float]]:
        """Its rows of results by number of sequences; times in seconds."""
        context = batches[-1] * _context(prompt + answer)
        command = [program("llama-batched-bench"), "-m", str(self.setup.model), "-t", str(self.setup.threads)]
        command += ["-c", str(context), "-npp", str(prompt), "-ntg", str(answer)]
        command += ["-npl", ",".join(map(str, batches)), "--output-format", "jsonl", *options]
        rows = {int(row["pl"]): row for row in _rows(_run(command).stdout)}
        if missing := set(batches) - rows.keys():
            raise BenchmarkError(f"llama-batched-bench did not measure {sorted(missing)} sequences")
        return rows


def _common(prompts: Sequence[Sequence[int]]) -> int:
    """How many first tokens all prompts have in common."""
    columns = zip(*prompts, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def _rows(output: str) -> Iterator[dict[str, float]]:
    for line in output.splitlines():
        if line.startswith("{"):
            yield json.loads(line)
