#!/usr/bin/env python3
"""Make a model with RANDOM weights in the shape of a known one, for throughput only, and print its path.

It computes as the known model does and has a real vocabulary, but its answers are noise. Nothing is downloaded but
what nrvna's set-up fetches anyway: llama.cpp's source and SmolLM2, whose vocabularies it takes. A second run finds
the model there and makes nothing.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# For `python benchmarks/make_model.py`, which looks beside this file alone.
sys.path.insert(1, str(Path(__file__).parents[1]))
sys.path.insert(2, str(Path(__file__).parents[1] / "scripts"))

import fetch_model
import numpy as np
from build_llama import BuildError, Pin, PinnedSource
from gguf_writer import Streamed, write_gguf
from model_files import place_of
from numpy.typing import NDArray
from packages import ChecksumError
from progress import CommandError, Step

from benchmarks.contenders import BenchmarkError, exit_code
from benchmarks.model_shapes import QUANTIZATIONS, SHAPES, Matrix, Quantization, Shape
from benchmarks.random_weights import random_matrix, random_vector
from nrvna.llama.gguf import HeaderError, read_header

# Said in the file; to be raised whenever the same seed makes other bytes than before.
RECIPE = 1
MARK = "nrvna.random_weights"
_NOTE = "RANDOM weights: for measuring throughput only, its answers are noise"
_UNUSED = 5
# More than any vocabulary in use takes in a file.
_VOCABULARY_BYTES = 20_000_000
_BIAS_DEVIATION = 0.02
# How much larger than its input a matrix makes its output. Queries and keys: attention that picks a few tokens, for
# one that takes the mean of all makes all positions alike, and the answer one token over and over. After the gate of
# the feed-forward part: it leaves half of what goes in. Logits: a few tokens are as likely as all others together.
_GAINS = {"attn_q": 2.0, "attn_k": 2.0, "ffn_down": 2.0, "token_embd": 4.0, "output": 4.0}
# For vocabularies that come without one: Zephyr's and TinyLlama's.
_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Recipe:
    """All that decides the bytes of the file. ``vocabulary`` is a GGUF file whose tokenizer the model gets."""

    shape: Shape
    quantization: Quantization
    seed: int
    vocabulary: Path

    @property
    def size(self) -> int:
        """Bytes that the file will have, or some fewer."""
        return self.quantization.size(self.shape) + _VOCABULARY_BYTES

    def marks(self) -> dict[str, Any]:
        """The metadata but for the tokenizer: what the model is, first of all that it is none to read."""
        shape, arch = self.shape, self.shape.architecture
        return {
            "general.architecture": arch,
            "general.type": "model",
            "general.name": f"RANDOM weights in the shape of {shape.title}, for throughput only",
            "general.description": _NOTE,
            "general.file_type": self.quantization.file_type,
            "general.quantization_version": 2,
            MARK: True,
            "nrvna.random_seed": self.seed,
            "nrvna.random_recipe": RECIPE,
            "nrvna.random_vocabulary": self.vocabulary.name,
            f"{arch}.vocab_size": shape.tokens,
            f"{arch}.block_count": shape.layers,
            f"{arch}.context_length": shape.context,
            f"{arch}.embedding_length": shape.width,
            f"{arch}.feed_forward_length": shape.hidden,
            f"{arch}.attention.head_count": shape.heads,
            f"{arch}.attention.head_count_kv": shape.kv_heads,
            f"{arch}.attention.layer_norm_rms_epsilon": shape.epsilon,
            f"{arch}.rope.dimension_count": shape.width // shape.heads,
            f"{arch}.rope.freq_base": shape.rope_base,
        }

    def tensors(self) -> dict[str, NDArray[Any] | Streamed]:
        """Norms that change nothing, small biases, and matrices whose products are about as large as what goes in.

        So each layer adds vectors of order 1 to those that pass through, which neither vanish nor overflow.
        """
        shape, seed = self.shape, self.seed
        made: dict[str, NDArray[Any] | Streamed] = {"output_norm.weight": np.ones(shape.width, np.float32)}
        for matrix in shape.matrices:
            name = f"{matrix.name}.weight"
            form = self.quantization.format_of(matrix, shape)
            made[name] = random_matrix(name, matrix.rows, matrix.columns, form, _deviation(matrix), seed)
            if shape.has_biases and matrix.name.endswith(("attn_q", "attn_k", "attn_v")):
                bias = f"{matrix.name}.bias"
                made[bias] = random_vector(bias, matrix.rows, _BIAS_DEVIATION, seed)
        for layer in range(shape.layers):
            for norm in ("attn_norm", "ffn_norm"):
                made[f"blk.{layer}.{norm}.weight"] = np.ones(shape.width, np.float32)
        return made


def _deviation(matrix: Matrix) -> float:
    return _GAINS.get(matrix.name.rpartition(".")[2], 1.0) / math.sqrt(matrix.columns)


def tokenizer(vocabulary: Path, tokens: int) -> dict[str, Any]:
    """A vocabulary's metadata, filled up with unused tokens to so many, as llama.cpp's converter does.

    Raises BenchmarkError if the file has none, or one with more tokens.
    """
    try:
        found = read_header(vocabulary, arrays=True).metadata
    except HeaderError as error:
        raise BenchmarkError(f"{vocabulary} has no vocabulary to take: {error}") from error
    made = {key: value for key, value in found.items() if key.startswith("tokenizer.")}
    names = made.get("tokenizer.ggml.tokens")
    if not names:
        raise BenchmarkError(f"{vocabulary} has no vocabulary to take: name a GGUF file of a model that writes text")
    missing = tokens - len(names)
    if missing < 0:
        raise BenchmarkError(f"{vocabulary} has {len(names)} tokens, the shape only {tokens}: name a smaller one")
    fillers = {
        "tokens": [f"[PAD{index}]" for index in range(len(names), tokens)],
        "scores": [-1000.0] * missing,
        "token_type": [_UNUSED] * missing,
    }
    for key, filler in fillers.items():
        if key == "tokens" or f"tokenizer.ggml.{key}" in made:
            made[f"tokenizer.ggml.{key}"] += filler
    made.setdefault("tokenizer.chat_template", _TEMPLATE)
    return made


def vocabulary_of(shape: Shape) -> Path:
    """The file that carries the shape's vocabulary, fetched where it is not there. Raises BenchmarkError."""
    try:
        if shape.vocabulary != "SmolLM2":
            return PinnedSource(Pin.read()).tree() / "models" / f"ggml-vocab-{shape.vocabulary}.gguf"
        path = fetch_model.model_path()
        if not path.exists():
            fetch_model.fetch(path)
        return path
    except (CommandError, ChecksumError, BuildError, zipfile.BadZipFile) as error:
        raise BenchmarkError(f"no vocabulary {shape.vocabulary}: {error}; --vocabulary names another") from error


