"""Settings under which nrvna samples the very tokens that llama-server samples: one case or more for each sampler."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from llama_server import ask

from nrvna.config import Sampling

PROMPTS = [
    "Name three primes.",
    "Write a haiku about rivers.",
    "Was ist ein Baum? Antworte kurz.",
    "def fibonacci(n):",
    "Translate to French: the cat sleeps 🐈",
    "List the days of the week, one a line.",
    "Count from one to twenty in words.",
    "Repeat this: a b c a b c a b c a b c",
    "What is the capital of France?",
    "Write a JSON object with a name and an age.",
    "Explain photosynthesis to a child.",
    "Rhyme on 'moon': moon, moon, moon,",
    "Give me a recipe for pancakes.",
    "2 + 2 =",
    "Who wrote Hamlet? Who wrote Faust?",
    "Continue: ha ha ha ha ha ha",
    "Is water wet? Yes or no?",
    "Tell a story that begins and ends with rain.",
    "¿Qué hora es? Responde en español.",
    "Sort these: pear, apple, fig, apple, pear.",
]
TOKENS = 32
LIST = 'root ::= item{2,4}\nitem ::= "- " [a-zA-Z ,.\']+ "\\n"'
# Nothing but a draw from all tokens: any sampler that is added shows.
PLAIN = Sampling(temp=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=42, predict=TOKENS)
DEFAULTS = Sampling(seed=42, predict=TOKENS)
GREEDY = Sampling(temp=0.0, seed=42, predict=TOKENS)
_DRY = replace(GREEDY, dry_multiplier=4.0, dry_allowed_length=1)


@dataclass(frozen=True)
class Case:
    """A sampling, and the case without the setting in question, from whose answers it must lead away."""

    sampling: Sampling
    without: str
    grammar: str | None = None


def plain(**settings: Any) -> Case:
    return Case(replace(PLAIN, **settings), "plain")


def greedy(**settings: Any) -> Case:
    return Case(replace(GREEDY, **settings), "greedy")


def defaults(**settings: Any) -> Case:
    return Case(replace(DEFAULTS, **settings), "defaults")


CASES = {
    "plain": Case(PLAIN, "greedy"),
    "greedy": Case(GREEDY, "plain"),
    "defaults": Case(DEFAULTS, "plain"),
    "seed": plain(seed=4_294_967_294),
    "repeat_penalty": greedy(repeat_penalty=1.3),
    "repeat_last_n": Case(replace(GREEDY, repeat_penalty=1.3, repeat_last_n=8), "repeat_penalty"),
    "frequency_penalty": greedy(frequency_penalty=1.0),
    "presence_penalty": greedy(presence_penalty=1.5),
    "dry": Case(_DRY, "greedy"),
    "dry_mild": Case(replace(_DRY, dry_multiplier=0.1), "dry"),
    "dry_base": Case(replace(_DRY, dry_multiplier=0.1, dry_base=9.0), "dry_mild"),
    "dry_allowed_length": Case(replace(_DRY, dry_allowed_length=3), "dry"),
    "dry_penalty_last_n": Case(replace(_DRY, dry_penalty_last_n=8), "dry"),
    "dry_sequence_breakers": Case(replace(_DRY, dry_sequence_breakers=(" the", "i")), "dry"),
    "top_n_sigma": plain(top_n_sigma=1.0),
    "top_k": plain(top_k=5),
    "typical_p": plain(typical_p=0.5),
    "typical_p_greedy": greedy(typical_p=0.3),
    "top_p": plain(top_p=0.6),
    "min_p": plain(min_p=0.2),
    "xtc": plain(xtc_probability=0.6, xtc_threshold=0.05),
    "xtc_greedy": greedy(xtc_probability=0.5),
    "temperature": plain(temp=0.4),
    "dynamic_temperature": plain(dynatemp_range=0.7, dynatemp_exponent=1.5),
    "dynamic_temperature_from_0": greedy(dynatemp_range=1.2),
    "mirostat_1": plain(mirostat=1, mirostat_ent=3.0, mirostat_lr=0.2),
    "mirostat_2": plain(mirostat=2, mirostat_ent=3.0, mirostat_lr=0.2),
    "adaptive_p": plain(adaptive_target=0.3, adaptive_decay=0.8, min_p=0.02),
    "logit_bias": greedy(logit_bias=((28, -5.0), (" the", False), (30, 2.0))),
    "logit_bias_of_the_end": greedy(logit_bias=(("<|im_end|>", 0.5), (2, 7.5))),
    "ignore_eos": Case(replace(GREEDY, logit_bias=((2, 7.5),), ignore_eos=True), "logit_bias_of_the_end"),
    "all_together": plain(
        temp=0.9,
        top_k=60,
        top_p=0.97,
        min_p=0.01,
        typical_p=0.98,
        top_n_sigma=3.0,
        repeat_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.1,
        dry_multiplier=0.8,
        xtc_probability=0.3,
        dynatemp_range=0.3,
    ),
    "hot": defaults(temp=1.5, repeat_penalty=1.2),
    "order": Case(
        replace(
            DEFAULTS, temp=1.5, repeat_penalty=1.2, samplers=("temperature", "min_p", "top_k", "penalties", "top_p")
        ),
        "hot",
    ),
    "grammar": Case(DEFAULTS, "defaults", LIST),
    "grammar_greedy": Case(GREEDY, "greedy", LIST),
    "grammar_plain": Case(replace(PLAIN, repeat_penalty=1.1), "plain", LIST),
}
# How llama-server calls what its programs call otherwise.
_SERVER_NAMES = {"temp": "temperature", "mirostat_lr": "mirostat_eta", "mirostat_ent": "mirostat_tau"}
_ONLY_OURS = ("predict", "min_tokens")


def of_server(address: str, prompt: list[int], sampling: Sampling, grammar: str | None) -> list[int]:
    """The tokens that llama-server answers with, the one that ends the answer included."""
    settings = {_SERVER_NAMES.get(name, name): value for name, value in vars(sampling).items()}
    for name in _ONLY_OURS:
        del settings[name]
    if sampling.adaptive_target >= 0:
        # There it must be named as well.
        settings["samplers"] = [*sampling.samplers, "adaptive_p"]
    if grammar:
        settings["grammar"] = grammar
    body = {"prompt": prompt, "n_predict": sampling.predict, "return_tokens": True, "cache_prompt": False}
    tokens: list[int] = ask(address, "/completion", {**settings, **body})["tokens"]
    return tokens
