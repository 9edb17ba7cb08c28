"""The pinned source's chat templates and vocabularies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from build_llama import Pin, PinnedSource
from templated import Templated

from nrvna.config import llama_dir
from nrvna.llama import load_library


@pytest.fixture(scope="session")
def source_tree() -> Path:
    return PinnedSource(Pin.read()).tree()


@pytest.fixture(scope="session")
def templates(source_tree: Path) -> dict[str, str]:
    """The text of every chat template in llama.cpp's source, by name."""
    files = sorted((source_tree / "models" / "templates").glob("*.jinja"))
    assert len(files) >= 70
    return {file.stem: file.read_text() for file in files}


@pytest.fixture(scope="session")
def vocabulary(source_tree: Path) -> Iterator[Callable[[str], Templated]]:
    """Loads a vocabulary of llama.cpp's source, as "qwen2", once."""
    load_library(llama_dir())
    loaded: dict[str, Templated] = {}

    def load(name: str) -> Templated:
        if name not in loaded:
            loaded[name] = Templated(source_tree / "models" / f"ggml-vocab-{name}.gguf", vocab_only=True)
        return loaded[name]

    yield load
    for model in loaded.values():
        model.close()


@pytest.fixture(scope="session")
def templated(model_file: Path) -> Iterator[Templated]:
    """The vocabulary of the model that the tests use, with the template that a test gives it."""
    with Templated(model_file, vocab_only=True) as other:
        yield other
