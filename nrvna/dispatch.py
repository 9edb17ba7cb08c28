"""Which engine gets which job: each has enough to do, jobs that begin alike go together, suspects run alone."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence

from nrvna.lease import Claim, Lease
from nrvna.replica import Held, Replica

# Jobs claimed beyond those that run, to find some among them that begin alike.
_LOOK_AHEAD = 24
_MAX_JOINED = 1000
# What waits in one of several engines for so long goes to another that has nothing to do.
MOVE_AFTER_S = 1.0
# The part of its slots by which an engine may be fuller than others for having the beginning of a job in its cache.
_UNEVENNESS = 4


class Dispatch:
    """Chooses among the engines of one daemon. It hands nothing over itself."""

    def __init__(self, replicas: Sequence[Replica], lease: Lease) -> None:
        self._replicas = replicas
        self._lease = lease
        # Claimed, but at work when an engine died: they wait until one can run alone.
        self.suspects: deque[Claim] = deque()
        # Whether another daemon answers the same jobs.
        self.has_peers = False

    @property
    def empty(self) -> list[Replica]:
        """The engines that are ready and have no job at all."""
        return [replica for replica in self._replicas if replica.ready and not replica.jobs]

    @property
    def vacancies(self) -> int:
        """How many more jobs the engines may have, taken together."""
        return sum(max(0, self._room(replica)) for replica in self._replicas)

    def takers(self) -> list[Replica]:
        """The engines that may have another job. One is left to become empty where suspects wait for that."""
        keeps_free: Replica | None = None
        if self.suspects:
            coming = [replica for replica in self._replicas if replica.is_coming] or self._replicas
            keeps_free = min(coming, key=lambda replica: (not replica.is_alone, len(replica.jobs)))
        return [
            replica
            for replica in self._replicas
            if replica is not keeps_free and not replica.is_alone and self._room(replica) > 0
        ]

    def moves(self, takers: Sequence[Replica]) -> Iterator[tuple[Held, Replica, Replica]]:
        """What has waited in one engine for a while and may go to another without enough to do, each job once.

        Yields the job, the engine that has it and the one to take it, which has it before the next is chosen.
        """
        if len(self._replicas) == 1:
            return
        patient = time.monotonic() - MOVE_AFTER_S
        for taker in takers:
            if taker.free <= 0 or taker.waiting:
                continue
            waiting = {
                donor: [held for held in donor.waiting if not held.has_moved and held.since <= patient]
                for donor in self._replicas
                if donor is not taker
            }
            donor = max(waiting, key=lambda donor: len(waiting[donor]))
            for held in waiting[donor][: taker.free]:
                yield held, donor, taker

    def _room(self, replica: Replica) -> int:
        """How many more jobs an engine may have, those that it cannot begin yet included."""
        if not replica.ready:
            return 0
        if replica.one_by_one:
            return 1 - len(replica.jobs)
        # What this daemon holds back, another one cannot answer.
        look_ahead = 1 + replica.parallel // 2 if self.has_peers else _LOOK_AHEAD
        # Those that joined another cost nothing but their place in memory.
        capacity = replica.parallel + look_ahead + min(replica.joined, _MAX_JOINED)
        # The engine lets them begin before those that it has at hand.
        capacity += min(self._lease.urgent, replica.parallel)
        return capacity - len(replica.jobs)


def best_of(takers: Sequence[Replica], beginning: int) -> Replica:
    """The engine with most room; or one that knows how the job begins, unless it has so much less that it is full
    while another idles."""
    freest = max(takers, key=lambda replica: replica.free)
    knowing = [
        replica
        for replica in takers
        if replica.knows(beginning) and replica.free >= freest.free - replica.parallel // _UNEVENNESS
    ]
    return max(knowing or [freest], key=lambda replica: replica.free)
