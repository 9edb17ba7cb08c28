"""Embeddings of the binding: on a real embedding model, on a model that writes, and on tiny ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from make_models import LAYERS, MEAN, WIDTH, make_bert, make_decoder
from numpy.typing import NDArray

from nrvna.errors import ContextError, DecodeError, ModelFormatError
from nrvna.llama import Batch, Context, Model

TEXTS = ["The river runs under the old bridge.", "Bread."]


def packed(model: Model, texts: list[str]) -> tuple[Batch, list[slice]]:
    """A batch with a sequence for each text, and the rows of each."""
    batch, rows = Batch(512), []
    for number, text in enumerate(texts):
        tokens = model.tokenize(text)
        end = batch.add(tokens, position=0, sequence=number) + 1
        rows.append(slice(end - len(tokens), end))
    return batch, rows


def token_rows(model: Model, texts: list[str]) -> list[NDArray[np.float32]]:
    with Context(model, n_ctx=512, n_seq_max=2, kv_unified=True, embeddings=True, pooling="none") as context:
        batch, rows = packed(model, texts)
        context.decode(batch)
        return [context.token_embeddings()[row].copy() for row in rows]


def test_an_embedding_model_says_what_it_is(embedding_model: Model) -> None:
    model = embedding_model
    assert (model.architecture, model.pooling, model.n_embd, model.n_embd_out) == ("bert", "mean", 384, 384)
    assert not model.is_causal and not model.is_generative
    assert (model.n_cls_out, model.labels) == (0, [])
    assert (model.adds_bos, model.sep, model.eos) == (True, 102, None)


def test_a_model_that_writes_names_no_pooling(model: Model) -> None:
    assert model.pooling is None and model.is_causal and model.n_embd == 576


def test_a_reranker_says_how_many_scores_it_gives_and_what_for(tiny_models: dict[str, Path]) -> None:
    with Model(tiny_models["decoding reranker"]) as model:
        assert (model.pooling, model.n_cls_out, model.labels) == ("rank", 2, ["yes", "no"])


def test_the_context_pools_as_the_model_says(embedding_model: Model) -> None:
    with Context(embedding_model, n_ctx=512, embeddings=True) as context:
        assert context.pooling == "mean" and not context.has_cache


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_a_pooling_makes_one_vector_of_a_sequences_tokens(embedding_model: Model, pooling: str) -> None:
    rows = token_rows(embedding_model, TEXTS)
    expected = [{"mean": row.mean(axis=0), "cls": row[0], "last": row[-1]}[pooling] for row in rows]
    with Context(embedding_model, n_ctx=512, n_seq_max=2, embeddings=True, pooling=pooling) as context:
        batch, _ = packed(embedding_model, TEXTS)
        context.decode(batch)
        for number, vector in enumerate(expected):
            np.testing.assert_allclose(context.embedding(number), vector, atol=1e-5)


def test_a_model_that_writes_can_be_pooled_too(model: Model) -> None:
    rows = token_rows(model, TEXTS)
    with Context(model, n_ctx=512, n_seq_max=2, kv_unified=True, embeddings=True, pooling="last") as context:
        batch, _ = packed(model, TEXTS)
        context.decode(batch)
        for number, row in enumerate(rows):
            np.testing.assert_allclose(context.embedding(number), row[-1], atol=1e-3)


def test_the_vector_of_a_token_is_the_one_at_its_index(embedding_model: Model) -> None:
    rows = token_rows(embedding_model, TEXTS)
    with Context(embedding_model, n_ctx=512, n_seq_max=2, embeddings=True, pooling="none") as context:
        batch, places = packed(embedding_model, TEXTS)
        context.decode(batch)
        assert context.token_embedding(places[1].start).tobytes() == rows[1][0].tobytes()


def test_an_encoder_computes_the_same_either_way(embedding_model: Model) -> None:
    found = []
    with Context(embedding_model, n_ctx=512, n_seq_max=2, embeddings=True) as context:
        for compute in (context.decode, context.encode):
            batch, _ = packed(embedding_model, TEXTS)
            compute(batch)
            found.append(context.embedding(1).tobytes())
    assert found[0] == found[1]


def test_a_reranker_gives_as_many_scores_as_it_has_labels(tiny_models: dict[str, Path]) -> None:
    with Model(tiny_models["decoding reranker"]) as model, Context(model, n_ctx=256, embeddings=True) as context:
        batch, _ = packed(model, ["what is the mill"])
        context.decode(batch)
        assert context.embedding(0).shape == (2,)
        # This architecture ends in a softmax.
        assert float(context.embedding(0).sum()) == pytest.approx(1.0)


def test_embeddings_and_logits_are_llama_cpps_memory_and_no_copies(embedding_model: Model, model: Model) -> None:
    batch, _ = packed(embedding_model, TEXTS)
    with Context(embedding_model, n_ctx=512, n_seq_max=2, embeddings=True) as context:
        context.decode(batch)
        views = [context.embedding(0), context.embedding(0)]
        assert_shares(views)
    with Context(embedding_model, n_ctx=512, n_seq_max=2, embeddings=True, pooling="none") as context:
        context.decode(batch)
        assert_shares([context.token_embeddings()[3], context.token_embedding(3)])
    with Context(model, n_ctx=256) as context:
        batch = Batch(8)
        last = batch.add([5, 6], position=0)
        context.decode(batch)
        assert_shares([context.logits(last), context.logits(last)])


def assert_shares(views: list[NDArray[np.float32]]) -> None:
    """Two views of the same memory, which numpy did not allocate."""
    addresses = {view.__array_interface__["data"][0] for view in views}
    assert len(addresses) == 1
    for view in views:
        assert not view.flags.owndata and view.base is not None


def test_a_context_without_embeddings_has_none(model: Model) -> None:
    with Context(model, n_ctx=256) as context:
        batch = Batch(8)
        batch.add([5], position=0)
        context.decode(batch)
        with pytest.raises(ContextError, match="makes no embeddings of sequences"):
            context.embedding(0)
        with pytest.raises(ContextError, match="makes no embeddings of tokens"):
            context.token_embedding(0)


def test_a_pooled_context_has_no_vectors_of_tokens_and_the_other_way_round(embedding_model: Model) -> None:
    batch, _ = packed(embedding_model, TEXTS)
    with Context(embedding_model, n_ctx=512, n_seq_max=2, embeddings=True) as context:
        context.decode(batch)
        with pytest.raises(ContextError, match='pooling="none"'):
            context.token_embedding(0)
    with Context(embedding_model, n_ctx=512, n_seq_max=2, embeddings=True, pooling="none") as context:
        context.decode(batch)
        with pytest.raises(ContextError, match="wants embeddings and a pooling"):
            context.embedding(0)


def test_an_embedding_of_what_was_not_in_the_batch_is_an_error(embedding_model: Model) -> None:
    batch, _ = packed(embedding_model, TEXTS)
    with Context(embedding_model, n_ctx=512, n_seq_max=4, embeddings=True) as context:
        with pytest.raises(IndexError, match="no embedding of sequence 0"):
            context.embedding(0)
        context.decode(batch)
        for sequence in (2, 99, -1):
            with pytest.raises(IndexError, match=f"no embedding of sequence {sequence}"):
                context.embedding(sequence)
    with Context(embedding_model, n_ctx=512, n_seq_max=4, embeddings=True, pooling="none") as context:
        assert context.token_embeddings().shape == (0, 384)
        context.decode(batch)
        for index in (len(batch), -1):
            with pytest.raises(IndexError, match=f"no embedding at index {index}"):
                context.token_embedding(index)


@pytest.mark.parametrize("method", ["decode", "encode"])
def test_a_text_that_an_encoder_cannot_see_at_once_is_an_error_and_no_abort(
    embedding_model: Model, method: str
) -> None:
    with Context(embedding_model, n_ctx=512, n_batch=512, n_ubatch=64, embeddings=True) as context:
        batch = Batch(512)
        batch.add([1012] * 65, position=0)
        with pytest.raises(DecodeError, match="65 tokens must be computed at once, but n_ubatch is 64"):
            getattr(context, method)(batch)


def test_a_mean_over_more_than_is_computed_at_once_is_an_error_and_no_mean_of_the_end(model: Model) -> None:
    with Context(model, n_ctx=512, n_batch=512, n_ubatch=64, embeddings=True, pooling="mean") as context:
        batch = Batch(512)
        batch.add([5] * 65, position=0)
        with pytest.raises(DecodeError, match="must be computed at once"):
            context.decode(batch)


def test_a_mean_of_a_sequence_that_goes_on_is_an_error(model: Model) -> None:
    with Context(model, n_ctx=512, embeddings=True, pooling="mean") as context:
        batch = Batch(64)
        batch.add([5] * 10, position=0)
        context.decode(batch)
        batch.clear()
        batch.add([5], position=10)
        with pytest.raises(DecodeError, match="must be in one batch"):
            context.decode(batch)


def test_a_mean_over_several_streams_is_an_error(model: Model) -> None:
    with pytest.raises(ContextError, match="need kv_unified"):
        Context(model, n_ctx=512, n_seq_max=2, embeddings=True, pooling="mean")


def test_a_position_that_the_model_never_learned_is_an_error_and_no_abort(embedding_model: Model) -> None:
    with Context(embedding_model, n_ctx=1024, n_batch=1024, n_ubatch=1024, embeddings=True) as context:
        batch = Batch(1024)
        batch.add([1012] * 513, position=0)
        with pytest.raises(DecodeError, match="position 512 is beyond the 512 that the model was trained for"):
            context.decode(batch)


def test_a_sequence_that_a_context_does_not_have_is_an_error_and_no_abort(
    embedding_model: Model, model: Model
) -> None:
    batch = Batch(8)
    batch.add([1012], position=0, sequence=2)
    with (
        Context(embedding_model, n_ctx=512, n_seq_max=2, embeddings=True) as context,
        pytest.raises(DecodeError, match="the batch is invalid"),
    ):
        context.decode(batch)
    with Context(model, n_ctx=256) as context:
        for wrong in (-1, 1):
            with pytest.raises(IndexError, match=f"no sequence {wrong}: this context has 1"):
                context.forget(wrong)
            with pytest.raises(IndexError, match=f"no sequence {wrong}"):
                context.copy(0, wrong, 1)


def test_more_sequences_than_a_batch_has_tokens_are_an_error_and_no_abort(
    embedding_model: Model, model: Model
) -> None:
    with pytest.raises(ContextError, match="9 sequences are more than a batch of 8 tokens holds"):
        Context(embedding_model, n_ctx=512, n_seq_max=9, n_batch=8)
    with pytest.raises(ContextError, match="9 sequences"):
        Context(model, n_ctx=8, n_seq_max=9)


def test_a_batch_of_nothing_is_an_error(embedding_model: Model) -> None:
    with Context(embedding_model, n_ctx=512, embeddings=True) as context:
        for compute in (context.decode, context.encode):
            with pytest.raises(DecodeError, match="the batch is invalid"):
                compute(Batch(8))


@pytest.mark.parametrize(
    ("pooling", "embeddings", "message"),
    [
        ("average", True, "'average' is none of none, mean, cls, last, rank"),
        ("rank", True, "was not made for ranking"),
        ("mean", False, "is for a context with embeddings"),
    ],
)
def test_a_pooling_that_cannot_be_is_refused(
    embedding_model: Model, pooling: str, embeddings: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Context(embedding_model, n_ctx=512, pooling=pooling, embeddings=embeddings)


def test_a_model_file_with_a_pooling_that_nobody_knows_is_an_error_and_no_abort(
    model_file: Path, tmp_path: Path
) -> None:
    assert model_file
    with (
        Model(make_bert(tmp_path / "odd.gguf", pooling=7)) as model,
        pytest.raises(ModelFormatError, match="names the pooling 7"),
    ):
        Context(model, n_ctx=512, embeddings=True)


def test_a_cleared_context_begins_anew(model: Model) -> None:
    with Context(model, n_ctx=256, n_seq_max=2, kv_unified=True) as context:
        for _ in range(3):
            batch = Batch(256)
            batch.add([5] * 100, position=0)
            last = batch.add([5] * 100, position=0, sequence=1)
            context.decode(batch)
            assert context.logits(last).any()
            context.clear()


def test_tiny_models_are_what_their_maker_says(model_file: Path, tmp_path: Path) -> None:
    assert model_file
    with Model(make_bert(tmp_path / "bert.gguf", pooling=MEAN, context=300)) as bert:
        assert (bert.n_embd, bert.n_ctx_train, bert.metadata["bert.block_count"]) == (WIDTH, 300, str(LAYERS))
    with Model(make_decoder(tmp_path / "decoder.gguf", pooling=None)) as decoder:
        assert decoder.pooling is None and decoder.is_generative
