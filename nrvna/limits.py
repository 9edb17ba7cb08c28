"""The most that an engine tries to hold in memory, and what to try next where that was too much.

Standard library alone: an engine that is still there goes down by itself, one that died of it by its daemon.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

# More of anything than there can be.
_ENDLESS = 1 << 31
# Where nobody named a context, one below this is no use to many jobs: rather than that, layers leave the GPU.
_USEFUL_CONTEXT = 1024
# The least that llama.cpp makes.
_LEAST_CONTEXT = 256


@dataclass(frozen=True)
class Limits:
    """At most ``parallel`` jobs at a time, of ``context`` tokens each, with ``layers`` of the model on GPUs."""

    parallel: int = _ENDLESS
    context: int = _ENDLESS
    layers: int = _ENDLESS

    def smaller(self, asked_context: int) -> Limits | None:
        """What to try where the memory for this was not there; None if there is nothing less.

        First fewer jobs at a time, then less context, then fewer layers with jobs and context as before, and at last
        the CPU. ``asked_context`` is the one that the user named, 0 if none: while layers are left to take away, it
        stays.
        """
        least = _LEAST_CONTEXT
        if self.layers:
            least = min(asked_context, self.context) or _USEFUL_CONTEXT
        if self.parallel > 1:
            return replace(self, parallel=self.parallel // 2)
        if self.context // 2 >= least:
            return replace(self, context=self.context // 2)
        if self.layers:
            return Limits(layers=self.layers // 2)
        return None

    def to_dict(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any] | None) -> Limits:
        """What :meth:`to_dict` gave; no limits for None."""
        return cls(**(content or {}))

    def __str__(self) -> str:
        if self.parallel == _ENDLESS or not self.context:
            return f"{self.layers} layers on the GPU" if self.layers else "the CPU alone"
        jobs = f"{self.parallel} job{'' if self.parallel == 1 else 's'} at a time"
        return f"{jobs}, {self.context} tokens each" + (f", {self.layers} layers on the GPU" if self.layers else "")


def kills_for_memory() -> int:
    """How many processes the kernel has killed since it started, as memory ran out, here or within a control group.

    0 where it does not say.
    """
    with suppress(OSError, ValueError), open("/proc/vmstat", encoding="ascii") as facts:
        for line in facts:
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0
