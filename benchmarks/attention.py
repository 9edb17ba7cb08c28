"""One KV cache for all sequences against a part of it for each, with flash attention and without.

Measured is what a row of a batch costs where sequences begin alike and go on differently, as jobs with one context
do: prefill of each one's own tokens, then decoding one token of each at a time. The last variant is what reproducible
answers take: each row computed by itself. Every variant is a process of its own that keeps running; they take turns
step by step, so that a slow moment of the machine touches all of them. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.contenders import BenchmarkError, exit_code
from benchmarks.throughput import say
from nrvna.config import Config, llama_dir
from nrvna.engine.layout import padded
from nrvna.engine.machine import physical_cores
from nrvna.environment import engine_environment
from nrvna.llama import Batch, Context, Model, load_library

BATCH_TOKENS = 512
# What each sequence adds to the shared tokens, and the room that it has for this.
OWN_TOKENS = 48
OWN_CELLS = 320
# Decode steps of one sample.
STEPS = 2
MAX_ROUNDS = (OWN_CELLS - OWN_TOKENS - 1) // STEPS


@dataclass(frozen=True)
class Variant:
    """How the cache is divided and read. ``alone``: as in reproducible mode, no row depends on the others."""

    unified: bool
    flash: bool
    alone: bool = False


VARIANTS = {
    "streams, flash": Variant(unified=False, flash=True),
    "unified, flash": Variant(unified=True, flash=True),
    "streams, plain": Variant(unified=False, flash=False),
    "unified, plain": Variant(unified=True, flash=False),
    "streams, flash, rows alone": Variant(unified=False, flash=True, alone=True),
}


class Trial:
    """Sequences that begin with the same ``depth`` tokens and grow together."""

    def __init__(self, model: Model, variant: Variant, depth: int, sequences: int) -> None:
        shared, each = padded(depth) + sequences * OWN_CELLS, padded(depth + OWN_CELLS)
        self._context = Context(
            model,
            n_ctx=shared if variant.unified else sequences * each,
            n_seq_max=sequences,
            n_batch=BATCH_TOKENS,
            n_ubatch=BATCH_TOKENS,
            threads=physical_cores(),
            flash_attention=variant.flash,
            kv_unified=variant.unified,
            rows_alone=variant.alone,
        )
        self._batch = Batch(BATCH_TOKENS)
        self._sequences = sequences
        self._past = depth
        self._random = random.Random(1)
        # Among the first tokens of a vocabulary are control tokens and single bytes.
        self._vocabulary = range(min(300, model.n_vocab // 2), min(40_000, model.n_vocab))
        tokens = self._draw(depth)
        for start in range(0, depth, BATCH_TOKENS):
            self._batch.clear()
            self._batch.add(tokens[start : start + BATCH_TOKENS], position=start)
            self._context.decode(self._batch)
        for sequence in range(1, sequences):
            self._context.copy(0, sequence, depth)

    def _draw(self, count: int) -> list[int]:
        return self._random.choices(self._vocabulary, k=count)

    def grow(self, count: int) -> float:
        """Compute so many more tokens of every sequence; the milliseconds that one of them took."""
        drawn = [self._draw(count) for _ in range(self._sequences)]
        together = BATCH_TOKENS // count
        started = time.perf_counter()
        for first in range(0, self._sequences, together):
            self._batch.clear()
            indices = [
                self._batch.add(drawn[sequence], position=self._past, sequence=sequence)
                for sequence in range(first, min(first + together, self._sequences))
            ]
            self._context.decode(self._batch)
            # Waits for a device that computes by itself.
            self._context.logits(indices[-1])
        seconds = time.perf_counter() - started
        self._past += count
        return 1000 * seconds / (count * self._sequences)


def serve(task: Mapping[str, Any]) -> None:
    """One variant's process: says what prefill costs, then for each line on stdin what a row of some steps does."""
    logging.getLogger("nrvna.llama").setLevel(logging.ERROR)
    variant = VARIANTS[task["variant"]]
    if variant.alone and not load_library(llama_dir()).can_compute_rows_alone:
        raise BenchmarkError("rows cannot be computed alone on this platform")
    trial = Trial(Model(task["model"]), variant, task["depth"], task["sequences"])
    # Parts of a cache are copied by the next decode, which is not to count as prefill.
    trial.grow(1)
    print(trial.grow(OWN_TOKENS), flush=True)
    for _ in sys.stdin:
        print(statistics.mean(trial.grow(1) for _ in range(STEPS)), flush=True)


class Child:
    """A variant's process as the parent sees it."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self._name = name
        self._process = process

    def answer(self) -> float:
        """The next number that it says. Raises BenchmarkError if it ended instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkError(f"the process of {self._name!r} ended with {self._process.wait()}")
        return float(line)

    def ask(self) -> float:
        """Milliseconds a row of its next steps."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self.answer()


@contextmanager
def child(model: Path, name: str, depth: int, sequences: int) -> Iterator[Child]:
    """The process of a variant, until the block ends."""
    task = {"model": str(model), "variant": name, "depth": depth, "sequences": sequences}
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.attention", "--one", json.dumps(task)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Some tiled products are set aside by a variable.
        env=engine_environment(Config(reproducible=int(VARIANTS[name].alone))),
    )
    with process:
        try:
            yield Child(name, process)
        finally:
            process.kill()


def compare(model: Path, depth: int, sequences: int, rounds: int) -> None:
    """Measure all variants at one depth and number of sequences, and print their rows."""
    prefill: dict[str, float] = {}
    samples: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with ExitStack() as stack:
        children: dict[str, Child] = {}
        for name in VARIANTS:
            children[name] = stack.enter_context(child(model, name, depth, sequences))
            prefill[name] = children[name].answer()
            say(f"{depth} shared tokens, {sequences} sequences, {name}: ready")
        for _ in range(rounds):
            for name, asked in children.items():
                samples[name].append(asked.ask())
    for name, taken in samples.items():
        row = f"{statistics.median(taken):.2f} ({min(taken):.2f} to {max(taken):.2f})"
        print(f"| {depth} | {sequences} | {name} | {prefill[name]:.2f} | {row} |", flush=True)


def run(options: argparse.Namespace) -> None:
    facts = report.machine()
    print(
        f"{facts['processor']}, {facts['physical_cores']} physical cores, {date.today()}; {options.model.name}. "
        f"{OWN_TOKENS} own tokens of each sequence prefilled once, then {options.rounds} rounds of {STEPS} steps; "
        "median (least to most).\n"
    )
    print("| shared tokens | sequences | variant | own prefill, ms/token | decode, ms/row |")
    print("|---|---|---|---|---|", flush=True)
    for depth in options.depths:
        for sequences in options.sequences:
            compare(options.model, depth, sequences, options.rounds)


def numbers(text: str) -> tuple[int, ...]:
    found = tuple(map(int, text.split(",")))
    if min(found) < 1:
        raise ValueError(text)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attention",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, nargs="?", metavar="MODEL", help="a .gguf file")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--depths", type=numbers, default=(40, 560, 2000), help="default 40,560,2000")
    parser.add_argument("--sequences", type=numbers, default=(8, 16), help="default 8,16")
    parser.add_argument("--one", metavar="JSON", help="be the process of one variant")
    options = parser.parse_args(argv)
    if options.model is None and options.one is None:
        parser.error("name a model")
    if not 1 <= options.rounds <= MAX_ROUNDS:
        parser.error(f"--rounds goes from 1 to {MAX_ROUNDS}")
    one = options.one
    return exit_code("attention", lambda: run(options) if one is None else serve(json.loads(one)))


if __name__ == "__main__":
    sys.exit(main())