def file_name(shape: Shape, quantization: Quantization, seed: int) -> str:
    """As "random-qwen2-1.5b-Q4_K_M.gguf"; a seed of one's own is in it."""
    return f"random-{shape.name}-{quantization.name}{f'-seed{seed}' if seed else ''}.gguf"


def make(recipe: Recipe, target: Path) -> bool:
    """Write the model to ``target``, whole or not at all; False if it is there already.

    Raises BenchmarkError if something else is there, the disk has not enough room or the vocabulary does not do.
    """
    if target.exists():
        found = _marks_in(target)
        if found == _as_read(recipe.marks()):
            return False
        if not found.get(MARK):
            raise BenchmarkError(f"{target} is there and no model of random weights: name another file with --output")
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < recipe.size:
        raise BenchmarkError(
            f"{target.name} needs {_size(recipe.size)}, {target.parent} has {_size(free)} left: make room for "
            f"{_size(recipe.size - free)} more, or name another place with --output"
        )
    metadata = recipe.marks() | tokenizer(recipe.vocabulary, recipe.shape.tokens)
    with (
        Step(f"writing {target.name} ({_size(recipe.quantization.size(recipe.shape))})") as step,
        tempfile.TemporaryDirectory(dir=target.parent, prefix=".make-") as scratch,
    ):
        written = Path(scratch) / target.name
        write_gguf(written, metadata, _reported(recipe.tensors(), step.show))
        written.replace(target)
    return True


