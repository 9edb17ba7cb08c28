"""Does this model compute the same whatever runs beside it? Tried, bit by bit, before it is promised.

What holds depends on build, weights' format and architecture, so nothing is concluded from other models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nrvna.llama import Batch, Context

# As many sequences as show what neighbours change: kernels take rows in blocks of 4 or 8, tiles begin at 8.
TRIAL_SLOTS = 8
# Longer than the blocks in which kernels take rows (64 at most), shorter than what takes long on a large model.
_PROMPT = 72
_SHARED = 24
_STEPS = 4
# A prompt cut as no kernel would like it.
_CHUNKS = (1, 9, 62)

Logits = list[NDArray[np.float32]]


@dataclass(frozen=True)
class Findings:
    """What leaves a sequence's logits as they are, bit by bit: being computed again, among neighbours and in chunks,
    behind a prefix copied from another sequence, and computing prompt and answer so far at once, as after an
    interruption, where before the answer was decoded token by token."""

    again: bool
    batching: bool
    sharing: bool
    resuming: bool


def examine(context: Context, *, slots: int) -> Findings:
    """Compute one sequence in several ways and compare the logits. The KV cache is empty afterwards."""
    trial = _Trial(context, slots)
    alone = trial.alone(0, _PROMPT, *[1] * _STEPS)
    findings = Findings(
        again=_equal(alone, trial.alone(slots - 1, _PROMPT, *[1] * _STEPS)),
        batching=_equal(alone, trial.among_others()),
        sharing=_equal(alone, trial.behind_a_copy()),
        # Some of the answer behind the prompt, and in a chunk of its own, as where a prompt was cut before its end.
        resuming=_equal(alone[2:], trial.alone(0, _PROMPT + 2, 1, 1))
        and _equal([alone[0], *alone[3:]], trial.alone(0, _PROMPT, 3, 1)),
    )
    trial.clear()
    return findings


class _Trial:
    def __init__(self, context: Context, slots: int) -> None:
        self._context = context
        self._slots = slots
        self._batch = Batch(context.n_batch)
        self._prompt = self._tokens(0, _PROMPT)
        self._answer = self._tokens(1, _STEPS)

    def _tokens(self, seed: int, count: int) -> list[int]:
        drawn = np.random.default_rng(seed).integers(0, self._context.model.n_vocab, count)
        return [int(token) for token in drawn]

    def alone(self, slot: int, *sizes: int) -> Logits:
        """Prompt and answer in chunks of these sizes; the logits after each."""
        self.clear()
        tokens, found = self._prompt + self._answer, Logits()
        position = 0
        for size in sizes:
            found.append(self._decode((slot, tokens[position : position + size], position)))
            position += size
        return found

    def among_others(self) -> Logits:
        """The prompt in chunks, in the middle of sequences that go on meanwhile, each at another depth."""
        self.clear()
        mine = self._slots // 2
        others = {slot: self._tokens(slot + 2, 64) for slot in range(self._slots) if slot != mine}
        past = {slot: 1 + slot % min(5, 1 + 128 // self._slots) for slot in others}
        if others:
            self._decode(*((slot, tokens[: past[slot]], 0) for slot, tokens in others.items()))
        found: Logits = []
        position = 0
        for tokens in [*self._cut(self._prompt), *([token] for token in self._answer)]:
            rows = [(slot, [tokens_[past[slot]]], past[slot]) for slot, tokens_ in others.items()]
            logits = self._decode((mine, tokens, position), *rows)
            position += len(tokens)
            if position >= _PROMPT:
                found.append(logits)
            past = {slot: count + 1 for slot, count in past.items()}
        return found

    def behind_a_copy(self) -> Logits:
        """The head of the prompt from another sequence that went on differently; in one slot, from what is left."""
        self.clear()
        source, target = 0, self._slots - 1
        self._decode((source, self._prompt[:_SHARED] + self._tokens(99, 7), 0))
        if source == target:
            self._context.forget(target, keep=_SHARED)
        else:
            self._context.copy(source, target, _SHARED)
        found = [self._decode((target, self._prompt[_SHARED:], _SHARED))]
        for step, token in enumerate(self._answer):
            found.append(self._decode((target, [token], _PROMPT + step)))
        return found

    @staticmethod
    def _cut(tokens: list[int]) -> list[list[int]]:
        ends = np.cumsum(_CHUNKS)
        assert ends[-1] == len(tokens)
        return [tokens[end - size : end] for end, size in zip(ends, _CHUNKS, strict=True)]

    def _decode(self, first: tuple[int, list[int], int], *others: tuple[int, list[int], int]) -> NDArray[np.float32]:
        """The logits after the first of some (slot, tokens, position), all computed together, in order of slots."""
        self._batch.clear()
        index = -1
        for slot, tokens, position in sorted((first, *others), key=lambda row: row[0]):
            last = self._batch.add(tokens, position=position, sequence=slot)
            index = last if slot == first[0] else index
        self._context.decode(self._batch)
        return self._context.logits(index).copy()

    def clear(self) -> None:
        for slot in range(self._slots):
            self._context.forget(slot)


def _equal(one: Logits, other: Logits) -> bool:
    return len(one) == len(other) and all(a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True))
