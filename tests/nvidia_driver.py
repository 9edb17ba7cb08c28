"""A stand-in for NVIDIA's driver and for a library of a CUDA build, compiled on the spot.

No GPU is needed to try what is said of one. The linker finds the driver by LD_LIBRARY_PATH, so those who load it must
be other processes.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from nrvna.llama.nvidia import LIBRARY

_DRIVER = r"""
static const int capabilities[][2] = { %(capabilities)s {0, 0} };
static const int n_gpus = sizeof(capabilities) / sizeof(*capabilities) - 1;
int cuInit(unsigned flags) { return %(code)d; }
int cuGetErrorName(int code, const char ** name) { *name = "CUDA_ERROR_UNKNOWN"; return 0; }
int cuDriverGetVersion(int * version) { *version = %(cuda)d; return 0; }
int cuDeviceGetCount(int * count) { *count = n_gpus; return 0; }
int cuDeviceGet(int * device, int index) { *device = index; return 0; }
int cuDeviceGetName(char * name, int room, int device) {
    const char * text = "Fake GPU";
    for (int i = 0; i < room && (name[i] = text[i]); i++) {}
    return 0;
}
int cuDeviceGetAttribute(int * value, int attribute, int device) {
    *value = capabilities[device][attribute == 76];
    return 0;
}
"""


def compile_library(path: Path, source: str, *more: str) -> None:
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-x", "none", "-o", str(path), *more]
    subprocess.run(command, input=source, text=True, check=True)


def fake_driver(
    folder: Path, capabilities: Sequence[tuple[int, int]] = ((9, 0),), *, cuda: int = 13000, code: int = 0
) -> dict[str, str]:
    """An environment in which there is a driver with GPUs of these capabilities; ``code`` is what cuInit returns."""
    folder.mkdir(exist_ok=True)
    listed = "".join(f"{{{major}, {minor}}}, " for major, minor in capabilities)
    compile_library(folder / LIBRARY, _DRIVER % {"capabilities": listed, "code": code, "cuda": cuda})
    return {**os.environ, "LD_LIBRARY_PATH": str(folder)}


def fake_cuda_library(build: Path, *, needs: str = "") -> None:
    """The library of a CUDA build as far as loading it goes; it may need one that is nowhere."""
    more = []
    if needs:
        needed = build / needs
        compile_library(needed, "int nothing;", f"-Wl,-soname,{needs}")
        more = ["-Wl,--no-as-needed", str(needed)]
    compile_library(build / "libggml-cuda.so", "int ggml_backend_cuda_reg(void) { return 0; }", *more)
    if needs:
        needed.unlink()


def has_driver() -> bool:
    """Whether this machine has NVIDIA's own."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True


without_driver = pytest.mark.skipif(has_driver(), reason="NVIDIA's driver is installed here")
