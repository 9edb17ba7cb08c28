"""How many files are compiled at a time, and about how long that will take."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nrvna.engine.machine import available_memory, processors

# What nvcc takes at its largest, with some to spare: llama.cpp's largest file took 0.6 GB for one architecture.
CUDA_JOB_BYTES = 2_500_000_000
# Of one core, measured on one shared machine: 70 files of C++, and four of CUDA of different sizes.
_CXX_FILE_S = 5.0
_CUDA_FILE_S, _CUDA_ARCHITECTURE_S = 4.0, 12.0
_SPREAD = 2.0


def jobs_for(backend: str, wished: int | None) -> int:
    """As many as asked for, else one a core, of CUDA as many as memory allows; at least 1."""
    if wished:
        return wished
    if backend != "cuda":
        return processors()
    return max(1, min(processors(), available_memory() // CUDA_JOB_BYTES))


@dataclass(frozen=True)
class Work:
    """Files that are still to be compiled: ``cuda`` of them by nvcc, for so many architectures each."""

    cuda: int
    others: int
    architectures: int

    @classmethod
    def read(cls, dry_run: str, architectures: int) -> Work:
        """From what ``ninja -n`` prints."""
        kinds = re.findall(r"^\[\d+/\d+\] Building (\w+) object ", dry_run, re.MULTILINE)
        cuda = kinds.count("CUDA")
        return cls(cuda, len(kinds) - cuda, architectures)

    def seconds(self, jobs: int) -> float:
        """A guess from other machines."""
        each = _CUDA_FILE_S + _CUDA_ARCHITECTURE_S * self.architectures
        return (self.cuda * each + self.others * _CXX_FILE_S) / jobs

    def announcement(self, jobs: int, launcher: str) -> str:
        """What there is to do and about how long it takes, in a line; empty where nothing is left to do."""
        if not self.cuda + self.others:
            return ""
        files = _count(self.others, "file")
        if self.cuda:
            files = f"{_count(self.cuda, 'CUDA file')} for {_count(self.architectures, 'architecture')}"
            files += f", {_count(self.others, 'other')}" if self.others else ""
        cached = f"; less where {launcher} knows them" if launcher else ""
        span = _span(self.seconds(jobs))
        return f"to compile: {files}; {jobs} at a time; {span} at a guess, by what another machine took{cached}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _span(seconds: float) -> str:
    """A time and twice that, in words."""
    unit, name = (60, "minutes") if seconds < 3600 else (3600, "hours")
    low, high = (factor * seconds / unit for factor in (1, _SPREAD))
    if high < 1:
        return "a minute"
    return f"{low:.1f} to {high:.1f} {name}" if name == "hours" else f"{max(1, low):.0f} to {high:.0f} {name}"
