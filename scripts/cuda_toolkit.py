"""NVIDIA's compiler, what it compiles for here, and what else a CUDA build of llama.cpp takes: found, and tried."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from progress import run_compiler

# The oldest whose compiler knows C++17, which ggml is written in.
OLDEST = (11, 0)
# Where distributions and NVIDIA's installer put toolkits.
PREFIXES = (Path("/usr/local"), Path("/opt"))
ANY = ("all", "all-major")
_ARCHITECTURE = re.compile(r"(\d{2,3})([af]?)(-real|-virtual)?")
_QUERY = ("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
_PATIENCE_S = 60.0
_TRIAL = "#include <cublas_v2.h>\n__global__ void nothing() {}\n"


class ToolkitError(Exception):
    """Why nothing can be built for CUDA here and what to do, in one line."""


def find_nvcc(environ: Mapping[str, str] | None = None, prefixes: Sequence[Path] | None = None) -> Path | None:
    """The compiler: the one that a variable names, then that on PATH, then the newest below the usual places."""
    environ = os.environ if environ is None else environ
    named = [environ.get("CUDACXX", "")]
    homes = [root for name in ("CUDA_HOME", "CUDA_PATH") if (root := environ.get(name))]
    named += [str(Path(root, "bin", "nvcc")) for root in homes]
    prefixes = PREFIXES if prefixes is None else prefixes
    usual = [path for prefix in prefixes for path in (prefix / "cuda", *_newest_first(prefix.glob("cuda-*")))]
    for candidate in [*named, "nvcc", *(str(path / "bin" / "nvcc") for path in usual)]:
        if candidate and (found := shutil.which(candidate, path=environ.get("PATH", os.defpath))):
            return Path(found)
    return None


def _newest_first(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)], reverse=True)


def gpus_here() -> tuple[str, ...]:
    """The architectures of this machine's GPUs, such as ("80", "90"); none where nvidia-smi finds no GPU.

    Raises ToolkitError where it does not say their compute capabilities, as it does since 2021.
    """
    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    if "not a valid field" in done.stdout + done.stderr:
        raise ToolkitError(
            "nvidia-smi is too old to tell the GPUs' compute capabilities: name them, as in --cuda-arch 80,90"
        )
    if done.returncode:
        return ()
    said = re.findall(r"^\s*(\d+)\.(\d)\s*$", done.stdout, re.MULTILINE)
    return _in_order(f"{major}{minor}" for major, minor in said)


def parse_architectures(text: str) -> tuple[str, ...]:
    """What ``--cuda-arch`` names, in order, each once: numbers as in 80,90a-real, or one of :data:`ANY`.

    Raises ToolkitError.
    """
    names = [name.strip() for name in text.split(",")]
    if len(names) == 1 and names[0] in ANY:
        return (names[0],)
    for name in names:
        if not _ARCHITECTURE.fullmatch(name):
            hint = (
                f" (compute capability {name} is {name.replace('.', '')})" if re.fullmatch(r"\d+\.\d", name) else ""
            )
            raise ToolkitError(
                f"--cuda-arch is {text!r}, but must be numbers with commas between them, as in 80,90, or all-major, "
                f"all or native{hint}"
            )
    return _in_order(names)


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({_specific(name) for name in names}, key=lambda name: (_number(name), name)))


def _specific(name: str) -> str:
    """llama.cpp compiles 120 as 120a, and 121 as 121a: for these very GPUs and no later ones."""
    return re.sub(r"^(12\d)(?=-|$)", r"\1a", name)


def _number(name: str) -> int:
    match = _ARCHITECTURE.fullmatch(name)
    return int(match[1]) if match else 0


@dataclass(frozen=True)
class Toolkit:
    """An installed CUDA. ``root`` holds its libraries and headers; for ``known`` architectures it compiles."""

    nvcc: Path
    version: str
    root: Path
    known: tuple[int, ...]

    @classmethod
    def of(cls, nvcc: Path) -> Toolkit:
        """Raises ToolkitError if it does not run, or is too old for llama.cpp."""
        said = _output(nvcc, "--version")
        release = re.search(r"\bV(\d+)\.(\d+)\.\d+", said)
        if not release:
            raise ToolkitError(f"{nvcc} does not say its version: is it NVIDIA's compiler?")
        version = release[0][1:]
        if (int(release[1]), int(release[2])) < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            raise ToolkitError(f"{nvcc} is of CUDA {version}, but llama.cpp needs {oldest} or newer: install that")
        top = re.search(r"^#\$ TOP=(.*)$", _output(nvcc, "--dryrun", "-E", "-x", "cu", os.devnull), re.MULTILINE)
        root = Path(top[1]) if top else nvcc.resolve().parents[1]
        listed = re.findall(r"compute_(\d+)\s*$", _output(nvcc, "--list-gpu-arch"), re.MULTILINE)
        return cls(nvcc, version, root.resolve(), tuple(sorted(map(int, listed))))

    @property
    def major(self) -> int:
        return int(self.version.partition(".")[0])

    def expand(self, names: Sequence[str]) -> tuple[str, ...]:
        """All architectures that are meant, ``all`` and ``all-major`` spelled out."""
        if names[0] not in ANY:
            return tuple(names)
        first_of_major = {number // 10: number for number in reversed(self.known)}
        numbers = self.known if names[0] == "all" else first_of_major.values()
        return _in_order(map(str, numbers))

    def check(self, names: Sequence[str]) -> None:
        """Raises ToolkitError if it does not know one of the architectures."""
        for name in self.expand(names):
            number = _number(name)
            if not self.known or number in self.known:
                continue
            knows = ", ".join(map(str, self.known))
            hint = "take a newer CUDA" if number > self.known[-1] else "take an older CUDA, or leave that GPU out"
            raise ToolkitError(
                f"CUDA {self.version} ({self.nvcc}) does not compile for {name}, but for {knows}: {hint}"
            )

    def try_out(self, names: Sequence[str], parts: Parts) -> None:
        """Compile a few lines, so that what is wrong is said now. Raises ToolkitError."""
        flags = [f"-gencode=arch=compute_{each},code=sm_{each}" for each in map(_plain, self.expand(names))]
        host = ["-ccbin", os.environ["CUDAHOSTCXX"]] if os.environ.get("CUDAHOSTCXX") else []
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch, "trial.cu")
            source.write_text(_TRIAL)
            command = [str(self.nvcc), *flags, *host, *parts.flags, "-c", str(source), "-o", f"{source}.o"]
            done = run_compiler(command)
        if not done.returncode:
            return
        said = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        wrong = next((line for line in said if "error" in line or "fatal" in line), "it does not say why")
        if "cublas_v2.h" in wrong:
            raise ToolkitError(
                f"cuBLAS is missing, of which llama.cpp needs version {self.major}: install it with CUDA's toolkit "
                f"(Debian, Ubuntu: libcublas-dev), or with pip install {_cublas_package(self.major)}"
            )
        hint = ""
        if "unsupported" in wrong and ("GNU" in wrong or "clang" in wrong):
            hint = "; name an older C++ compiler with CUDAHOSTCXX, or take a newer CUDA"
        raise ToolkitError(f"CUDA {self.version} ({self.nvcc}) does not compile here: {wrong}{hint}")


@dataclass(frozen=True)
class Parts:
    """What CMake must be told beside the compiler. ``flags`` are nvcc's; ``folders`` hold libraries to run with."""

    flags: tuple[str, ...]
    cublas: tuple[Path, ...]
    folders: tuple[Path, ...]

    @classmethod
    def of(cls, toolkit: Toolkit, packages: Sequence[Path] | None = None) -> Parts:
        """From the toolkit; what it lacks of cuBLAS, from NVIDIA's Python package, if that is installed."""
        own = [folder for folder in _library_folders(toolkit.root) if any(folder.glob("libcudart.so*"))]
        has_cublas = any(any(folder.glob("libcublas.so")) for folder in own)
        package = (
            None if has_cublas else _cublas_of(toolkit.major, _nvidia_packages() if packages is None else packages)
        )
        if not package:
            return cls((), (), tuple(own[:1]))
        headers, library = package
        lt = library.with_name(library.name.replace("libcublas", "libcublasLt"))
        return cls(("-isystem", str(headers)), (library, lt), (*own[:1], library.parent))

    def options(self, toolkit: Toolkit, scratch: Path, sources: Path) -> list[str]:
        """For CMake. What must lie in files for that is put into ``scratch``; ``sources`` are ggml's for CUDA."""
        shutil.rmtree(scratch, ignore_errors=True)
        (scratch / "stubs").mkdir(parents=True)
        stub = scratch / "stubs" / "libcuda.so"
        _make_driver_stub(stub, sources)
        flags = [*shlex.split(os.environ.get("CUDAFLAGS", "")), *self.flags]
        found = [f"-DCMAKE_CUDA_COMPILER={toolkit.nvcc}", f"-DCUDA_cuda_driver_LIBRARY={stub}"]
        found.append(f"-DCMAKE_CUDA_FLAGS={shlex.join(flags)}")
        for library in self.cublas:
            # The linker wants the name without a version, which the package does not have.
            link = scratch / re.sub(r"\.so.*", ".so", library.name)
            link.symlink_to(library)
            found.append(f"-DCUDA_{link.name.removeprefix('lib').removesuffix('.so')}_LIBRARY={link}")
        # The programs are linked where there may be no driver.
        linker = f"{os.environ.get('LDFLAGS', '')} -Wl,--allow-shlib-undefined".strip()
        return [*found, f"-DCMAKE_EXE_LINKER_FLAGS={linker}"]