def _reported(
    tensors: dict[str, NDArray[Any] | Streamed], show: Callable[[str], None]
) -> dict[str, NDArray[Any] | Streamed]:
    """The same tensors, which tell how far they are while they are written."""
    total = sum(tensor.nbytes for tensor in tensors.values())
    done = 0

    def watch(tensor: Streamed) -> Iterator[NDArray[np.uint8]]:
        nonlocal done
        for piece in tensor.pieces:
            yield piece
            done += piece.nbytes
            show(f"{_size(done)} of {_size(total)}")

    return {
        name: replace(tensor, pieces=watch(tensor)) if isinstance(tensor, Streamed) else tensor
        for name, tensor in tensors.items()
    }


def _marks_in(path: Path) -> dict[str, Any]:
    """A file's metadata but for its tokenizer; empty if it is no GGUF file."""
    try:
        found = read_header(path).metadata
    except HeaderError:
        return {}
    return {key: value for key, value in found.items() if not key.startswith("tokenizer.")}


def _as_read(metadata: dict[str, Any]) -> dict[str, Any]:
    """What a file gives back: its numbers have 32 bits."""
    return {key: float(np.float32(value)) if isinstance(value, float) else value for key, value in metadata.items()}


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def list_shapes() -> None:
    """Print every shape with what a file of each quantization takes."""
    mixes = QUANTIZATIONS.values()
    print(f"{'':8}{'in the shape of':18}{'weights':>9}{'tokens':>9}", *(f"{mix.name:>8}" for mix in mixes))
    for key, shape in SHAPES.items():
        weights = f"{shape.weights / 1e9:.2f} G" if shape.weights >= 1e9 else f"{shape.weights / 1e6:.0f} M"
        sizes = (f"{_size(mix.size(shape)):>8}" for mix in mixes)
        print(f"{key:8}{shape.title:18}{weights:>9}{shape.tokens:>9}", *sizes)
    print("\nsizes without the vocabulary, 1 to 6 MB more")


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 0 to 4294967295")
    return int(text)


def _output(text: str) -> Path:
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder: name a file in it")
    if "random" not in path.name:
        raise argparse.ArgumentTypeError(f"{path.name} does not say that its weights are random: have it in the name")
    return path


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options that were given. Ends the process where they cannot be understood."""
    parser = argparse.ArgumentParser(
        prog="make_model", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("shape", nargs="?", choices=SHAPES, help="see --list")
    add(
        "--quantization",
        type=str.lower,
        choices=QUANTIZATIONS,
        default="q4_k_m",
        help="the mix of formats that llama.cpp's quantizer makes (default q4_k_m)",
    )
    add("--output", type=_output, metavar="FILE", help='with "random" in its name (default: among nrvna\'s models)')
    add("--seed", type=_seed, default=0, help="another one, other weights (default 0)")
    add("--vocabulary", type=Path, metavar="FILE", help="a GGUF file with a tokenizer to take instead of the shape's")
    add("--list", action="store_true", help="say which shapes there are and how large they become")
    options = parser.parse_args(argv)
    if not options.list and options.shape is None:
        parser.error(f"name a shape, one of {', '.join(SHAPES)}, or --list them")
    return options


def run(options: argparse.Namespace) -> None:
    """Do what the command line says. Raises BenchmarkError or OSError."""
    if options.list:
        list_shapes()
        return
    shape, quantization = SHAPES[options.shape], QUANTIZATIONS[options.quantization]
    target = options.output or place_of(file_name(shape, quantization, options.seed))
    recipe = Recipe(shape, quantization, options.seed, options.vocabulary or vocabulary_of(shape))
    if not make(recipe, target):
        print(f"{target.name} is there already", file=sys.stderr)
    print(f"{target.name}: {_NOTE}", file=sys.stderr)
    print(target)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code("make_model", lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
