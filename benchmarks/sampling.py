#!/usr/bin/env python3
"""How long a step takes to decode and how long to sample, with many jobs at a time and a large vocabulary.

Each kind of sampling gets jobs of its own on the real engine; counted are the steps in which all of them are at work.
A model of random weights will do: see make_model.py, whose "1.5b" has 151,936 tokens. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

# For `python benchmarks/sampling.py`, which looks beside this file alone.
sys.path.insert(1, str(Path(__file__).parents[1]))

from benchmarks import report
from benchmarks.contenders import exit_code
from nrvna.config import Config, Sampling, llama_dir
from nrvna.engine.engine import Engine
from nrvna.engine.runner import Runner
from nrvna.engine.tally import PHASES, Tally
from nrvna.engine.work import Request

CONTEXT = 256
# What nrvna takes where nobody says anything; from all tokens, as OpenAI's API does; and links that look back.
SAMPLINGS = {
    "default": Sampling(seed=1),
    "greedy": Sampling(temp=0.0),
    "repeat_penalty 1.1": Sampling(seed=1, repeat_penalty=1.1),
    "greedy, repeat_penalty 1.1": Sampling(temp=0.0, repeat_penalty=1.1),
    "dry 0.8": Sampling(seed=1, dry_multiplier=0.8),
    "top_k 0": Sampling(seed=1, top_k=0),
    "temp 1, all tokens": Sampling(seed=1, temp=1.0, top_k=0, top_p=1.0, min_p=0.0),
}


def measure(runner: Runner, sampling: Sampling, jobs: int, steps: int) -> Tally:
    """The time of so many steps in which all jobs get a token each."""
    engine = Engine(runner, {"path": "model"})
    endless = replace(sampling, ignore_eos=True, predict=CONTEXT - 64)
    for number in range(jobs):
        engine.add(Request(str(number), f"Number {number}:", "2026-01-01T00:00:00.000Z", None, endless))
    before = -1
    # Until every prompt is read, and one step more: the first one finds cold buffers.
    while engine.tally.tokens - before < jobs:
        before = engine.tally.tokens
        engine.step()
    engine.step()
    engine.tally = Tally()
    for _ in range(steps):
        engine.step()
    tally = engine.tally
    if tally.tokens != jobs * steps:
        raise RuntimeError(f"{tally.tokens} tokens in {steps} steps of {jobs} jobs: they were not all at work")
    for number in range(jobs):
        engine.drop(str(number))
    return tally


def run(options: argparse.Namespace) -> None:
    """Measure and print. Raises NrvnaError or OSError."""
    logging.getLogger("nrvna.llama").setLevel(logging.ERROR)
    where = llama_dir()
    config = Config(parallel=options.jobs, ctx=CONTEXT, llama_dir=str(where) if where else None)
    runner = Runner(options.model, config)
    about = runner.ready()
    print(
        f"{options.model.name}, {runner.model.n_vocab} tokens, {options.jobs} jobs at a time, {options.steps} steps, "
        f"on {about.device or 'the CPU'}, {runner.shape.threads} threads; {report.machine()['processor']}, "
        f"{date.today()}\n"
    )
    print("| sampling |", *(f"{phase}, ms a step |" for phase in PHASES), "sampling's part |")
    print("|---|" + "---|" * (len(PHASES) + 1))
    for name in options.only or SAMPLINGS:
        seconds = measure(runner, SAMPLINGS[name], options.jobs, options.steps).seconds
        each = (f"{1000 * seconds[phase] / options.steps:.1f} |" for phase in PHASES)
        print(f"| {name} |", *each, f"{seconds['sample'] / sum(seconds.values()):.1%} |", flush=True)
    runner.model.close()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="sampling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="a .gguf file")
    parser.add_argument("--jobs", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", action="append", choices=SAMPLINGS, help="this kind of sampling, more than once")
    options = parser.parse_args(argv)
    return exit_code("sampling", lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
