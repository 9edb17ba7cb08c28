"""A sampler chain: how the next token is chosen from the logits."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nrvna.errors import GrammarError
from nrvna.llama.context import Context
from nrvna.llama.grammar import Grammar, Matcher
from nrvna.llama.handle import Handle
from nrvna.llama.library import load_library
from nrvna.llama.links import Draw, Greedy, Link, MinTokens, banning
from nrvna.llama.model import Model

# llama_token_data.
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Sampler(Handle):
    """A chain of links, applied in their order; the last one chooses. It holds the state of one sequence.

    Tokens that the model file says must never be generated are impossible. A :class:`Grammar`, one at most, may stand
    anywhere: a token is chosen without it, and only where the grammar refuses that token it is applied to all and
    another is chosen, as llama.cpp's programs do. Where only tokens are left that other links made impossible, such
    as the end before :class:`MinTokens`, the grammar prevails.

    Raises ValueError for links that are no chain, and what the links raise.
    """

    def __init__(self, model: Model, links: Sequence[Link]) -> None:
        grammars = [link for link in links if isinstance(link, Grammar)]
        chain = [link for link in links if not isinstance(link, Grammar)]
        if [link.chooses for link in chain] != [False] * (len(chain) - 1) + [True] or len(grammars) > 1:
            raise ValueError("a chain ends in the one link that chooses, and has one grammar at most")
        library = load_library()
        lib = library.lib
        params = lib.llama_sampler_chain_default_params()
        params.no_perf = True
        super().__init__(library, lib.llama_sampler_chain_init(params), lib.llama_sampler_free)
        self.model = model
        if model.suppressed:
            chain.insert(0, banning(model.suppressed))
        # The chain owns what is added to it and frees it.
        self._made: list[Any] = []
        for link in chain:
            self._made.append(link.make(model))
            lib.llama_sampler_chain_add(self._pointer, self._made[-1])
        self._chain = chain
        self._draw = self._made[-1] if isinstance(chain[-1], Draw) else None
        self._matcher = Matcher(grammars[0], model) if grammars else None
        self._candidates: NDArray[Any] | None = None
        self._sampled = 0
        self._draws = 0
        # From so many sampled tokens on the answer may end.
        self._may_end_from = max((link.count for link in chain if isinstance(link, MinTokens)), default=0)
        #: How many of the last tokens the links look back at.
        self.window = max(link.window for link in chain)
        self._last: deque[int] = deque(maxlen=max(0, self.window))
        #: Whether :meth:`replay` can rebuild its state.
        self.is_replayable = all(link.is_replayable for link in chain)
        self._count_sampled(0)
        # A grammar refers to the vocabulary.
        model.dependents.add(self)

    @property
    def draws(self) -> int:
        """Random numbers that were drawn so far: mostly one a token, two where a grammar refused the first choice."""
        return self._draws

    def close(self) -> None:
        if self._matcher is not None:
            self._matcher.close()
        super().close()

    @property
    def is_constrained(self) -> bool:
        """Whether a grammar rules what comes next."""
        return self._matcher is not None

    def constrain(self, grammar: Grammar) -> None:
        """Let a grammar rule all that comes from now on, where none does yet. Raises GrammarError for a bad one."""
        if self._matcher is not None:
            raise ValueError("a grammar rules this answer already")
        self._matcher = Matcher(grammar, self.model)

    def accept(self, tokens: Sequence[int]) -> None:
        """Show it tokens that it did not choose, such as the prompt's: the penalties count them.

        Only the last :attr:`window` of them matter. A grammar begins behind them.
        """
        for token in tokens[-self.window :] if self.window else ():
            self._accept(token)

    def _accept(self, token: int) -> None:
        self._lib.llama_sampler_accept(self.pointer, token)
        self._last.append(token)

    def replay(self, tokens: Sequence[int], draws: int | None = None) -> None:
        """Bring it to where it was when it had sampled these tokens, without the logits that it sampled them from.

        ``draws`` is what :attr:`draws` was then; None means one for each token, which only holds without a grammar.
        Raises ValueError if it is not :attr:`is_replayable`, and GrammarError if the grammar does not allow them.
        """
        if not tokens:
            return
        if not self.is_replayable:
            raise ValueError("this chain's state depends on the logits: the answer can only start afresh")
        if draws is None and self._matcher and self._draw:
            raise ValueError("with a grammar, a token may take two draws: say how many there were")
        self.accept(tokens)
        if self._matcher:
            for token in tokens:
                self._matcher.accept(token)
        self._count_sampled(len(tokens))
        self._skip(len(tokens) if draws is None else draws)

    def _skip(self, draws: int) -> None:
        if self._draw is None:
            return
        # A draw takes one random number, however many candidates there are: one will do.
        candidates = self._ffi.new("llama_token_data[1]")
        only = self._ffi.new("llama_token_data_array *", {"data": candidates, "size": 1})
        for _ in range(draws):
            self._lib.llama_sampler_apply(self._draw, only)
        self._draws += draws

    def force(self, token: int) -> None:
        """Let this be the next token, as if it had been chosen. Raises GrammarError if the grammar forbids it."""
        self._accept(token)
        if self._matcher:
            self._matcher.accept(token)
        self._count_sampled(1)
        self._skip(1)

    def sample(self, context: Context, index: int) -> int:
        """Choose a token from the logits at that index of the last batch.

        The token is accepted already: accepting it again would count it twice. Several threads may sample for several
        sequences at once, each with its own Sampler, once one call to :meth:`Context.logits` was made.
        Raises IndexError if no logits were asked for there, and GrammarError if the grammar allows no token at all.
        """
        logits = context.logits(index)
        token = self._largest(logits)
        if token is None:
            token = self._apply(context, index, logits) if self._matcher is None else self._apply_with_grammar(logits)
        if self._matcher:
            self._matcher.accept(token)
        self._count_sampled(1)
        return token

    def _largest(self, logits: NDArray[np.float32]) -> int | None:
        """The choice of a chain that has nothing to compute but the largest logit, and no state to keep."""
        if not self._takes_largest:
            return None
        token = int(np.argmax(logits))
        allowed = token not in self._banned and (self._matcher is None or self._matcher.allows(token))
        return token if allowed else None

    def _apply(self, context: Context, index: int, logits: NDArray[np.float32]) -> int:
        token = self._choose_likeliest(logits)
        if token is None:
            self._count_draw()
            token = int(self._lib.llama_sampler_sample(self.pointer, context.pointer, index))
            self._last.append(token)
        else:
            self._accept(token)
        return token

    def _choose_likeliest(self, logits: NDArray[np.float32]) -> int | None:
        """What the chain takes where it drops all but the likeliest tokens, found among these alone.

        None, with its state as it was, where that is not how it begins or the choice would not be the same.
        """
        if not self._takes_likeliest:
            return None
        touched = [*self._named.union(self._last)]
        token = self._lib.nrvna_sample_likeliest(
            *(self._links, len(self._made), self._touching, self._takes_likeliest),
            *(self._ffi.from_buffer("float[]", logits), len(logits), touched, len(touched)),
        )
        if token < 0:
            return None
        self._count_draw()
        return int(token)

    def _apply_with_grammar(self, logits: NDArray[np.float32]) -> int:
        assert self._matcher is not None
        token = self._choose_likeliest(logits)
        if token is None:
            token = self._choose(self._among(logits))
        if not self._matcher.allows(token):
            candidates = self._among(logits)
            self._matcher.restrict(candidates)
            assert self._candidates is not None
            self._candidates["logit"][self._matcher.masked] = -np.inf
            token = self._forced() if self._is_forced() else self._choose(candidates)
        self._accept(token)
        return token

    def _choose(self, candidates: Any) -> int:
        """What the chain takes of a llama_token_data_array."""
        self._count_draw()
        self._lib.llama_sampler_apply(self.pointer, candidates)
        return int(candidates.data[candidates.selected].id)

    def _among(self, logits: NDArray[np.float32]) -> Any:
        """All tokens as a llama_token_data_array."""
        if self._candidates is None:
            self._candidates = np.zeros(len(logits), _CANDIDATE)
        self._candidates["id"] = np.arange(len(logits))
        self._candidates["logit"] = logits
        data = self._ffi.from_buffer("llama_token_data[]", self._candidates)
        return self._ffi.new("llama_token_data_array *", {"data": data, "size": len(logits), "selected": -1})

    def _is_forced(self) -> bool:
        """Whether the grammar leaves none but tokens that the chain would make impossible: nothing could be drawn."""
        assert self._candidates is not None
        allowed = np.flatnonzero(self._candidates["logit"] > -np.inf)
        return len(allowed) <= len(self._banned) and self._banned.issuperset(allowed.tolist())

    def _forced(self) -> int:
        assert self._candidates is not None
        token = int(np.argmax(self._candidates["logit"]))
        if self._candidates["logit"][token] == -np.inf:
            raise GrammarError("the grammar allows no token of this model here: the answer cannot go on")
        return token

    def _count_draw(self) -> None:
        if self._draw:
            self._draws += 1

    def _count_sampled(self, count: int) -> None:
        before, self._sampled = self._sampled, self._sampled + count
        if before < self._may_end_from or not count:
            self._settle()

    def _settle(self) -> None:
        """Take out the links that have done their part, and see what the others leave to do for each token."""
        if self._sampled >= self._may_end_from:
            for place in reversed(range(len(self._chain))):
                if isinstance(self._chain[place], MinTokens):
                    self._lib.llama_sampler_free(self._lib.llama_sampler_chain_remove(self.pointer, place))
                    del self._chain[place], self._made[place]
        *before, last = self._chain
        self._banned = frozenset().union(*(link.bans(self.model) for link in before))
        touching = list(takewhile(lambda link: link.touches_few, self._chain))
        self._links = self._ffi.new("struct llama_sampler *[]", self._made)
        self._touching = len(touching)
        self._named = frozenset().union(*(link.names(self.model) for link in touching))
        self._takes_likeliest = self._chain[self._touching].takes_likeliest
        self._takes_largest = isinstance(last, Greedy) and all(link.only_bans for link in before)
