"""Jobs that want vectors or scores: computed some at a time, by themselves or between the steps of answers."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nrvna import __version__
from nrvna.engine.embedder import Embedder
from nrvna.engine.engine import Event, Start
from nrvna.engine.tally import Tally
from nrvna.engine.vector import to_json, to_npy
from nrvna.engine.work import Request
from nrvna.errors import JobError, reason_of
from nrvna.job import Receipt, timestamp
from nrvna.task import EMBED, RERANK

# Computed in one step: enough to fill a batch with short texts, few enough that others need not wait long.
AT_ONCE = 32


class VectorWork(NamedTuple):
    """A request and its inputs as tokens: one to embed, or one for each document to rank."""

    request: Request
    inputs: list[list[int]]


class Vectors:
    """Answers requests of the kinds "embed" and "rerank"; the counterpart of :class:`Engine`, with the same verbs.

    ``embedder`` makes the embedder when the first such request comes: it takes memory. ``about`` are fields that
    every receipt has.
    """

    def __init__(self, embedder: Callable[[], Embedder], about: dict[str, Any], *, gated: bool = False) -> None:
        self._make_embedder = embedder
        self._embedder: Embedder | None = None
        self._making = threading.Lock()
        self._about = about
        self._gated = gated
        self._waiting: deque[VectorWork] = deque()
        self._awaiting_go: dict[str, VectorWork] = {}
        self._ready: list[VectorWork] = []
        self.tally = Tally()

    @property
    def is_idle(self) -> bool:
        return not (self._waiting or self._awaiting_go or self._ready)

    @property
    def is_held_up(self) -> bool:
        return bool(self._awaiting_go) and not self._ready

    @property
    def patience_s(self) -> float:
        return 0.0

    def add(self, request: Request) -> None:
        """Take a request in: :meth:`read` and :meth:`take` in one."""
        self.take(self.read(request))

    def read(self, request: Request) -> VectorWork:
        """Turn a request into tokens, on any thread. Raises JobError if it can never be answered."""
        embedder = self._opened
        if request.task.kind == RERANK:
            if not embedder.can_rerank:
                raise JobError(
                    "this model cannot rank: start nrvnad with one made for it, such as bge-reranker-v2-m3"
                )
            pairs = (embedder.tokenize_pair(request.prompt, document) for document in request.task.documents)
            return VectorWork(request, list(pairs))
        if embedder.can_rerank:
            raise JobError("this model ranks documents and makes no embeddings: queue with `wrk --rerank FILE`")
        return VectorWork(request, [embedder.tokenize(request.prompt)])

    def take(self, work: VectorWork) -> None:
        """Take in what was read."""
        ahead = sum(other.request.priority >= work.request.priority for other in self._waiting)
        self._waiting.insert(ahead, work)

    def discard(self, _: VectorWork, /) -> None:
        """Free what reading a request has made, where it is not taken: nothing here."""

    def start(self) -> dict[str, Start]:
        """Begin the next requests; returns them by id. Unless gated, a step does this too."""
        begun = {}
        while self._waiting and len(self._awaiting_go) + len(self._ready) < AT_ONCE:
            work = self._waiting.popleft()
            begun[work.request.id] = Start("", 0, 0)
            self._awaiting_go[work.request.id] = work
        return begun

    def go(self, ids: Iterable[str]) -> None:
        """Let requests that started be computed from now on; others are passed over."""
        self._ready += [work for name in ids if (work := self._awaiting_go.pop(name, None))]

    def drop(self, name: str) -> None:
        """Forget a request, wherever it is; one that is not there any more is passed over."""
        self._awaiting_go.pop(name, None)
        self._waiting = deque(work for work in self._waiting if work.request.id != name)
        self._ready = [work for work in self._ready if work.request.id != name]

    def rest(self) -> None:
        """Give back the memory that computing takes; it is taken again when it is needed."""
        if self._embedder is not None:
            self._embedder.close()

    def step(self) -> list[Event]:
        """Compute those that have their go. Raises MemoryError."""
        if not self._gated:
            self.go(self.start())
        ready, self._ready = self._ready, []
        if not ready:
            return []
        self.tally.steps += 1
        started = time.time()
        embeds = [work for work in ready if work.request.task.kind == EMBED]
        try:
            vectors = self._opened.embed([work.inputs[0] for work in embeds])
            events = [self._embedded(work, vector, started) for work, vector in zip(embeds, vectors, strict=True)]
        except MemoryError:
            raise
        except Exception:
            # One of them: the others have nothing to do with it.
            events = [self._answered(work, self._embedded_alone, started) for work in embeds]
        rankings = (work for work in ready if work.request.task.kind == RERANK)
        return events + [self._answered(work, self._ranked, started) for work in rankings]

    @property
    def _opened(self) -> Embedder:
        with self._making:
            if self._embedder is None:
                self._embedder = self._make_embedder()
            return self._embedder

    def _answered(self, work: VectorWork, answer: Callable[[VectorWork, float], Event], started: float) -> Event:
        try:
            return answer(work, started)
        except MemoryError:
            raise
        except JobError as error:
            return self._event(work, "", started, error=str(error))
        except Exception as error:
            asked = work.request
            failure = Receipt.of_failure(asked.id, asked.queued, reason_of(error))
            return Event(asked.id, receipt=failure._replace(**self._about))

    def _embedded_alone(self, work: VectorWork, started: float) -> Event:
        [vector] = self._opened.embed(work.inputs)
        return self._embedded(work, vector, started)

    def _embedded(self, work: VectorWork, vector: NDArray[np.float32], started: float) -> Event:
        return self._event(work, to_json(vector) + "\n", started, vector)

    def _ranked(self, work: VectorWork, started: float) -> Event:
        scores, task = self._opened.rerank(work.inputs), work.request.task
        documents = zip(scores, task.document_numbers, task.documents, strict=True)
        best_first = sorted(documents, key=lambda row: -row[0])
        lines = [f"{score:.6f}\t{number}\t{document}\n" for score, number, document in best_first]
        return self._event(work, "".join(lines), started, np.array(scores, np.float32))

    def _event(
        self,
        work: VectorWork,
        answer: str,
        started: float,
        vector: NDArray[np.float32] | None = None,
        error: str | None = None,
    ) -> Event:
        request, finished = work.request, time.time()
        receipt = Receipt(
            id=request.id,
            finish_reason="error" if error else "stop",
            queued=request.queued,
            started=timestamp(started),
            finished=timestamp(finished),
            nrvna=__version__,
            prompt_tokens=sum(map(len, work.inputs)),
            generated_tokens=0,
            task=request.task.to_dict(),
            notes={"pooling": self._opened.pooling, "pooling_source": self._opened.pooling_source},
            error=error,
            **self._about,
        )
        beside = {} if vector is None else {"result.npy": to_npy(vector)}
        return Event(request.id, answer=answer, receipt=receipt, beside=beside)
