#!/usr/bin/env python3
"""Prefill and decode speed of the binding: what the way its threads wait costs, alone and beside other work.

Each measurement is a process of its own; the variants take turns, so that a slow moment of the machine touches all
of them. Compare ratios within one run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from nrvna.llama import Batch, Context, Model, load_library

PROMPT_TOKENS = 512
SEQUENCES = 8
STEPS = 24
# How OpenMP's threads wait for each other: the environment of each variant.
WAITING = {
    "libgomp's default": {},
    "GOMP_SPINCOUNT=1000 (nrvna)": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
}


def measure(model_file: Path, llama_dir: Path | None, threads: int) -> tuple[float, float]:
    """Tokens per second of one prompt, and of several sequences decoded together."""
    load_library(llama_dir)
    model = Model(model_file)
    tokens = (model.tokenize("The quick brown fox jumps over the lazy dog. ") * PROMPT_TOKENS)[:PROMPT_TOKENS]
    context = Context(
        model,
        n_ctx=1024 * SEQUENCES,
        n_seq_max=SEQUENCES,
        flash_attention=False,
        threads=threads,
        n_batch=PROMPT_TOKENS,
    )
    batch = Batch(PROMPT_TOKENS)
    for _ in range(2):
        batch.clear()
        batch.add(tokens, position=0)
        started = time.perf_counter()
        context.decode(batch)
        prefill = PROMPT_TOKENS / (time.perf_counter() - started)
        context.forget(0)
    for step in range(-1, STEPS):
        batch.clear()
        for sequence in range(SEQUENCES):
            chunk = tokens[:32] if step < 0 else tokens[step : step + 1]
            batch.add(chunk, position=0 if step < 0 else 32 + step, sequence=sequence)
        if step == 0:
            started = time.perf_counter()
        context.decode(batch)
    return prefill, SEQUENCES * STEPS / (time.perf_counter() - started)


def measured_by_child(options: argparse.Namespace, extra: dict[str, str]) -> tuple[float, float]:
    spin = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in spin} | extra
    command = [sys.executable, __file__, str(options.model), "--one", "--threads", str(options.threads)]
    if options.llama_dir:
        command += ["--llama-dir", str(options.llama_dir)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    prefill, decode = done.stdout.split()
    return float(prefill), float(decode)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--llama-dir", type=Path, help="another build than the one nrvna would take")
    parser.add_argument("--one", action="store_true", help="one measurement in this process: prefill, decode")
    options = parser.parse_args()
    if options.one:
        print(*measure(options.model, options.llama_dir, options.threads))
        return 0
    print(f"{SEQUENCES} sequences, {options.threads} threads; tokens/s, median (least to most)\n")
    print("| | prefill | decode | prefill beside busy loops | decode beside busy loops |")
    print("|---|---|---|---|---|")
    samples: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    for _ in range(options.rounds):
        for busy in (False, True):
            loops = [
                subprocess.Popen([sys.executable, "-c", "while True: pass"])
                for _ in range(options.threads if busy else 0)
            ]
            try:
                for name, extra in WAITING.items():
                    samples.setdefault((name, busy), []).append(measured_by_child(options, extra))
            finally:
                for loop in loops:
                    loop.kill()
                    loop.wait()
    for name in WAITING:
        cells = []
        for busy in (False, True):
            columns = zip(*samples[name, busy], strict=True)
            cells += [f"{statistics.median(part):.0f} ({min(part):.0f} to {max(part):.0f})" for part in columns]
        print(f"| {name} | {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
