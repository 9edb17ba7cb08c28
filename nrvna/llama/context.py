"""A context: the KV cache of some sequences, and the decoding of batches into logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nrvna.errors import ContextError, DecodeError, NoSlotError
from nrvna.llama.handle import Handle
from nrvna.llama.library import load_library
from nrvna.llama.model import Model


class Batch:
    """Tokens of one or several sequences for one :meth:`Context.decode`. Holds up to ``capacity`` tokens."""

    def __init__(self, capacity: int) -> None:
        ffi = load_library().ffi
        self.capacity = capacity
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
        return end - 1


class Context(Handle):
    """The working memory of one model for ``n_seq_max`` sequences of up to :attr:`n_ctx_seq` tokens each.

    ``n_ctx`` is the number of KV cells for all sequences together, ``n_batch`` the most tokens in one decode and
    ``n_ubatch`` the most computed at once. With ``kv_unified`` all sequences share the cells, else each has its own
    part. ``flash_attention`` None leaves the choice to llama.cpp. ``threads`` 0 leaves llama.cpp's default.
    ``rows_alone`` has each row of a batch computed so that its bits do not depend on how many there are, where the
    platform allows that; contexts that differ in this must not decode at the same time.

    Raises ContextError if llama.cpp cannot make it: too little memory, usually.
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
        rows_alone: bool = False,
    ) -> None:
        library = load_library()
        lib = library.lib
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_seq_max = n_ctx, n_seq_max
        params.n_batch, params.n_ubatch = n_batch, n_ubatch
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
        self._rows_alone = rows_alone
        if model.is_vocab_only:
            raise ContextError(f"{model.path.name} was loaded for its vocabulary alone: it cannot decode")
        with library.complaints() as complaints:
            pointer = lib.llama_init_from_model(model.pointer, params)
        if not pointer:
            reason = " | ".join(complaints) or "it gave no reason"
            raise ContextError(f"llama.cpp cannot make a context of {n_ctx} tokens for {model.path.name}: {reason}")
        super().__init__(library, pointer, lib.llama_free)
        model.dependents.add(self)
        self._row_bytes = model.n_vocab * np.dtype(np.float32).itemsize

    @property
    def n_ctx_seq(self) -> int:
        """The most tokens of one sequence; llama.cpp rounds up what was asked for."""
        return int(self._lib.llama_n_ctx_seq(self.pointer))

    @property
    def n_batch(self) -> int:
        """The most tokens in one decode: what was asked for, or ``n_ctx`` if that is less."""
        return int(self._lib.llama_n_batch(self.pointer))

    def decode(self, batch: Batch) -> None:
        """Compute a batch; the logits asked for are there afterwards.

        Raises NoSlotError if the KV cache has no room, with the cache as it was, and DecodeError for the rest.
        """
        if len(batch) > self.n_batch:
            # llama.cpp would abort the process.
            raise DecodeError(f"a batch of {len(batch)} tokens is more than this context's {self.n_batch}", -1)
        self._library.compute_rows_alone(self._rows_alone)
        _check_decoded(self._lib.llama_decode(self.pointer, batch.struct[0]))

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

    def copy(self, source: int, target: int, length: int) -> None:
        """Let ``target``, which must be empty, begin with the first ``length`` tokens of ``source``.

        With ``kv_unified`` both then share these cells. Else the next decode copies the source's whole part of the
        cache first: between parts llama.cpp copies nothing less.
        """
        memory = self._lib.llama_get_memory(self.pointer)
        if self.kv_unified:
            self._lib.llama_memory_seq_cp(memory, source, target, 0, length)
        else:
            self._lib.llama_memory_seq_cp(memory, source, target, -1, -1)
            self.forget(target, keep=length)

    def forget(self, sequence: int, *, keep: int = 0) -> None:
        """Remove a sequence from the KV cache, save its first ``keep`` tokens."""
        self._lib.llama_memory_seq_rm(self._lib.llama_get_memory(self.pointer), sequence, keep, -1)


def _check_decoded(code: int) -> None:
    """Turns what llama_decode returned into an exception, as llama.h documents it."""
    if code == 0:
        return
    if code == 1:
        raise NoSlotError("no room in the KV cache for this batch", code)
    reason = {2: "it was aborted", -1: "the batch is invalid"}.get(code, "a fatal error, see the log")
    raise DecodeError(f"llama_decode returned {code}: {reason}", code)
