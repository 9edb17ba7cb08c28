"""How the KV cache is divided and read, and what suits the jobs at hand: all measured in benchmarks/RESULTS.md.

Where nrvna's own attention runs, one cache for all suits every queue; the rest is for llama.cpp's.
"""

from __future__ import annotations

from collections.abc import Sequence as Row
from dataclasses import dataclass, replace

from nrvna.engine.attention import plain_is_faster
from nrvna.engine.sequence import Sequence

# Tokens computed in one step at most, where none were asked for: long prompts are cut into chunks of this.
BATCH_TOKENS = 512
# The same on a GPU, and how many of them are computed at once: llama.cpp's own defaults. Not measured here.
GPU_BATCH_TOKENS = 2048
GPU_MICRO_BATCH = 512
# llama.cpp rounds the cells of a sequence up to a multiple of this.
CELLS_STEP = 256
# Sequences that are finished and stay in a shared cache for others to begin with them.
_SPARE_SLOTS = 16
_MAX_SLOTS = 256
# More at a time than this, and plain attention loses more on the cells of others than it gains on the weights.
_MOST_PLAIN = 16
_PLAIN_MICRO_BATCH = 128
# Longer jobs are given larger parts of the cache, and are then fewer at a time: down to this part of all.
_FEWEST = 4


def padded(tokens: int) -> int:
    """The cells that llama.cpp makes for so many tokens."""
    return -(-tokens // CELLS_STEP) * CELLS_STEP


@dataclass(frozen=True)
class Layout:
    """A KV cache of ``cells`` for ``slots`` sequences, of which ``parallel`` run at once.

    ``unified``: all sequences share the cells, else each slot has an equal part. ``micro_batch`` is the most
    tokens computed at once, None for a whole step. ``flash_attention`` None leaves the choice to llama.cpp.
    """

    parallel: int
    slots: int
    cells: int
    unified: bool
    flash_attention: bool | None
    micro_batch: int | None = None

    @property
    def room(self) -> int:
        """The most tokens of one sequence."""
        return self.cells if self.unified else self.cells // self.slots

    @property
    def shared_cells(self) -> int | None:
        """How many cells all sequences share; None if each has its own."""
        return self.cells if self.unified else None

    def __str__(self) -> str:
        cells = f"{self.cells} cells for all" if self.unified else f"{self.room} cells for each"
        attention = "plain" if self.flash_attention is False else "flash"
        return f"{self.parallel} jobs at a time, {cells}, {attention} attention"


def streams(parallel: int, cells: int, *, flash_attention: bool | None = None) -> Layout:
    """A part of the cache for each sequence, which then meets no cells of others: the fastest where little is shared.

    A prefix is shared by copying the part of the cache that it lies in.
    """
    room = cells // parallel // CELLS_STEP * CELLS_STEP
    return Layout(parallel, parallel, parallel * room, unified=False, flash_attention=flash_attention)


def unified(parallel: int, cells: int) -> Layout:
    """Cells for all together: memory goes where it is needed, and prefixes are shared without a copy."""
    slots = min(_MAX_SLOTS, parallel + _SPARE_SLOTS)
    return Layout(parallel, slots, cells, unified=True, flash_attention=None)


def plain(parallel: int, cells: int) -> Layout:
    """The same cells read by plain attention, see attention.py. Its buffers grow with the tokens computed at once."""
    return without_flash(unified(min(parallel, _MOST_PLAIN), cells))


def without_flash(layout: Layout) -> Layout:
    """The same with plain attention, whose scores for all cells of the cache are a table."""
    return replace(layout, flash_attention=False, micro_batch=_PLAIN_MICRO_BATCH)


def best_layout(
    sequences: Row[Sequence], *, parallel: int, cells: int, context: int, may_be_plain: bool = True
) -> Layout:
    """What suits the sequences in sight, in the order in which they are to run, ``parallel`` of them at a time.

    Unless it ``may_be_plain``, attention is left to llama.cpp.
    """
    if may_be_plain and plain_is_faster(sequences[:parallel]):
        return plain(parallel, cells)
    longest = max((sequence.most_tokens(context) for sequence in sequences), default=0)
    count = parallel
    while count >= max(1, parallel // _FEWEST):
        own = streams(count, cells)
        if own.room >= max(longest, CELLS_STEP):
            return own
        count //= 2
    return unified(parallel, cells)
