"""Tiny models with random weights, and LoRA adapters: what no package carries, small enough to make on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from fetch_embedder import wordpiece
from gguf_writer import write_gguf
from numpy.typing import NDArray

from nrvna.llama.gguf import read_header

Arrays = dict[str, NDArray[np.float32]]

WIDTH, HEADS, LAYERS, HIDDEN = 64, 4, 2, 96
WORDS = [
    "the",
    "of",
    "and",
    "river",
    "bridge",
    "mill",
    "house",
    "village",
    "baker",
    "bread",
    "stone",
    "old",
    "new",
    "runs",
    "over",
    "is",
    "what",
    "who",
    "where",
]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?!{}<>|_"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
MEAN, CLS, LAST, RANK = 1, 2, 3, 4
_CONTROL, _USER_DEFINED = 3, 4
# llama.cpp takes "</s>" for an end, whatever a vocabulary calls it.
GEMMA_TEXT = [
    *("\n" * count for count in range(1, 32)),
    *("\t" * count for count in range(1, 32)),
    *(f"<{slash}{name}>" for name in ("table", "tr", "td", "h1", "code", "em", "b") for slash in ("", "/")),
    "<s>",
]
PAIR_TEMPLATE = "[CLS]what is {query}[SEP]{document}[SEP]"


def make_bert(path: Path, *, pooling: int, context: int = 512, template: str | None = None) -> Path:
    """A BERT with random weights. With RANK it has a head that scores, and may have a template for its pairs."""
    draw = _Draw(1)
    tensors = {
        "token_embd.weight": draw(len(VOCABULARY), WIDTH),
        "token_types.weight": draw(2, WIDTH),
        "position_embd.weight": draw(context, WIDTH),
        **draw.norm("token_embd_norm"),
    }
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors |= draw.linear(f"blk.{layer}.{name}", WIDTH, WIDTH)
        tensors |= draw.linear(f"blk.{layer}.ffn_up", HIDDEN, WIDTH) | draw.linear(
            f"blk.{layer}.ffn_down", WIDTH, HIDDEN
        )
        tensors |= draw.norm(f"blk.{layer}.attn_output_norm") | draw.norm(f"blk.{layer}.layer_output_norm")
    if pooling == RANK:
        tensors |= draw.linear("cls", WIDTH, WIDTH) | draw.linear("cls.output", 1, WIDTH)
    head = _head("bert", context, pooling) | {
        "bert.attention.layer_norm_epsilon": 1e-12,
        "bert.attention.causal": False,
        "tokenizer.ggml.add_eos_token": True,
        "tokenizer.ggml.add_sep_token": False,
    }
    if template is not None:
        head["tokenizer.chat_template.rerank"] = template
    write_gguf(path, head | wordpiece(VOCABULARY), tensors)
    return path


def make_decoder(
    path: Path,
    *,
    pooling: int | None,
    context: int = 2048,
    tied: bool = True,
    tokenizer: dict[str, Any] | None = None,
) -> Path:
    """A Qwen 3 with random weights, as embedders and rerankers that began as decoders are.

    ``tied``: it writes with the embeddings of its tokens, as small models do. ``tokenizer`` is another's metadata.
    """
    write_gguf(path, *_decoder(tokenizer or wordpiece(VOCABULARY), pooling=pooling, context=context, tied=tied))
    return path


def _decoder(
    tokenizer: dict[str, Any], *, pooling: int | None, context: int = 2048, tied: bool = True
) -> tuple[dict[str, Any], Arrays]:
    size = len(tokenizer["tokenizer.ggml.tokens"])
    draw = _Draw(2)
    tensors = {"token_embd.weight": draw(size, WIDTH), "output_norm.weight": 1 + draw(WIDTH)}
    for layer in range(LAYERS):
        shapes = {"attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH, WIDTH), "attn_v": (WIDTH, WIDTH)}
        shapes |= {"attn_output": (WIDTH, WIDTH), "ffn_gate": (HIDDEN, WIDTH), "ffn_up": (HIDDEN, WIDTH)}
        shapes |= {"ffn_down": (WIDTH, HIDDEN)}
        tensors |= {f"blk.{layer}.{name}.weight": draw(*shape) for name, shape in shapes.items()}
        tensors |= {f"blk.{layer}.{name}.weight": 1 + draw(WIDTH) for name in ("attn_norm", "ffn_norm")}
        for name in ("attn_q_norm", "attn_k_norm"):
            tensors |= {f"blk.{layer}.{name}.weight": 1 + draw(WIDTH // HEADS)}
    head = _head("qwen3", context, pooling) | {"qwen3.attention.layer_norm_rms_epsilon": 1e-5}
    if pooling == RANK:
        tensors |= {"cls.output.weight": draw(2, WIDTH)}
        head["qwen3.classifier.output_labels"] = ["yes", "no"]
    if not tied:
        tensors |= {"output.weight": draw(size, WIDTH)}
    return head | tokenizer, tensors


def make_parts(stem: Path, count: int) -> list[Path]:
    """A decoder with random weights in several files, as llama.cpp's gguf-split writes them."""
    head, tensors = _decoder(wordpiece(VOCABULARY), pooling=None)
    parts = [stem.with_name(f"{stem.name}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    for index, part in enumerate(parts):
        split: dict[str, Any] = {"split.no": np.uint16(index), "split.count": np.uint16(count)}
        split |= {"split.tensors.count": np.int32(len(tensors))}
        own = {name: tensors[name] for name in list(tensors)[index::count]}
        write_gguf(part, split if index else head | split, own)
    return parts


def like_gemma(vocabulary: Path, *others: str) -> dict[str, Any]:
    """The metadata of Llama's vocabulary with what Gemma's has besides: runs of white space and tags of HTML that its
    makers defined, as text, and the signs of turns. ``others`` are control tokens more."""
    found = read_header(vocabulary, arrays=True).metadata
    made = {key: value for key, value in found.items() if key.startswith("tokenizer.")}
    tokens: list[str] = made["tokenizer.ggml.tokens"]
    tokens[tokens.index("<s>")], tokens[tokens.index("</s>")] = "<bos>", "<eos>"
    controls = ["<start_of_turn>", "<end_of_turn>", *others]
    tokens += [*controls, *GEMMA_TEXT]
    made["tokenizer.ggml.token_type"] += [_CONTROL] * len(controls) + [_USER_DEFINED] * len(GEMMA_TEXT)
    made["tokenizer.ggml.scores"] += [-1000.0] * (len(controls) + len(GEMMA_TEXT))
    made["tokenizer.ggml.add_space_prefix"] = False
    return made


def make_adapter(path: Path, *, seed: int = 3) -> Path:
    """A LoRA adapter with random factors for SmolLM2-135M: attention and feed-forward of all its layers."""
    write_gguf(path, adapter_head(), adapter_factors(seed))
    return path


def adapter_head() -> dict[str, Any]:
    return {
        "general.type": "adapter",
        "general.architecture": "llama",
        "adapter.type": "lora",
        "adapter.lora.alpha": 8.0,
    }


def adapter_factors(seed: int = 3) -> Arrays:
    rank, strength = 4, np.float32(0.02)
    width, key_width, hidden = 576, 192, 1536
    shapes = {"attn_q": (width, width), "attn_v": (key_width, width), "ffn_down": (width, hidden)}
    draw = _Draw(seed)
    factors = {}
    for layer in range(30):
        for name, (rows, columns) in shapes.items():
            stem = f"blk.{layer}.{name}.weight"
            factors[f"{stem}.lora_a"] = draw(rank, columns)
            factors[f"{stem}.lora_b"] = draw(rows, rank) * strength
    return factors


def _head(architecture: str, context: int, pooling: int | None) -> dict[str, Any]:
    head = {
        "general.architecture": architecture,
        f"{architecture}.block_count": LAYERS,
        f"{architecture}.context_length": context,
        f"{architecture}.embedding_length": WIDTH,
        f"{architecture}.feed_forward_length": HIDDEN,
        f"{architecture}.attention.head_count": HEADS,
    }
    return head if pooling is None else head | {f"{architecture}.pooling_type": pooling}


class _Draw:
    """Random arrays, the same whenever they are drawn in the same order."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def __call__(self, *shape: int) -> NDArray[np.float32]:
        return self._random.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)

    def linear(self, name: str, rows: int, columns: int) -> Arrays:
        return {f"{name}.weight": self(rows, columns), f"{name}.bias": self(rows)}

    def norm(self, name: str) -> Arrays:
        return {f"{name}.weight": 1 + self(WIDTH), f"{name}.bias": self(WIDTH)}
