"""From a job's sampling to the links of its sampler chain, as llama.cpp's programs put them together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nrvna.config import SETTINGS, Sampling
from nrvna.errors import JobError, SettingError
from nrvna.llama import (
    AdaptiveP,
    Draw,
    Dry,
    Grammar,
    Greedy,
    Link,
    LogitBias,
    MinP,
    MinTokens,
    Mirostat,
    MirostatV2,
    Model,
    Penalties,
    Temperature,
    TopK,
    TopNSigma,
    TopP,
    Typical,
    Xtc,
    banning,
)

# What never drops the likeliest token: before a greedy choice it is a waste.
_TRUNCATION = (TopNSigma, TopK, TopP, MinP)


def links_for(model: Model, sampling: Sampling, *, grammar: str | None = None) -> list[Link]:
    """The chain of a job. Links that would do nothing are left out.

    Raises JobError for a bias on a token that the model has not.
    """
    links: list[Link] = []
    if biases := _biases(model, sampling):
        links.append(LogitBias(tuple(biases)))
    if sampling.ignore_eos:
        links.append(banning(model.ends))
    elif sampling.min_tokens:
        links.append(MinTokens(sampling.min_tokens))
    if grammar is not None:
        links.append(Grammar(grammar))
    return links + _drawing(sampling)


def is_replayable(sampling: Sampling) -> bool:
    """Whether an interrupted answer can go on from its tokens: see :meth:`nrvna.llama.Sampler.replay`."""
    return all(link.is_replayable for link in _drawing(sampling))


def _drawing(sampling: Sampling) -> list[Link]:
    """The links that depend on numbers alone, the last one choosing."""
    entropy, rate, seed = sampling.mirostat_ent, sampling.mirostat_lr, sampling.seed
    if sampling.mirostat:
        mirostat = Mirostat if sampling.mirostat == 1 else MirostatV2
        return [Temperature(sampling.temp), mirostat(entropy, rate, seed)]
    links: list[Link] = []
    for name in sampling.samplers:
        if name == "temperature" and sampling.temp <= 0 and sampling.dynatemp_range <= 0:
            # Only the likeliest token is left: nothing behind changes that.
            while links and isinstance(links[-1], _TRUNCATION):
                links.pop()
            return [*links, Greedy()]
        if link := _LINKS[name](sampling):
            links.append(link)
    if "adaptive_p" in sampling.samplers or sampling.adaptive_target >= 0:
        return [*links, AdaptiveP(sampling.adaptive_target, sampling.adaptive_decay, seed)]
    return [*links, Draw(seed)]


def _penalties(sampling: Sampling) -> Link | None:
    repeat, frequency, presence = sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty
    idle = sampling.repeat_last_n <= 0 or (repeat == 1 and frequency == 0 and presence == 0)
    return None if idle else Penalties(sampling.repeat_last_n, repeat, frequency, presence)


def _dry(sampling: Sampling) -> Link | None:
    if sampling.dry_multiplier == 0 or sampling.dry_penalty_last_n <= 0:
        return None
    return Dry(
        sampling.dry_multiplier,
        sampling.dry_base,
        sampling.dry_allowed_length,
        sampling.dry_penalty_last_n,
        sampling.dry_sequence_breakers,
    )


def _xtc(sampling: Sampling) -> Link | None:
    if sampling.xtc_probability <= 0 or sampling.xtc_threshold > 0.5:
        return None
    return Xtc(sampling.xtc_probability, sampling.xtc_threshold, sampling.seed)


def _temperature(sampling: Sampling) -> Link | None:
    if sampling.temp == 1 and sampling.dynatemp_range <= 0:
        return None
    return Temperature(sampling.temp, sampling.dynatemp_range, sampling.dynatemp_exponent)


_LINKS: dict[str, Callable[[Sampling], Link | None]] = {
    "penalties": _penalties,
    "dry": _dry,
    "top_n_sigma": lambda sampling: TopNSigma(sampling.top_n_sigma) if sampling.top_n_sigma > 0 else None,
    "top_k": lambda sampling: TopK(sampling.top_k) if sampling.top_k > 0 else None,
    "typ_p": lambda sampling: Typical(sampling.typical_p) if sampling.typical_p < 1 else None,
    "top_p": lambda sampling: TopP(sampling.top_p) if sampling.top_p < 1 else None,
    "min_p": lambda sampling: MinP(sampling.min_p) if sampling.min_p > 0 else None,
    "xtc": _xtc,
    "temperature": _temperature,
    # Wherever it is named, it chooses: it comes last.
    "adaptive_p": lambda _: None,
}


def _biases(model: Model, sampling: Sampling) -> list[tuple[int, float]]:
    biases, count = [], model.n_vocab
    for token, bias in sampling.logit_bias:
        if isinstance(token, int) and not 0 <= token < count:
            raise JobError(f"logit_bias names token {token}, but this model's go from 0 to {count - 1}")
        tokens = [token] if isinstance(token, int) else model.tokenize(token, add_special=False)
        biases += [(each, float("-inf") if bias is False else bias) for each in tokens]
    return biases


def recommendation(model: Model, sampling: Sampling) -> str:
    """What the model's authors recommend beyond what is in force, and how to follow them; empty if nothing."""
    known = {setting.field: setting for setting in SETTINGS if setting.of_job}
    wanted: dict[str, Any] = {}
    for field, value in model.recommended_sampling.items():
        try:
            parsed = known[field].parse(str(value), field)
        except SettingError:
            # A file may say anything.
            continue
        if parsed != getattr(sampling, field):
            wanted[field] = value
    if not wanted:
        return ""
    said = ", ".join(f"{field} {value}" for field, value in wanted.items())
    return f"{said}: export {_exports({known[field].variable: value for field, value in wanted.items()})}"


def _exports(values: Mapping[str, Any]) -> str:
    return " ".join(f"'{name}={value}'" if ";" in str(value) else f"{name}={value}" for name, value in values.items())
