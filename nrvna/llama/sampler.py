"""A sampler chain: how the next token is chosen from the logits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from nrvna.llama.context import Context
from nrvna.llama.handle import Handle
from nrvna.llama.library import load_library
from nrvna.llama.model import Model

PENALTY_WINDOW = 64


class Sampler(Handle):
    """Penalties, top-k, top-p, min-p, temperature and a draw, in llama.cpp's order; greedy at temperature 0.

    It holds the state of one sequence: the tokens that the penalties look at and the random generator. ``seed`` None
    draws one, which nobody can then repeat. ``ignore_eos`` never lets the answer end by itself.
    """

    def __init__(
        self,
        model: Model,
        *,
        temp: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        repeat_penalty: float = 1.0,
        seed: int | None = None,
        ignore_eos: bool = False,
    ) -> None:
        library = load_library()
        lib = library.lib
        params = lib.llama_sampler_chain_default_params()
        params.no_perf = True
        super().__init__(library, lib.llama_sampler_chain_init(params), lib.llama_sampler_free)
        self.model = model
        # The chain owns what is added to it and frees it.
        links = []
        suppressed = [*model.suppressed, *(model.ends if ignore_eos else ())]
        if suppressed:
            biases = self._ffi.new("llama_logit_bias[]", [(token, float("-inf")) for token in suppressed])
            links.append(lib.llama_sampler_init_logit_bias(model.n_vocab, len(suppressed), biases))
        if repeat_penalty != 1.0:
            links.append(lib.llama_sampler_init_penalties(model.n_vocab, PENALTY_WINDOW, repeat_penalty, 0.0, 0.0))
        if temp > 0:
            links += [
                lib.llama_sampler_init_top_k(top_k),
                lib.llama_sampler_init_top_p(top_p, 0),
                lib.llama_sampler_init_min_p(min_p, 0),
                lib.llama_sampler_init_temp(temp),
                lib.llama_sampler_init_dist(0xFFFFFFFF if seed is None else seed),
            ]
        else:
            links.append(lib.llama_sampler_init_greedy())
        # Nothing to compute but the largest logit, and no state to keep.
        self._takes_largest = temp <= 0 and repeat_penalty == 1.0
        self._suppressed = frozenset(suppressed)
        self._draw = links[-1] if temp > 0 else None
        for link in links:
            lib.llama_sampler_chain_add(self._pointer, link)

    def accept(self, tokens: Iterable[int]) -> None:
        """Show it tokens that it did not choose, such as the prompt's: the penalties count them."""
        for token in tokens:
            self._lib.llama_sampler_accept(self.pointer, token)

    def replay(self, tokens: Sequence[int]) -> None:
        """Bring it to where it was when it had sampled these tokens, without the logits that it sampled them from."""
        self.accept(tokens)
        if self._draw is None:
            return
        # A draw takes one random number, however many candidates there are: one will do.
        candidates = self._ffi.new("llama_token_data[1]")
        only = self._ffi.new("llama_token_data_array *", {"data": candidates, "size": 1})
        for _ in tokens:
            self._lib.llama_sampler_apply(self._draw, only)

    def sample(self, context: Context, index: int) -> int:
        """Choose a token from the logits at that index of the last batch.

        The token is accepted already: accepting it again would count it twice. Several threads may sample for several
        sequences at once, each with its own Sampler, once one call to :meth:`Context.logits` was made.
        Raises IndexError if no logits were asked for there.
        """
        logits = context.logits(index)
        if self._takes_largest:
            largest = int(np.argmax(logits))
            if largest not in self._suppressed:
                return largest
        return int(self._lib.llama_sampler_sample(self.pointer, context.pointer, index))
