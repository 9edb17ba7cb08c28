"""The engine: requests in, pieces of text and receipts out, one decode a step."""

from __future__ import annotations

import codecs
import logging
import secrets
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from nrvna import __version__
from nrvna.config import MAX_SEED, Sampling
from nrvna.engine.layout import BATCH_TOKENS
from nrvna.engine.resume import key_of, read_attempt, usable_head
from nrvna.engine.runner import Runner
from nrvna.engine.scheduler import Chunk, Move, Scheduler
from nrvna.engine.sequence import Sequence
from nrvna.engine.tally import Tally
from nrvna.errors import ContextError, NoSlotError
from nrvna.job import Receipt, timestamp

log = logging.getLogger("nrvna.engine")

# Jobs that end before the KV cache may be divided anew, for each that runs at a time.
_SETTLED = 4
# How much more there must be to compute than is lost, for it to be divided anew.
_WORTH_A_CHANGE = 4
# How long to wait for another job before the first ones begin, for each token that they take to compute: a fortieth
# of what a small model needs on a CPU. Those that begin together share more, and the cache is divided once.
_PATIENCE_PER_TOKEN_S = 0.0002
_LEAST_PATIENCE_S, _MOST_PATIENCE_S = 0.01, 0.2


@dataclass(frozen=True)
class Request:
    """A prompt to answer, with an optional system message; ``queued`` goes into the receipt as it is.

    ``resume`` is what is on record of an attempt that was interrupted, ``{"key", "seed", "tokens"}`` with what
    :class:`Start` and the events told. It need not be right: what does not fit is not used.
    """

    id: str
    prompt: str
    queued: str
    system: str | None
    sampling: Sampling
    resume: object = None


class Start(NamedTuple):
    """What there is to know of a request that starts, so that it can go on after an interruption.

    ``key`` says what its tokens belong to, ``seed`` is the one in force, also if it was drawn, and ``kept`` is how
    many tokens of the earlier attempt were taken over.
    """

    key: str
    seed: int
    kept: int


class Event(NamedTuple):
    """What a step did for one request: the token it sampled, and the new text of its answer, often none.

    Once it is finished, ``answer`` is all of it and ``receipt`` is set.
    """

    id: str
    token: int
    text: str
    answer: str = ""
    receipt: Receipt | None = None


@dataclass(frozen=True)
class Joined:
    """A request that asks for the very same as an earlier one, whose ``text`` so far is its own too."""

    leader: str
    text: str


class _Work:
    """A prompt on its way: its sequence, the requests that it answers, and what their receipts need."""

    def __init__(self, request: Request, sequence: Sequence) -> None:
        asked = request.sampling
        self.requests = [request]
        self.sampling = asked
        self.sequence = sequence
        # What makes two requests the same; None where a repetition is meant to differ.
        self.identity = None
        if asked.is_repeatable:
            self.identity = (sequence.key, replace(asked, seed=None) if asked.temp == 0 else asked)
        self.key = ""
        self.kept = 0
        self.started = 0.0
        self.first_token: float | None = None
        self.pieces: list[str] = []
        # Characters may span tokens: bytes that end within one wait here for the rest.
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def extend(self, piece: bytes, *, final: bool = False) -> str:
        """Add the bytes of a token; returns the text that is new with it."""
        text = self.decoder.decode(piece, final)
        self.pieces.append(text)
        return text


