"""The loaded library: cffi's ``ffi`` and ``lib``, and llama.cpp's log as a Python logger.

Loading happens on first use, so that importing ``nrvna.llama`` is free where llama.cpp was never built.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from nrvna.errors import LibraryError
from nrvna.llama.location import BUILD_COMMAND, GPU_BACKENDS, KERNELS, Build, Choice, choose_build, module_name

log = logging.getLogger("nrvna.llama")

# What llama.cpp warns of although it is what was asked for.
_ASKED_FOR = ("model default pooling_type is",)


@dataclass(frozen=True)
class Device:
    """Something that computes, with its memory in bytes. A GPU may share the machine's."""

    name: str
    description: str
    is_gpu: bool
    memory_free: int
    memory_total: int


class Library:
    """llama.cpp as loaded into this process, once, with nrvna's own kernels where the platform lets them in.

    ``passed_over`` says why it is not a GPU's, where one would have been preferred, and ``is_loss`` whether there is
    a GPU or a build for one all the same.
    """

    def __init__(self, choice: Choice) -> None:
        build = choice.build
        self.build, self.passed_over, self.is_loss = choice
        kernels = build.directory / KERNELS
        # Global and first, so that the linker finds them before ggml's own functions of these names.
        self._kernels = ctypes.CDLL(str(kernels), mode=ctypes.RTLD_GLOBAL) if kernels.exists() else None
        module = _import(build)
        # Typed as Any: cffi makes both at run time from declarations.h.
        self.ffi: Any = module.ffi
        self.lib: Any = module.lib
        self._logger = _Logger(self.ffi, self.lib)
        self.ffi.def_extern(name="nrvna_on_progress", error=False)(self._on_progress)
        self.lib.llama_log_set(self.lib.nrvna_on_log, self.ffi.NULL)
        self.lib.llama_backend_init()

    def string(self, pointer: Any) -> str:
        """A C string as text; the empty string for NULL."""
        return str(self.ffi.string(pointer).decode("utf-8", "replace")) if pointer else ""

    @property
    def can_compute_rows_alone(self) -> bool:
        """Whether a row of a batch can be computed so that its bits do not depend on the others; see kernels/."""
        return self._kernels is not None

    def compute_rows_alone(self, wanted: bool) -> None:
        """How batches are computed from now on, for all contexts; without effect where that cannot be chosen."""
        if self._kernels is not None:
            self._kernels.nrvna_compute_rows_alone(ctypes.c_bool(wanted))

    @property
    def tiled_attentions(self) -> int:
        """How many attentions nrvna's kernel computed so far: one a layer, and none where it does not fit."""
        if self._kernels is None:
            return 0
        count = self._kernels.nrvna_tiled_attentions
        count.restype = ctypes.c_int64
        return int(count())

    @property
    def system_info(self) -> str:
        """What ggml found of the processor: instruction sets and kernels in use."""
        return self.string(self.lib.llama_print_system_info())

    def devices(self) -> list[Device]:
        """What ggml can compute on: GPUs, and the CPU. An integrated GPU counts where there is no other."""
        lib, gpus = self.lib, self.gpus()
        found = []
        for device in self._handles():
            free, total = self.ffi.new("size_t *"), self.ffi.new("size_t *")
            lib.ggml_backend_dev_memory(device, free, total)
            name, description = lib.ggml_backend_dev_name(device), lib.ggml_backend_dev_description(device)
            is_gpu = device in gpus
            found.append(Device(self.string(name), self.string(description), is_gpu, int(free[0]), int(total[0])))
        return found

    def gpus(self) -> list[Any]:
        """ggml's handles of those devices that are GPUs, in the same order."""
        lib, handles = self.lib, self._handles()
        for kind in (lib.GGML_BACKEND_DEVICE_TYPE_GPU, lib.GGML_BACKEND_DEVICE_TYPE_IGPU):
            if found := [device for device in handles if lib.ggml_backend_dev_type(device) == kind]:
                return found
        return []

    def _handles(self) -> list[Any]:
        return [self.lib.ggml_backend_dev_get(index) for index in range(self.lib.ggml_backend_dev_count())]

    @contextmanager
    def complaints(self) -> Iterator[list[str]]:
        """The lines that llama.cpp logs as errors meanwhile: its only word on why a call returned NULL.

        What is computed on other threads at the same time has its own.
        """
        with _added(self._logger.heard.complaints) as lines:
            yield lines

    @contextmanager
    def remarks(self) -> Iterator[list[str]]:
        """The lines that llama.cpp logs as information meanwhile, on this thread, whether they are shown or not."""
        with _added(self._logger.heard.remarks) as lines:
            yield lines

    def _on_progress(self, fraction: float, handle: Any) -> bool:
        report: Callable[[float], bool] = self.ffi.from_handle(handle)
        return report(fraction)


