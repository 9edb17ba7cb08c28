"""ggml's C structures, as far as tests of single functions need them."""

from __future__ import annotations

import ctypes


class Params(ctypes.Structure):
    """ggml_compute_params, of which a kernel reads thread and threads."""

    _fields_ = (
        ("ith", ctypes.c_int),
        ("nth", ctypes.c_int),
        ("wsize", ctypes.c_size_t),
        ("wdata", ctypes.c_void_p),
        ("threadpool", ctypes.c_void_p),
        ("use_ref", ctypes.c_bool),
    )
