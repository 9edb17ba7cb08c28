"""Which instruction sets a build uses, and whether this processor has them: it is asked itself.

The kernel's list of them changes with its version and its options, and may be out of sight. Instruction sets are
named as in the macros that compilers define for them: ``__AVX512F__`` is avx512f.
"""

from __future__ import annotations

import ctypes
import platform
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

SOURCE = Path(__file__).with_name("processor.c")
# What processor.c becomes beside the library. Only x86 needs it: elsewhere the system has a function for that.
LIBRARY = "libprocessor.so"
_X86 = ("x86_64", "amd64", "i686", "i386")
_ARM = ("aarch64", "arm64")
# Of cpuid's registers.
_EAX, _EBX, _ECX, _EDX = range(4)
# What the system must keep for a process, as bits of XCR0.
_YMM, _ZMM, _TILES, _MORE = 0x6, 0xE6, 0x60000, 1 << 19
# From linux/auxvec.h.
_AT_HWCAP, _AT_HWCAP2 = 16, 26

_DEFINED = re.compile(r"^#define __(?:ARM_FEATURE_)?(\w+?)_* ", re.MULTILINE)


class _Bit(NamedTuple):
    """Where cpuid says it, and what the system must do for it."""

    leaf: int
    subleaf: int
    register: int
    bit: int
    state: int = 0


# Those that a compiler uses by itself, and that ggml has code for.
_ON_X86 = {
    "sse3": _Bit(1, 0, _ECX, 0),
    "ssse3": _Bit(1, 0, _ECX, 9),
    "fma": _Bit(1, 0, _ECX, 12, _YMM),
    "sse4_1": _Bit(1, 0, _ECX, 19),
    "sse4_2": _Bit(1, 0, _ECX, 20),
    "movbe": _Bit(1, 0, _ECX, 22),
    "popcnt": _Bit(1, 0, _ECX, 23),
    "avx": _Bit(1, 0, _ECX, 28, _YMM),
    "f16c": _Bit(1, 0, _ECX, 29, _YMM),
    "bmi": _Bit(7, 0, _EBX, 3),
    "avx2": _Bit(7, 0, _EBX, 5, _YMM),
    "bmi2": _Bit(7, 0, _EBX, 8),
    "avx512f": _Bit(7, 0, _EBX, 16, _ZMM),
    "avx512dq": _Bit(7, 0, _EBX, 17, _ZMM),
    "avx512ifma": _Bit(7, 0, _EBX, 21, _ZMM),
    "avx512cd": _Bit(7, 0, _EBX, 28, _ZMM),
    "avx512bw": _Bit(7, 0, _EBX, 30, _ZMM),
    "avx512vl": _Bit(7, 0, _EBX, 31, _ZMM),
    "avx512vbmi": _Bit(7, 0, _ECX, 1, _ZMM),
    "avx512vbmi2": _Bit(7, 0, _ECX, 6, _ZMM),
    "gfni": _Bit(7, 0, _ECX, 8),
    "avx512vnni": _Bit(7, 0, _ECX, 11, _ZMM),
    "avx512bitalg": _Bit(7, 0, _ECX, 12, _ZMM),
    "avx512vpopcntdq": _Bit(7, 0, _ECX, 14, _ZMM),
    "amx_bf16": _Bit(7, 0, _EDX, 22, _TILES),
    "avx512fp16": _Bit(7, 0, _EDX, 23, _ZMM),
    "amx_tile": _Bit(7, 0, _EDX, 24, _TILES),
    "amx_int8": _Bit(7, 0, _EDX, 25, _TILES),
    "avxvnni": _Bit(7, 1, _EAX, 4, _YMM),
    "avx512bf16": _Bit(7, 1, _EAX, 5, _ZMM),
    "amx_fp16": _Bit(7, 1, _EAX, 21, _TILES),
    "avxifma": _Bit(7, 1, _EAX, 23, _YMM),
    "avxvnniint8": _Bit(7, 1, _EDX, 4, _YMM),
    "avxneconvert": _Bit(7, 1, _EDX, 5, _YMM),
    "avxvnniint16": _Bit(7, 1, _EDX, 10, _YMM),
    "avx10_1": _Bit(7, 1, _EDX, 19, _ZMM),
    "apx_f": _Bit(7, 1, _EDX, 21, _MORE),
    "lzcnt": _Bit(0x80000001, 0, _ECX, 5),
    "sse4a": _Bit(0x80000001, 0, _ECX, 6),
    "xop": _Bit(0x80000001, 0, _ECX, 11, _YMM),
    "fma4": _Bit(0x80000001, 0, _ECX, 16, _YMM),
    "tbm": _Bit(0x80000001, 0, _ECX, 21),
}


