"""What NVIDIA's driver says of this machine, and whether a build of llama.cpp for CUDA can run under it.

The driver's own library alone is loaded, nothing of a build: once some of a build is in the process it stays there,
and another one could not be loaded cleanly any more.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

LIBRARY = "libcuda.so.1"
# From cuda.h.
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_NO_DEVICE = 100
_NAME_BYTES = 256

_ARCHITECTURE = re.compile(r"(\d+)(\d)([af]?)(-real|-virtual)?")


class DriverError(Exception):
    """Why the driver is of no use here, in words. ``has_library``: what links against the driver can be loaded."""

    def __init__(self, reason: str, *, has_library: bool) -> None:
        super().__init__(reason)
        self.has_library = has_library


@dataclass(frozen=True)
class Gpu:
    """A GPU that the driver offers to this process, with its compute capability, such as (9, 0)."""

    name: str
    capability: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.name} (compute capability {'.'.join(map(str, self.capability))})"


@dataclass(frozen=True)
class Driver:
    """``cuda`` is the newest version of CUDA that it serves, such as (13, 0)."""

    cuda: tuple[int, int]
    gpus: tuple[Gpu, ...]


def ask_driver() -> Driver:
    """The driver of this machine, with at least one GPU. Raises DriverError."""
    try:
        lib: Any = ctypes.CDLL(LIBRARY)
        lib.cuInit  # noqa: B018 - so that a file which is none is told from a driver
    except (OSError, AttributeError) as error:
        raise DriverError(f"there is no NVIDIA driver here ({error})", has_library=False) from error
    if code := lib.cuInit(0):
        if code == _NO_DEVICE:
            raise DriverError(
                "NVIDIA's driver sees no GPU (none is there, or CUDA_VISIBLE_DEVICES hides it)", has_library=True
            )
        raise DriverError(f"NVIDIA's driver does not start: {_error_name(lib, code)}", has_library=True)
    version, count = ctypes.c_int(), ctypes.c_int()
    lib.cuDriverGetVersion(ctypes.byref(version))
    lib.cuDeviceGetCount(ctypes.byref(count))
    if not count.value:
        raise DriverError("NVIDIA's driver sees no GPU", has_library=True)
    # 13000 is 13.0, 12080 is 12.8.
    cuda = (version.value // 1000, version.value % 1000 // 10)
    return Driver(cuda, tuple(_gpu(lib, index) for index in range(count.value)))


def _gpu(lib: Any, index: int) -> Gpu:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    lib.cuDeviceGet(ctypes.byref(device), index)
    lib.cuDeviceGetName(name, _NAME_BYTES, device)
    lib.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, device)
    lib.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, device)
    return Gpu(name.value.decode("utf-8", "replace"), (major.value, minor.value))


def _error_name(lib: Any, code: int) -> str:
    name = ctypes.c_char_p()
    lib.cuGetErrorName(code, ctypes.byref(name))
    return name.value.decode() if name.value else f"error {code}"


def why_not(driver: Driver, toolkit: str, architectures: Sequence[str]) -> str:
    """Why a build made by this version of CUDA for these architectures cannot run here; empty if it can.

    All GPUs must suit: llama.cpp takes every one that it is offered, and ends the process over one that does not.
    """
    if toolkit and driver.cuda[0] < int(toolkit.partition(".")[0]):
        serves = ".".join(map(str, driver.cuda))
        return f"it was made with CUDA {toolkit}, and the driver here serves CUDA up to {serves}: update the driver"
    for index, gpu in enumerate(driver.gpus):
        if architectures and not runs_on(gpu.capability, architectures):
            made_for = ", ".join(architectures)
            hint = "" if len(driver.gpus) == 1 else f", or hide GPU {index} with CUDA_VISIBLE_DEVICES"
            return f"it was made for {made_for}, which does not run on {gpu}: build it for that one{hint}"
    return ""


def runs_on(capability: tuple[int, int], architectures: Iterable[str]) -> bool:
    """Whether a GPU runs what was compiled for one of these architectures, named as CMake does: 80, 90-real, 120a."""
    return any(_suits(capability, architecture) for architecture in architectures)


def _suits(capability: tuple[int, int], architecture: str) -> bool:
    match = _ARCHITECTURE.fullmatch(architecture)
    if not match:
        # "all", "all-major": the toolkit's whole range.
        return True
    made_for = (int(match[1]), int(match[2]))
    if match[3] == "a":
        return capability == made_for
    if match[3] == "f" or match[4] == "-real":
        # Machine code, or a family's: good within one generation.
        return capability[0] == made_for[0] and capability[1] >= made_for[1]
    # What is compiled as PTX too, the driver compiles for later generations.
    return capability >= made_for
