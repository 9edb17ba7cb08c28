"""The engine: requests in, pieces of text and receipts out, one decode a step."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from nrvna import __version__
from nrvna.engine.reader import Reader
from nrvna.engine.runner import Runner, Sampled
from nrvna.engine.scheduler import Chunk, Move, Scheduler
from nrvna.engine.sequence import Sequence
from nrvna.engine.tally import Tally
from nrvna.engine.work import AnswerWork, ChoiceWork, Request, Work
from nrvna.errors import ContextError, DecodeMemoryError, NoSlotError, reason_of
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
_NOTHING_BESIDE: Mapping[str, bytes] = {}


class Start(NamedTuple):
    """What there is to know of a request that starts, so that it can go on after an interruption.

    ``key`` says what its tokens belong to, ``seed`` is the one in force, also if it was drawn, and ``kept`` is how
    many tokens of the earlier attempt were taken over.
    """

    key: str
    seed: int
    kept: int


class Event(NamedTuple):
    """What a step did for one request: the token it sampled, with so many draws, and the new text, often none.

    Once it is finished, ``answer`` is all of it, ``receipt`` is set and ``beside`` holds files to stand beside it. A
    receipt with an error is of a request that failed in its own way.
    """

    id: str
    token: int = 0
    text: str = ""
    draws: int = 1
    answer: str = ""
    receipt: Receipt | None = None
    beside: Mapping[str, bytes] = _NOTHING_BESIDE


@dataclass(frozen=True)
class Joined:
    """A request that asks for the very same as an earlier one, whose ``text`` so far is its own too."""

    leader: str
    text: str


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
        self._reader = Reader(runner, {**runner.origin, "model": file, "nrvna": __version__}, gated=gated)
        layout = runner.layout
        self._scheduler = Scheduler(
            parallel=layout.parallel,
            slots=layout.slots,
            cells=layout.shared_cells,
            room=layout.room,
            context=runner.shape.context,
            budget=runner.batch_tokens,
            share=runner.shares,
        )
        runner.apply([Move(slot) for slot in range(layout.slots)])
        self._works: dict[Sequence, Work] = {}
        self._known: dict[object, Work] = {}
        self._awaiting_go: dict[str, Work] = {}
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
        """Take a request in: :meth:`read` and :meth:`take` in one."""
        return self.take(self.read(request))

    def read(self, request: Request) -> Work:
        """All that takes long before a request can begin; on any thread, also while others are being answered.

        Raises JobError or TemplateError if it can never be answered.
        """
        return self._reader.read(request)

    def take(self, work: Work) -> Joined | None:
        """Take in what was read. One that asks for the very same as another is joined to it, not computed again."""
        if work.identity:
            known = self._known.setdefault(work.identity, work)
            if known is not work:
                self.discard(work)
                known.requests += work.requests
                return Joined(known.requests[0].id, known.text_so_far)
        for sequence in work.sequences:
            self._scheduler.add(sequence)
            self._works[sequence] = work
        return None

    def discard(self, work: Work) -> None:
        """Free what reading a request has made. What cannot be freed costs memory and no answer."""
        if isinstance(work, AnswerWork):
            try:
                self._runner.end(work.sequence)
            except Exception:
                log.exception("the sampler of %s cannot be freed", work.sequence.id)

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
                    # It ran before, until the cache was divided anew or had no room, or another of its sequences did.
                    continue
                work.started = time.time()
                assert work.sampling.seed is not None
                begun[sequence.id] = Start(work.key, work.sampling.seed, work.kept)
                if not sequence.cleared:
                    self._awaiting_go[sequence.id] = work
        return begun

    def go(self, ids: Iterable[str]) -> None:
        """Let requests that started be decoded from now on; others are passed over."""
        for name in ids:
            if work := self._awaiting_go.pop(name, None):
                for sequence in work.sequences:
                    sequence.cleared = True

    def drop(self, name: str) -> None:
        """Forget a request, wherever it is; one that is not there any more is passed over."""
        for work in self._works.values():
            request = next((request for request in work.requests if request.id == name), None)
            if request is None:
                continue
            work.requests.remove(request)
            if not work.requests:
                self._forget(work)
                self._awaiting_go.pop(work.sequences[0].id, None)
            return

    def _forget(self, work: Work) -> None:
        """Free what a prompt on its way holds."""
        for sequence in work.sequences:
            if self._works.pop(sequence, None):
                self._scheduler.release(sequence)
        if self._known.get(work.identity) is work:
            del self._known[work.identity]
        self.discard(work)

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
        outputs = [(chunk.sequence, index) for chunk, index in zip(plan, indices, strict=True) if chunk.output]
        answers = [
            (work, index) for sequence, index in outputs if isinstance(work := self._works[sequence], AnswerWork)
        ]
        with self.tally.timed("sample"):
            sampled = self._runner.sample(answers)
        with self.tally.timed("emit"):
            self.tally.steps += 1
            self.tally.tokens += len(sampled)
            events: list[Event] = []
            for (work, _), found in zip(answers, sampled, strict=True):
                events += self._guarded(work, partial(self._advance, work, found))
            for sequence, index in outputs:
                if isinstance(choice := self._works.get(sequence), ChoiceWork):
                    events += self._guarded(choice, partial(self._advance_choice, choice, sequence, index))
            return events

    def _guarded(self, work: Work, advance: Callable[[], list[Event]]) -> list[Event]:
        """What a step did for one work: whatever it raises there is that work's own failure, and the others go on.

        Raises MemoryError, which is everybody's.
        """
        try:
            return advance()
        except MemoryError:
            raise
        except Exception as error:
            reason = reason_of(error)
            self._forget(work)
            failures = [Receipt.of_failure(request.id, request.queued, reason) for request in work.requests]
            return [Event(failure.id, receipt=failure._replace(model=self._model)) for failure in failures]

    def _decode(self, plan: list[Chunk]) -> list[int] | None:
        """The index of each chunk's output; None if there was no room, and some was made for the next step."""
        self._runner.apply(self._scheduler.take_moves())
        try:
            indices = self._runner.decode(plan)
        except DecodeMemoryError as error:
            # Who runs goes on from its tokens, with fewer beside it.
            if not self._runner.shrink((*self._scheduler.running, *self._scheduler.waiting), error):
                raise
            self._rearrange()
            return None
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
        self._rearrange()

    def _rearrange(self) -> None:
        layout = self._runner.layout
        self._scheduler.rearrange(
            parallel=layout.parallel, slots=layout.slots, cells=layout.shared_cells, room=layout.room
        )

    def _advance(self, work: AnswerWork, found: Sampled) -> list[Event]:
        token, draws, work.trouble = found
        if work.trouble:
            return self._complete(work)
        if work.first_token is None:
            work.first_token = time.time()
        ends = self._runner.model.is_end(token)
        text = work.take(token, draws, ends=ends, context=self._scheduler.context)
        if work.sequence.finish_reason is None:
            return [Event(request.id, token, text, draws) for request in work.requests]
        return [event._replace(token=token, text=text, draws=draws) for event in self._complete(work)]

    def _advance_choice(self, work: ChoiceWork, sequence: Sequence, index: int) -> list[Event]:
        complete = work.take_logits(sequence, self._runner.logits(index))
        del self._works[sequence]
        self._scheduler.release(sequence)
        return self._complete(work) if complete else []

    def _complete(self, work: Work) -> list[Event]:
        self._forget(work)
        self._until_settled -= 1
        return [
            Event(request.id, answer=answer, receipt=receipt, beside=beside)
            for request in work.requests
            for answer, receipt, beside in [work.complete(self._receipt(work, request))]
        ]

    def _receipt(self, work: Work, request: Request) -> Receipt:
        """What all kinds of work have to say."""
        finished = time.time()
        first = work.requests[0]
        generated = sum(len(sequence.generated) for sequence in work.sequences)
        return Receipt(
            id=request.id,
            finish_reason="stop",
            queued=request.queued,
            started=timestamp(work.started),
            first_token=timestamp(work.first_token) if work.first_token else None,
            finished=timestamp(finished),
            prompt_tokens=work.prompt_tokens,
            cached_tokens=work.sequences[0].n_cached if request is first else work.prompt_tokens,
            tokens_per_second=round((generated - work.kept) / max(1e-6, finished - work.started), 2),
            sampling=(work.sampling if request.sampling.seed is None else request.sampling).to_dict(),
            model=self._model,
            template=work.notes.get("template"),
            llama_cpp=self._runner.build.commit,
            kv_type=self._runner.kv_type,
            nrvna=__version__,
            same_as=None if request is first else first.id,
            reproducible=self._runner.is_reproducible,
            resumed_tokens=work.kept,
            task=request.task.to_dict() or None,
            notes={name: note for name, note in work.notes.items() if name != "template"} or None,
        )