class Engine:
    """Answers requests with a runner, as many at a time as suits it. ``model`` goes into the receipts.

    ``tally`` tells where the time of the steps goes; whoever reads it may put a new one in its place.

    With ``gated``, requests start only in :meth:`start`, and nothing of them is decoded before :meth:`go`: in between
    it can be put on record that they were begun.
    """

    def __init__(self, runner: Runner, model: dict[str, Any], *, gated: bool = False) -> None:
        self._runner = runner
        self._model = model
        self._gated = gated
        # Where the model lies does not change what it answers.
        file = {name: value for name, value in model.items() if name != "path"}
        self._origin = {**runner.origin, "model": file, "nrvna": __version__}
        layout = runner.layout
        self._scheduler = Scheduler(
            parallel=layout.parallel,
            slots=layout.slots,
            cells=layout.shared_cells,
            room=layout.room,
            context=runner.shape.context,
            budget=BATCH_TOKENS,
            share=runner.shares,
        )
        runner.apply([Move(slot) for slot in range(layout.slots)])
        self._works: dict[Sequence, _Work] = {}
        self._known: dict[tuple[bytes, Sampling], _Work] = {}
        self._awaiting_go: dict[str, Sequence] = {}
        self._until_settled = 0
        self.tally = Tally()

    @property
    def is_idle(self) -> bool:
        return len(self._scheduler) == 0

    @property
    def is_held_up(self) -> bool:
        """Whether a step would do nothing until some requests that started are given their go."""
        return self._scheduler.is_held_up

    def add(self, request: Request) -> Joined | None:
        """Take a request in. One that asks for the very same as another is not computed again, but joined to it.

        Raises JobError or TemplateError if it can never be answered.
        """
        prompt = self._runner.prompts.encode(request.prompt, request.system, context=self._scheduler.context)
        work = _Work(request, Sequence(request.id, prompt, request.sampling.predict, cleared=not self._gated))
        if work.identity:
            known = self._known.setdefault(work.identity, work)
            if known is not work:
                known.requests.append(request)
                return Joined(known.requests[0].id, "".join(known.pieces))
        self._resume(work, request.resume)
        self._scheduler.add(work.sequence)
        self._works[work.sequence] = work
        return None

    def _resume(self, work: _Work, record: object) -> None:
        """Settle seed and key, and take over the tokens on record if they were generated for the very same."""
        sequence, asked, attempt = work.sequence, work.sampling, read_attempt(record)
        if attempt:
            work.sampling = replace(asked, seed=attempt.seed) if asked.seed is None else asked
            work.key = key_of(sequence.key, work.sampling, self._origin)
            if attempt.key == work.key:
                if self._runner.resumes:
                    self._take_over(work, attempt.tokens)
                return
        work.sampling = replace(asked, seed=secrets.randbelow(MAX_SEED + 1)) if asked.seed is None else asked
        work.key = key_of(sequence.key, work.sampling, self._origin)

    def _take_over(self, work: _Work, tokens: list[Any]) -> None:
        model, sequence = self._runner.model, work.sequence
        # One token at least is left to sample, else it would not have been unfinished.
        most = sequence.most_tokens(self._scheduler.context) - len(sequence.prompt) - 1
        sequence.generated = usable_head(tokens, most=most, n_vocab=model.n_vocab, is_end=model.is_end)
        work.kept = len(sequence.generated)
        for token in sequence.generated:
            work.extend(model.piece(token))

    @property
    def patience_s(self) -> float:
        """How long the next job of a pile is worth waiting for, before the first ones begin."""
        waiting = self._scheduler.waiting
        if self._runner.on_gpu or len(waiting) >= self._scheduler.parallel:
            return 0.0
        tokens = sum(sequence.n_pending for sequence in waiting)
        return min(_MOST_PATIENCE_S, max(_LEAST_PATIENCE_S, tokens * _PATIENCE_PER_TOKEN_S))

    def start(self) -> dict[str, Start]:
        """Begin the requests for which there is room; returns them by id. Unless gated, a step does this too."""
        begun = {}
        with self.tally.timed("plan"):
            self._choose_layout()
            for sequence in self._scheduler.admit():
                work = self._works[sequence]
                if work.started:
                    # It ran before, until the cache was divided anew or had no room.
                    continue
                work.started = time.time()
                self._runner.begin(sequence, work.sampling)
                assert work.sampling.seed is not None
                begun[sequence.id] = Start(work.key, work.sampling.seed, work.kept)
                if not sequence.cleared:
                    self._awaiting_go[sequence.id] = sequence
        return begun

    def go(self, ids: Iterable[str]) -> None:
        """Let requests that started be decoded from now on; others are passed over."""
        for name in ids:
            if sequence := self._awaiting_go.pop(name, None):
                sequence.cleared = True

    def drop(self, name: str) -> None:
        """Forget a request, wherever it is; one that is not there any more is passed over."""
        for sequence, work in self._works.items():
            request = next((request for request in work.requests if request.id == name), None)
            if request is None:
                continue
            work.requests.remove(request)
            if not work.requests:
                self._forget(work)
                self._awaiting_go.pop(sequence.id, None)
            return

    def _forget(self, work: _Work) -> None:
        """Free what a prompt on its way holds."""
        if work.started:
            self._runner.end(work.sequence)
        self._scheduler.release(work.sequence)
        del self._works[work.sequence]
        if work.identity:
            self._known.pop(work.identity, None)

    def step(self) -> list[Event]:
        """Plan a batch, decode it, sample from it. Raises DecodeError; the engine is then of no more use."""
        if not self._gated:
            self.start()
        with self.tally.timed("plan"):
            plan = self._scheduler.plan()
        if not plan:
            return []
        with self.tally.timed("decode"):
            indices = self._decode(plan)
        if indices is None:
            return []
        with self.tally.timed("sample"):
            rows = [(chunk.sequence, index) for chunk, index in zip(plan, indices, strict=True) if chunk.output]
            tokens = self._runner.sample(rows)
        with self.tally.timed("emit"):
            self.tally.steps += 1
            self.tally.tokens += len(tokens)
            return [
                event
                for (sequence, _), token in zip(rows, tokens, strict=True)
                for event in self._advance(self._works[sequence], token)
            ]

    def _decode(self, plan: list[Chunk]) -> list[int] | None:
        """The index of each chunk's output; None if there was no room, and some was made for the next step."""
        self._runner.apply(self._scheduler.take_moves())
        try:
            indices = self._runner.decode(plan)
        except NoSlotError:
            if not self._scheduler.shed():
                raise
            log.warning("the KV cache is fuller than thought: going on with %d jobs", len(self._scheduler.running))
            return None
        self._scheduler.decoded(plan)
        return indices

    def _choose_layout(self) -> None:
        """Divide the KV cache as suits what runs and waits; rarely, as what is in it is then lost."""
        scheduler, runner = self._scheduler, self._runner
        running, waiting = scheduler.running, scheduler.waiting
        if not waiting:
            return
        # Somebody's turn has come who has no room in this division, and the last others have made way.
        must = not running and waiting[0].most_tokens(scheduler.context) > runner.layout.room
        if self._until_settled > 0 and not must:
            return
        in_sight = (*running, *waiting)
        better = runner.layout_for(in_sight)
        if better == runner.layout:
            return
        lost = sum(sequence.n_past - sequence.n_cached for sequence in running)
        ahead = sum(sequence.n_pending + sequence.max_tokens - len(sequence.generated) for sequence in in_sight)
        if ahead < _WORTH_A_CHANGE * lost:
            return
        self._until_settled = _SETTLED * better.parallel
        try:
            runner.use(better)
            log.info("from here on %s", better)
        except ContextError as error:
            if must:
                raise
            log.warning("the KV cache stays as it is: %s", error)
        layout = runner.layout
        scheduler.rearrange(parallel=layout.parallel, slots=layout.slots, cells=layout.shared_cells, room=layout.room)

    def _advance(self, work: _Work, token: int) -> list[Event]:
        sequence, model = work.sequence, self._runner.model
        if work.first_token is None:
            work.first_token = time.time()
        sequence.append(token, ends=model.is_end(token), context=self._scheduler.context)
        piece = b"" if sequence.finish_reason == "stop" else model.piece(token)
        text = work.extend(piece, final=sequence.finish_reason is not None)
        if sequence.finish_reason is None:
            return [Event(request.id, token, text) for request in work.requests]
        self._forget(work)
        self._until_settled -= 1
        answer = "".join(work.pieces)
        return [Event(request.id, token, text, answer, self._receipt(work, request)) for request in work.requests]

    def _receipt(self, work: _Work, request: Request) -> Receipt:
        finished = time.time()
        sequence, first = work.sequence, work.requests[0]
        assert sequence.finish_reason is not None and work.first_token is not None
        return Receipt(
            id=request.id,
            finish_reason=sequence.finish_reason,
            queued=request.queued,
            started=timestamp(work.started),
            first_token=timestamp(work.first_token),
            finished=timestamp(finished),
            prompt_tokens=len(sequence.prompt),
            cached_tokens=sequence.n_cached if request is first else len(sequence.prompt),
            generated_tokens=len(sequence.generated),
            tokens_per_second=round((len(sequence.generated) - work.kept) / max(1e-6, finished - work.started), 2),
            sampling=asdict(work.sampling if request.sampling.seed is None else request.sampling),
            model=self._model,
            template=self._runner.prompts.source,
            llama_cpp=self._runner.build.commit,
            nrvna=__version__,
            same_as=None if request is first else first.id,
            reproducible=self._runner.is_reproducible,
            resumed_tokens=work.kept,
        )