def _library_folders(root: Path) -> list[Path]:
    return [folder.resolve() for folder in (root / "lib64", root / "lib", *sorted(root.glob("targets/*/lib")))]


def _nvidia_packages() -> list[Path]:
    spec = importlib.util.find_spec("nvidia")
    return [Path(place) for place in spec.submodule_search_locations or ()] if spec else []


def _cublas_package(major: int) -> str:
    return f"'nvidia-cublas=={major}.*'" if major >= 13 else f"nvidia-cublas-cu{major}"


def _cublas_of(major: int, packages: Sequence[Path]) -> tuple[Path, Path] | None:
    """Headers and library: since CUDA 13 the packages share a folder, before each had its own."""
    for folder in (package / name for package in packages for name in (f"cu{major}", "cublas")):
        library = folder / "lib" / f"libcublas.so.{major}"
        if library.exists() and (folder / "include" / "cublas_v2.h").exists():
            return folder / "include", library
    return None


def _make_driver_stub(path: Path, sources: Path) -> None:
    """A library with the names of the driver's functions, to link against: toolkits do not always bring one."""
    text = "".join(file.read_text(errors="replace") for file in sorted(sources.glob("*.cu*")))
    names = sorted(set(re.findall(r"\b(cu[A-Z]\w+)\(", text)))
    code = "".join(f"int {name}(void) {{ return 999; }}\n" for name in names)
    compiler = os.environ.get("CC", "").split() or ["cc"]
    command = [*compiler, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-x", "c", "-", "-o", str(path)]
    done = subprocess.run(command, input=code, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolkitError(f"no library to link against in the driver's place could be made: {done.stderr.strip()}")


def _plain(name: str) -> str:
    return re.sub(r"-(real|virtual)$", "", name)


def _output(*command: str | Path) -> str:
    try:
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolkitError(f"{command[0]} does not run: {error}") from error
    return done.stdout + done.stderr
