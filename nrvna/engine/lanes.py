"""Threads that do small tasks one after the other; one that takes long lets those after it pass."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from math import inf


class Lanes:
    """Does tasks in their order, one at a time. Only past a task that has taken longer than ``patience_s`` the next
    one goes, on another of ``count`` threads. A task must not raise.
    """

    def __init__(self, count: int, patience_s: float) -> None:
        self._patience_s = patience_s
        self._tasks: deque[Callable[[], None]] = deque()
        # When each lane began what it is at.
        self._begun: dict[int, float] = {}
        self._changed = threading.Condition()
        for number in range(count):
            threading.Thread(target=self._work, args=(number,), name=f"lane-{number}", daemon=True).start()

    def add(self, task: Callable[[], None]) -> None:
        """Let a task be done after those that were added before. From any thread."""
        with self._changed:
            self._tasks.append(task)
            self._changed.notify()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to do."""
        with self._changed:
            return not self._tasks and not self._begun

    def _work(self, number: int) -> None:
        while True:
            task = self._next(number)
            try:
                task()
            finally:
                with self._changed:
                    del self._begun[number]

    def _next(self, number: int) -> Callable[[], None]:
        with self._changed:
            while not self._tasks or self._wait_s() > 0:
                self._changed.wait(self._wait_s() if self._tasks else None)
            self._begun[number] = time.monotonic()
            return self._tasks.popleft()

    def _wait_s(self) -> float:
        """How long what was begun last may still take before it is passed."""
        return max(self._begun.values(), default=-inf) + self._patience_s - time.monotonic()
