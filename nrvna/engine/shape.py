"""How a model is run on this machine: how many sequences together, in how many cells, on how many threads."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nrvna.config import Config
from nrvna.engine.layout import padded
from nrvna.engine.machine import physical_cores
from nrvna.errors import ContextError, SettingError
from nrvna.limits import Limits
from nrvna.llama import Batch, Context, Model

log = logging.getLogger("nrvna.engine")

AUTO_CONTEXT = 4096
# Without a calibration, and where one would take too long.
AUTO_PARALLEL = 8
# What a job takes on average where the context of each is chosen automatically: short prompts, some long ones.
_AVERAGE_JOB = 1024
# The part of the memory there is that weights and KV cache may take together where slots are chosen automatically.
MEMORY_SHARE = 0.7
_MAX_CELLS = 1 << 31

_TRIED = (1, 2, 4, 8, 16, 32)
_TRIED_ON_GPU = (64, 128, 256)
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


_NO_LIMITS = Limits()


def choose_shape(
    model: Model, room: int, config: Config, parallel: int = AUTO_PARALLEL, limits: Limits = _NO_LIMITS
) -> Shape:
    """The shape asked for, or what suits the model and the memory there is, within the limits.

    ``room`` is the number of KV cells for which there is memory, ``parallel`` that of sequences to take where the
    user named none. Raises SettingError if NRVNA_CTX and NRVNA_PARALLEL are too large together.
    """
    trained = model.n_ctx_train or AUTO_CONTEXT
    context = padded(min(config.ctx or min(trained, AUTO_CONTEXT), limits.context))
    if config.ctx > trained:
        log.warning("a context of %d tokens is more than the %d that the model was trained for", config.ctx, trained)
    threads = config.threads or physical_cores()
    cell = max(1, model.kv_cache_bytes(1, config.kv_type))
    if config.reproducible:
        parallel = min(config.parallel or max(1, min(parallel, room // context)), limits.parallel)
        _check_cells(parallel * context, parallel, context)
        return Shape(parallel, context, parallel * context, threads, parallel * context * cell)
    wanted = min(config.parallel or parallel, limits.parallel)
    cells = cells_for(wanted, context, config)
    if not (config.parallel and config.ctx):
        cells = min(cells, max(context, room))
    cells = padded(cells)
    _check_cells(cells, wanted, context)
    return Shape(wanted, context, cells, threads, cells * cell)


def cells_for(parallel: int, context: int, config: Config) -> int:
    """The KV cells for so many sequences: whole contexts where one was named, else what jobs take on average."""
    return parallel * context if config.ctx else min(parallel * context, context + parallel * _AVERAGE_JOB)


def measure_speeds(open_context: Callable[..., Context], *, on_gpu: bool = False) -> dict[int, float]:
    """Tokens per second when 1, 2, 4, … sequences are decoded together, as far as it takes no longer than seconds.

    ``open_context`` makes a context of the sizes that it is given.
    """
    numbers = _TRIED + _TRIED_ON_GPU if on_gpu else _TRIED
    most = numbers[-1]
    try:
        context = open_context(n_ctx=most * _CELLS_EACH, n_seq_max=most, kv_unified=True, n_outputs_max=most)
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
            for count in numbers:
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
