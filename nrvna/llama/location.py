"""Where built llama.cpp libraries lie and which one to take. Loads nothing.

One folder a build, ``<pin>-<backend>``, below one root (platformdirs' user data path unless told otherwise).
A build is complete if and only if its ``build.json`` exists: the folder is put in place by one rename.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import platformdirs

from nrvna.errors import LibraryError

DECLARATIONS = Path(__file__).with_name("declarations.h")
KERNELS_SOURCE = Path(__file__).with_name("kernels")
KERNELS = "libkernels.so"
MANIFEST = "build.json"
BUILD_COMMAND = "python scripts/build_llama.py"
# A GPU build can run on the CPU as well, so it is preferred where it exists.
_PREFERENCE = ("cuda", "metal", "cpu")


@dataclass(frozen=True)
class Build:
    """One finished build of llama.cpp. ``cpu`` is the fingerprint of the processor it was compiled for."""

    directory: Path
    commit: str
    backend: str
    cpu: str
    built: str
    compiler: str
    options: tuple[str, ...]

    @property
    def module(self) -> Path:
        """The compiled cffi module that matches this nrvna's declarations; it may not exist yet."""
        return self.directory / f"{module_name()}.abi3.so"

    def write(self) -> None:
        """Write the manifest, which declares the build finished."""
        content = {key: value for key, value in asdict(self).items() if key != "directory"}
        (self.directory / MANIFEST).write_text(json.dumps(content, indent=2) + "\n")

    @classmethod
    def read(cls, directory: Path) -> Build | None:
        """The build in that folder, or None where there is no finished one."""
        try:
            content = json.loads((directory / MANIFEST).read_text())
            names = {field.name for field in fields(cls)} - {"directory", "options"}
            return cls(
                directory=directory,
                options=tuple(content["options"]),
                **{name: str(content[name]) for name in names},
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None


def builds_root() -> Path:
    """The folder of builds that is used where none is named."""
    return platformdirs.user_data_path("nrvna") / "llama"


def module_name() -> str:
    """The cffi module's name: it carries a digest of nrvna's own C, so that a stale one is never loaded."""
    sources = [DECLARATIONS, *sorted(KERNELS_SOURCE.glob("*.[ch]"))]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources))
    return f"_nrvna_llama_{digest.hexdigest()[:12]}"


def cpu_fingerprint() -> str:
    """A digest of the processor's instruction sets: a library compiled for others would die of SIGILL."""
    features = platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                features += " ".join(sorted(line.partition(":")[2].split()))
                break
    except OSError:
        features += platform.processor()
    return hashlib.sha256(features.encode()).hexdigest()[:12]


def find_build(root: Path | None = None) -> Build:
    """The build to load: GPU before CPU, then the newest.

    ``root`` is a folder of builds or one build's own folder; None means :func:`builds_root`.

    Raises LibraryError if nothing usable is there, saying what to run.
    """
    root = root or builds_root()
    own = Build.read(root)
    folders = [root] if own else sorted(root.glob("[!.]*-*")) if root.is_dir() else []
    builds = [build for folder in folders if (build := Build.read(folder))]
    if not builds:
        raise LibraryError(f"llama.cpp is not built: nothing in {root}; build it with: {BUILD_COMMAND}")
    fitting = [build for build in builds if build.cpu == cpu_fingerprint()]
    if not fitting:
        raise LibraryError(
            f"llama.cpp in {root} was built for another processor; build it again with: {BUILD_COMMAND}"
        )
    current = [build for build in fitting if build.module.exists()]
    if not current:
        raise LibraryError(
            f"the llama.cpp build in {root} is of another version of nrvna; bring it up to date with: {BUILD_COMMAND}"
        )
    current.sort(key=lambda build: build.built, reverse=True)
    return min(current, key=lambda build: _rank(build.backend))


def _rank(backend: str) -> int:
    return _PREFERENCE.index(backend) if backend in _PREFERENCE else len(_PREFERENCE)
