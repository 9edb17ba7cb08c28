"""Where the time of the steps goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

PHASES = ("plan", "decode", "sample", "emit")


class Tally:
    """Seconds spent in each phase of a step, and what came of it, since it was made."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.steps = 0
        self.tokens = 0
        self._started = time.perf_counter()

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the time spent within."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - started

    def __str__(self) -> str:
        passed = time.perf_counter() - self._started
        steps = max(1, self.steps)
        each = ", ".join(f"{phase} {1000 * spent / steps:.1f}" for phase, spent in self.seconds.items())
        rest = 1000 * max(0.0, passed - sum(self.seconds.values())) / steps
        return (
            f"{self.tokens} tokens in {passed:.1f} s, {self.tokens / max(1e-9, passed):.0f} a second; "
            f"a step in ms: {each}, rest {rest:.1f}"
        )
