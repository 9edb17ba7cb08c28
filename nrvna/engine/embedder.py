"""Texts in, vectors or scores out: embeddings and reranking, several inputs computed together.

The vectors of tokens are pooled here and not by llama.cpp, whose sums over a packed batch depend on what else is in
it, and which pools a text by its last piece where that is computed in several.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from nrvna.engine.layout import padded
from nrvna.engine.machine import available_memory
from nrvna.errors import JobError
from nrvna.llama import Batch, Context, Model

log = logging.getLogger("nrvna.engine")

Vector = NDArray[np.float32]

# For a model that does not say, as those that write do not: llama-server refuses them unless its user chooses, and
# this tells texts apart a little better than the last token alone.
DEFAULT_POOLING = "mean"
# Tokens computed together, and what llama.cpp may set aside for their outputs: as many logits each as the vocabulary
# has tokens, whether anybody wants them or not.
_BATCH_TOKENS = 512
_LEAST_BATCH_TOKENS = 64
_OUTPUT_BYTES = 256 << 20
_SEQUENCES = 64
_FLOAT = 4
_PLACEHOLDER = re.compile(r"\{(query|document)\}")


class Embedder:
    """Embeds texts with a model, or ranks them with one that was made for it; :meth:`close` frees its memory.

    ``context`` is the most tokens of an input, 0 for what the model was trained for. The memory that is taken grows
    with the longest input so far. With ``reproducible`` each input is computed alone, so that the bits of its vector
    do not depend on its neighbours.

    Raises JobError for a model with an encoder and a decoder, of which llama.cpp makes no embeddings.
    """

    def __init__(self, model: Model, *, threads: int, context: int = 0, reproducible: bool = False) -> None:
        if model.has_encoder and model.has_decoder:
            raise JobError(f"{model.path.name} is an encoder with a decoder: llama.cpp makes no embeddings of it")
        self.model = model
        self.can_rerank = model.pooling == "rank"
        trained = model.n_ctx_train or _BATCH_TOKENS
        self.longest = min(context or trained, trained)
        self._threads = threads
        is_alone = reproducible or not model.has_plain_cache
        # What sees no further than its past can be computed in pieces, and else every input is one.
        self._in_pieces = model.is_causal and model.has_decoder
        output = _FLOAT * (model.n_vocab + model.n_embd_out)
        self._budget = min(_BATCH_TOKENS, max(_LEAST_BATCH_TOKENS, _OUTPUT_BYTES // output))
        self._sequences = 1 if is_alone else _SEQUENCES
        self._context: Context | None = None
        self._batch = Batch(self._budget)

    @property
    def n_embd(self) -> int:
        """The length of a vector."""
        return self.model.n_embd_out

    @property
    def pooling(self) -> str:
        """How the vectors of an input's tokens become one: "mean", "cls", "last", or "rank" for scores."""
        trained = self.model.pooling
        return DEFAULT_POOLING if trained in (None, "none") else trained

    @property
    def pooling_source(self) -> str:
        """Who chose the pooling: "model", or "nrvna" where the model does not say."""
        return "nrvna" if self.model.pooling in (None, "none") else "model"

    def tokenize(self, text: str) -> list[int]:
        """The tokens of an input, with those that the model wants around it. Text that names control tokens stays
        text. Raises JobError if there are none, or more than the model takes."""
        return self._checked(self.model.tokenize(text))

    def tokenize_pair(self, query: str, document: str) -> list[int]:
        """The tokens that ask a reranker how well a document answers a query. Raises JobError as :meth:`tokenize`."""
        model = self.model
        if model.rerank_template is not None:
            return self._checked(self._fill(model.rerank_template, {"query": query, "document": document}))
        end = model.sep if model.eos is None else model.eos
        start = [model.bos] if model.adds_bos else []
        ends = [end] if model.adds_eos else []
        middle = [*ends, model.sep] if model.adds_sep else ends
        parts = (model.tokenize(text, add_special=False) for text in (query, document))
        tokens = [*start, *next(parts), *middle, *next(parts), *ends]
        return self._checked([token for token in tokens if token is not None])

    def _fill(self, template: str, texts: dict[str, str]) -> list[int]:
        """The template's control tokens parsed, those that a text names left as text."""
        model = self.model
        if not any(self._names_special(text) for text in texts.values()):
            rendered = _PLACEHOLDER.sub(lambda found: texts[found[1]], template)
            return model.tokenize(rendered, add_special=False, parse_special=True)
        tokens: list[int] = []
        for index, part in enumerate(_PLACEHOLDER.split(template)):
            text = texts[part] if index % 2 else part
            tokens += model.tokenize(text, add_special=False, parse_special=not index % 2)
        return tokens

    def _names_special(self, text: str) -> bool:
        plain = self.model.tokenize(text, add_special=False)
        return plain != self.model.tokenize(text, add_special=False, parse_special=True)

    def _checked(self, tokens: list[int]) -> list[int]:
        if not tokens:
            raise JobError("the input makes no tokens: there is nothing to embed")
        if len(tokens) > self.longest:
            raise JobError(
                f"the input has {len(tokens)} tokens, but {self.model.path.name} takes {self.longest} at most: "
                "split it into several"
            )
        return tokens

    def embed(self, inputs: Sequence[list[int]]) -> list[Vector]:
        """A vector of length 1 for each input, in their order, shape (n_embd,).

        Raises JobError for an input that is too long or for which there is not the memory, and for a model that
        ranks; DecodeError if llama.cpp fails.
        """
        if self.can_rerank:
            raise JobError(f"{self.model.path.name} ranks documents: it makes no embeddings")
        return [_normalised(vector) for vector in self._compute(inputs)]

    def rerank(self, pairs: Sequence[list[int]]) -> list[float]:
        """The score of each pair of :meth:`tokenize_pair`, in their order: the higher, the better it answers.

        Where the model gives several scores it is the first of them, as in llama-server. Raises as :meth:`embed`.
        """
        if not self.can_rerank:
            raise JobError(f"{self.model.path.name} cannot rank: take a reranker, such as bge-reranker-v2-m3")
        return [float(scores[0]) for scores in self._compute(pairs)]

    def _compute(self, inputs: Sequence[list[int]]) -> list[Vector]:
        for tokens in inputs:
            self._checked(tokens)
        found: list[Vector] = []
        self._make_room(max(map(len, inputs), default=0))
        for group in self._groups(inputs):
            found += self._compute_long(group[0]) if len(group[0]) > self._batch.capacity else self._run(group)
        return found

    def _groups(self, inputs: Sequence[list[int]]) -> Iterator[list[list[int]]]:
        """Inputs that are computed together, in their order; one that is longer comes by itself."""
        group: list[list[int]] = []
        count = 0
        for tokens in inputs:
            full = len(group) == self._sequences or count + len(tokens) > self._budget
            if group and full:
                yield group
                group, count = [], 0
            group.append(tokens)
            count += len(tokens)
        if group:
            yield group

    def _run(self, group: list[list[int]]) -> list[Vector]:
        """What comes of inputs that are computed together."""
        context, batch = self._opened, self._batch
        context.clear()
        batch.clear()
        ends = [batch.add(tokens, position=0, sequence=number) + 1 for number, tokens in enumerate(group)]
        self._decode()
        if context.pooling == "rank":
            return [context.embedding(number).copy() for number in range(len(group))]
        rows = context.token_embeddings()
        return [
            _pooled([rows[end - len(tokens) : end]], self.pooling) for tokens, end in zip(group, ends, strict=True)
        ]

    def _compute_long(self, tokens: list[int]) -> list[Vector]:
        """What comes of an input that is computed in pieces, each behind the ones before it."""
        context, batch = self._opened, self._batch
        context.clear()
        pieces = []
        for start in range(0, len(tokens), batch.capacity):
            batch.clear()
            batch.add(tokens[start : start + batch.capacity], position=start)
            self._decode()
            if context.pooling != "rank":
                pieces.append(context.token_embeddings().copy())
        return [_pooled(pieces, self.pooling) if pieces else context.embedding(0).copy()]

    def _decode(self) -> None:
        compute: Callable[[Batch], None] = self._opened.decode if self.model.has_decoder else self._opened.encode
        compute(self._batch)

    @property
    def _opened(self) -> Context:
        assert self._context is not None
        return self._context

    def _make_room(self, longest: int) -> None:
        """Have a context for inputs of that many tokens. Raises JobError where the memory is not there."""
        cells = max(self._budget, padded(longest))
        batch = self._budget if self._in_pieces else max(self._budget, min(cells, self.longest))
        if self._context is not None and self._context.n_ctx_seq >= cells:
            return
        self.close()
        model = self.model
        # The outputs, and in a model that writes the logits once more before they become outputs.
        needed = 2 * _FLOAT * batch * (model.n_vocab + model.n_embd_out)
        needed += model.kv_cache_bytes(cells) if self._in_pieces else 0
        there = available_memory()
        if needed > there:
            raise JobError(
                f"an input of {longest} tokens needs about {needed / 1e9:.1f} GB to be computed, and "
                f"{there / 1e9:.1f} GB are free: split it into several"
            )
        self._context = Context(
            model,
            n_ctx=cells,
            n_seq_max=self._sequences,
            n_batch=batch,
            n_ubatch=batch,
            threads=self._threads,
            kv_unified=True,
            embeddings=True,
            pooling="rank" if self.can_rerank else "none",
        )
        self._batch = Batch(batch)

    def close(self) -> None:
        """Free what was taken to compute; a later input takes it again. The model stays."""
        if self._context is not None:
            self._context.close()
            self._context = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _pooled(pieces: list[Vector], pooling: str) -> Vector:
    """One vector of an input's rows, which may come in pieces. A copy: the rows are llama.cpp's memory."""
    if pooling == "cls":
        pooled: Vector = pieces[0][0].copy()
    elif pooling == "last":
        pooled = pieces[-1][-1].copy()
    else:
        total = sum(piece.sum(axis=0, dtype=np.float64) for piece in pieces)
        pooled = (total / sum(map(len, pieces))).astype(np.float32)
    return pooled


def _normalised(vector: Vector) -> Vector:
    """The vector of length 1 in its direction; zeros stay. Raises JobError where it holds what is no number."""
    length = float(np.linalg.norm(vector.astype(np.float64)))
    if not np.isfinite(length):
        raise JobError("the model computed no numbers for this input: its weights may be damaged")
    return vector if length == 0 else vector * np.float32(1 / length)