class _Capability(NamedTuple):
    """Which of Linux' words has it, in which bit, and macOS' name."""

    word: int
    bit: int
    feature: str


_ON_ARM = {
    "crc32": _Capability(_AT_HWCAP, 7, "armv8_crc32"),
    "atomics": _Capability(_AT_HWCAP, 8, "arm.FEAT_LSE"),
    "fp16_vector_arithmetic": _Capability(_AT_HWCAP, 10, "arm.FEAT_FP16"),
    "qrdmx": _Capability(_AT_HWCAP, 12, "arm.FEAT_RDM"),
    "complex": _Capability(_AT_HWCAP, 14, "arm.FEAT_FCMA"),
    "dotprod": _Capability(_AT_HWCAP, 20, "arm.FEAT_DotProd"),
    "sve": _Capability(_AT_HWCAP, 22, "arm.FEAT_SVE"),
    "fp16_fml": _Capability(_AT_HWCAP, 23, "arm.FEAT_FHM"),
    "sve2": _Capability(_AT_HWCAP2, 1, "arm.FEAT_SVE2"),
    "matmul_int8": _Capability(_AT_HWCAP2, 13, "arm.FEAT_I8MM"),
    "bf16_vector_arithmetic": _Capability(_AT_HWCAP2, 14, "arm.FEAT_BF16"),
    "sme": _Capability(_AT_HWCAP2, 23, "arm.FEAT_SME"),
}


def is_x86() -> bool:
    return platform.machine().lower() in _X86


def used_by(macros: str) -> tuple[str, ...]:
    """The instruction sets among the macros that a compiler defines, as its option -dM prints them.

    Empty for a processor of another make than these, which cannot be asked.
    """
    names = set(_DEFINED.findall(macros))
    return tuple(sorted(name for name in _known() if name.upper() in names))


def missing(instructions: Iterable[str], folder: Path) -> tuple[str, ...]:
    """Those of the instruction sets that cannot be used here; ``folder`` is the build's."""
    has = _ask_x86(folder) if is_x86() else _ask_arm()
    return tuple(name for name in instructions if not (name in _known() and has(name)))


def _known() -> dict[str, Any]:
    if is_x86():
        return _ON_X86
    return _ON_ARM if platform.machine().lower() in _ARM else {}


def _ask_x86(folder: Path) -> Callable[[str], bool]:
    """Whether the processor has an instruction set and the system keeps its registers; none if it cannot be asked."""
    try:
        library = ctypes.CDLL(str(folder / LIBRARY))
    except OSError:
        return lambda _: False
    library.nrvna_saved_state.restype = ctypes.c_uint64
    state = int(library.nrvna_saved_state())
    if sys.platform == "darwin":
        # It begins to keep the larger registers when a process first uses them.
        state |= _ZMM

    def has(name: str) -> bool:
        bit = _ON_X86[name]
        registers = (ctypes.c_uint32 * 4)()
        library.nrvna_cpuid(ctypes.c_uint32(bit.leaf), ctypes.c_uint32(bit.subleaf), registers)
        return bool(registers[bit.register] >> bit.bit & 1) and state & bit.state == bit.state

    return has


def _ask_arm() -> Callable[[str], bool]:
    system = ctypes.CDLL(None)

    def has(name: str) -> bool:
        capability = _ON_ARM[name]
        if sys.platform == "darwin":
            value, size = ctypes.c_int(), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
            key = f"hw.optional.{capability.feature}".encode()
            return not system.sysctlbyname(key, ctypes.byref(value), ctypes.byref(size), None, 0) and bool(value)
        system.getauxval.restype = ctypes.c_ulong
        return bool(system.getauxval(ctypes.c_ulong(capability.word)) >> capability.bit & 1)

    return has
