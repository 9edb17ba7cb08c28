"""Which layers of a model GPUs hold, and how many of them fit: numbers alone, in bytes, and no library.

llama.cpp counts what computes the logits as one more layer, the last. Of a number of layers it puts the last ones on
the GPUs, each of which gets a part of them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

# Of a GPU's free memory, what stays free for what nobody counts: the driver's and the libraries' own. Not measured.
_RESERVE_BYTES = 400_000_000
_RESERVE_SHARE = 0.05
_FLOAT, _HALF = 4, 2
# Rows as wide as the model's vectors that are alive at once while a layer is computed: generously. Not measured.
_ROWS = 24


def placement(n_layers: int, on_gpu: int, parts: Sequence[int]) -> list[int | None]:
    """The GPU of each layer and, behind them, of the logits, where ``on_gpu`` of them are wanted on GPUs; None is the
    CPU. ``parts`` is each GPU's part of these, as a part of the sum."""
    count = n_layers + 1
    on_gpu = min(on_gpu, count) if sum(parts) else 0
    bounds = [part / sum(parts) for part in accumulate(parts)] if on_gpu else []
    dealt = [min(bisect_right(bounds, place / on_gpu), len(parts) - 1) for place in range(on_gpu)]
    return [None] * (count - on_gpu) + dealt


def room_beside(margin: int, free: Sequence[int]) -> list[int]:
    """What each GPU has room for, where ``margin`` of its ``free`` memory must stay free if it holds anything."""
    return [max(0, there - margin) for there in free]


def layers_that_fit(
    layer_bytes: Sequence[int], output_bytes: int, kv_bytes: int, room: Sequence[int], wish: int
) -> int:
    """The most layers, no more than ``wish``, that the GPUs hold with their part of the KV cache; 0 if none.

    ``layer_bytes`` are each layer's weights, ``output_bytes`` those of the logits, and ``kv_bytes`` is the KV cache
    of one layer. Each GPU gets layers in proportion to its ``room``.
    """
    needs = [*(size + kv_bytes for size in layer_bytes), output_bytes]
    for on_gpu in range(min(wish, len(needs)), 0, -1):
        held: dict[int, int] = {}
        for need, gpu in zip(needs, placement(len(layer_bytes), on_gpu, room), strict=True):
            if gpu is not None:
                held[gpu] = held.get(gpu, 0) + need
        if held and all(size <= room[gpu] for gpu, size in held.items()):
            return on_gpu
    return 0


def cells_that_fit(
    places: Sequence[int | None], cell_bytes: int, free: Sequence[int], margin: int, mask_bytes: int, ram: int
) -> int:
    """How many cells of a KV cache there is memory for, behind weights that are loaded.

    ``places`` are those of :func:`placement`, ``cell_bytes`` is what a layer takes for a cell, ``mask_bytes`` what
    each GPU takes for one whatever it holds, ``free`` the GPUs' memory and ``ram`` the CPU's for its layers.
    """
    layers = list(places[:-1])
    found = []
    for gpu, there in enumerate(free):
        if gpu in places:
            found.append(max(0, there - margin) // max(1, layers.count(gpu) * cell_bytes + mask_bytes))
    if None in layers or not found:
        found.append(max(0, ram) // max(1, layers.count(None) * cell_bytes))
    return min(found)


def margin_of(free: Sequence[int], *, micro_batch: int, width: int, hidden: int, n_vocab: int, outputs: int) -> int:
    """About what a GPU takes to compute, beside weights and KV cache: an estimate, not measured."""
    rows = micro_batch * (_ROWS * width + 2 * hidden) * _FLOAT
    return _RESERVE_BYTES + int(_RESERVE_SHARE * max(free, default=0)) + rows + outputs * n_vocab * _FLOAT


def mask_bytes_of(micro_batch: int) -> int:
    """What a GPU takes for each cell of the KV cache to know which tokens of a step see it."""
    return micro_batch * (_FLOAT + _HALF)
