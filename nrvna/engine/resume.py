"""Going on with an answer that was interrupted: what its tokens belong to, and which of them are fit to go on from.

They come back from a file that may be damaged. The worst that may do is to let the answer start afresh.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, NamedTuple

from nrvna.config import MAX_SEED, Sampling
from nrvna.progress import MAX_DRAWS

_KEY_LENGTH = 32


class Attempt(NamedTuple):
    """What is on record of an interrupted answer: its tokens, what they belong to, the seed that was in force, and
    how many random numbers were drawn for each token."""

    key: str
    seed: int
    tokens: list[Any]
    draws: list[int]


def read_attempt(content: object) -> Attempt | None:
    """The record as it was handed over; None if there is none or it is of no use."""
    if not isinstance(content, dict):
        return None
    key, seed, tokens, draws = (content.get(name) for name in Attempt._fields)
    if not isinstance(key, str) or not isinstance(tokens, list) or not isinstance(draws, list):
        return None
    if len(draws) != len(tokens) or not all(type(count) is int and 0 <= count <= MAX_DRAWS for count in draws):
        return None
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:
        return None
    return Attempt(key, seed, tokens, draws)


def key_of(prompt: bytes, sampling: Sampling, origin: object) -> str:
    """Stands for all that an answer depends on: its tokens are those of any attempt with the same key.

    ``prompt`` is the token ids as bytes, ``origin`` what computes, as JSON can write it.
    """
    about = json.dumps([sampling.to_dict(), origin], sort_keys=True)
    return hashlib.sha256(about.encode() + b"\n" + prompt).hexdigest()[:_KEY_LENGTH]


def usable_head(tokens: list[Any], *, most: int, n_vocab: int, is_end: Callable[[int], bool]) -> list[int]:
    """The first tokens that an unfinished answer of ``most`` tokens at most can begin with."""
    head: list[int] = []
    for token in tokens[: max(0, most)]:
        if type(token) is not int or not 0 <= token < n_vocab or is_end(token):
            break
        head.append(token)
    return head
