"""Shapes of known models: how many layers of what width, and in which formats llama.cpp's quantizer writes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.random_weights import F16, Q4_0, Q4_K, Q5_0, Q6_K, Q8_0, Format

# What stands in for a format where the rows are not whole blocks of it.
_FALLBACKS = {Q4_K: Q5_0, Q6_K: Q8_0}


class Matrix(NamedTuple):
    """A matrix of the model. ``layer`` is None for those before and behind the layers."""

    name: str
    rows: int
    columns: int
    layer: int | None = None


@dataclass(frozen=True)
class Shape:
    """A decoder of Llama's kind. ``tokens`` counts the rows of its embeddings: some models have more than tokens.

    ``vocabulary`` is SmolLM2 or one in llama.cpp's source. ``tied``: it writes with the embeddings of its tokens.
    """

    name: str
    title: str
    architecture: str
    vocabulary: str
    tokens: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    hidden: int
    context: int
    rope_base: float
    epsilon: float
    tied: bool

    @property
    def has_biases(self) -> bool:
        """Whether queries, keys and values have biases."""
        return self.architecture == "qwen2"

    @property
    def matrices(self) -> Iterator[Matrix]:
        """All of them, in the order of the file."""
        width, hidden, kv_width = self.width, self.hidden, self.width // self.heads * self.kv_heads
        yield Matrix("token_embd", self.tokens, width)
        for layer in range(self.layers):
            for name, rows, columns in (
                ("attn_q", width, width),
                ("attn_k", kv_width, width),
                ("attn_v", kv_width, width),
                ("attn_output", width, width),
                ("ffn_gate", hidden, width),
                ("ffn_up", hidden, width),
                ("ffn_down", width, hidden),
            ):
                yield Matrix(f"blk.{layer}.{name}", rows, columns, layer)
        if not self.tied:
            yield Matrix("output", self.tokens, width)

    @property
    def weights(self) -> int:
        """How many numbers its matrices hold."""
        return sum(matrix.rows * matrix.columns for matrix in self.matrices)


SHAPES = {
    "135m": Shape(
        name="smollm2-135m",
        title="SmolLM2 135M",
        architecture="llama",
        vocabulary="SmolLM2",
        tokens=49_152,
        layers=30,
        width=576,
        heads=9,
        kv_heads=3,
        hidden=1536,
        context=8192,
        rope_base=100_000.0,
        epsilon=1e-5,
        tied=True,
    ),
    "1.1b": Shape(
        name="tinyllama-1.1b",
        title="TinyLlama 1.1B",
        architecture="llama",
        vocabulary="llama-spm",
        tokens=32_000,
        layers=22,
        width=2048,
        heads=32,
        kv_heads=4,
        hidden=5632,
        context=2048,
        rope_base=10_000.0,
        epsilon=1e-5,
        tied=False,
    ),
    "1.5b": Shape(
        name="qwen2-1.5b",
        title="Qwen2.5 1.5B",
        architecture="qwen2",
        vocabulary="qwen2",
        tokens=151_936,
        layers=28,
        width=1536,
        heads=12,
        kv_heads=2,
        hidden=8960,
        context=32_768,
        rope_base=1_000_000.0,
        epsilon=1e-6,
        tied=True,
    ),
    "7b": Shape(
        name="qwen2-7b",
        title="Qwen2.5 7B",
        architecture="qwen2",
        vocabulary="qwen2",
        tokens=152_064,
        layers=28,
        width=3584,
        heads=28,
        kv_heads=4,
        hidden=18_944,
        context=32_768,
        rope_base=1_000_000.0,
        epsilon=1e-6,
        tied=False,
    ),
    "7b-32k": Shape(
        name="mistral-7b",
        title="Mistral 7B v0.2",
        architecture="llama",
        vocabulary="llama-spm",
        tokens=32_000,
        layers=32,
        width=4096,
        heads=32,
        kv_heads=8,
        hidden=14_336,
        context=32_768,
        rope_base=1_000_000.0,
        epsilon=1e-5,
        tied=False,
    ),
}


@dataclass(frozen=True)
class Quantization:
    """A mix of formats: ``most`` of the weights, and ``better`` for those that llama.cpp's quantizer spares.

    ``file_type`` is llama.cpp's number for it.
    """

    name: str
    file_type: int
    most: Format
    better: Format
    mixes_layers: bool = False

    def format_of(self, matrix: Matrix, shape: Shape) -> Format:
        """The format that llama.cpp's quantizer would write the matrix in."""
        wish = self.better if self._is_spared(matrix, shape) else self.most
        return wish if matrix.columns % wish.weights == 0 else _FALLBACKS[wish]

    def size(self, shape: Shape) -> int:
        """Bytes of all matrices."""
        return sum(self.format_of(matrix, shape).size(matrix.rows, matrix.columns) for matrix in shape.matrices)

    def _is_spared(self, matrix: Matrix, shape: Shape) -> bool:
        """What writes, and where layers are mixed some of attn_v and ffn_down: early, late, every third between."""
        if matrix.layer is None:
            return matrix.name == "output" or shape.tied
        if not self.mixes_layers or not matrix.name.endswith(("attn_v", "ffn_down")):
            return False
        eighth = shape.layers // 8
        is_outer = matrix.layer < eighth or matrix.layer >= 7 * shape.layers // 8
        return is_outer or (matrix.layer - eighth) % 3 == 2


QUANTIZATIONS = {
    "f16": Quantization("F16", 1, F16, F16),
    "q8_0": Quantization("Q8_0", 7, Q8_0, Q8_0),
    "q4_k_m": Quantization("Q4_K_M", 15, Q4_K, Q6_K, mixes_layers=True),
    "q4_0": Quantization("Q4_0", 2, Q4_0, Q6_K),
}
