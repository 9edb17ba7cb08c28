"""The engine: requests in, pieces of text and receipts out, one decode a step."""

from __future__ import annotations

import codecs
import secrets
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from nrvna import __version__
from nrvna.config import MAX_SEED, Sampling
from nrvna.engine.runner import BATCH_TOKENS, Runner
from nrvna.engine.scheduler import Scheduler
from nrvna.engine.sequence import Sequence
from nrvna.job import Receipt, timestamp


@dataclass(frozen=True)
class Request:
    """A prompt to answer, with an optional system message; ``queued`` goes into the receipt as it is."""

    id: str
    prompt: str
    queued: str
    system: str | None
    sampling: Sampling


@dataclass(frozen=True)
class Event:
    """What a step did for one request: ``text`` is new text of its answer.

    Once it is finished, ``answer`` is all of it and ``receipt`` is set.
    """

    id: str
    text: str
    answer: str = ""
    receipt: Receipt | None = None


class _Work:
    """A request on its way: its sequence, and what the receipt needs."""

    def __init__(self, request: Request, sampling: Sampling, sequence: Sequence) -> None:
        self.request = request
        self.sampling = sampling
        self.sequence = sequence
        self.started = 0.0
        self.first_token: float | None = None
        self.pieces: list[str] = []
        # Characters may span tokens: bytes that end within one wait here for the rest.
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")


class Engine:
    """Answers requests with a runner, as many at a time as it has slots. ``model`` goes into the receipts."""

    def __init__(self, runner: Runner, model: dict[str, Any]) -> None:
        self._runner = runner
        self._model = model
        shape = runner.shape
        self._scheduler = Scheduler(slots=shape.slots, context=shape.context, budget=BATCH_TOKENS)
        self._works: dict[Sequence, _Work] = {}

    @property
    def is_idle(self) -> bool:
        return len(self._scheduler) == 0

    def add(self, request: Request) -> None:
        """Take a request in. Raises JobError or TemplateError if it can never be answered."""
        prompt = self._runner.prompts.encode(request.prompt, request.system, context=self._scheduler.context)
        sampling = request.sampling
        if sampling.seed is None:
            sampling = replace(sampling, seed=secrets.randbelow(MAX_SEED + 1))
        sequence = Sequence(request.id, prompt, sampling.predict)
        self._scheduler.add(sequence)
        self._works[sequence] = _Work(request, sampling, sequence)

    def start(self) -> list[str]:
        """Begin the requests for which there is a slot; returns their ids. A step does this too if nobody did."""
        admitted = self._scheduler.admit()
        for sequence in admitted:
            work = self._works[sequence]
            work.started = time.time()
            assert sequence.slot is not None
            self._runner.start(sequence.slot, work.sampling, sequence.prompt)
        return [sequence.id for sequence in admitted]

    def step(self) -> list[Event]:
        """Plan a batch, decode it, sample from it. Raises DecodeError; the engine is then of no more use."""
        self.start()
        plan = self._scheduler.plan()
        if not plan:
            return []
        indices = self._runner.decode(plan)
        sampled = [
            (self._works[chunk.sequence], self._sample(chunk.sequence, index))
            for chunk, index in zip(plan, indices, strict=True)
            if chunk.output
        ]
        return [self._advance(work, token) for work, token in sampled]

    def _sample(self, sequence: Sequence, index: int) -> int:
        assert sequence.slot is not None
        return self._runner.sample(sequence.slot, index)

    def _advance(self, work: _Work, token: int) -> Event:
        sequence, model = work.sequence, self._runner.model
        if work.first_token is None:
            work.first_token = time.time()
        sequence.append(token, ends=model.is_end(token), context=self._scheduler.context)
        piece = b"" if sequence.finish_reason == "stop" else model.piece(token)
        text = work.decoder.decode(piece, final=sequence.finish_reason is not None)
        work.pieces.append(text)
        if sequence.finish_reason is None:
            return Event(sequence.id, text)
        assert sequence.slot is not None
        self._runner.stop(sequence.slot)
        self._scheduler.release(sequence)
        del self._works[sequence]
        return Event(sequence.id, text, "".join(work.pieces), self._receipt(work))

    def _receipt(self, work: _Work) -> Receipt:
        finished = time.time()
        sequence = work.sequence
        assert sequence.finish_reason is not None and work.first_token is not None
        return Receipt(
            id=sequence.id,
            finish_reason=sequence.finish_reason,
            queued=work.request.queued,
            started=timestamp(work.started),
            first_token=timestamp(work.first_token),
            finished=timestamp(finished),
            prompt_tokens=len(sequence.prompt),
            generated_tokens=len(sequence.generated),
            tokens_per_second=round(len(sequence.generated) / max(1e-6, finished - work.started), 2),
            sampling=asdict(work.sampling),
            model=self._model,
            template=self._runner.prompts.source,
            llama_cpp=self._runner.build.commit,
            nrvna=__version__,
        )
