"""One of a daemon's engines and the jobs that it has: who is at work in it, when it hangs, how it is started again.

What becomes of the jobs in the workspace is the daemon's to say.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from nrvna.engine.process import EngineProcess
from nrvna.engine.protocol import Ready
from nrvna.errors import speaks_of_memory
from nrvna.lease import Claim
from nrvna.limits import Limits, kills_for_memory
from nrvna.placement import Place

# A small model is there before this; of a large one it is said how far it is.
SAY_LOADING_EVERY_S = 2.0
_MAX_RESTART_DELAY_S = 30.0
# Engines in a row that died with jobs that they were not at: the next one is watched more closely.
_MAX_MYSTERIES = 2
# Beginnings of jobs that are remembered, to send those that begin alike the same way.
_MAX_BEGINNINGS = 256


@dataclass
class Held:
    """A job that an engine has. ``fresh`` is what was added to its answer and is not written down yet.

    Times are of the monotonic clock: ``since`` it was handed over, ``deadline`` when it has had its time.
    """

    claim: Claim
    since: float
    # It was handed from one engine to another.
    has_moved: bool = False
    # The engine is at it, as opposed to jobs that wait in it; and since when it turns its prompt into tokens.
    is_at_work: bool = False
    read_since: float | None = None
    # It gets another job's answer.
    has_joined: bool = False
    deadline: float | None = None
    fresh: list[bytes] = field(default_factory=list)


class End(NamedTuple):
    """How an engine ended, the end of its log, and what the next one may take if memory was what it wanted."""

    how: str
    last_words: str
    smaller: Limits | None


class Replica:
    """An engine at its place, started as often as it takes. ``start``, then ``listen`` again and again."""

    def __init__(self, path: Path, model: dict[str, Any], place: Place) -> None:
        self._path = path
        self._model = model
        self._stall_s = place.config.stall
        self.place = place
        # What its lines in the log begin with.
        self.prefix = f"[{place.name}] " if place.name else ""
        self.engine: EngineProcess | None = None
        self.ready: Ready | None = None
        self.was_ready = False
        # Why it could not start, since it was last ready.
        self.trouble: str | None = None
        # The part of the model that is read, and when that is said next.
        self.loaded = 0.0
        self.say_loading_at = 0.0
        self.has_ended = False
        self.is_hung = False
        self.jobs: dict[str, Held] = {}
        # How many of them cost nothing but their place in memory.
        self.joined = 0
        # Those that it would decode, once that is on record.
        self.unstarted: list[str] = []
        # What the engine takes memory for, and the most that the next one may.
        self._tried: Limits | None = None
        self._limits: Limits | None = None
        # How many engines in a row died with jobs, at work on none of them; and how many jobs it has yet to be at one
        # by one, since one of them must be what they died of.
        self._mysteries = 0
        self.one_by_one = 0
        self._kills_before = 0
        self._beginnings: dict[int, None] = {}
        self._heard_at = 0.0
        self._restart_at: float | None = None
        self.restart_delay = 1.0

    def start(self) -> None:
        """Raises OSError."""
        self._restart_at = None
        self.has_ended = False
        self.loaded = 0.0
        self.say_loading_at = time.monotonic() + SAY_LOADING_EVERY_S
        self._kills_before = kills_for_memory()
        place = self.place
        self.engine = EngineProcess(self._path, self._model, place.config, place.share, place.name, self._limits)

    @property
    def is_due(self) -> bool:
        """Whether it is time to start another engine."""
        return self._restart_at is not None and time.monotonic() >= self._restart_at

    @property
    def is_coming(self) -> bool:
        """Whether it answers jobs, or will soon as far as is known."""
        return self.trouble is None

    @property
    def is_alone(self) -> bool:
        """Whether it has a job that an engine died of: no other is to be at work beside it."""
        return any(held.claim.crashes for held in self.jobs.values())

    @property
    def parallel(self) -> int:
        return self.ready.parallel if self.ready else 0

    @property
    def free(self) -> int:
        """How many more jobs it could be at; negative where as many wait in it."""
        return self.parallel - (len(self.jobs) - self.joined)

    @property
    def waiting(self) -> list[Held]:
        """The jobs that it has not begun."""
        starting = set(self.unstarted)
        return [
            held
            for job_id, held in self.jobs.items()
            if not (held.is_at_work or held.has_joined or job_id in starting)
        ]

    @property
    def at_work(self) -> list[Claim]:
        return [held.claim for held in self.jobs.values() if held.is_at_work]

    @property
    def to_blame(self) -> list[Claim]:
        """Those that an engine which has died may have died of: what it was at, else the only one it had."""
        only = [held.claim for held in self.jobs.values()] if len(self.jobs) == 1 else []
        return self.at_work or only

    def knows(self, beginning: int) -> bool:
        """Whether it lately got a job that begins like this."""
        return beginning in self._beginnings

    def take(self, claim: Claim, request: dict[str, Any], beginning: int, *, moved: bool) -> None:
        """Let the engine have a job."""
        assert self.engine is not None
        now = time.monotonic()
        if not self.jobs:
            self._heard_at = now
        self.jobs[claim.id] = Held(claim, now, moved)
        self._beginnings.pop(beginning, None)
        self._beginnings[beginning] = None
        if len(self._beginnings) > _MAX_BEGINNINGS:
            del self._beginnings[next(iter(self._beginnings))]
        self.engine.send({"add": request})

    def release(self, job_id: str) -> None:
        """Forget a job, if it has it."""
        held = self.jobs.pop(job_id, None)
        self.joined -= held is not None and held.has_joined

    def drop(self, job_id: str) -> None:
        """Nothing more is wanted of a job: the engine need not go on."""
        if self.engine:
            self.engine.send({"drop": job_id})

    def go(self, claims: list[Claim]) -> None:
        """That these are begun is on record now."""
        now = time.monotonic()
        for claim in claims:
            held = self.jobs[claim.id]
            held.is_at_work = True
            held.deadline = now + claim.order.timeout if claim.order.timeout else None
        if self.engine:
            self.engine.send({"go": self.unstarted})
        self.unstarted = []

    def listen(self) -> Iterator[dict[str, Any]]:
        """What the engine said since (see engine/protocol.py), without waiting; ``has_ended`` if that was all."""
        if not self.engine:
            return
        self.engine.flush()
        self.engine.pass_on_log()
        messages = self.engine.receive()
        self.has_ended = messages is None
        if messages:
            self._heard_at = time.monotonic()
        for message in messages or ():
            self._note(message)
            if self.ready and ("ready" in message or "tries" in message):
                # It goes on after what it was short of until now: that is not what it dies of later.
                self.engine.forget_words()
            yield message

    def _note(self, message: dict[str, Any]) -> None:
        match message:
            case {"reads": job_id} if job_id in self.jobs:
                held = self.jobs[job_id]
                held.is_at_work, held.read_since = True, time.monotonic()
            case {"waits": job_id} if job_id in self.jobs:
                held = self.jobs[job_id]
                held.is_at_work, held.read_since = False, None
            case {"done": _} | {"refused": _}:
                self._mysteries = 0
                self.one_by_one = max(0, self.one_by_one - 1)
            case {"joins": job_id} if job_id in self.jobs:
                self.joined += not self.jobs[job_id].has_joined
                self.jobs[job_id].has_joined = True
            case {"starts": starts}:
                # Also if one was cancelled meanwhile: others may wait for its answer.
                self.unstarted += starts
            case {"loading": fraction}:
                self.loaded = fraction
            case {"tries": limits}:
                self._tried = Limits.from_dict(limits)
                if self.ready:
                    self.ready = replace(self.ready, parallel=self._tried.parallel)
            case {"ready": about}:
                self.ready, self.was_ready = Ready(**about), True
                self.trouble = None
                self.restart_delay = 1.0

    def end_if_hung(self) -> bool:
        """Kill an engine that has jobs and says nothing for long; whether it has just been done."""
        if not self.engine or not self.ready or self.is_hung or not self._stall_s:
            return False
        now = time.monotonic()
        silent_s = 0.0 if self.unstarted or not self.jobs else now - self._heard_at
        # While it answers others it may still never come to an end with this one.
        reading = [now - held.read_since for held in self.jobs.values() if held.read_since is not None]
        if max(silent_s, *reading, 0.0) <= self._stall_s:
            return False
        self.is_hung = True
        self.engine.kill()
        return True

    def bury(self) -> End:
        """Once the engine has ended. Another one is started when :attr:`is_due`, with less where memory was short.

        What it had are this replica's :attr:`jobs` still.
        """
        assert self.engine is not None
        engine, self.engine = self.engine, None
        self.ready, self.has_ended = None, False
        end = engine.wait()
        smaller = self._after_want_of_memory(end, engine.last_words)
        if self.is_hung:
            end, self.is_hung, smaller = f"no progress for {self._stall_s} s", False, None
        self.unstarted = []
        self._wonder(is_explained=smaller is not None)
        # What it had cached went with it.
        self._beginnings = {}
        if smaller:
            self._limits = smaller
            self._restart_at = time.monotonic()
        else:
            self.restart_later()
        return End(end, engine.last_words, smaller)

    def _wonder(self, *, is_explained: bool) -> None:
        """Where engines die with jobs that they were not at, let the next have one at a time, to find which it is."""
        if is_explained or self.to_blame or not self.jobs:
            return
        self._mysteries += 1
        if self._mysteries >= _MAX_MYSTERIES:
            self.one_by_one = len(self.jobs)

    def _after_want_of_memory(self, end: str, last_words: str) -> Limits | None:
        """What to try next, if this one died for want of memory and there is something less to take."""
        reads = any(held.read_since is not None for held in self.jobs.values())
        # What reading a prompt takes is that job's own matter.
        was_killed = end == "signal SIGKILL" and kills_for_memory() > self._kills_before
        if reads or not self._tried or not (was_killed or speaks_of_memory(last_words)):
            return None
        return self._tried.smaller(self.place.config.ctx)

    def restart_later(self) -> None:
        """Later each time that it does not work."""
        self._restart_at = time.monotonic() + self.restart_delay
        self.restart_delay = min(2 * self.restart_delay, _MAX_RESTART_DELAY_S)

    def dismiss(self) -> None:
        """Ask the engine to end, without waiting for that."""
        if self.engine:
            self.engine.dismiss()

    def stop(self, patience_s: float) -> None:
        """End the engine: ask, then kill."""
        if self.engine:
            self.engine.stop(patience_s)
            self.engine = None
