"""Be a device for processes elsewhere: ``serve.py BUILD RPC_LIBRARY HOST:PORT``, until killed. One at a time."""

from __future__ import annotations

import ctypes
import sys


def main(build: str, library: str, endpoint: str) -> None:
    base, cpu, _ggml = (
        ctypes.CDLL(f"{build}/lib{name}.so", mode=ctypes.RTLD_GLOBAL) for name in ("ggml-base", "ggml-cpu", "ggml")
    )
    cpu.ggml_backend_cpu_reg.restype = base.ggml_backend_reg_dev_get.restype = ctypes.c_void_p
    device = base.ggml_backend_reg_dev_get(ctypes.c_void_p(cpu.ggml_backend_cpu_reg()), ctypes.c_size_t(0))
    devices = (ctypes.c_void_p * 1)(device)
    serve = ctypes.CDLL(library).ggml_backend_rpc_start_server
    serve(endpoint.encode(), None, ctypes.c_size_t(2), ctypes.c_size_t(1), devices)


if __name__ == "__main__":
    main(*sys.argv[1:])
