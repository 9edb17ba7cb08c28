"""Threads that do small tasks one after the other; one that takes long lets those after it pass."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from math import inf

# What a task that takes long leaves to others, of the 19 that there are. Where the threads of a step have a processor
# each, another thread at full speed makes it take four times as long: all wait for the slowest.
_NICENESS = 10


class Lanes:
    """Does tasks in their order, one at a time. Only past a task that has taken longer than ``patience_s`` the next
    one goes, on another of ``count`` threads; the slow one goes on with less of the processor, where threads can be
    nice by themselves. Where there is no memory for another thread, those there are do all. A task must not raise.
    Raises MemoryError if there is none for the first.
    """

    def __init__(self, count: int, patience_s: float) -> None:
        self._count = count
        self._patience_s = patience_s
        self._tasks: deque[Callable[[], None]] = deque()
        # When each lane began what it is at.
        self._begun: dict[threading.Thread, float] = {}
        self._slow: set[threading.Thread] = set()
        self._threads = 0
        self._changed = threading.Condition()
        with self._changed:
            self._open()
        if not self._threads:
            raise MemoryError("no memory for a thread")

    def add(self, task: Callable[[], None]) -> None:
        """Let a task be done after those that were added before. From any thread."""
        with self._changed:
            self._tasks.append(task)
            self._changed.notify_all()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to do."""
        with self._changed:
            return not self._tasks and not self._begun

    def _open(self) -> None:
        """See that there is a lane for the next task besides the one that may be at work."""
        while self._threads < self._count and self._quick < 2:
            try:
                threading.Thread(target=self._work, name=f"lane-{self._threads + 1}", daemon=True).start()
            except RuntimeError:
                return
            self._threads += 1

    @property
    def _quick(self) -> int:
        return self._threads - len(self._slow)

    def _work(self) -> None:
        own = threading.current_thread()
        while task := self._next(own):
            try:
                task()
            finally:
                with self._changed:
                    del self._begun[own]
                    self._changed.notify_all()

    def _next(self, own: threading.Thread) -> Callable[[], None] | None:
        """The next task once it is its turn. None to a lane that was slow, if another can take its place: nice it is
        for good, and so would be what it starts."""
        with self._changed:
            if own in self._slow:
                self._slow.discard(own)
                self._threads -= 1
                self._open()
                if self._quick >= min(self._count, 2):
                    return None
                self._threads += 1
            while (wait_s := self._wait_s()) > 0 or not self._tasks:
                self._changed.wait(wait_s if wait_s > 0 else None)
            self._begun[own] = time.monotonic()
            self._changed.notify()
            return self._tasks.popleft()

    def _wait_s(self) -> float:
        """How long what was begun last may still take before it is passed; if that is over, it is slow."""
        wait_s = max(self._begun.values(), default=-inf) + self._patience_s - time.monotonic()
        if wait_s <= 0:
            self._slow.update(map(_be_nice, self._begun.keys() - self._slow))
            self._open()
        return wait_s


def _be_nice(thread: threading.Thread) -> threading.Thread:
    # Elsewhere niceness is the whole process's.
    if sys.platform == "linux" and thread.native_id is not None:
        with suppress(OSError):
            nice = os.getpriority(os.PRIO_PROCESS, thread.native_id)
            os.setpriority(os.PRIO_PROCESS, thread.native_id, nice + _NICENESS)
    return thread
