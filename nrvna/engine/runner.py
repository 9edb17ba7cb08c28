"""The only part of the engine that touches the model: loads it, decodes plans, samples tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nrvna.config import Config, Sampling
from nrvna.engine.machine import available_memory, physical_cores
from nrvna.engine.prompt import PromptEncoder
from nrvna.engine.scheduler import Chunk
from nrvna.errors import ModelLoadError, SettingError
from nrvna.llama import PENALTY_WINDOW, Batch, Context, Library, Model, Sampler, load_library

log = logging.getLogger("nrvna.engine")

# Tokens computed in one step at most: long prompts are cut into chunks of this.
BATCH_TOKENS = 512
AUTO_CONTEXT = 4096
AUTO_SLOTS = 8
# The part of the memory there is that weights and KV cache may take together where slots are chosen automatically.
_MEMORY_SHARE = 0.7
_MAX_CELLS = 1 << 31


@dataclass(frozen=True)
class Shape:
    """How the model is run: ``slots`` sequences of ``context`` tokens each, on ``threads`` CPU threads."""

    slots: int
    context: int
    threads: int
    kv_bytes: int


def choose_shape(model: Model, weights: int, config: Config) -> Shape:
    """The shape asked for, or what suits the model and the memory there is. ``weights`` is their size in bytes.

    Raises SettingError if NRVNA_CTX and NRVNA_PARALLEL are too large together.
    """
    trained = model.n_ctx_train or AUTO_CONTEXT
    context = config.ctx or min(trained, AUTO_CONTEXT)
    if context > trained:
        log.warning("a context of %d tokens is more than the %d that the model was trained for", context, trained)
    per_slot = model.kv_cache_bytes(context)
    room = int(available_memory() * _MEMORY_SHARE) - weights
    slots = config.parallel or max(1, min(AUTO_SLOTS, room // max(1, per_slot)))
    if context * slots >= _MAX_CELLS:
        raise SettingError(f"{slots} jobs of {context} tokens are more than llama.cpp counts: lower NRVNA_CTX")
    return Shape(slots, context, config.threads or physical_cores(), slots * per_slot)


class Runner:
    """A loaded model with a context for several sequences, and a sampler for each that runs.

    ``progress`` is called with 0.0 to 1.0 while the weights are read. Raises what Model and Context raise.
    """

    def __init__(self, path: Path, config: Config, progress: Callable[[float], None] | None = None) -> None:
        library = load_library(Path(config.llama_dir) if config.llama_dir else None)
        self.build = library.build
        log.debug("llama.cpp %s for %s: %s", self.build.commit[:12], self.build.backend, library.system_info)
        self.model = Model(path, gpu_layers=config.gpu_layers, progress=progress)
        if not self.model.is_generative:
            raise ModelLoadError(f"{path} is an encoder: it does not continue a text")
        self.prompts = PromptEncoder(self.model)
        shape = choose_shape(self.model, self.model.size_bytes, config)
        self._context = Context(
            self.model,
            n_ctx=shape.context * shape.slots,
            n_seq_max=shape.slots,
            n_batch=BATCH_TOKENS,
            n_ubatch=BATCH_TOKENS,
            threads=shape.threads,
            flash_attention=None if has_gpu(library) and config.gpu_layers else False,
            # A part of the cache for each: with flash attention off, a sequence's logits on a CPU are then the same
            # alone and among neighbours, so that an answer can be made again from its seed.
            kv_unified=False,
        )
        self.shape = Shape(shape.slots, self._context.n_ctx_seq, shape.threads, shape.kv_bytes)
        self._batch = Batch(BATCH_TOKENS)
        self._samplers: dict[int, Sampler] = {}

    def start(self, slot: int, sampling: Sampling, prompt: Sequence[int]) -> None:
        """Make a slot ready for a new sequence."""
        sampler = Sampler(
            self.model,
            temp=sampling.temp,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            repeat_penalty=sampling.repeat_penalty,
            seed=sampling.seed,
        )
        sampler.accept(prompt[-PENALTY_WINDOW:])
        self._samplers[slot] = sampler

    def decode(self, plan: Sequence[Chunk]) -> list[int]:
        """Compute a plan's tokens; returns each chunk's index in the batch. Raises DecodeError."""
        self._batch.clear()
        indices = []
        for chunk in plan:
            sequence = chunk.sequence
            assert sequence.slot is not None
            indices.append(
                self._batch.add(
                    sequence.pending(chunk.count),
                    position=sequence.n_past,
                    sequence=sequence.slot,
                    output=chunk.output,
                )
            )
        self._context.decode(self._batch)
        for chunk in plan:
            chunk.sequence.n_past += chunk.count
        return indices

    def sample(self, slot: int, index: int) -> int:
        """The next token of the sequence in a slot, from the logits at that index of the batch."""
        return self._samplers[slot].sample(self._context, index)

    def stop(self, slot: int) -> None:
        """Forget the sequence in a slot."""
        self._samplers.pop(slot).close()
        self._context.forget(slot)


def has_gpu(library: Library) -> bool:
    return any(device.is_gpu for device in library.devices())
