"""GPUs that are none, for every Python process that finds this on its path: servers of ggml's RPC backend.

llama.cpp takes such a server for a GPU. It computes with a processor's memory, apart from the process that asks, so
whatever goes wrong between a process and its GPU goes wrong here as well. CUDA_VISIBLE_DEVICES chooses among them.
"""

from __future__ import annotations

import ctypes
import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_WANTED = "nrvna.llama.library"


class _AfterImport(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _WANTED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec and spec.loader
        execute = spec.loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            _patch(module.Library)

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec


def _patch(library: Any) -> None:
    initialise = library.__init__

    def initialise_and_add(self: Any, choice: Any) -> None:
        initialise(self, choice)
        _add_devices(choice.build.directory)

    library.__init__ = initialise_and_add


def _add_devices(build: Path) -> None:
    endpoints = os.environ["TEST_DEVICES"].split(",")
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        endpoints = [endpoints[int(index)] for index in visible.split(",")]
    rpc = ctypes.CDLL(os.environ["TEST_RPC_LIBRARY"])
    ggml = ctypes.CDLL(str(build / "libggml.so"))
    rpc.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
    for endpoint in endpoints:
        ggml.ggml_backend_register(ctypes.c_void_p(rpc.ggml_backend_rpc_add_server(endpoint.encode())))


if "TEST_DEVICES" in os.environ:
    sys.meta_path.insert(0, _AfterImport())
