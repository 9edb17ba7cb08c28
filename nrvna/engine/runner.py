"""The only part of the engine that touches the model: loads it, decodes plans, samples tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Rows
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from nrvna.config import Config, Sampling
from nrvna.engine.layout import BATCH_TOKENS, CELLS_STEP, Layout, best_layout, streams, unified
from nrvna.engine.prompt import PromptEncoder
from nrvna.engine.reproducible import Findings, examine
from nrvna.engine.scheduler import Chunk, Move
from nrvna.engine.sequence import Sequence
from nrvna.engine.shape import Shape, best_parallel, choose_shape, measure_speeds
from nrvna.errors import ContextError, ModelLoadError
from nrvna.llama import PENALTY_WINDOW, Batch, Context, Library, Model, Sampler, load_library

log = logging.getLogger("nrvna.engine")

# Where so many tokens are drawn from so many logits, threads gain more than they cost.
_PARALLEL_LOGITS = 200_000


class Runner:
    """A loaded model with a context for several sequences, and a sampler for each that runs.

    ``findings`` says what was seen to be reproducible, None where nobody asked. ``progress`` is called with 0.0 to
    1.0 while the weights are read. Raises what Model and Context raise.
    """

    def __init__(self, path: Path, config: Config, progress: Callable[[float], None] | None = None) -> None:
        library = load_library(Path(config.llama_dir) if config.llama_dir else None)
        self.build = library.build
        self._library = library
        log.debug("llama.cpp %s for %s: %s", self.build.commit[:12], self.build.backend, library.system_info)
        self.on_gpu = has_gpu(library) and config.gpu_layers > 0
        self.findings: Findings | None = None
        self._config = config
        self._progress = progress
        self._samplers: dict[Sequence, Sampler] = {}
        self._batch = Batch(BATCH_TOKENS)
        self._load(path, repack=True)
        self._pool = ThreadPoolExecutor(self.shape.threads, thread_name_prefix="sample")

    @property
    def shares(self) -> bool:
        """Whether sequences may begin with cached tokens of others."""
        return self.model.has_plain_cache and (self.findings is None or self.findings.sharing)

    @property
    def is_reproducible(self) -> bool | None:
        """Whether an answer is the same whatever runs beside it, as far as was seen; None where nobody asked."""
        return self.findings.again if self.findings else None

    @property
    def resumes(self) -> bool:
        """Whether an interrupted answer may go on from its tokens: not if that would change how it goes on."""
        return not self.is_reproducible or (self.findings is not None and self.findings.resuming)

    @property
    def origin(self) -> dict[str, Any]:
        """What an answer depends on beside model, prompt and sampling: who computes it, and how."""
        build = self.build
        # The module's name carries a digest of nrvna's own C.
        made = (build.commit, build.backend, build.cpu, build.compiler, build.options, build.module.name)
        return {"llama": made, "reproducible": bool(self._config.reproducible)}

    def _load(self, path: Path, *, repack: bool) -> None:
        self.model = Model(path, gpu_layers=self._config.gpu_layers, repack=repack, progress=self._progress)
        if not self.model.is_generative:
            raise ModelLoadError(f"{path} is an encoder: it does not continue a text")
        self.prompts = PromptEncoder(self.model)
        self.has_tiled_attention = self._warm_up()
        self.shape = self._choose_shape()
        self._context = self._open(self.layout_for(()))
        if self._config.reproducible:
            self._examine(path, repack)

    def _warm_up(self) -> bool:
        """Compute a token, which reads the weights into memory; whether nrvna's own attention was in it."""
        before = self._library.tiled_attentions
        with Context(self.model, n_ctx=CELLS_STEP) as context:
            self._batch.clear()
            self._batch.add([0], position=0)
            context.decode(self._batch)
        return self._library.tiled_attentions > before

    def _choose_shape(self) -> Shape:
        config, model = self._config, self.model
        if config.parallel:
            shape = choose_shape(model, model.size_bytes, config)
            log.info("%d jobs at a time, as asked for; %s", shape.parallel, _room(shape))
            return shape
        speeds = measure_speeds(model, config.threads or choose_shape(model, model.size_bytes, config).threads)
        best = best_parallel(speeds)
        shape = choose_shape(model, model.size_bytes, config, best)
        measured = ", ".join(f"{count}: {speed:.0f}" for count, speed in speeds.items())
        why = "memory allows no more" if shape.parallel < best else f"tokens/s measured at {measured}"
        log.info("%d jobs at a time (%s); %s", shape.parallel, why, _room(shape))
        return shape

    def layout_for(self, sequences: Rows[Sequence]) -> Layout:
        """What suits the sequences in sight, the next ones to run first."""
        shape = self.shape
        if self._config.reproducible:
            # Where nothing can stand in for ggml's flash attention, the plain one computes each row by itself.
            return streams(
                shape.parallel, shape.cells, flash_attention=None if self._library.can_compute_rows_alone else False
            )
        if self.on_gpu or self.has_tiled_attention:
            # The tiles pass over cells of other sequences. On GPUs nothing else was measured.
            return unified(shape.parallel, shape.cells)
        return best_layout(sequences, parallel=shape.parallel, cells=shape.cells, context=shape.context)

    def use(self, layout: Layout) -> None:
        """Begin with an empty KV cache of that layout. Raises ContextError; it is then empty and as before."""
        before = self.layout
        self._context.close()
        try:
            self._context = self._open(layout)
        except ContextError:
            self._context = self._open(before)
            raise

    def _open(self, layout: Layout) -> Context:
        context = Context(
            self.model,
            n_ctx=layout.cells,
            n_seq_max=layout.slots,
            n_batch=BATCH_TOKENS,
            n_ubatch=layout.micro_batch,
            threads=self.shape.threads,
            flash_attention=layout.flash_attention,
            kv_unified=layout.unified,
            rows_alone=bool(self._config.reproducible),
        )
        self.layout = layout
        return context

    def _examine(self, path: Path, repack: bool) -> None:
        log.info("checking that this model's answers are the same whatever runs beside them")
        self.findings = found = examine(self._context, slots=self.layout.slots)
        if not (found.batching and found.sharing) and repack:
            log.info("they are not with repacked weights: trying without")
            self.model.close()
            self._load(path, repack=False)
            return
        if not found.again:
            log.warning("not reproducible: this model computed the same prompt differently a second time")
            return
        if not found.batching:
            log.warning("reproducible one job at a time only: neighbours change what this model computes")
            self.shape = replace(self.shape, parallel=1, cells=self.shape.context)
            self.use(self.layout_for(()))
            self.findings = replace(examine(self._context, slots=1), batching=False)
        weights = "" if repack else ", weights not repacked"
        log.info(
            "reproducible: %d jobs at a time, cached prefixes %s, interrupted answers %s%s; "
            "it costs some speed, see the README",
            self.shape.parallel,
            "reused" if self.shares else "not reused",
            "resumed" if self.resumes else "started afresh",
            weights,
        )

    # Sequences.

    def begin(self, sequence: Sequence, sampling: Sampling) -> None:
        """Make a sampler for a new sequence, or for one that goes on with what it has generated."""
        sampler = Sampler(
            self.model,
            temp=sampling.temp,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            repeat_penalty=sampling.repeat_penalty,
            seed=sampling.seed,
            ignore_eos=sampling.ignore_eos,
        )
        sampler.accept(sequence.prompt[-PENALTY_WINDOW:])
        sampler.replay(sequence.generated)
        self._samplers[sequence] = sampler

    def end(self, sequence: Sequence) -> None:
        """Free the sampler of a sequence."""
        self._samplers.pop(sequence).close()

    def apply(self, moves: Rows[Move]) -> None:
        """Make the scheduler's changes to the KV cache."""
        for move in moves:
            if move.source is None:
                self._context.forget(move.slot, keep=move.keep)
            else:
                self._context.forget(move.slot)
                self._context.copy(move.source, move.slot, move.keep)

    def decode(self, plan: Rows[Chunk]) -> list[int]:
        """Compute a plan's tokens; returns each chunk's index in the batch.

        Raises NoSlotError, with the cache as it was, and DecodeError.
        """
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
        return indices

    def sample(self, rows: Rows[tuple[Sequence, int]]) -> list[int]:
        """The next token of each sequence, from the logits at its index of the batch."""
        if not rows:
            return []
        # The first look at the logits may reorder them; then several threads may read.
        self._context.logits(rows[0][1])
        if len(rows) > 1 and self.shape.threads > 1 and len(rows) * self.model.n_vocab >= _PARALLEL_LOGITS:
            return list(self._pool.map(self._sample, rows))
        return [self._sample(row) for row in rows]

    def _sample(self, row: tuple[Sequence, int]) -> int:
        sequence, index = row
        return self._samplers[sequence].sample(self._context, index)


def has_gpu(library: Library) -> bool:
    return any(device.is_gpu for device in library.devices())


def _room(shape: Shape) -> str:
    return f"{shape.context} tokens for each at most, {shape.cells} for all, {shape.threads} threads"
