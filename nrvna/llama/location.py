"""Where built llama.cpp libraries lie and which one to take. Loads nothing.

One folder a build, ``<pin>-<backend>``, for CUDA with the architectures behind it, below one root (platformdirs' user
data path unless told otherwise). A build is complete if and only if its ``build.json`` exists: the folder is put in
place by one rename.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import platformdirs

from nrvna.errors import LibraryError, NoHomeError
from nrvna.llama import nvidia, processor

DECLARATIONS = Path(__file__).with_name("declarations.h")
KERNELS_SOURCE = Path(__file__).with_name("kernels")
KERNELS = "libkernels.so"
MANIFEST = "build.json"
BUILD_COMMAND = "python scripts/build_llama.py"
# In the order in which they are preferred, where their devices are there.
GPU_BACKENDS = ("cuda", "metal")
_CUDA_LIBRARY = "libggml-cuda.so"
# Loads a library and says why it cannot; mapping cuBLAS takes a while on a cold disk. It ends with whoever asked: 1
# is PR_SET_PDEATHSIG, 9 is SIGKILL.
_TRY = """
import ctypes, os, sys
library, parent = sys.argv[1], int(sys.argv[2])
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() != parent:
    sys.exit("nobody asks any more")
try:
    ctypes.CDLL(library)
except OSError as error:
    sys.exit(str(error))
"""
_TRY_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Build:
    """One finished build of llama.cpp, for processors that have its ``instructions`` (see processor.py).

    Older records have none: then ``cpu`` tells, a digest of what the kernel said of the processor that compiled it.
    Of a CUDA build, ``toolkit`` is CUDA's version, and ``architectures`` are the GPUs' as CMake names them.
    ``launcher`` is what stood before the compilers, such as ccache.
    """

    directory: Path
    commit: str
    backend: str
    cpu: str
    built: str
    compiler: str
    options: tuple[str, ...]
    toolkit: str = ""
    architectures: tuple[str, ...] = ()
    launcher: str = ""
    instructions: tuple[str, ...] = ()

    @property
    def module(self) -> Path:
        """The compiled cffi module that matches this nrvna's declarations; it may not exist yet."""
        return self.directory / f"{module_name()}.abi3.so"

    def write(self) -> None:
        """Write the manifest, which declares the build finished."""
        content = {key: value for key, value in asdict(self).items() if key != "directory"}
        written = self.directory / f".{MANIFEST}.partial"
        written.write_text(json.dumps(content, indent=2) + "\n")
        written.replace(self.directory / MANIFEST)

    def misfit(self) -> str:
        """Why it would die of SIGILL here, as far as can be told; empty if it fits."""
        if not self.instructions:
            return "" if self.cpu == cpu_fingerprint() else "was built for another processor"
        lacking = ", ".join(processor.missing(self.instructions, self.directory))
        return f"was built for another processor, this one has no {lacking}" if lacking else ""

    @classmethod
    def read(cls, directory: Path) -> Build | None:
        """The build in that folder, or None where there is no finished one."""
        try:
            content = json.loads((directory / MANIFEST).read_text())
            names = {field.name for field in fields(cls)} & set(content)
            found: dict[str, Any] = {name: str(content[name]) for name in names}
            for name in names & {"options", "architectures", "instructions"}:
                found[name] = tuple(content[name])
            return cls(directory=directory, **found)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None


def builds_root() -> Path:
    """The folder of builds that is used where none is named. Raises LibraryError."""
    try:
        return user_folder("data") / "llama"
    except NoHomeError as error:
        raise LibraryError(f"llama.cpp is not found: {error}, or NRVNA_LLAMA_DIR") from error


def user_folder(kind: Literal["data", "cache"]) -> Path:
    """nrvna's own folder among the user's data, or of what can be made again. Raises NoHomeError."""
    find = platformdirs.user_data_path if kind == "data" else platformdirs.user_cache_path
    try:
        path = str(find("nrvna"))
    except RuntimeError:
        path = "~"
    # Older versions of platformdirs leave it where nobody knows what it stands for.
    if path.startswith("~"):
        raise NoHomeError(f"no home folder is known for user {os.getuid()}: set HOME, or XDG_{kind.upper()}_HOME")
    return Path(path)


def module_name() -> str:
    """The cffi module's name: it carries a digest of nrvna's own C, so that a stale one is never loaded."""
    sources = [DECLARATIONS, *sorted(KERNELS_SOURCE.glob("*.[ch]"))]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources))
    return f"_nrvna_llama_{digest.hexdigest()[:12]}"


def cpu_fingerprint() -> str:
    """A digest of the processor's instruction sets as the kernel lists them."""
    features = platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                features += " ".join(sorted(line.partition(":")[2].split()))
                break
    except OSError:
        features += platform.processor()
    return hashlib.sha256(features.encode()).hexdigest()[:12]


class Choice(NamedTuple):
    """A build to load. ``passed_over`` says why none for a GPU was taken, where one would have been preferred.

    ``is_loss``: there is a GPU, or a build for one, so that this may not be what the user expects.
    """

    build: Build
    passed_over: str = ""
    is_loss: bool = False


