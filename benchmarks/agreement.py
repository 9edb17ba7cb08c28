#!/usr/bin/env python3
"""How far greedy answers agree between two ways to compute them: a GPU and the CPU, two types of KV cache.

Twenty prompts are answered by a daemon with the one set of options and by a daemon with the other, from the same
model. An answer agrees up to its first token that is another one: what comes after that follows from it. Tokens are
those that the model's vocabulary makes of the texts. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from itertools import takewhile
from pathlib import Path

# For `python benchmarks/agreement.py`, which looks beside this file alone.
sys.path.insert(1, str(Path(__file__).parents[1]))

from benchmarks import report
from benchmarks.contenders import exit_code, running
from benchmarks.workloads import Tokenizer
from nrvna import Workspace

PROMPTS = (
    "Explain what a B-tree is.",
    "Write a limerick about tests.",
    "Name three rivers and a city on each.",
    "What is a mutex for?",
    "Why is the sky blue?",
    "Summarise in one sentence: a queue is a folder, a job is a folder in it, its state is where that folder lies.",
    "Translate into French: the harbour is quiet in winter.",
    "List the first ten prime numbers.",
    "What does the HTTP status 404 mean?",
    "Write a Python function that reverses a string.",
    "Give three reasons to write documentation.",
    "What is the capital of Mongolia?",
    "Describe a lighthouse to someone who has never seen the sea.",
    "Is this review good or bad: 'It broke after two days.'",
    "How do you boil an egg?",
    "Write a commit message for a fix of an off-by-one error.",
    "What is the difference between a process and a thread?",
    "Tell a story about a fox and a clock in five sentences.",
    "Correct the grammar: he go to school yesterday.",
    "What should one check before a long journey by bicycle?",
)


def answers(model: Path, options: Sequence[str], predict: int, folder: Path) -> list[str]:
    """Each prompt's greedy answer, by a daemon with these options. Raises JobFailedError, and what running raises."""
    log = folder / "nrvnad.log"
    workspace = Workspace(folder / "workspace", create=True)
    command = [sys.executable, "-m", "nrvna.daemon", str(model), workspace.path, *options]
    with running(command, log, lambda: b"ready:" in log.read_bytes()):
        return [job.result() for job in workspace.submit_all(PROMPTS, temp=0.0, max_tokens=predict)]


def agreeing(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens they have in common at their beginnings."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def run(options: argparse.Namespace) -> None:
    """Measure and print."""
    found = []
    for asked in (options.first, options.second):
        with tempfile.TemporaryDirectory(prefix="nrvna-agreement-") as folder:
            found.append(answers(options.model, shlex.split(asked), options.predict, Path(folder)))
    tokenizer = Tokenizer(options.model)
    pairs = [tuple(map(tokenizer.tokens, pair)) for pair in zip(*found, strict=True)]
    common = [agreeing(first, second) for first, second in pairs]
    longest = [max(len(first), len(second)) for first, second in pairs]
    same = sum(first == second for first, second in zip(*found, strict=True))
    print(f"{options.model.name}, {report.machine()['processor']}, {date.today()}\n")
    print(f"| | `{options.first or 'defaults'}` and `{options.second or 'defaults'}` |\n|---|---|")
    print(f"| answers that are the same | {same} of {len(pairs)} |")
    print(f"| tokens before the first other one | {sum(common) / max(1, sum(longest)):.1%} of {sum(longest)} |")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="agreement", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="a .gguf file")
    parser.add_argument("--first", default="--gpu-layers 0", help="nrvnad's options (default --gpu-layers 0)")
    parser.add_argument("--second", default="", help="the others (default none: a GPU where there is one)")
    parser.add_argument("--predict", type=int, default=64, help="most tokens of an answer (default 64)")
    options = parser.parse_args(argv)
    return exit_code("agreement", lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
