"""A vector as the files that hold it: .npy for programs that read numpy's format, JSON for all others."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray


def to_npy(vector: NDArray[np.float32]) -> bytes:
    """The bytes of a .npy file, float32, little-endian, of the vector's shape."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(vector, "<f4"), version=(1, 0), allow_pickle=False)
    return file.getvalue()


def to_json(vector: NDArray[np.float32]) -> str:
    """An array of numbers, each with as many digits as tell it from its neighbours in float32."""
    return f"[{', '.join(map(str, vector))}]"
