"""Vectors and scores against llama.cpp's own server, where that is built."""

from __future__ import annotations

import random
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from llama_server import ask, serving
from make_models import PAIR_TEMPLATE, RANK, WORDS, make_bert

from nrvna.engine.embedder import Embedder
from nrvna.llama import Model

pytestmark = pytest.mark.slow

# The most that numbers of a vector of length 1 may differ: rows are not computed alike alone and among others, and
# the quantized activations of SmolLM2 make much of little.
TOLERANCE = {"MiniLM": 1e-3, "SmolLM2": 2e-2, "decoding embedder": 2e-3}
SHORT = ["Bread.", "The river runs under the old bridge.", "def fibonacci(n): return n", "Über den Fluß 🐈"]
PACKED = [f"Number {number} of the houses {'by the river ' * (number % 7)}is old." for number in range(16)]

Serve = Callable[..., str]


@pytest.fixture(scope="module")
def serve(peers: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Starts a server for a model and returns its address; asked again for the same, the one that runs."""
    running: dict[tuple[object, ...], str] = {}
    with ExitStack() as stack:

        def start(model: Path, *options: str) -> str:
            key = (model, *options)
            if key not in running:
                log = tmp_path_factory.mktemp("server") / "log"
                running[key] = stack.enter_context(serving(peers, model, *options, log=log))
            return running[key]

        yield start


def drawn(words: int) -> str:
    return " ".join(random.Random(words).choices(WORDS, k=words))


# Of each model as long as it takes, and for those that write more than one batch.
LONG = {"MiniLM": drawn(500), "SmolLM2": drawn(540), "decoding embedder": drawn(1900)}


@pytest.fixture
def files(embedder_file: Path, model_file: Path, tiny_models: dict[str, Path]) -> dict[str, Path]:
    return {"MiniLM": embedder_file, "SmolLM2": model_file, **tiny_models}


@pytest.mark.parametrize("length", ["short", "packed", "long"])
@pytest.mark.parametrize("name", ["MiniLM", "SmolLM2", "decoding embedder"])
def test_vectors_are_those_that_the_server_makes(
    serve: Serve, files: dict[str, Path], name: str, length: str
) -> None:
    pooling = ["--pooling", "mean"] if name == "SmolLM2" else []
    size = ["--ctx-size", "2048", "--parallel", "1", "--batch-size", "2048", "--ubatch-size", "2048"]
    address = serve(files[name], "--embeddings", *size, *pooling)
    inputs = {"short": SHORT, "packed": PACKED, "long": ["Bread.", LONG[name]]}[length]
    answer = ask(address, "/v1/embeddings", {"input": inputs})["data"]
    expected = np.array([entry["embedding"] for entry in sorted(answer, key=lambda entry: entry["index"])])
    with Model(files[name]) as model, Embedder(model, threads=2) as embedder:
        found = np.array(embedder.embed([embedder.tokenize(text) for text in inputs]))
    np.testing.assert_allclose(found, expected, atol=TOLERANCE[name])
    assert (found * expected).sum(axis=1).min() > 0.9995


def test_an_input_has_the_tokens_that_the_server_gives_it(serve: Serve, files: dict[str, Path]) -> None:
    size = ["--ctx-size", "2048", "--parallel", "1", "--batch-size", "2048", "--ubatch-size", "2048"]
    address = serve(files["MiniLM"], "--embeddings", *size)
    with Model(files["MiniLM"]) as model:
        embedder = Embedder(model, threads=2)
        for text in SHORT:
            body = {"content": text, "add_special": True}
            assert embedder.tokenize(text) == ask(address, "/tokenize", body)["tokens"]


def test_the_server_has_no_pooling_for_a_model_that_names_none(serve: Serve, files: dict[str, Path]) -> None:
    address = serve(files["SmolLM2"], "--embeddings", "--ctx-size", "512", "--parallel", "1")
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(address, "/v1/embeddings", {"input": "Bread."})
    assert b"Pooling type 'none' is not OAI compatible" in refused.value.read()


@pytest.mark.parametrize("name", ["reranker", "decoding reranker", "template"])
def test_scores_are_those_that_the_server_gives(
    serve: Serve, files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    file = files.get(name)
    if file is None:
        folder = tmp_path_factory.mktemp("template")
        file = make_bert(folder / "template.gguf", pooling=RANK, template=PAIR_TEMPLATE)
    query, documents = "what is the mill", ["bread", "old mill over the river", drawn(300), *map(drawn, range(1, 30))]
    options = ["--reranking", "--ctx-size", "512", "--parallel", "1", "--batch-size", "512", "--ubatch-size", "512"]
    answer = ask(serve(file, *options), "/v1/rerank", {"query": query, "documents": documents})["results"]
    expected = {entry["index"]: entry["relevance_score"] for entry in answer}
    with Model(file) as model, Embedder(model, threads=2) as embedder:
        found = embedder.rerank([embedder.tokenize_pair(query, document) for document in documents])
    assert found == pytest.approx([expected[number] for number in range(len(documents))], abs=2e-3)
    assert max(found) - min(found) > 0.05
