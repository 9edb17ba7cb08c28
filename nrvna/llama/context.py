"""A context: the KV cache of some sequences, and the decoding of batches into logits or embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nrvna.errors import (
    ContextError,
    ContextMemoryError,
    DecodeError,
    DecodeMemoryError,
    NoSlotError,
    speaks_of_memory,
)
from nrvna.llama.adapter import Adapter
from nrvna.llama.handle import Handle
from nrvna.llama.library import load_library
from nrvna.llama.model import KV_TYPES, POOLINGS, Model, kv_type_number

# What llama_decode returns where an allocation failed.
_NO_MEMORY = -2
# Architectures with a vector for each position: llama.cpp aborts at a position for which there is none.
_LEARNED_POSITIONS = ("bert", "gpt2", "mpt", "starcoder")


class Batch:
    """Tokens of one or several sequences for one :meth:`Context.decode`. Holds up to ``capacity`` tokens."""

    def __init__(self, capacity: int) -> None:
        ffi = load_library().ffi
        self.capacity = capacity
        # Of all positions the largest, whether a sequence goes on from an earlier batch, and what was asked for.
        self.last_position = -1
        self.continues = False
        self.n_outputs = 0
        self._token = np.zeros(capacity, np.int32)
        self._pos = np.zeros(capacity, np.int32)
        self._seq = np.zeros(capacity, np.int32)
        self._one = np.ones(capacity, np.int32)
        self._output = np.zeros(capacity, np.int8)
        # llama.cpp wants an array of arrays of sequences; each token here belongs to one.
        seq = ffi.from_buffer("llama_seq_id[]", self._seq)
        self._seqs = ffi.new("llama_seq_id *[]", [seq + i for i in range(capacity)])
        self.struct = ffi.new("llama_batch *")
        self.struct.token = ffi.from_buffer("llama_token[]", self._token)
        self.struct.pos = ffi.from_buffer("llama_pos[]", self._pos)
        self.struct.n_seq_id = ffi.from_buffer("int32_t[]", self._one)
        self.struct.seq_id = self._seqs
        self.struct.logits = ffi.from_buffer("int8_t[]", self._output)

    def __len__(self) -> int:
        return int(self.struct.n_tokens)

    def clear(self) -> None:
        self.struct.n_tokens = 0
        self.last_position, self.continues, self.n_outputs = -1, False, 0

    def add(self, tokens: Sequence[int], *, position: int, sequence: int = 0, output: bool = True) -> int:
        """Append tokens of one sequence from ``position`` on; ``output`` asks for the logits after the last one.

        Returns the index in the batch of the last one, which :meth:`Context.logits` and :meth:`Sampler.sample` take.
        Raises ValueError if they do not fit or there are none.
        """
        start, end = len(self), len(self) + len(tokens)
        if not tokens or end > self.capacity:
            raise ValueError(f"{len(tokens)} tokens do not fit a batch of {self.capacity} that holds {start}")
        self._token[start:end] = tokens
        self._pos[start:end] = np.arange(position, position + len(tokens))
        self._seq[start:end] = sequence
        self._output[start:end] = 0
        self._output[end - 1] = output
        self.struct.n_tokens = end
        self.last_position = max(self.last_position, position + len(tokens) - 1)
        self.continues |= position > 0
        self.n_outputs += output
        return end - 1

    def output_all(self) -> None:
        """Ask for the output of every token, as embeddings need it."""
        self._output[: len(self)] = 1
        self.n_outputs = len(self)


class Context(Handle):
    """The working memory of one model for ``n_seq_max`` sequences of up to :attr:`n_ctx_seq` tokens each.

    ``n_ctx`` is the number of KV cells for all sequences together, ``n_batch`` the most tokens in one decode and
    ``n_ubatch`` the most computed at once. With ``kv_unified`` all sequences share the cells, else each has its own
    part. ``flash_attention`` None leaves the choice to llama.cpp. ``threads`` 0 leaves llama.cpp's default.
    ``kv_type`` is what keys and values are kept in, one of KV_TYPES: all but "f16" take less memory, want flash
    attention and change what is computed a little. ``n_outputs_max`` is the most outputs in one decode, at least
    ``n_seq_max``; 0 is one for each token, whose buffers are as large as ``n_ubatch`` times the vocabulary.
    ``rows_alone`` has each row of a batch computed so that its bits do not depend on how many there are, where the
    platform allows that; contexts that differ in this must not decode at the same time.

    With ``embeddings`` it makes vectors: of each sequence of a batch where ``pooling`` is "mean", "cls" or "last",
    scores where it is "rank", of each token where it is "none". None takes what the model was made for, and "none"
    if it does not say. Its output takes n_vocab + n_embd floats for each token of a batch.

    Raises ContextError if llama.cpp cannot make it, ContextMemoryError among them where the memory is not there; and
    ValueError for a ``kv_type`` that is not known, and a pooling that is not known, that the model cannot do, or
    without embeddings.
    """

    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int,
        n_seq_max: int = 1,
        n_batch: int = 512,
        n_ubatch: int = 512,
        threads: int = 0,
        flash_attention: bool | None = None,
        kv_unified: bool = False,
        kv_type: str = "f16",
        n_outputs_max: int = 0,
        rows_alone: bool = False,
        embeddings: bool = False,
        pooling: str | None = None,
    ) -> None:
        library = load_library()
        lib = library.lib
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_seq_max = n_ctx, n_seq_max
        params.n_batch, params.n_ubatch, params.n_outputs_max = n_batch, n_ubatch, n_outputs_max
        params.type_k = params.type_v = kv_type_number(kv_type)
        params.kv_unified = kv_unified
        params.flash_attn_type = {
            None: lib.LLAMA_FLASH_ATTN_TYPE_AUTO,
            False: lib.LLAMA_FLASH_ATTN_TYPE_DISABLED,
            True: lib.LLAMA_FLASH_ATTN_TYPE_ENABLED,
        }[flash_attention]
        if threads:
            params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        self.model = model
        self.kv_unified = kv_unified
        self.embeddings = embeddings
        self._rows_alone = rows_alone
        if model.is_vocab_only:
            raise ContextError(f"{model.path.name} was loaded for its vocabulary alone: it cannot decode")
        params.embeddings = embeddings
        if n_seq_max > (min(n_batch, n_ctx) if model.is_causal else n_batch):
            # llama.cpp would abort the process.
            raise ContextError(f"{n_seq_max} sequences are more than a batch of {n_batch} tokens holds")
        if n_outputs_max and (n_outputs_max < n_seq_max or embeddings):
            raise ContextError(f"{n_outputs_max} outputs at most are too few for {n_seq_max} sequences or embeddings")
        _check_kv_type(model, kv_type, flash_attention)
        self._check_pooling(model, pooling)
        params.pooling_type = getattr(lib, f"LLAMA_POOLING_TYPE_{(pooling or 'unspecified').upper()}")
        with library.complaints() as complaints:
            pointer = lib.llama_init_from_model(model.pointer, params)
        if not pointer:
            reason = " | ".join(complaints) or "it gave no reason"
            kind = ContextMemoryError if speaks_of_memory(reason) else ContextError
            raise kind(f"llama.cpp cannot make a context of {n_ctx} tokens for {model.path.name}: {reason}")
        super().__init__(library, pointer, lib.llama_free, model)
        model.dependents.add(self)
        self._row_bytes = model.n_vocab * np.dtype(np.float32).itemsize
        self._has_cache = bool(lib.llama_get_memory(pointer))
        # What must be computed in one piece: attention that looks ahead, and a pooling over all of a sequence.
        is_whole = not (self._has_cache and lib.llama_get_causal_attn(pointer))
        self._most_at_once = self.n_ubatch if is_whole or (embeddings and self.pooling in ("mean", "cls")) else None
        self._positions = model.n_ctx_train if model.architecture in _LEARNED_POSITIONS else None
        self._n_seq_max = self.n_seq_max
        self._most_outputs = n_outputs_max or self.n_batch
        self._n_computed = 0
        self._adapters: tuple[Adapter, ...] = ()
        if self._most_at_once and self._has_cache and n_seq_max > 1 and not kv_unified:
            # llama.cpp would cut the longer ones of several streams, and pool their ends alone.
            raise ContextError("embeddings of several sequences at once need kv_unified for this model and pooling")

    def _check_pooling(self, model: Model, pooling: str | None) -> None:
        """Raises for a pooling, asked for or named by the model, that llama.cpp would take and make nonsense of."""
        trained = model.pooling if self.embeddings else None
        if pooling is None:
            return
        if not self.embeddings:
            raise ValueError(f"a pooling, {pooling!r}, is for a context with embeddings")
        if pooling not in POOLINGS.values():
            raise ValueError(f"{pooling!r} is none of {', '.join(POOLINGS.values())}")
        if pooling == "rank" and trained != "rank":
            raise ValueError(f"{model.path.name} was not made for ranking: it has no head that scores")

    @property
    def n_ctx_seq(self) -> int:
        """The most tokens of one sequence; llama.cpp rounds up what was asked for."""
        return int(self._lib.llama_n_ctx_seq(self.pointer))

    @property
    def n_batch(self) -> int:
        """The most tokens in one decode: what was asked for, or ``n_ctx`` if that is less."""
        return int(self._lib.llama_n_batch(self.pointer))

    @property
    def n_ubatch(self) -> int:
        """The most tokens computed at once: what was asked for, or :attr:`n_batch` if that is less."""
        return int(self._lib.llama_n_ubatch(self.pointer))

    @property
    def n_seq_max(self) -> int:
        """The number of sequences."""
        return int(self._lib.llama_n_seq_max(self.pointer))

    @property
    def has_cache(self) -> bool:
        """Whether it keeps what it computed of a sequence: encoders such as BERT compute each batch by itself."""
        return self._has_cache

    @property
    def pooling(self) -> str:
        """How the vectors of tokens become one of a sequence: "none", "mean", "cls", "last" or "rank"."""
        return POOLINGS[int(self._lib.llama_pooling_type(self.pointer))]

    def decode(self, batch: Batch) -> None:
        """Compute a batch; the logits asked for, or the embeddings, are there afterwards.

        Raises NoSlotError if the KV cache has no room, with the cache as it was, and DecodeError for the rest: also
        for a batch of more than :attr:`n_ubatch` tokens, or one that continues a sequence, where the model or the
        pooling wants all of a sequence at once.
        """
        self._check(batch, self._most_at_once)
        _check_decoded(self._lib.llama_decode(self.pointer, batch.struct[0]))
        self._n_computed = len(batch)

    def encode(self, batch: Batch) -> None:
        """Compute a batch with the model's encoder, each sequence by itself, for models that have one, such as T5's.

        Encoders without a decoder, such as BERT, take either of both. Raises DecodeError.
        """
        self._check(batch, self.n_ubatch)
        _check_decoded(self._lib.llama_encode(self.pointer, batch.struct[0]), "llama_encode")
        self._n_computed = len(batch)

    def _check(self, batch: Batch, most_at_once: int | None) -> None:
        """Raises DecodeError where llama.cpp would abort the process or compute nonsense."""
        for adapter in self._adapters:
            if adapter.is_closed:
                raise ContextError(f"the adapter {adapter.path.name} of this context was closed already")
        if len(batch) > self.n_batch:
            raise DecodeError(f"a batch of {len(batch)} tokens is more than this context's {self.n_batch}", -1)
        if most_at_once is not None:
            if len(batch) > most_at_once:
                raise DecodeError(
                    f"a batch of {len(batch)} tokens must be computed at once, but n_ubatch is {most_at_once}", -1
                )
            if batch.continues:
                raise DecodeError("a sequence of this model or pooling must be in one batch, from position 0 on", -1)
        if self._positions is not None and batch.last_position >= self._positions:
            raise DecodeError(
                f"position {batch.last_position} is beyond the {self._positions} that the model was trained for", -1
            )
        if self.embeddings:
            batch.output_all()
        if batch.n_outputs > self._most_outputs:
            raise DecodeError(f"{batch.n_outputs} outputs are more than this context's {self._most_outputs}", -1)
        self._n_computed = 0
        self._library.compute_rows_alone(self._rows_alone)

    def logits(self, index: int) -> NDArray[np.float32]:
        """The logits at that index of the last batch, shape (n_vocab,): llama.cpp's memory until the next decode.

        The first call after a decode may put the rows of all sequences in order; from then on several threads may
        read. Raises IndexError if none were asked for there.
        """
        row = self._lib.llama_get_logits_ith(self.pointer, index)
        if not row:
            # llama.cpp would abort the process if it were to sample here.
            raise IndexError(f"the last batch has no logits at index {index}")
        return np.frombuffer(self._ffi.buffer(row, self._row_bytes), np.float32)

    def embedding(self, sequence: int) -> NDArray[np.float32]:
        """The pooled vector of a sequence of the last batch: llama.cpp's memory until the next one, not normalised.

        Shape (n_embd_out,), and (n_cls_out,) of scores where the pooling is "rank". Raises IndexError if the batch
        had no token of it, and ContextError if this context pools nothing.
        """
        pooling = self.pooling
        if not self.embeddings or pooling == "none":
            raise ContextError("this context makes no embeddings of sequences: it wants embeddings and a pooling")
        row = self._lib.llama_get_embeddings_seq(self.pointer, sequence)
        if not row:
            raise IndexError(f"the last batch has no embedding of sequence {sequence}")
        return self._floats(row, self.model.n_cls_out if pooling == "rank" else self.model.n_embd_out)

    def token_embedding(self, index: int) -> NDArray[np.float32]:
        """The vector at that index of the last batch, shape (n_embd_out,): llama.cpp's memory until the next one.

        Raises IndexError if the batch had no such token, and ContextError if this context makes none or pools them.
        """
        if not 0 <= index < self._n_computed:
            raise IndexError(f"the last batch has no embedding at index {index}")
        row: NDArray[np.float32] = self.token_embeddings()[index]
        return row

    def token_embeddings(self) -> NDArray[np.float32]:
        """The vectors of all tokens of the last batch, in its order, shape (tokens, n_embd_out): llama.cpp's memory
        until the next one. Raises ContextError if this context makes none or pools them."""
        if not self.embeddings or self.pooling != "none":
            raise ContextError('this context makes no embeddings of tokens: it wants embeddings and pooling="none"')
        width = self.model.n_embd_out
        if not self._n_computed:
            return np.empty((0, width), np.float32)
        # Every token was an output, so that llama.cpp keeps them in one piece.
        return self._floats(self._lib.llama_get_embeddings_ith(self.pointer, 0), self._n_computed * width).reshape(
            -1, width
        )

    def _floats(self, row: Any, count: int) -> NDArray[np.float32]:
        return np.frombuffer(self._ffi.buffer(row, count * np.dtype(np.float32).itemsize), np.float32)

    def use_adapters(self, adapters: Sequence[tuple[Adapter, float]]) -> None:
        """Compute with these LoRA adapters from now on, each with its scale; with none of them if empty.

        What the KV cache holds was computed without: forget it, unless the adapters are the same as before.
        Raises ValueError for an adapter of another model, named twice, or with a scale that is no number.
        """
        for adapter, scale in adapters:
            if adapter.model is not self.model:
                raise ValueError(f"the adapter {adapter.path.name} was loaded for another model")
            if not math.isfinite(scale):
                raise ValueError(f"the scale {scale} of {adapter.path.name} is no number")
        chosen = tuple(adapter for adapter, _ in adapters)
        if len(set(chosen)) < len(chosen):
            raise ValueError("an adapter is named twice")
        pointers = self._ffi.new("struct llama_adapter_lora *[]", [adapter.pointer for adapter in chosen])
        scales = self._ffi.new("float[]", [scale for _, scale in adapters])
        self._lib.llama_set_adapters_lora(self.pointer, pointers, len(chosen), scales)
        self._adapters = chosen
        for adapter in chosen:
            adapter.users.add(self)

    def let_go(self, adapter: Adapter) -> None:
        """Let llama.cpp forget an adapter that is about to be freed; until others are set, decoding is an error."""
        if adapter in self._adapters and not self.is_closed:
            self._lib.llama_set_adapters_lora(self.pointer, self._ffi.NULL, 0, self._ffi.NULL)

    def copy(self, source: int, target: int, length: int) -> None:
        """Let ``target``, which must be empty, begin with the first ``length`` tokens of ``source``.

        With ``kv_unified`` both then share these cells. Else the next decode copies the source's whole part of the
        cache first: between parts llama.cpp copies nothing less. Raises IndexError for a sequence that is not there.
        """
        self._check_sequences(source, target)
        memory = self._lib.llama_get_memory(self.pointer)
        if self.kv_unified:
            self._lib.llama_memory_seq_cp(memory, source, target, 0, length)
        else:
            self._lib.llama_memory_seq_cp(memory, source, target, -1, -1)
            self.forget(target, keep=length)

    def forget(self, sequence: int, *, keep: int = 0) -> None:
        """Remove a sequence from the KV cache, save its first ``keep`` tokens. Raises IndexError if there is none."""
        self._check_sequences(sequence)
        self._lib.llama_memory_seq_rm(self._lib.llama_get_memory(self.pointer), sequence, keep, -1)

    def clear(self) -> None:
        """Remove all sequences from the KV cache; what comes next is put where the first ones were."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self.pointer), False)

    def _check_sequences(self, *sequences: int) -> None:
        """Raises IndexError where llama.cpp would abort the process."""
        for sequence in sequences:
            if not 0 <= sequence < self._n_seq_max:
                raise IndexError(f"no sequence {sequence}: this context has {self._n_seq_max}")


def _check_kv_type(model: Model, kv_type: str, flash_attention: bool | None) -> None:
    """Raises ContextError for what llama.cpp refuses, in words that say what to do."""
    block = KV_TYPES[kv_type]
    if block > 1 and flash_attention is False:
        raise ContextError(f"a KV cache of {kv_type} needs flash attention, which is off: turn it on, or take f16")
    if unfit := [width for width in model.head_widths if width % block]:
        raise ContextError(
            f"a KV cache of {kv_type} wants heads of a multiple of {block}, but those of {model.path.name} are "
            f"{unfit[0]} wide: take f16"
        )


def _check_decoded(code: int, function: str = "llama_decode") -> None:
    """Turns what llama_decode or llama_encode returned into an exception, as llama.h documents it."""
    if code == 0:
        return
    if code == 1:
        raise NoSlotError("no room in the KV cache for this batch", code)
    if code == _NO_MEMORY:
        raise DecodeMemoryError(f"{function} returned {code}: there is not the memory to compute this batch", code)
    reason = {2: "it was aborted", -1: "the batch is invalid"}.get(code, "a fatal error, see the log")
    raise DecodeError(f"{function} returned {code}: {reason}", code)
