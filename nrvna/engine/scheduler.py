"""Who goes next, and what need not be computed again: pure Python over sequences, no model and no handles.

It does not decide what a token is or when a sequence ends; it decides which tokens go into the next batch, and which
sequence begins with the cached tokens of another.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from nrvna.engine.cells import Cells
from nrvna.engine.sequence import Sequence

# Fewer tokens in common are computed again: not worth a copy, nor a place in the line.
MIN_SHARED = 16
# How many that came later may start before a sequence does.
MAX_OVERTAKEN = 16


@dataclass(frozen=True)
class Chunk:
    """Consecutive tokens of one sequence in a batch. ``output``: the token after the last of them is wanted."""

    sequence: Sequence
    count: int
    output: bool


@dataclass(frozen=True)
class Move:
    """A change to the KV cache: ``slot`` holds the first ``keep`` tokens of ``source`` and nothing else.

    ``source`` None is the slot itself.
    """

    slot: int
    keep: int = 0
    source: int | None = None


class _Choice(NamedTuple):
    """Who starts: a place in line, and the slot that holds the first ``cached`` tokens already."""

    place: int
    source: int | None
    cached: int


class Scheduler:
    """Continuous batching over slots of the KV cache, with room for ``context`` tokens a sequence.

    At most ``parallel`` sequences run at once. A step's batch holds the next token of each, then as much of the
    waiting prompts as fits the ``budget`` of tokens, in the order they started: a long prompt holds the others up by
    no more than one step at a time. ``slots``, at least ``parallel``, is how many sequences the KV cache tells apart:
    one that is finished leaves its prompt there, until the slot is needed for another, least recently used first.

    ``cells`` is the size of a KV cache that all slots share; None gives each slot ``room`` for so many tokens, or for
    a whole context if that is None too. A sequence starts only if all it may come to hold fits beside all that the
    others may: it then never runs out of room.

    With ``share``, a sequence whose prompt begins as one that is in the cache starts behind a copy of these tokens,
    and one that begins as a prompt being computed waits for it. Of the first ``look_ahead`` in line the one with most
    tokens to reuse starts first, but none before one of a higher priority, and nobody is overtaken more than
    MAX_OVERTAKEN times.

    A sequence that is not ``cleared`` starts as others do, but is left out of the plans until it is. Those that run
    together have the same adapter; others wait for their end, though no longer than MAX_OVERTAKEN allows.
    """

    def __init__(
        self,
        *,
        parallel: int,
        context: int,
        budget: int,
        slots: int = 0,
        cells: int | None = None,
        room: int | None = None,
        share: bool = True,
        look_ahead: int = 64,
    ) -> None:
        self.context = context
        self._budget = budget
        self._share = share
        self._look_ahead = look_ahead
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self.rearrange(parallel=parallel, slots=slots, cells=cells, room=room)

    def rearrange(self, *, parallel: int, slots: int = 0, cells: int | None = None, room: int | None = None) -> None:
        """Go on with another KV cache, an empty one: who runs starts over, first in line."""
        if self._budget < parallel:
            raise ValueError(
                f"a budget of {self._budget} tokens a step cannot hold a token for each of {parallel} sequences"
            )
        if cells is not None and cells < self.context:
            raise ValueError(f"{cells} cells cannot hold a sequence of {self.context} tokens")
        for sequence in reversed(self._running):
            sequence.slot = None
            sequence.n_past = 0
            self._waiting.appendleft(sequence)
        self._running.clear()
        slots = max(slots, parallel)
        self.parallel = parallel
        self._cells = Cells(cells, slots) if cells is not None else None
        self._room = self.context if room is None else room
        # What each slot holds: the prompt of a sequence, running or done, as far as its n_past says.
        self._held: list[Sequence | None] = [None] * slots
        # Slots without a running sequence, the least recently used first.
        self._idle = list(range(slots))
        self._moves: list[Move] = []
        # After the cache turned out fuller than thought, nobody starts before somebody ends.
        self._is_full = False

    def __len__(self) -> int:
        """Sequences waiting and running."""
        return len(self._waiting) + len(self._running)

    @property
    def running(self) -> tuple[Sequence, ...]:
        return tuple(self._running)

    @property
    def is_held_up(self) -> bool:
        """Whether nothing can be planned until somebody who started is cleared."""
        return bool(self._running) and not any(sequence.cleared for sequence in self._running)

    @property
    def waiting(self) -> tuple[Sequence, ...]:
        return tuple(self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the line, or before those of a lower priority.

        Raises ValueError if its prompt leaves no room for an answer.
        """
        if not 0 < len(sequence.prompt) < self.context:
            raise ValueError(f"{len(sequence.prompt)} prompt tokens in a context of {self.context}")
        place = len(self._waiting)
        while place and self._waiting[place - 1].priority < sequence.priority:
            place -= 1
        self._waiting.insert(place, sequence)

    def admit(self) -> list[Sequence]:
        """Start those who wait, as far as there is room; returns who starts now."""
        started = []
        while self._waiting and len(self._running) < self.parallel and not self._is_full:
            choice = self._choose()
            if choice is None:
                break
            started.append(self._start(choice))
        if self._share and self._cells is None and not self._waiting:
            self._close_gaps()
        return started

    def plan(self) -> list[Chunk]:
        """The next batch, by slots. Empty only if nothing runs that is cleared."""
        cleared = [sequence for sequence in self._running if sequence.cleared]
        plan = [Chunk(sequence, 1, output=True) for sequence in cleared if not sequence.is_prefilling]
        left = self._budget - len(plan)
        for sequence in cleared:
            if sequence.is_prefilling and left:
                missing = sequence.n_pending
                count = min(missing, left)
                plan.append(Chunk(sequence, count, output=count == missing))
                left -= count
        if self._cells is not None:
            needed = sum(chunk.count for chunk in plan)
            while self._cells.free < needed:
                self._forget(next(slot for slot in self._idle if self._held[slot]))
        # Neighbours in the batch are neighbours in the cache, see _close_gaps.
        plan.sort(key=lambda chunk: -1 if chunk.sequence.slot is None else chunk.sequence.slot)
        return plan

    def take_moves(self) -> list[Move]:
        """The changes to the KV cache that must be made, in this order, before the plan is decoded."""
        moves, self._moves = self._moves, []
        return moves

    def decoded(self, plan: list[Chunk]) -> None:
        """The plan's tokens are in the cache now."""
        for chunk in plan:
            if self._cells is not None:
                self._cells.take(_slot(chunk.sequence), chunk.count)
            chunk.sequence.n_past += chunk.count

    def release(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is. Its prompt stays in the cache for others to begin with."""
        if sequence.slot is None:
            self._waiting.remove(sequence)
            return
        self._is_full = False
        self._vacate(sequence, min(sequence.n_past, len(sequence.prompt)) if self._share else 0)

    def shed(self) -> bool:
        """Make room where the cache had less than thought: forget what only rests there, else put the last started
        back to the head of the line, where it waits for another one's end. False if there is nothing to shed."""
        resting = [slot for slot in self._idle if self._held[slot]]
        for slot in resting:
            self._forget(slot)
        if resting:
            return True
        if len(self._running) < 2:
            return False
        sequence = self._running[-1]
        self._vacate(sequence, 0)
        sequence.n_past = 0
        self._waiting.appendleft(sequence)
        self._is_full = True
        return True

    # Choosing.

    def _choose(self) -> _Choice | None:
        """Who starts next, if anybody can."""
        best: _Choice | None = None
        for place, sequence in enumerate(islice(self._waiting, self._look_ahead)):
            # Whoever came earlier was overtaken at least as often: those whose turn it is stand at the head.
            is_due = sequence.overtaken >= MAX_OVERTAKEN
            source, cached = self._longest_held(sequence)
            if not is_due and self._being_computed(sequence) - cached >= MIN_SHARED:
                continue
            if best and sequence.priority < self._waiting[best.place].priority:
                break
            fits = self._suits(sequence) and self._fits(sequence, source, cached)
            if fits and (best is None or cached >= best.cached + MIN_SHARED):
                best = _Choice(place, source, cached)
            if is_due:
                break
        return best

    def _longest_held(self, sequence: Sequence) -> tuple[int | None, int]:
        """The slot that holds most of a prompt's head, and how much; the last token is always computed."""
        best: tuple[int | None, int] = (None, 0)
        if not self._share:
            return best
        for slot, held in enumerate(self._held):
            if held is None:
                continue
            common = min(sequence.n_common(held), held.n_past, len(sequence.prompt) - 1)
            if common >= MIN_SHARED and common > best[1]:
                best = (slot, common)
        return best

    def _being_computed(self, sequence: Sequence) -> int:
        """How much of a prompt's head is in the prompts that are being computed now, in one of them at most."""
        if not self._share:
            return 0
        others = (other for other in self._running if other.n_past < len(other.prompt))
        longest = max((sequence.n_common(other) for other in others), default=0)
        return min(longest, len(sequence.prompt) - 1)

    def _suits(self, sequence: Sequence) -> bool:
        """Whether it can be computed together with those that run."""
        return all(other.adapter == sequence.adapter for other in self._running[:1])

    def _fits(self, sequence: Sequence, source: int | None, cached: int) -> bool:
        if self._cells is None:
            return sequence.most_tokens(self.context) <= self._room
        woken = self._cells.resting(source, cached) if source is not None else 0
        promised = sum(other.most_tokens(self.context) - other.n_past for other in self._running)
        return sequence.most_tokens(self.context) - cached + woken <= self._cells.count - self._cells.busy - promised

    # Slots.

    def _start(self, choice: _Choice) -> Sequence:
        place, source, cached = choice
        sequence = self._waiting[place]
        del self._waiting[place]
        for earlier in islice(self._waiting, place):
            earlier.overtaken += 1
        slot = self._slot_for(source)
        if slot == source:
            self._keep(slot, cached)
        else:
            self._forget(slot)
            if source is not None:
                self._moves[-1] = Move(slot, cached, source)
                if self._cells is not None:
                    self._cells.share(source, slot, cached)
                if source in self._idle:
                    self._idle.append(self._idle.pop(self._idle.index(source)))
        if self._cells is not None:
            self._cells.run(slot)
        self._idle.remove(slot)
        self._held[slot] = sequence
        sequence.slot = slot
        sequence.n_past = sequence.n_cached = cached
        self._running.append(sequence)
        return sequence

    def _slot_for(self, source: int | None) -> int:
        """The idle slot to give away: the least recently used, but rather not the one to copy from.

        Where each slot has cells of its own, the lowest, so that the running ones are neighbours in the cache.
        """
        others = [slot for slot in self._idle if slot != source] or self._idle
        if self._cells is None and self._running:
            return min(others)
        return others[0]

    def _close_gaps(self) -> None:
        """Let those who run be neighbours: where each has cells of its own, llama.cpp computes runs of slots at once.

        What rests in a gap is lost to this; with nobody waiting it is least likely to be missed. A cache whose
        prefixes cannot be shared is not trusted with copies here either.
        """
        while self._running:
            last = max(self._running, key=_slot)
            gap = min(self._idle, default=_slot(last))
            if gap >= _slot(last):
                break
            self._move(last, gap)

    def _move(self, sequence: Sequence, slot: int) -> None:
        left = _slot(sequence)
        self._moves += [Move(slot, sequence.n_past, left) if sequence.n_past else Move(slot), Move(left)]
        self._idle[self._idle.index(slot)] = left
        self._held[slot], self._held[left] = sequence, None
        sequence.slot = slot

    def _vacate(self, sequence: Sequence, keep: int) -> None:
        slot = _slot(sequence)
        self._running.remove(sequence)
        self._idle.append(slot)
        sequence.slot = None
        if self._cells is not None:
            self._cells.rest(slot)
        self._keep(slot, keep)
        if not keep:
            self._held[slot] = None

    def _keep(self, slot: int, length: int) -> None:
        self._moves.append(Move(slot, length))
        if self._cells is not None:
            self._cells.keep(slot, length)

    def _forget(self, slot: int) -> None:
        self._keep(slot, 0)
        self._held[slot] = None


def _slot(sequence: Sequence) -> int:
    assert sequence.slot is not None
    return sequence.slot
