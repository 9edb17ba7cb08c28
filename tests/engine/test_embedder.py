"""Embedding and reranking: a real embedding model, the small model that writes, and tiny ones."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from make_models import MEAN, PAIR_TEMPLATE, RANK, WORDS, make_bert
from numpy.typing import NDArray

from nrvna.engine import embedder as module
from nrvna.engine.embedder import Embedder
from nrvna.engine.vector import to_json, to_npy
from nrvna.errors import JobError
from nrvna.llama import Context, Model

# The second of each says the same as the first, in other words.
PAIRS = [
    ("A man is eating food.", "Someone has a meal."),
    ("The stock market fell sharply today.", "Shares dropped a lot this afternoon."),
    ("How do I reset my password?", "I forgot my login and need a new one."),
    ("The cat sleeps on the sofa.", "A kitten naps on the couch."),
    ("It will rain tomorrow.", "The forecast says wet weather for the next day."),
    ("Install the package with pip.", "Use pip to set up the library."),
]


def texts(count: int, longest: int) -> list[str]:
    """Texts of 1 to that many words, the same every time."""
    draw = random.Random(count)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, longest))) for _ in range(count)]


def embed(embedder: Embedder, *inputs: str) -> list[NDArray[np.float32]]:
    return embedder.embed([embedder.tokenize(text) for text in inputs])


@pytest.fixture
def embedder(embedding_model: Model) -> Embedder:
    return Embedder(embedding_model, threads=2)


def test_what_means_the_same_lies_close_together(embedder: Embedder) -> None:
    firsts = np.array(embed(embedder, *(first for first, _ in PAIRS)))
    seconds = np.array(embed(embedder, *(second for _, second in PAIRS)))
    likeness = firsts @ seconds.T
    assert (likeness.argmax(axis=1) == np.arange(len(PAIRS))).all()
    others = likeness[~np.eye(len(PAIRS), dtype=bool)]
    assert np.diag(likeness).min() > 0.4 > others.max()


def test_a_vector_has_the_length_1_and_the_models_width(embedder: Embedder) -> None:
    for vector in embed(embedder, *texts(5, 40)):
        assert vector.shape == (embedder.n_embd,) == (384,)
        assert vector.dtype == np.float32
        assert float(np.linalg.norm(vector)) == pytest.approx(1.0, abs=1e-6)


def test_an_embedder_says_what_it_holds(embedding_model: Model, model: Model, tiny_models: dict[str, Path]) -> None:
    ours = Embedder(embedding_model, threads=2)
    assert (ours.pooling, ours.pooling_source, ours.can_rerank, ours.longest) == ("mean", "model", False, 512)
    # A model that was made to write is pooled in a way that it did not name.
    writes = Embedder(model, threads=2)
    assert (writes.pooling, writes.pooling_source, writes.n_embd, writes.longest) == ("mean", "nrvna", 576, 8192)
    with Model(tiny_models["reranker"]) as reranker:
        assert Embedder(reranker, threads=2).can_rerank


def test_the_order_of_many_inputs_is_kept(embedder: Embedder) -> None:
    # More than fit one batch, and more than it has sequences.
    many = [*texts(70, 3), *texts(20, 60)]
    together = embed(embedder, *many)
    for number in (0, 1, 63, 64, 69, 70, 89):
        [alone] = embed(embedder, many[number])
        np.testing.assert_allclose(together[number], alone, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MiniLM", "SmolLM2", "decoding embedder"])
def test_a_reproducible_vector_does_not_depend_on_its_neighbours(
    embedding_model: Model, model: Model, tiny_models: dict[str, Path], name: str
) -> None:
    chosen = {"MiniLM": embedding_model, "SmolLM2": model}.get(name) or Model(tiny_models[name])
    inputs = [*texts(9, 30), "bread " * 300]
    with Embedder(chosen, threads=2, reproducible=True) as embedder:
        together = embed(embedder, *inputs)
    with Embedder(chosen, threads=2, reproducible=True) as embedder:
        backwards = embed(embedder, *reversed(inputs))[::-1]
    for text, one, other in zip(inputs, together, backwards, strict=True):
        with Embedder(chosen, threads=2, reproducible=True) as embedder:
            [alone] = embed(embedder, text)
        assert one.tobytes() == other.tobytes() == alone.tobytes()


@pytest.mark.parametrize("name", ["SmolLM2", "decoding embedder"])
def test_an_input_longer_than_a_batch_is_computed_in_pieces_as_if_at_once(
    model: Model, tiny_models: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = model if name == "SmolLM2" else Model(tiny_models[name])
    text = " ".join(texts(30, 20))
    found = []
    for batch in (64, 512):
        monkeypatch.setattr(module, "_BATCH_TOKENS", batch)
        with Embedder(chosen, threads=2) as embedder:
            found += embedder.embed([embedder.tokenize(text)[:300]])
    assert float(found[0] @ found[1]) > 0.9999
    np.testing.assert_allclose(found[0], found[1], atol=5e-3)


def test_long_and_short_inputs_may_be_mixed(model: Model) -> None:
    short, long = "bread", " ".join(WORDS * 40)
    with Embedder(model, threads=2) as embedder:
        assert len(embedder.tokenize(long)) > 512
        mixed = embed(embedder, short, long, short)
        [alone] = embed(embedder, short)
    np.testing.assert_allclose(mixed[0], mixed[2], atol=5e-3)
    np.testing.assert_allclose(mixed[0], alone, atol=5e-3)
    assert float(mixed[0] @ mixed[1]) < 0.99


def test_memory_grows_with_the_longest_input_and_is_freed(tiny_models: dict[str, Path]) -> None:
    with Model(tiny_models["decoding embedder"]) as own:

        def sizes() -> list[int]:
            alive = [each for each in own.dependents if not each.is_closed]
            return [context.n_ctx_seq for context in alive if isinstance(context, Context)]

        embedder = Embedder(own, threads=2)
        assert sizes() == []
        seen = []
        for words in (10, 1000, 10):
            embed(embedder, "bread " * words)
            seen.append(sizes())
        assert seen == [[512], [1024], [1024]]
        embedder.close()
        assert sizes() == []
        embed(embedder, "bread")
        assert sizes() == [512]


def test_an_input_beyond_what_the_model_was_trained_for_is_an_error_with_both_numbers(embedder: Embedder) -> None:
    with pytest.raises(JobError, match=r"the input has 602 tokens, but all-MiniLM\S+ takes 512 at most: split it"):
        embedder.tokenize("bread " * 600)
    with pytest.raises(JobError, match="the input has 513 tokens"):
        embedder.embed([[101], [1012] * 513])
    [longest] = embed(embedder, "bread " * 510)
    assert longest.shape == (384,)


def test_a_context_that_was_asked_for_is_the_longest_input(embedding_model: Model) -> None:
    shorter = Embedder(embedding_model, threads=2, context=40)
    with pytest.raises(JobError, match=r"has 42 tokens, but .* takes 40 at most"):
        shorter.tokenize("bread " * 40)
    assert len(embed(shorter, *["bread " * 38] * 30)) == 30
    assert Embedder(embedding_model, threads=2, context=9000).longest == 512


def test_an_input_for_which_there_is_no_memory_is_an_error(
    embedding_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "available_memory", lambda: 1 << 20)
    with pytest.raises(JobError, match=r"needs about 0\.1 GB to be computed, and 0\.0 GB are free"):
        embed(Embedder(embedding_model, threads=2), "bread")


def test_an_input_without_tokens_is_an_error(model: Model) -> None:
    embedder = Embedder(model, threads=2)
    with pytest.raises(JobError, match="makes no tokens"):
        embedder.tokenize("")
    with pytest.raises(JobError, match="makes no tokens"):
        embedder.embed([[]])


def test_nothing_to_embed_is_nothing(embedder: Embedder) -> None:
    assert embedder.embed([]) == []


def test_text_that_names_control_tokens_stays_text(embedding_model: Model) -> None:
    tokens = Embedder(embedding_model, threads=2).tokenize("[SEP] bread [CLS]")
    assert (tokens[0], tokens[-1]) == (embedding_model.bos, embedding_model.sep)
    assert embedding_model.sep not in tokens[1:-1] and embedding_model.bos not in tokens[1:]


def test_the_models_own_tokens_stand_around_an_input(embedding_model: Model) -> None:
    tokens = Embedder(embedding_model, threads=2).tokenize("bread")
    assert embedding_model.detokenize(tokens, special=True) == "[CLS] bread[SEP]"


DOCUMENTS = ["the old mill over the river", "bread", "who runs the house is what the baker", "new village " * 90]


@pytest.mark.parametrize("name", ["reranker", "decoding reranker"])
def test_a_score_is_the_same_alone_and_beside_others(tiny_models: dict[str, Path], name: str) -> None:
    with Model(tiny_models[name]) as model, Embedder(model, threads=2) as embedder:
        pairs = [embedder.tokenize_pair("what is the mill", document) for document in DOCUMENTS]
        scores = embedder.rerank(pairs)
        assert len(set(scores)) == len(DOCUMENTS)
        assert embedder.rerank(pairs[::-1]) == pytest.approx(scores[::-1], abs=1e-3)
        assert [embedder.rerank([pair])[0] for pair in pairs] == pytest.approx(scores, abs=1e-3)


@pytest.mark.parametrize("name", ["reranker", "decoding reranker"])
def test_a_reproducible_score_does_not_depend_on_its_neighbours(tiny_models: dict[str, Path], name: str) -> None:
    with Model(tiny_models[name]) as model, Embedder(model, threads=2, reproducible=True) as embedder:
        pairs = [embedder.tokenize_pair("what is the mill", document) for document in DOCUMENTS]
        assert (
            embedder.rerank(pairs[::-1])[::-1] == embedder.rerank(pairs) == [embedder.rerank([p])[0] for p in pairs]
        )


def test_a_pair_longer_than_a_batch_is_ranked_in_pieces(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Model(tiny_models["decoding reranker"]) as model:
        scores = []
        for batch in (64, 512):
            monkeypatch.setattr(module, "_BATCH_TOKENS", batch)
            with Embedder(model, threads=2) as embedder:
                scores += embedder.rerank([embedder.tokenize_pair("the mill", "old bread " * 120)])
    assert scores[0] == pytest.approx(scores[1], abs=5e-3)


def test_a_pair_is_put_together_with_the_models_own_tokens(tiny_models: dict[str, Path]) -> None:
    with Model(tiny_models["reranker"]) as model:
        tokens = Embedder(model, threads=2).tokenize_pair("the mill", "old [SEP]")
        assert model.detokenize(tokens[:4], special=True) == "[CLS] the mill[SEP]"
        assert [number for number, token in enumerate(tokens) if token == model.sep] == [3, len(tokens) - 1]


@pytest.mark.parametrize("document", ["old bread", "old [SEP] {query} bread"])
def test_a_template_of_the_models_own_puts_a_pair_together_and_text_stays_text(
    model_file: Path, tmp_path: Path, document: str
) -> None:
    assert model_file
    path = make_bert(tmp_path / "own.gguf", pooling=RANK, template=PAIR_TEMPLATE)
    with Model(path) as model:
        tokens = Embedder(model, threads=2).tokenize_pair("the mill", document)
        assert model.detokenize(tokens[:6], special=True) == "[CLS] what is the mill[SEP]"
        assert [number for number, token in enumerate(tokens) if token == model.sep] == [5, len(tokens) - 1]
        assert tokens[6:-1] == model.tokenize(document, add_special=False)


def test_only_rerankers_rank_and_they_do_nothing_else(embedder: Embedder, tiny_models: dict[str, Path]) -> None:
    with pytest.raises(JobError, match="cannot rank: take a reranker"):
        embedder.rerank([[101, 102]])
    with Model(tiny_models["reranker"]) as model:
        ranking = Embedder(model, threads=2)
        with pytest.raises(JobError, match="ranks documents: it makes no embeddings"):
            embed(ranking, "bread")


def test_a_model_that_computes_no_numbers_is_an_error(model_file: Path, tmp_path: Path) -> None:
    assert model_file
    path = make_bert(tmp_path / "broken.gguf", pooling=MEAN)
    data = path.read_bytes()
    # The last tensor's last numbers: the bias of the norm that makes the vectors.
    path.write_bytes(data[:-64] + np.full(16, np.nan, np.float32).tobytes())
    with Model(path) as model, pytest.raises(JobError, match="computed no numbers"):
        embed(Embedder(model, threads=2), "bread")


def test_a_vector_is_read_back_from_both_kinds_of_file(embedder: Embedder) -> None:
    [vector] = embed(embedder, "bread")
    read = np.load(io.BytesIO(to_npy(vector)), allow_pickle=False)
    assert (read.dtype, read.shape) == (np.dtype("<f4"), (384,))
    assert read.tobytes() == vector.tobytes()
    written = np.array(json.loads(to_json(vector)), np.float32)
    assert written.tobytes() == vector.tobytes()
    assert "\n" not in to_json(vector)
