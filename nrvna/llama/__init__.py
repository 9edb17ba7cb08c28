"""A minimal binding of llama.cpp: its C API through cffi, a class per concept, and no environment variables.

``Model`` loads a GGUF file and knows its vocabulary, ``Context`` decodes a ``Batch`` into logits, ``Sampler``
chooses tokens from them. llama.cpp itself is loaded on first use; ``load_library`` names a build to load.
"""

from nrvna.llama.context import Batch, Context
from nrvna.llama.library import Library, load_library
from nrvna.llama.model import Model, check_file, quantize
from nrvna.llama.sampler import PENALTY_WINDOW, Sampler

__all__ = [
    "PENALTY_WINDOW",
    "Batch",
    "Context",
    "Library",
    "Model",
    "Sampler",
    "check_file",
    "load_library",
    "quantize",
]
