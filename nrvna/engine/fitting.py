"""How much of a model goes on the GPUs of this machine, and how much KV cache there is memory for behind it."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from nrvna.config import Config
from nrvna.engine.layout import padded
from nrvna.engine.machine import available_memory
from nrvna.engine.offload import cells_that_fit, layers_that_fit, margin_of, mask_bytes_of, placement, room_beside
from nrvna.engine.shape import AUTO_CONTEXT, MEMORY_SHARE, cells_for
from nrvna.llama import Library, Model
from nrvna.llama.gguf import HeaderError, parts_of, read_header

log = logging.getLogger("nrvna.engine")

_LAYER = re.compile(r"blk\.(\d+)\.")
_INPUT = ("token_embd.weight", "per_layer_token_embd.weight", "position_embd.weight", "token_types.weight")
# Outputs for which a step has room, where nobody said how many jobs run at a time.
_USUAL_OUTPUTS = 64


class Fit:
    """``layers`` of the model's ``total`` are put on GPUs, at most ``most``: as many as there is memory for beside a
    context of one job, or of all where their number was named. What computes the logits counts as one.

    Where the file does not say how large its layers are, all that are wanted are tried, and ``total`` is 0.
    ``split`` is each GPU's part of them, None where llama.cpp is to choose. ``shortage`` says why fewer than wanted
    are put there; "" if that is not so.
    """

    def __init__(self, path: Path, config: Config, library: Library, *, most: int, micro_batch: int) -> None:
        self._library = library
        self._config = config
        self._mask_bytes = mask_bytes_of(config.micro_batch or micro_batch)
        self.layers = self.total = 0
        self.shortage = ""
        self.split: list[int] | None = None
        self._weights: list[int] = []
        self._output = 0
        self._places: list[int | None] = []
        free = self._free()
        if not free or not most:
            return
        self.layers = most
        try:
            self._weights, self._output = weights_by_layer(path)
        except (OSError, HeaderError) as error:
            log.warning("the sizes of the layers are not known: %s; trying all that are wanted", error)
            return
        with Model(path, vocab_only=True) as model:
            self._margin = self._margin_for(model, free)
            count = len(self._weights)
            context = padded(config.ctx or min(model.n_ctx_train or AUTO_CONTEXT, AUTO_CONTEXT))
            cells = cells_for(config.parallel, context, config) if config.parallel else context
            kv_bytes = cells * model.kv_cache_bytes(1, config.kv_type) // max(1, count)
        self.total = count + 1
        # The mask is there once on each GPU, however many layers it has.
        self.split = room_beside(self._margin + cells * self._mask_bytes, free)
        self.layers = layers_that_fit(self._weights, self._output, kv_bytes, self.split, most)
        self._places = placement(count, self.layers, self.split)
        if self.layers < min(most, self.total):
            gpus = "the GPU" if len(free) == 1 else f"{len(free)} GPUs"
            there = f"{self.layers} of {self.total} layers fit on {gpus}, where {sum(free) / 1e9:.1f} GB are free"
            rest = "the others are computed by the CPU" if self.layers else "the CPU computes alone"
            self.shortage = f"{there}: {rest}"

    @property
    def is_whole(self) -> bool:
        """Whether all of the model is put on GPUs, as far as is known."""
        return self.layers > 0 and self.layers >= self.total

    def room(self, model: Model, *, unloaded: int = 0) -> int:
        """The KV cells for which there is memory behind the weights, of which ``unloaded`` bytes are not loaded yet:
        all or none."""
        cell = max(1, model.kv_cache_bytes(1, self._config.kv_type))
        # Several engines on the processor start at the same time, and each sees all that there is.
        ram = int(available_memory() * MEMORY_SHARE / self._config.replicas)
        if not self.layers:
            return max(0, ram - (unloaded or model.size_bytes)) // cell
        free = self._free()
        if not self._places:
            return max(0, sum(free) - unloaded) // cell
        needs = list(zip([*self._weights, self._output], self._places, strict=True))
        if unloaded:
            free = [there - sum(need for need, place in needs if place == gpu) for gpu, there in enumerate(free)]
        of_cpu = sum(need for need, place in needs[:-1] if place is None)
        layer = cell // max(1, len(self._weights))
        return cells_that_fit(self._places, layer, free, self._margin, self._mask_bytes, ram - of_cpu)

    def _free(self) -> list[int]:
        """The free memory of each GPU; one that has none of its own takes the machine's."""
        gpus = [device for device in self._library.devices() if device.is_gpu]
        return [gpu.memory_free if gpu.memory_total else available_memory() for gpu in gpus]

    def _margin_for(self, model: Model, free: list[int]) -> int:
        key, value = model.head_widths
        # The feed-forward part is rarely wider than four times the vectors.
        width = model.n_embd or max(key, value)
        return margin_of(
            free,
            micro_batch=self._mask_bytes // mask_bytes_of(1),
            width=width,
            hidden=4 * width,
            n_vocab=model.n_vocab,
            outputs=self._config.parallel or _USUAL_OUTPUTS,
        )


def weights_by_layer(path: Path) -> tuple[list[int], int]:
    """Bytes of each layer's tensors, and of those that compute the logits behind them.

    What reads the input stays on the CPU; where there are no other weights for the logits, they are computed with a
    copy of these. Raises OSError and HeaderError.
    """
    layers: dict[int, int] = {}
    output = tokens = 0
    has_output = False
    for part in parts_of(path):
        for name, size in read_header(part).sizes.items():
            if match := _LAYER.match(name):
                layers[int(match[1])] = layers.get(int(match[1]), 0) + size
            elif name in _INPUT:
                tokens += size if name == _INPUT[0] else 0
            else:
                output += size
                has_output |= name == "output.weight"
    sizes = [layers.get(index, 0) for index in range(max(layers, default=-1) + 1)]
    return sizes, output if has_output else output + tokens