class _Obstacle(NamedTuple):
    """Why a build cannot use its GPU. ``computes``: it still runs, on the CPU."""

    reason: str
    computes: bool


def find_build(root: Path | None = None, backend: str = "auto") -> Build:
    """The build that :func:`choose_build` chooses. Raises what it raises."""
    return choose_build(root, backend).build


def choose_build(root: Path | None = None, backend: str = "auto") -> Choice:
    """The build to load: of the backend asked for, or with "auto" a GPU's whose devices are there, else the CPU's.

    Of several the newest. ``root`` is a folder of builds or one build's own folder; None means :func:`builds_root`.

    Raises LibraryError if nothing usable is there, saying what to run, or why the backend asked for is no use here.
    """
    builds = _builds_in(root or builds_root(), backend)
    current = [build for build in builds if not _staleness(build)]
    if not current:
        raise LibraryError(_staleness(builds[0]))
    obstacles: dict[Build, _Obstacle] = {}
    for build in (build for build in current if build.backend in GPU_BACKENDS):
        obstacle = _obstacle(build)
        if not obstacle:
            return Choice(build)
        obstacles[build] = obstacle
    reasons = [f"the {build.backend} build in {build.directory}: {why.reason}" for build, why in obstacles.items()]
    if backend in GPU_BACKENDS:
        raise LibraryError(f"{backend} was asked for, but cannot be used: {reasons[0]}")
    for_cpu = [build for build in current if build not in obstacles]
    for_cpu += [build for build, why in obstacles.items() if why.computes]
    if not for_cpu:
        raise LibraryError(f"{reasons[0]}; for the CPU, {_advice('cpu')}")
    if backend == "cpu":
        return Choice(for_cpu[0])
    reasons += [_staleness(build) for build in builds if build.backend in GPU_BACKENDS and build not in current]
    return Choice(for_cpu[0], reasons[0], True) if reasons else Choice(for_cpu[0], *_without_gpu_build())


def _builds_in(root: Path, backend: str) -> list[Build]:
    """The builds of that backend, or all: GPU before CPU, then the newest. Raises LibraryError if there is none."""
    own = Build.read(root)
    folders = [root] if own else sorted(root.glob("[!.]*-*")) if root.is_dir() else []
    builds = [build for folder in folders if (build := Build.read(folder))]
    if not builds:
        raise LibraryError(f"llama.cpp is not built: nothing in {root}; {_advice(backend)}")
    wanted = [build for build in builds if backend in ("auto", build.backend)]
    if not wanted:
        others = ", ".join(sorted({build.backend for build in builds}))
        raise LibraryError(f"llama.cpp in {root} is built for {others}, not for {backend}; {_advice(backend)}")
    wanted.sort(key=lambda build: build.built, reverse=True)
    return sorted(wanted, key=lambda build: (*GPU_BACKENDS, build.backend).index(build.backend))


def _advice(backend: str) -> str:
    return f"build it with: {BUILD_COMMAND}" + ("" if backend == "auto" else f" --backend {backend}")


def _staleness(build: Build) -> str:
    """Why a build must be made anew before it can be used; empty for one that is as it should be."""
    architectures = f" --cuda-arch {','.join(build.architectures)}" if build.architectures else ""
    where, again = build.directory, f"{BUILD_COMMAND} --backend {build.backend}{architectures}"
    if misfit := build.misfit():
        return f"llama.cpp in {where} {misfit}; build it again with: {again}"
    if not build.module.exists():
        return f"the llama.cpp build in {where} is of another version of nrvna; bring it up to date with: {again}"
    return ""


@cache
def _obstacle(build: Build) -> _Obstacle | None:
    """Why a build for a GPU cannot use one here. Nothing of it is loaded into this process to find out."""
    if build.backend != "cuda":
        return None
    try:
        driver = nvidia.ask_driver()
    except nvidia.DriverError as error:
        return _Obstacle(str(error), error.has_library and not _trouble_loading(build))
    reason = nvidia.why_not(driver, build.toolkit, build.architectures) or _trouble_loading(build)
    return _Obstacle(reason, False) if reason else None


def _trouble_loading(build: Build) -> str:
    """Why the build's CUDA library does not load, such as a cuBLAS that is missing; empty if it does."""
    command = [sys.executable, "-I", "-S", "-c", _TRY, str(build.directory / _CUDA_LIBRARY), str(os.getpid())]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TRY_PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        return f"{_CUDA_LIBRARY} does not load within {_TRY_PATIENCE_S:.0f} s"
    return f"it does not load: {done.stderr.strip() or 'it ends the process'}" if done.returncode else ""


def _without_gpu_build() -> tuple[str, bool]:
    """Why only the CPU's build can be taken, and whether that is a pity."""
    try:
        gpus = nvidia.ask_driver().gpus
    except nvidia.DriverError:
        return "llama.cpp is built for the CPU alone", False
    there = " and ".join(map(str, gpus))
    return f"there is {there}, but no build of llama.cpp for it; {_advice('cuda')}", True