@contextmanager
def _added(listeners: list[list[str]]) -> Iterator[list[str]]:
    lines: list[str] = []
    listeners.append(lines)
    try:
        yield lines
    finally:
        listeners.pop()


class _Heard(threading.local):
    """What a thread has heard of llama.cpp's log: half a line, its level, and who listens to errors and remarks."""

    def __init__(self) -> None:
        self.line = ""
        self.level = logging.DEBUG
        self.complaints: list[list[str]] = []
        self.remarks: list[list[str]] = []


class _Logger:
    """Feeds llama.cpp's log to the logger ``nrvna.llama``, whole lines at a time."""

    def __init__(self, ffi: Any, lib: Any) -> None:
        self.heard = _Heard()
        self._ffi = ffi
        self._continued = lib.GGML_LOG_LEVEL_CONT
        self._levels = {
            lib.GGML_LOG_LEVEL_ERROR: logging.ERROR,
            lib.GGML_LOG_LEVEL_WARN: logging.WARNING,
            lib.GGML_LOG_LEVEL_INFO: logging.INFO,
            lib.GGML_LOG_LEVEL_DEBUG: logging.DEBUG,
        }
        ffi.def_extern(name="nrvna_on_log")(self._on_log)

    def _on_log(self, level: int, text: Any, _: Any) -> None:
        heard = self.heard
        if level != self._continued:
            heard.level = self._levels.get(level, logging.DEBUG)
        if not heard.complaints and not heard.remarks and not log.isEnabledFor(heard.level):
            return
        heard.line += self._ffi.string(text).decode("utf-8", "replace")
        *lines, heard.line = heard.line.split("\n")
        for line in filter(str.strip, lines):
            if heard.level == logging.INFO:
                for reader in heard.remarks:
                    reader.append(line)
            if heard.level == logging.ERROR and heard.complaints:
                # It becomes the exception's reason, which the user reads once.
                heard.complaints[-1].append(line.strip())
                log.debug("%s", line)
            else:
                asked_for = any(words in line for words in _ASKED_FOR)
                log.log(logging.DEBUG if asked_for else heard.level, "%s", line)


_loaded: Library | None = None


def load_library(root: Path | None = None, backend: str = "auto") -> Library:
    """Load llama.cpp, or return what is loaded already; a process holds one build.

    ``root`` is a folder of builds or one build's own folder; None means the user's data folder. ``backend`` is "cpu",
    "cuda", "metal", or "auto" for a GPU's where that GPU is there, else the CPU's.

    Raises LibraryError if it was never built, was built for another machine, does not load, or if the backend that
    was asked for cannot be used here.
    """
    global _loaded
    if _loaded is None:
        library = Library(choose_build(root, backend))
        if library.build.backend in GPU_BACKENDS and not library.passed_over:
            _expect_gpu(library, backend)
        _loaded = library
    elif (root is not None or backend != "auto") and choose_build(root, backend).build != _loaded.build:
        raise LibraryError(f"llama.cpp is loaded already from {_loaded.build.directory}; a process holds one build")
    return _loaded


def _expect_gpu(library: Library, backend: str) -> None:
    """What the driver promised must be there once all is loaded. Raises LibraryError if it is not, but asked for."""
    if any(device.is_gpu for device in library.devices()):
        return
    library.passed_over = f"the {library.build.backend} build in {library.build.directory} finds no GPU"
    library.is_loss = True
    if backend in GPU_BACKENDS:
        raise LibraryError(f"{backend} was asked for, but cannot be used: {library.passed_over}")


def _import(build: Build) -> ModuleType:
    spec = importlib.util.spec_from_file_location(module_name(), build.module)
    assert spec is not None and spec.loader is not None
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        raise LibraryError(
            f"{build.module} does not load: {error}; build it again with: {BUILD_COMMAND} --force"
        ) from error
    return module
