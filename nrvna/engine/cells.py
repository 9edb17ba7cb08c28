"""The cells of a KV cache that all sequences share: who holds which, and how many are free.

A mirror in plain Python of what llama.cpp keeps: one cell a token, held by every slot whose sequence begins with it.
"""

from __future__ import annotations


class Cells:
    """``count`` cells for some slots. A slot runs or rests; what only resting slots hold can be taken back."""

    def __init__(self, count: int, slots: int) -> None:
        self.count = count
        self.busy = 0
        self._of: list[list[int]] = [[] for _ in range(slots)]
        self._running = [False] * slots
        self._free = list(range(count - 1, -1, -1))
        self._holders = [0] * count
        self._runners = [0] * count

    @property
    def free(self) -> int:
        """Cells that nobody holds."""
        return len(self._free)

    def resting(self, slot: int, length: int) -> int:
        """Of the slot's first ``length`` cells, those that no running slot holds."""
        return sum(not self._runners[cell] for cell in self._of[slot][:length])

    def take(self, slot: int, count: int) -> None:
        """A running slot grows by some tokens. Raises IndexError if fewer cells are free."""
        for _ in range(count):
            cell = self._free.pop()
            self._of[slot].append(cell)
            self._holders[cell] = 1
            self._runners[cell] = 1
        self.busy += count

    def share(self, source: int, target: int, length: int) -> None:
        """An empty resting slot begins as another does."""
        self._of[target] = self._of[source][:length]
        for cell in self._of[target]:
            self._holders[cell] += 1

    def keep(self, slot: int, length: int) -> None:
        """Let go of all of a resting slot's cells but the first ``length``."""
        for cell in self._of[slot][length:]:
            self._holders[cell] -= 1
            if not self._holders[cell]:
                self._free.append(cell)
        del self._of[slot][length:]

    def run(self, slot: int) -> None:
        self._running[slot] = True
        for cell in self._of[slot]:
            self.busy += not self._runners[cell]
            self._runners[cell] += 1

    def rest(self, slot: int) -> None:
        self._running[slot] = False
        for cell in self._of[slot]:
            self._runners[cell] -= 1
            self.busy -= not self._runners[cell]
