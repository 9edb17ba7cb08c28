"""The only part of the engine that touches the model: loads it, decodes plans, samples tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Rows
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nrvna.config import Config, Sampling
from nrvna.engine.chain import is_replayable, links_for, recommendation
from nrvna.engine.devices import device_of, open_library, shares, uses_gpu
from nrvna.engine.embedder import Embedder
from nrvna.engine.fitting import Fit
from nrvna.engine.layout import (
    BATCH_TOKENS,
    CELLS_STEP,
    GPU_BATCH_TOKENS,
    GPU_MICRO_BATCH,
    Layout,
    best_layout,
    padded,
    streams,
    unified,
    without_flash,
)
from nrvna.engine.prompt import PromptEncoder
from nrvna.engine.protocol import Ready
from nrvna.engine.reproducible import TRIAL_SLOTS, Findings, examine
from nrvna.engine.scheduler import Chunk, Move
from nrvna.engine.sequence import Sequence
from nrvna.engine.shape import Shape, best_parallel, choose_shape, measure_speeds
from nrvna.engine.work import AnswerWork
from nrvna.errors import (
    ContextError,
    ContextMemoryError,
    DecodeMemoryError,
    EncoderError,
    GrammarError,
    ModelMemoryError,
    NrvnaError,
    SettingError,
    reason_of,
)
from nrvna.grammar.gbnf import check_gbnf
from nrvna.limits import Limits
from nrvna.llama import Adapter, Batch, Context, Grammar, Model, Sampler
from nrvna.llama.grammar import Matcher

log = logging.getLogger("nrvna.engine")

# Where so many tokens are drawn from so many logits, threads gain more than they cost.
_PARALLEL_LOGITS = 200_000
# What the setting wants of llama.cpp; None leaves it to the layout.
_FLASH_ATTENTION = {"auto": None, "on": True, "off": False}


_NO_LIMITS = Limits()


def _pass_over(_: Limits) -> None:
    pass


class Sampled(NamedTuple):
    """A token, how many random numbers it took, and why there is none, such as a grammar that led into a dead end."""

    token: int
    draws: int
    trouble: str | None = None


class Runner:
    """A loaded model with a context for several sequences, and a sampler for each that runs.

    ``findings`` says what was seen to be reproducible, None where nobody asked. ``progress`` is called with 0.0 to
    1.0 while the weights are read. It stays within ``limits``, and where there is not the memory it takes less;
    ``on_try`` is called with what it takes, before it does. Raises what Model and Context raise.
    """

    def __init__(
        self,
        path: Path,
        config: Config,
        progress: Callable[[float], None] | None = None,
        *,
        limits: Limits = _NO_LIMITS,
        on_try: Callable[[Limits], None] = _pass_over,
    ) -> None:
        library = open_library(config)
        self.build = library.build
        self._library = library
        log.debug("llama.cpp %s for %s: %s", self.build.commit[:12], self.build.backend, library.system_info)
        self._limits = limits
        self._on_try = on_try
        may_use_gpu = uses_gpu(library, config) and limits.layers > 0
        self.findings: Findings | None = None
        self._config = config
        self._progress = progress
        self._samplers: dict[Sequence, Sampler] = {}
        self.batch_tokens = config.batch_tokens or (GPU_BATCH_TOKENS if may_use_gpu else BATCH_TOKENS)
        self._micro_batch = GPU_MICRO_BATCH if may_use_gpu else self.batch_tokens
        self._batch = Batch(self.batch_tokens)
        self._load(path, repack=True)
        if advice := recommendation(self.model, config.sampling):
            log.info("the model's authors recommend %s", advice)
        if self.model.metadata.get("nrvna.random_weights") == "true":
            log.warning("the model's weights are random: its answers are noise, good for measuring throughput alone")
        self._pool = _sampling_threads(self.shape.threads)

    @property
    def shares(self) -> bool:
        """Whether sequences may begin with cached tokens of others."""
        return self.model.has_plain_cache and (self.findings is None or self.findings.sharing)

    @property
    def is_reproducible(self) -> bool | None:
        """Whether an answer is the same whatever runs beside it, as far as was seen; None where nobody asked."""
        return self.findings.again if self.findings else None

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU computes, if only a part."""
        return self._fit.layers > 0

    @property
    def kv_type(self) -> str:
        """What keys and values are kept in."""
        return self._config.kv_type

    @property
    def origin(self) -> dict[str, Any]:
        """What an answer depends on beside model, prompt and sampling: who computes it, and how."""
        build = self.build
        # The module's name carries a digest of nrvna's own C.
        made = (build.commit, build.backend, build.cpu, build.compiler, build.options, build.module.name)
        adapters = {name: [*file_facts(adapter.path)] for name, adapter in self.adapters.items()}
        config = self._config
        origin: dict[str, Any] = {"llama": made, "kv": config.kv_type, "adapters": adapters}
        origin["on_gpu"] = self.on_gpu
        origin["reproducible"] = bool(config.reproducible)
        if config.reproducible:
            # These change the last bits alone, of which nothing else is promised.
            origin["attention"] = (config.flash_attention, config.micro_batch)
            origin["layers"] = self._fit.layers
        return origin

    def _load(self, path: Path, *, repack: bool) -> None:
        """Load the weights and make room for jobs: with fewer layers on the GPU where there is not the memory."""
        while True:
            try:
                self._load_weights(path, repack=repack)
                self._make_room()
                break
            except (ModelMemoryError, ContextMemoryError, DecodeMemoryError) as error:
                self._close()
                if not self._lower(error):
                    raise
        if self._config.reproducible:
            self._examine(path, repack)

    def _load_weights(self, path: Path, *, repack: bool) -> None:
        config = self._config
        most = min(config.gpu_layers, self._limits.layers)
        self._fit = Fit(path, config, self._library, most=most, micro_batch=self._micro_batch)
        # No job and no context: what is too much now is the weights.
        self._tries(Limits(1, 0, self._fit.layers))
        self.model = Model(
            path, gpu_layers=self._fit.layers, split=self._fit.split, repack=repack, progress=self._progress
        )
        if not self.model.is_generative:
            raise EncoderError(f"{path} is an encoder: it does not continue a text")
        if self._fit.shortage:
            log.warning("%s", self._fit.shortage)
        self.prompts = PromptEncoder(self.model, config.chat_template)
        self.adapters = {name: Adapter(self.model, file) for name, file in adapters_of(config).items()}
        self.has_tiled_attention = self._warm_up()

    def _warm_up(self) -> bool:
        """Compute a token, which reads the weights into memory; whether nrvna's own attention was in it."""
        before = self._library.tiled_attentions
        with self._new_context(n_ctx=CELLS_STEP, n_outputs_max=1) as context:
            self._batch.clear()
            self._batch.add([0], position=0)
            context.decode(self._batch)
        return self._library.tiled_attentions > before

    def _make_room(self) -> None:
        """Choose the shape and open its context: fewer jobs and less context where there is not the memory."""
        config, room = self._config, self._fit.room(self.model)
        wanted, why = config.parallel, "as asked for"
        if not wanted:
            threads = choose_shape(self.model, room, config).threads
            speeds = measure_speeds(partial(self._new_context, threads=threads), on_gpu=self.on_gpu)
            wanted = best_parallel(speeds)
            measured = ", ".join(f"{count}: {speed:.0f}" for count, speed in speeds.items())
            why = f"tokens/s measured at {measured}"
        while True:
            self.shape = choose_shape(self.model, room, config, wanted, self._limits)
            self._tries(Limits(self.shape.parallel, self.shape.context, self._fit.layers))
            try:
                self._context = self._open(self.layout_for(()))
                break
            except ContextMemoryError as error:
                if not self._lower(error, within_layers=True):
                    raise
        shape = self.shape
        if shape.parallel < wanted:
            why = "memory allows no more"
        if shape.context < config.ctx:
            log.warning("NRVNA_CTX is %d, but there is memory for %d tokens alone", config.ctx, shape.context)
        log.info(
            "%d job%s at a time (%s); %s",
            *(shape.parallel, "" if shape.parallel == 1 else "s", why, _room(shape)),
        )

    def _tries(self, limits: Limits) -> None:
        """Say what will take memory next: if this process dies of it, its successor takes less."""
        self._tried = limits
        self._on_try(limits)

    def _lower(self, error: NrvnaError, *, within_layers: bool = False) -> bool:
        """Take less from now on than what was tried; False if there is nothing less that would do."""
        smaller = self._tried.smaller(self._config.ctx)
        if smaller is None or (within_layers and smaller.layers != self._tried.layers):
            return False
        log.warning("not enough memory for %s: trying %s (%s)", self._tried, smaller, str(error).partition(" | ")[0])
        self._limits = smaller
        return True

    def _close(self) -> None:
        """Free what was loaded so far."""
        for owner in ("prompts", "model"):
            if owned := self.__dict__.pop(owner, None):
                owned.close()

    def shrink(self, sequences: Rows[Sequence], error: DecodeMemoryError) -> bool:
        """Begin with an empty KV cache for half as many jobs, as the memory to compute was not there.

        False if there is but one at a time. Raises ContextError if there is not the memory for that either.
        """
        shape = self.shape
        if shape.parallel == 1:
            return False
        self._context.close()
        parallel = shape.parallel // 2
        # Before the daemon hears of it: what it is told next is not about that any more.
        log.warning("%s: going on with %d job%s at a time", error, parallel, "" if parallel == 1 else "s")
        cells = max(shape.context, padded(shape.cells * parallel // shape.parallel))
        self.shape = replace(shape, parallel=parallel, cells=cells, kv_bytes=shape.kv_bytes * cells // shape.cells)
        self._tries(Limits(parallel, shape.context, self._fit.layers))
        self._context = self._open(self.layout_for(sequences))
        return True

    def layout_for(self, sequences: Rows[Sequence]) -> Layout:
        """What suits the sequences in sight, the next ones to run first."""
        shape, config = self.shape, self._config
        wish = _FLASH_ATTENTION[config.flash_attention]
        # What is not f16 is read by flash attention alone.
        may_be_plain = wish is None and config.kv_type == "f16"
        if config.reproducible:
            # Where nothing can stand in for ggml's flash attention, the plain one computes each row by itself.
            is_plain = may_be_plain and not self._library.can_compute_rows_alone
            layout = streams(shape.parallel, shape.cells, flash_attention=False if is_plain else None)
        elif self.on_gpu or self.has_tiled_attention:
            # The tiles pass over cells of other sequences. On GPUs nothing else was measured.
            layout = unified(shape.parallel, shape.cells)
        else:
            layout = best_layout(
                sequences,
                parallel=shape.parallel,
                cells=shape.cells,
                context=shape.context,
                may_be_plain=may_be_plain,
            )
        if wish is not None:
            layout = replace(layout, flash_attention=True) if wish else without_flash(layout)
        return layout

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
        self.micro_batch = min(self._config.micro_batch or layout.micro_batch or self._micro_batch, self.batch_tokens)
        context = self._new_context(
            n_ctx=layout.cells,
            n_seq_max=layout.slots,
            n_batch=self.batch_tokens,
            n_ubatch=self.micro_batch,
            # One for each that runs: buffers for an output of every token would be large.
            n_outputs_max=layout.slots,
            threads=self.shape.threads,
            flash_attention=layout.flash_attention,
            kv_unified=layout.unified,
            rows_alone=bool(self._config.reproducible),
        )
        self.layout = layout
        self._adapter: str | None = None
        return context

    def _new_context(self, **sizes: Any) -> Context:
        """A context as the settings want it. Raises ContextError."""
        config = self._config
        return Context(
            self.model,
            **{"flash_attention": _FLASH_ATTENTION[config.flash_attention], "kv_type": config.kv_type, **sizes},
        )

    def _examine(self, path: Path, repack: bool) -> None:
        log.info("checking that this model's answers are the same whatever runs beside them")
        self.findings = found = examine(self._context, slots=self.layout.slots)
        if repack and not (found.batching and found.sharing and self._can_have_neighbours()):
            log.info("they are not with repacked weights: trying without")
            self._close()
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
            "reproducible: %d job%s at a time, cached prefixes %s, interrupted answers %s%s; "
            "it costs some speed, see the README",
            self.shape.parallel,
            "" if self.shape.parallel == 1 else "s",
            "reused" if self.shares else "not reused",
            "resumed" if found.resuming else "started afresh",
            weights,
        )

    def _can_have_neighbours(self) -> bool:
        """Whether so many sequences as another daemon may run at a time would not change each other, where here are
        fewer: all are to give the same bytes, so they choose the same weights."""
        if self.layout.slots >= TRIAL_SLOTS:
            return True
        try:
            with self._new_context(
                n_ctx=TRIAL_SLOTS * CELLS_STEP,
                n_seq_max=TRIAL_SLOTS,
                n_outputs_max=TRIAL_SLOTS,
                threads=self.shape.threads,
                flash_attention=self.layout.flash_attention,
                rows_alone=True,
            ) as context:
                return examine(context, slots=TRIAL_SLOTS).batching
        except (ContextMemoryError, DecodeMemoryError):
            return False

    def embedder(self) -> Embedder:
        """For the vectors of this model, beside its answers."""
        shape, config = self.shape, self._config
        return Embedder(
            self.model, threads=shape.threads, context=shape.context, reproducible=bool(config.reproducible)
        )

    def ready(self) -> Ready:
        model, shape = self.model, self.shape
        return Ready(
            description=f"{model.metadata.get('general.name', model.path.stem)}, {model.quantization}",
            backend=self.build.backend if self.on_gpu else "cpu",
            parallel=shape.parallel,
            context=shape.context,
            threads=shape.threads,
            device=device_of(self._library, on_gpu=self.on_gpu),
            layers=model.placement.layers,
            offloaded=model.placement.offloaded,
            shares=shares(self._library, model),
        )

    # Sequences.

    def begin(self, work: AnswerWork) -> None:
        """Make a sampler for a new answer, or for one that goes on with what it has generated. On any thread."""
        try:
            sampler = self._replayed(work)
        except GrammarError:
            # What is on record does not follow the grammar: somebody changed it.
            work.start_afresh()
            sampler = self._replayed(work)
        self._samplers[work.sequence] = sampler

    def _replayed(self, work: AnswerWork) -> Sampler:
        sequence, draws, asked = work.sequence, work.draws, work.sampling
        # What looks back sets memory aside for all that it was asked to look at, and there is never more than this.
        most = self.shape.context
        last_n, dry_last_n = min(asked.repeat_last_n, most), min(asked.dry_penalty_last_n, most)
        asked = replace(asked, repeat_last_n=last_n, dry_penalty_last_n=dry_last_n)
        sampler = Sampler(self.model, links_for(self.model, asked))
        sampler.accept(sequence.prompt)
        if sampler.is_replayable:
            # The grammar rules the answer alone.
            sampler.replay(sequence.generated[: work.n_free], sum(draws[: work.n_free]))
            self._constrain(work, sampler)
            sampler.replay(sequence.generated[work.n_free :], sum(draws[work.n_free :]))
        else:
            # Not where it was, but what the penalties look at is there.
            sampler.accept(sequence.generated)
        return sampler

    @staticmethod
    def _constrain(work: AnswerWork, sampler: Sampler) -> None:
        if work.grammar and not work.is_free and not sampler.is_constrained:
            sampler.constrain(Grammar(work.grammar))

    def end(self, sequence: Sequence) -> None:
        """Free the sampler of a sequence, if it has one."""
        if sampler := self._samplers.pop(sequence, None):
            sampler.close()

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
        self._use(plan[0].sequence.adapter)
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
        first = next((index for chunk, index in zip(plan, indices, strict=True) if chunk.output), None)
        if first is not None:
            # Waits for a device that computes by itself, and puts the rows in order: then several threads may read.
            self._context.logits(first)
        return indices

    def _use(self, adapter: str | None) -> None:
        if adapter != self._adapter:
            self._context.use_adapters([(self.adapters[adapter], 1.0)] if adapter else [])
            self._adapter = adapter

    def sample(self, rows: Rows[tuple[AnswerWork, int]]) -> list[Sampled]:
        """The next token of each answer, from the logits at its index of the batch."""
        if not rows:
            return []
        if len(rows) > 1 and self.shape.threads > 1 and len(rows) * self.model.n_vocab >= _PARALLEL_LOGITS:
            return list(self._pool.map(self._sample, rows))
        return [self._sample(row) for row in rows]

    def _sample(self, row: tuple[AnswerWork, int]) -> Sampled:
        work, index = row
        try:
            sampler = self._samplers[work.sequence]
            forced = work.forced()
            if forced is not None:
                sampler.force(forced)
                return Sampled(forced, 1)
            before = sampler.draws
            self._constrain(work, sampler)
            token = sampler.sample(self._context, index)
            return Sampled(token, sampler.draws - before)
        except MemoryError:
            raise
        except Exception as error:
            return Sampled(0, 0, reason_of(error))

    def check(self, sampling: Sampling, grammar: str | None = None) -> None:
        """Raises JobError, GrammarError among them, for what no sampler can be made of."""
        if sampling.logit_bias:
            links_for(self.model, sampling)
        if grammar is None:
            return
        # llama.cpp reads what it can of a bad grammar, and aborts over some.
        check_gbnf(grammar, self._is_token)
        Matcher(Grammar(grammar), self.model).close()

    def _is_token(self, text: str) -> bool:
        return len(self.model.tokenize(text, add_special=False, parse_special=True)) == 1

    def can_resume(self, sampling: Sampling, grammar: str | None) -> bool:
        """Whether an interrupted answer may go on from its tokens: not if that would change how it goes on."""
        if not self.is_reproducible:
            return grammar is None or is_replayable(sampling)
        exact = self.findings is not None and self.findings.resuming
        return exact and is_replayable(sampling)

    def logits(self, index: int) -> NDArray[np.float32]:
        """The logits at an index of the batch, until the next decode."""
        return self._context.logits(index)


def adapters_of(config: Config) -> dict[str, Path]:
    """The files of the adapters that jobs may ask for, by name. Raises SettingError."""
    found = {}
    for text in config.lora:
        name, equals, file = text.partition("=")
        if not equals or not name or not file:
            raise SettingError(f"NRVNA_LORA is {text!r}, but must be NAME=FILE")
        found[name] = Path(file)
    return found


def file_facts(path: Path) -> tuple[int, int]:
    """Size and time of modification, by which a file is known that is not read for that."""
    about = path.stat()
    return about.st_size, about.st_mtime_ns


def _sampling_threads(count: int) -> ThreadPoolExecutor:
    """All begun at once: later, in the midst of a step, there may be no memory for one."""
    pool = ThreadPoolExecutor(count, thread_name_prefix="sample")
    together = Barrier(count)
    try:
        list(pool.map(lambda _: together.wait(), range(count)))
    except RuntimeError as error:
        together.abort()
        raise MemoryError("no memory for a thread") from error
    return pool


def _room(shape: Shape) -> str:
    return f"{shape.context} tokens for each at most, {shape.cells} for all, {shape.threads} threads"
