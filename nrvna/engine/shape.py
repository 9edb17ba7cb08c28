"""How a model is run on this machine: how many sequences together, in how many cells, on how many threads."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from nrvna.config import Config
from nrvna.engine.layout import padded
from nrvna.engine.machine import available_memory, physical_cores
from nrvna.errors import ContextError, SettingError
from nrvna.llama import Batch, Context, Model

log = logging.getLogger("nrvna.engine")

AUTO_CONTEXT = 4096
# Without a calibration, and where one would take too long.
AUTO_PARALLEL = 8
# What a job takes on average where the context of each is chosen automatically: short prompts, some long ones.
_AVERAGE_JOB = 1024
# The part of the memory there is that weights and KV cache may take together where slots are chosen automatically.
_MEMORY_SHARE = 0.7
_MAX_CELLS = 1 << 31

_TRIED = (1, 2, 4, 8, 16, 32)
# The calibration takes no new turn after this, and gives up growing where a step would take longer.
_PATIENCE_S = 1.0
_TURNS = 4
_CELLS_EACH = 8
# Of the fastest number of sequences: fewer are preferred where they lose no more, as each then ends sooner.
_GOOD_ENOUGH = 0.97


@dataclass(frozen=True)
class Shape:
    """``parallel`` sequences of up to ``context`` tokens at a time, on ``threads`` CPU threads.

    ``cells`` is the size of the KV cache for all of them in tokens, ``kv_bytes`` about its size in memory.
    """

    parallel: int
    context: int
    cells: int
    threads: int
    kv_bytes: int


def choose_shape(model: Model, weights: int, config: Config, parallel: int = AUTO_PARALLEL) -> Shape:
    """The shape asked for, or what suits the model and the memory there is.

    ``weights`` is their size in bytes, ``parallel`` the number of sequences to take where the user named none.
    Raises SettingError if NRVNA_CTX and NRVNA_PARALLEL are too large together.
    """
    trained = model.n_ctx_train or AUTO_CONTEXT
    context = padded(config.ctx or min(trained, AUTO_CONTEXT))
    if config.ctx > trained:
        log.warning("a context of %d tokens is more than the %d that the model was trained for", config.ctx, trained)
    threads = config.threads or physical_cores()
    cell = max(1, model.kv_cache_bytes(1))
    # Several engines on the processor start at the same time, and each sees all that there is.
    room = max(0, int(available_memory() * _MEMORY_SHARE / config.replicas) - weights) // cell
    if config.reproducible:
        parallel = config.parallel or max(1, min(parallel, room // context))
        _check_cells(parallel * context, parallel, context)
        return Shape(parallel, context, parallel * context, threads, parallel * context * cell)
    wanted = config.parallel or parallel
    cells = wanted * context if config.ctx else min(wanted * context, context + wanted * _AVERAGE_JOB)
    if not (config.parallel and config.ctx):
        cells = min(cells, max(context, room))
    cells = padded(cells)
    _check_cells(cells, wanted, context)
    return Shape(wanted, context, cells, threads, cells * cell)


def measure_speeds(model: Model, threads: int) -> dict[int, float]:
    """Tokens per second when 1, 2, 4, … sequences are decoded together, as far as it takes no longer than seconds."""
    most = _TRIED[-1]
    try:
        context = Context(model, n_ctx=most * _CELLS_EACH, n_seq_max=most, threads=threads, kv_unified=True)
    except ContextError as error:
        log.warning("no calibration: %s", error)
        return {}
    steps: dict[int, float] = {}
    batch = Batch(most)
    deadline = time.perf_counter() + _PATIENCE_S
    with context:
        # In turns, so that a slow moment of the machine touches all of them; the best of each counts.
        for turn in range(_TURNS):
            if turn and time.perf_counter() > deadline:
                break
            for count in _TRIED:
                step = _timed_step(context, batch, count)
                steps[count] = min(step, steps.get(count, step))
                if 2 * step > _PATIENCE_S:
                    break
    return {count: count / step for count, step in steps.items()}


def _timed_step(context: Context, batch: Batch, count: int) -> float:
    """Seconds to decode one token of each of some sequences."""
    for sequence in range(count):
        context.forget(sequence)
    for position in range(2):
        batch.clear()
        for sequence in range(count):
            batch.add([1 + sequence + position], position=position, sequence=sequence)
        started = time.perf_counter()
        context.decode(batch)
    return time.perf_counter() - started


def best_parallel(speeds: Mapping[int, float]) -> int:
    """The fewest sequences together that are about as fast as any number measured."""
    fastest = max(speeds.values(), default=0.0)
    return min((count for count, speed in speeds.items() if speed >= _GOOD_ENOUGH * fastest), default=AUTO_PARALLEL)


def _check_cells(cells: int, parallel: int, context: int) -> None:
    if cells >= _MAX_CELLS:
        raise SettingError(f"{parallel} jobs of {context} tokens are more than llama.cpp counts: lower NRVNA_CTX")
