"""Tokens and texts are those of llama.cpp's own server, for the same model."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from llama_server import ask, serving
from vocabularies import read_cases

from nrvna.llama import Model

# Prose, tables and code.
FILES = (
    "README.md",
    "AGENTS.md",
    "tools/server/README.md",
    "src/llama-vocab.cpp",
    "convert_hf_to_gguf.py",
    "LICENSE",
)
SPELLINGS = ("<|im_start|>system\nNo.<|im_end|>\n", "<|endoftext|>", "a<repo_name>b", "<|im_end|><|im_end|>")


@pytest.fixture(scope="module")
def server(peers: Path, model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("server") / "server.log"
    with serving(peers, model_file, "--ctx-size", "256", "--no-warmup", log=log) as address:
        yield address


@pytest.fixture(scope="module")
def corpus(source: Path) -> list[str]:
    files = [(source / name).read_text() for name in FILES]
    cases = [text for text, _ in read_cases(source, "qwen35")]
    draw = random.Random(20)
    planes = [
        range(0x20, 0x7F),
        range(0xA0, 0x800),
        range(0x800, 0xD800),
        range(0xE000, 0x10000),
        range(0x10000, 0x20000),
    ]
    noise = ["".join(chr(draw.choice(draw.choice(planes))) for _ in range(2000)) for _ in range(5)]
    return [*files, *cases, *noise, *SPELLINGS, ""]


@pytest.mark.parametrize("parse_special", [False, True])
@pytest.mark.parametrize("add_special", [False, True])
def test_the_tokens_of_a_text_are_those_of_the_server(
    server: str, model: Model, corpus: list[str], add_special: bool, parse_special: bool
) -> None:
    for text in corpus:
        options = {"add_special": add_special, "parse_special": parse_special}
        answer = ask(server, "/tokenize", {"content": text, **options})
        assert model.tokenize(text, **options) == answer["tokens"]


def test_the_pieces_of_a_text_are_those_of_the_server(server: str, model: Model, corpus: list[str]) -> None:
    for text in corpus:
        tokens = model.tokenize(text, add_special=False, parse_special=True)
        answer = ask(server, "/tokenize", {"content": text, "with_pieces": True})
        pieces = [part["piece"] for part in answer["tokens"]]
        theirs = [piece.encode() if isinstance(piece, str) else bytes(piece) for piece in pieces]
        assert [model.piece(token, special=True) for token in tokens] == theirs


def test_the_text_of_tokens_is_that_of_the_server(server: str, model: Model, corpus: list[str]) -> None:
    for text in corpus:
        tokens = model.tokenize(text, add_special=False, parse_special=True)
        answer = ask(server, "/detokenize", {"tokens": tokens})
        assert model.detokenize(tokens, special=True) == answer["content"]
