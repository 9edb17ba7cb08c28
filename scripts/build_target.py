"""What llama.cpp is built for: backends and GPUs, as asked for or as found on this machine."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from cuda_toolkit import Parts, Toolkit, find_nvcc, gpus_here, parse_architectures

BACKENDS = ("cpu", "cuda", "metal")


class TargetError(Exception):
    """Why nothing can be built for what was asked and what to do, in one line."""


@dataclass(frozen=True)
class Target:
    """What is built for: a backend, and for CUDA the architectures of GPUs as CMake names them."""

    backend: str
    architectures: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return "-".join([self.backend, *([".".join(self.architectures)] if self.architectures else [])])


def choose_targets(wish: str, architectures: str | None) -> list[Target]:
    """From ``--backend`` and ``--cuda-arch``. Raises TargetError or ToolkitError.

    ``auto`` is CUDA where nvcc and a GPU are found, or architectures named; Metal on macOS; else CPU.
    """
    names = [name.strip() for name in wish.split(",")]
    if names == ["auto"]:
        names = [_automatic(architectures)]
    if wrong := [name for name in names if name not in BACKENDS]:
        raise TargetError(
            f"--backend is {wish!r}, but must be auto, {', '.join(BACKENDS)}, or several of these with commas "
            f"between them: {wrong[0]!r} is none"
        )
    if "metal" in names and platform.system() != "Darwin":
        raise TargetError("--backend metal is for macOS: here, build for cpu or cuda")
    if architectures and "cuda" not in names:
        raise TargetError(f"--cuda-arch {architectures} is for --backend cuda, not for {wish}")
    return [Target(name, _architectures(architectures) if name == "cuda" else ()) for name in dict.fromkeys(names)]


def _automatic(architectures: str | None) -> str:
    if platform.system() == "Darwin":
        return "metal"
    if architectures:
        return "cuda"
    if not gpus_here():
        return "cpu"
    if find_nvcc():
        return "cuda"
    print("there is an NVIDIA GPU, but no nvcc: building for the CPU alone", file=sys.stderr)
    return "cpu"


def _architectures(text: str | None) -> tuple[str, ...]:
    if text and text.strip() != "native":
        return parse_architectures(text)
    if found := gpus_here():
        return found
    raise TargetError(
        "no NVIDIA GPU is to be seen here (nvidia-smi shows none): name what to build for, as in --cuda-arch 80,90, "
        "or --cuda-arch all-major"
    )


@dataclass(frozen=True)
class Cuda:
    """The compiler for a CUDA build, tried out, and what it needs beside it."""

    toolkit: Toolkit
    parts: Parts
    architectures: tuple[str, ...]

    @classmethod
    def find(cls, target: Target) -> Cuda:
        """Raises TargetError or ToolkitError."""
        nvcc = find_nvcc()
        if not nvcc:
            raise TargetError(
                "no nvcc: it is not on PATH, nor where CUDACXX, CUDA_HOME or CUDA_PATH say, nor below /usr/local; "
                "install NVIDIA's CUDA toolkit, or set CUDA_HOME to its folder"
            )
        toolkit = Toolkit.of(nvcc)
        toolkit.check(target.architectures)
        architectures = toolkit.expand(target.architectures)
        print(f"CUDA {toolkit.version} ({nvcc}), for {', '.join(architectures)}", file=sys.stderr)
        parts = Parts.of(toolkit)
        toolkit.try_out(architectures, parts)
        return cls(toolkit, parts, architectures)

    def options(self, scratch: Path, tree: Path, rpath: str) -> list[str]:
        """What CMake is told of this machine's CUDA; see Parts. ``rpath`` is where the build looks for libraries."""
        rpath = ";".join([rpath, *map(str, self.parts.folders)])
        return [
            f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(self.architectures)}",
            f"-DCMAKE_INSTALL_RPATH={rpath}",
            *self.parts.options(self.toolkit, scratch, tree / "ggml" / "src" / "ggml-cuda"),
        ]
