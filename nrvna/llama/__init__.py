"""A minimal binding of llama.cpp: its C API through cffi, a class per concept, and no environment variables.

``Model`` loads a GGUF file and knows its vocabulary, ``Context`` decodes a ``Batch`` into logits, ``Sampler``
chooses tokens from them with a chain of links. llama.cpp itself is loaded on first use; ``load_library`` names a
build to load.
"""

from nrvna.llama.adapter import Adapter
from nrvna.llama.context import Batch, Context
from nrvna.llama.grammar import Grammar
from nrvna.llama.library import Library, load_library
from nrvna.llama.links import (
    AdaptiveP,
    Draw,
    Dry,
    Greedy,
    Link,
    LogitBias,
    MinP,
    MinTokens,
    Mirostat,
    MirostatV2,
    Penalties,
    Temperature,
    TopK,
    TopNSigma,
    TopP,
    Typical,
    Xtc,
    banning,
)
from nrvna.llama.model import Model, chat_template_families, check_file, quantize
from nrvna.llama.sampler import Sampler

__all__ = [
    "Adapter",
    "AdaptiveP",
    "Batch",
    "Context",
    "Draw",
    "Dry",
    "Grammar",
    "Greedy",
    "Library",
    "Link",
    "LogitBias",
    "MinP",
    "MinTokens",
    "Mirostat",
    "MirostatV2",
    "Model",
    "Penalties",
    "Sampler",
    "Temperature",
    "TopK",
    "TopNSigma",
    "TopP",
    "Typical",
    "Xtc",
    "banning",
    "chat_template_families",
    "check_file",
    "load_library",
    "quantize",
]
