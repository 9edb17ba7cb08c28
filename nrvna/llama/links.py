"""What a sampler chain can be made of: each link is one sampler of llama.cpp, with its parameters.

A link only describes; the same one serves many chains. Those that choose a token end a chain, the others change the
logits or drop candidates before it. Several of them do nothing at a value that their docstring names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from nrvna.llama.library import load_library
from nrvna.llama.model import Model, as_utf8

# LLAMA_DEFAULT_SEED: llama.cpp draws one.
_RANDOM = 0xFFFFFFFF
_IMPOSSIBLE = float("-inf")
# How many of the likeliest tokens mirostat estimates from; llama.cpp's programs know no other number.
_MIROSTAT_TOKENS = 100


class Link(ABC):
    """One sampler of a chain.

    ``is_replayable`` says that its state follows from the tokens that were sampled and the number of draws alone, not
    from the logits that they were sampled from. ``chooses`` says that it ends a chain. ``touches_few`` says that it
    leaves all logits as they are, but those of :meth:`names` and of the last :attr:`window` tokens.
    """

    is_replayable: ClassVar[bool] = True
    chooses: ClassVar[bool] = False
    touches_few: ClassVar[bool] = False

    @property
    def window(self) -> int:
        """How many of the last tokens it looks back at."""
        return 0

    @property
    def takes_likeliest(self) -> int:
        """How many of the likeliest tokens it leaves, whatever the others are; 0 if it is not that simple."""
        return 0

    def names(self, _: Model, /) -> frozenset[int]:
        """The tokens whose logits it changes, wherever they are in the text."""
        return frozenset()

    @property
    def only_bans(self) -> bool:
        """Whether all it does is to make :meth:`bans` impossible."""
        return False

    def bans(self, _: Model, /) -> frozenset[int]:
        """The tokens that it makes impossible whatever their logits."""
        return frozenset()

    @abstractmethod
    def make(self, model: Model, /) -> Any:
        """Its C object, for whoever asks to own: a chain frees what is added to it."""


@dataclass(frozen=True)
class LogitBias(Link):
    """Adds to the logits of some tokens, as (token, bias); minus infinity makes one impossible.

    Raises ValueError in a chain if the vocabulary has no such token.
    """

    touches_few: ClassVar[bool] = True

    biases: tuple[tuple[int, float], ...]

    def names(self, _: Model, /) -> frozenset[int]:
        return frozenset(token for token, _ in self.biases)

    @property
    def only_bans(self) -> bool:
        return all(bias == _IMPOSSIBLE for _, bias in self.biases)

    def bans(self, _: Model, /) -> frozenset[int]:
        return frozenset(token for token, bias in self.biases if bias == _IMPOSSIBLE)

    def make(self, model: Model, /) -> Any:
        for token, _ in self.biases:
            if not 0 <= token < model.n_vocab:
                raise ValueError(f"{token} is no token to put a bias on: ids go from 0 to {model.n_vocab - 1}")
        library = load_library()
        biases = library.ffi.new("llama_logit_bias[]", list(self.biases))
        return library.lib.llama_sampler_init_logit_bias(model.n_vocab, len(self.biases), biases)


@dataclass(frozen=True)
class MinTokens(Link):
    """Makes it impossible to end before ``count`` tokens were sampled. The chain takes it out at that point."""

    touches_few: ClassVar[bool] = True

    count: int

    def names(self, model: Model, /) -> frozenset[int]:
        return frozenset(model.ends)

    @property
    def only_bans(self) -> bool:
        return True

    def bans(self, model: Model, /) -> frozenset[int]:
        return frozenset(model.ends)

    def make(self, model: Model, /) -> Any:
        return banning(model.ends).make(model)


@dataclass(frozen=True)
class Penalties(Link):
    """Makes the tokens among the last ``last_n``, prompt included, less likely.

    ``repeat`` divides positive logits and multiplies negative ones, ``frequency`` is taken off for each occurrence
    and ``presence`` once. At 1, 0 and 0 it does nothing.
    """

    touches_few: ClassVar[bool] = True

    last_n: int = 64
    repeat: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0

    @property
    def window(self) -> int:
        return self.last_n

    def make(self, model: Model, /) -> Any:
        lib = load_library().lib
        return lib.llama_sampler_init_penalties(
            model.n_vocab, self.last_n, self.repeat, self.frequency, self.presence
        )


@dataclass(frozen=True)
class Dry(Link):
    """Penalises the token that would go on with a sequence which the last ``last_n`` tokens hold already.

    From ``allowed_length`` tokens on, the penalty is ``multiplier * base ** (length - allowed_length)``. ``breakers``
    are texts that no such sequence goes across. Multiplier 0 does nothing.

    Raises TokenizeError in a chain for a breaker that is not UTF-8.
    """

    touches_few: ClassVar[bool] = True

    multiplier: float
    base: float = 1.75
    allowed_length: int = 2
    last_n: int = 64
    breakers: tuple[str, ...] = ("\n", ":", '"', "*")

    @property
    def window(self) -> int:
        return self.last_n

    def make(self, model: Model, /) -> Any:
        library = load_library()
        link, prototype = _dry_prototypes.get(model, (None, None))
        if link != self:
            # It compares the breakers with each token of the vocabulary, which takes longer than many a decode.
            made = self._make_anew(model)
            prototype = library.ffi.gc(made, library.lib.llama_sampler_free)
            _dry_prototypes[model] = (self, prototype)
        return library.lib.llama_sampler_clone(prototype)

    def _make_anew(self, model: Model, /) -> Any:
        library = load_library()
        texts = [library.ffi.new("char[]", as_utf8(breaker)) for breaker in self.breakers]
        return library.lib.llama_sampler_init_dry(
            library.lib.llama_model_get_vocab(model.pointer),
            self.multiplier,
            self.base,
            self.allowed_length,
            self.last_n,
            library.ffi.new("const char *[]", texts),
            len(texts),
        )


# The last one made for each model: jobs of one queue mostly ask for the same.
_dry_prototypes: WeakKeyDictionary[Model, tuple[Dry, Any]] = WeakKeyDictionary()


@dataclass(frozen=True)
class TopNSigma(Link):
    """Keeps the tokens whose logit is within ``n`` standard deviations of the largest; 0 or less does nothing."""

    n: float

    def make(self, _: Model, /) -> Any:
        return load_library().lib.llama_sampler_init_top_n_sigma(self.n)


@dataclass(frozen=True)
class TopK(Link):
    """Keeps the ``k`` likeliest tokens; 0 does nothing."""

    k: int

    @property
    def takes_likeliest(self) -> int:
        return max(0, self.k)

    def make(self, _: Model, /) -> Any:
        return load_library().lib.llama_sampler_init_top_k(self.k)


@dataclass(frozen=True)
class Typical(Link):
    """Keeps the tokens whose surprise is nearest to the expected one, until they make up ``p``; 1 does nothing."""

    p: float

    def make(self, _: Model, /) -> Any:
        return load_library().lib.llama_sampler_init_typical(self.p, 0)


@dataclass(frozen=True)
class TopP(Link):
    """Keeps the likeliest tokens that together make up ``p``; 1 does nothing."""

    p: float

    def make(self, _: Model, /) -> Any:
        return load_library().lib.llama_sampler_init_top_p(self.p, 0)


@dataclass(frozen=True)
class MinP(Link):
    """Drops the tokens less likely than ``p`` times the likeliest; 0 does nothing."""

    p: float

    def make(self, _: Model, /) -> Any:
        return load_library().lib.llama_sampler_init_min_p(self.p, 0)


@dataclass(frozen=True)
class Xtc(Link):
    """With this ``probability`` drops all tokens of at least ``threshold`` but the least likely of them.

    At probability 0, or a threshold above 0.5, it does nothing. It draws from a generator of its own, and only where
    there are two candidates: how often it drew cannot be told from the tokens.
    """

    is_replayable: ClassVar[bool] = False

    probability: float
    threshold: float = 0.1
    seed: int | None = None

    def make(self, _: Model, /) -> Any:
        return load_library().lib.llama_sampler_init_xtc(self.probability, self.threshold, 0, _seed(self.seed))


@dataclass(frozen=True)
class Temperature(Link):
    """Divides the logits by ``temp``; 0 leaves only the likeliest token, 1 does nothing.

    With a ``range`` the temperature is dynamic: from ``temp - range`` where one token is sure to ``temp + range``
    where all are alike, along the entropy to the power of ``exponent``.
    """

    temp: float
    range: float = 0.0
    exponent: float = 1.0

    def make(self, _: Model, /) -> Any:
        return load_library().lib.llama_sampler_init_temp_ext(self.temp, self.range, self.exponent)


@dataclass(frozen=True)
class Greedy(Link):
    """Chooses the likeliest token."""

    chooses: ClassVar[bool] = True

    @property
    def takes_likeliest(self) -> int:
        return 1

    def make(self, _: Model, /) -> Any:
        return load_library().lib.llama_sampler_init_greedy()


@dataclass(frozen=True)
class Draw(Link):
    """Draws a token by its probability. ``seed`` None has llama.cpp take one that nobody can repeat."""

    chooses: ClassVar[bool] = True

    seed: int | None = None

    def make(self, _: Model, /) -> Any:
        return load_library().lib.llama_sampler_init_dist(_seed(self.seed))


@dataclass(frozen=True)
class Mirostat(Link):
    """Draws a token so that the surprise stays near ``entropy``, in bits; ``learning_rate`` is how fast it adapts."""

    is_replayable: ClassVar[bool] = False
    chooses: ClassVar[bool] = True

    entropy: float = 5.0
    learning_rate: float = 0.1
    seed: int | None = None

    def make(self, model: Model, /) -> Any:
        lib, seed = load_library().lib, _seed(self.seed)
        return lib.llama_sampler_init_mirostat(
            model.n_vocab, seed, self.entropy, self.learning_rate, _MIROSTAT_TOKENS
        )


@dataclass(frozen=True)
class MirostatV2(Link):
    """The second, simpler form of :class:`Mirostat`."""

    is_replayable: ClassVar[bool] = False
    chooses: ClassVar[bool] = True

    entropy: float = 5.0
    learning_rate: float = 0.1
    seed: int | None = None

    def make(self, _: Model, /) -> Any:
        lib = load_library().lib
        return lib.llama_sampler_init_mirostat_v2(_seed(self.seed), self.entropy, self.learning_rate)


@dataclass(frozen=True)
class AdaptiveP(Link):
    """Draws a token so that the chosen ones' probabilities stay near ``target`` on average.

    ``decay`` says how slowly the average forgets: it spans about ``1 / (1 - decay)`` tokens. A negative target draws
    by the probabilities as they are.
    """

    is_replayable: ClassVar[bool] = False
    chooses: ClassVar[bool] = True

    target: float
    decay: float = 0.9
    seed: int | None = None

    def make(self, _: Model, /) -> Any:
        return load_library().lib.llama_sampler_init_adaptive_p(self.target, self.decay, _seed(self.seed))


def banning(tokens: Sequence[int]) -> LogitBias:
    """A link that makes these tokens impossible."""
    return LogitBias(tuple((token, _IMPOSSIBLE) for token in tokens))


def _seed(seed: int | None) -> int:
    return _RANDOM if seed is None else seed
