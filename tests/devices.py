"""Devices beside the processor for llama.cpp to compute on, where there may be no GPU: see tests/remote_devices."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from build_llama import Pin, PinnedSource
from nvidia_driver import compile_library
from processes import limit_growth

from nrvna.config import llama_dir
from nrvna.llama import Library
from nrvna.llama.library import Device
from nrvna.llama.location import find_build

_HERE = Path(__file__).parent / "remote_devices"
_PATIENCE_S = 20.0
# A processor as a device says that all of the machine's memory is free.
_SMALLER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>
long sysconf(int name) {
    long (*real)(int) = (long (*)(int)) dlsym(RTLD_NEXT, "sysconf");
    return name == _SC_PHYS_PAGES ? atol(getenv("TEST_BYTES")) / real(_SC_PAGESIZE) : real(name);
}
"""


def made_up(*free: int) -> Library:
    """A library that says it knows of GPUs with so much free memory, where only numbers matter."""
    gpus = [Device(f"GPU{index}", "made up", True, size, 2 * size) for index, size in enumerate(free)]
    return cast("Library", SimpleNamespace(devices=lambda: gpus))


class Devices:
    """Servers, each with as much memory as it is said to have. What they need is compiled into ``folder``, once."""

    def __init__(self, folder: Path) -> None:
        self._build = find_build(llama_dir()).directory
        self._library = folder / "librpc.so"
        self._shim = folder / "smaller.so"
        self._servers: dict[str, subprocess.Popen[bytes]] = {}
        tree = PinnedSource(Pin.read()).tree() / "ggml"
        rpc = tree / "src" / "ggml-rpc"
        command = ["c++", "-O2", "-std=c++17", "-shared", "-fPIC", "-DGGML_BACKEND_SHARED", "-DGGML_BACKEND_BUILD"]
        command += [
            f"-I{tree / 'include'}",
            f"-I{tree / 'src'}",
            str(rpc / "ggml-rpc.cpp"),
            str(rpc / "transport.cpp"),
        ]
        command += [
            f"-L{self._build}",
            "-lggml-base",
            "-lggml",
            f"-Wl,-rpath,{self._build}",
            "-o",
            str(self._library),
        ]
        subprocess.run(command, check=True)
        compile_library(self._shim, _SMALLER, "-ldl")

    def add(self, memory: int = 4_000_000_000) -> str:
        """Another device with so many bytes; returns its name."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            name = f"127.0.0.1:{free.getsockname()[1]}"
        self.start(name, memory)
        return name

    def start(self, name: str, memory: int = 4_000_000_000) -> None:
        """The same device again, once it has been killed."""
        command = [sys.executable, str(_HERE / "serve.py"), str(self._build), str(self._library), name]
        environment = {**os.environ, "LD_PRELOAD": str(self._shim), "TEST_BYTES": str(memory)}
        self._servers[name] = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        host, port = name.split(":")
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection((host, int(port))):
                return
            assert time.monotonic() < deadline and self._servers[name].poll() is None, "the device does not start"
            time.sleep(0.02)

    def limit_growth(self, name: str, more: int) -> None:
        """Have a device refuse more than so many bytes, whatever it says is free."""
        limit_growth(self._servers[name].pid, more)

    def environment(self, *names: str) -> dict[str, str]:
        """What makes these the GPUs of a process that is started with it."""
        found = {"TEST_DEVICES": ",".join(names), "TEST_RPC_LIBRARY": str(self._library)}
        return found | {"PYTHONPATH": str(_HERE)}

    def kill(self, name: str) -> None:
        self._servers[name].kill()
        self._servers.pop(name).wait()

    def close(self) -> None:
        for name in list(self._servers):
            self.kill(name)
