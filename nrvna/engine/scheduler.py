"""Who goes next: pure Python over sequences, no model and no handles.

It does not decide what a token is or when a sequence ends; it decides which tokens go into the next batch.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from nrvna.engine.sequence import Sequence


@dataclass(frozen=True)
class Chunk:
    """Consecutive tokens of one sequence in a batch. ``output``: the token after the last of them is wanted."""

    sequence: Sequence
    count: int
    output: bool


class Scheduler:
    """Continuous batching over a fixed number of slots, each with room for ``context`` tokens.

    A step's batch holds the next token of every running sequence, then as much of the waiting prompts as fits the
    ``budget`` of tokens, in the order they came. So a long prompt holds the others up by no more than one step at a
    time, and a sequence that was admitted never runs out of room.
    """

    def __init__(self, *, slots: int, context: int, budget: int) -> None:
        if budget < slots:
            raise ValueError(f"a budget of {budget} tokens a step cannot hold a token for each of {slots} slots")
        self.context = context
        self.slots = slots
        self._budget = budget
        self._free = list(range(slots - 1, -1, -1))
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    def __len__(self) -> int:
        """Sequences waiting and running."""
        return len(self._waiting) + len(self._running)

    def add(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the line. Raises ValueError if its prompt leaves no room for an answer."""
        if not 0 < len(sequence.prompt) < self.context:
            raise ValueError(f"{len(sequence.prompt)} prompt tokens in a context of {self.context}")
        self._waiting.append(sequence)

    def admit(self) -> list[Sequence]:
        """Give free slots to those who wait; returns who starts now."""
        admitted = []
        while self._free and self._waiting:
            sequence = self._waiting.popleft()
            sequence.slot = self._free.pop()
            self._running.append(sequence)
            admitted.append(sequence)
        return admitted

    def plan(self) -> list[Chunk]:
        """The next batch. Empty only if nothing runs."""
        plan = [Chunk(sequence, 1, output=True) for sequence in self._running if not sequence.is_prefilling]
        left = self._budget - len(plan)
        for sequence in self._running:
            if sequence.is_prefilling and left:
                missing = len(sequence.prompt) - sequence.n_past
                count = min(missing, left)
                plan.append(Chunk(sequence, count, output=count == missing))
                left -= count
        return plan

    def release(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and free its slot."""
        if sequence.slot is None:
            self._waiting.remove(sequence)
            return
        self._running.remove(sequence)
        self._free.append(sequence.slot)
        sequence.slot = None
