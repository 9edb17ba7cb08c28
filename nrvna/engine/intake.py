"""Jobs on their way into the engines: read on threads of their own while others are answered, then taken in.

Whatever a job raises there is its own failure: it is refused, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from nrvna.config import Sampling
from nrvna.engine.engine import Joined
from nrvna.engine.lanes import Lanes
from nrvna.engine.work import Request
from nrvna.errors import JobError, reason_of
from nrvna.task import Task

# Most jobs are read in a few milliseconds. One that takes longer than this lets the others pass.
_PATIENCE_S = 0.05
_LANES = 4


class Answering(Protocol):
    """What answers jobs of some kind: Engine or Vectors."""

    def read(self, request: Request, /) -> Any: ...
    def take(self, work: Any, /) -> Joined | None: ...
    def discard(self, work: Any, /) -> None: ...


class Incoming:
    """A job that is being read: what comes of it, and whether that is wanted still."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.id: str = request["id"]
        self.request = request
        self.is_wanted = True
        self.engine: Answering | None = None
        self.work: Any = None


class Intake:
    """Reads jobs for ``engines``, which have them by kind. ``send`` tells the daemon, from any thread.

    ``finished`` is called, on any thread, with each job once it was read, which is then to be taken on the thread of
    the engines.
    """

    def __init__(
        self,
        engines: Mapping[str, Answering],
        send: Callable[[dict[str, Any]], None],
        finished: Callable[[Incoming], None],
    ) -> None:
        self._engines = engines
        self._send = send
        self._finished = finished
        self._coming: list[Incoming] = []
        self._lanes = Lanes(_LANES, _PATIENCE_S)

    @property
    def is_reading(self) -> bool:
        """Whether jobs are still to come of those that were added."""
        return bool(self._coming)

    def add(self, request: dict[str, Any]) -> None:
        """Have a job read."""
        incoming = Incoming(request)
        self._coming.append(incoming)
        self._lanes.add(lambda: self._read(incoming))

    def drop(self, job_id: str) -> None:
        """Nothing more is wanted of a job, if it is being read. What is at work on it is not interrupted."""
        for incoming in self._coming:
            if incoming.id == job_id:
                incoming.is_wanted = False

    def _read(self, incoming: Incoming) -> None:
        if incoming.is_wanted:
            # Templates and tokenisers run on the user's text: if one kills the process, the daemon knows at what.
            self._send({"reads": incoming.id})
            try:
                self._resolve(incoming)
            except Exception as error:
                self._refuse(incoming, error)
            else:
                self._send({"waits": incoming.id})
        self._finished(incoming)

    def _resolve(self, incoming: Incoming) -> None:
        request = incoming.request
        sampling, task = Sampling(**request["sampling"]), Task.from_dict(request["task"])
        engine = self._engines.get(task.kind)
        if engine is None:
            raise JobError("this model continues no text, it makes vectors: ask for one with `wrk --embed`")
        incoming.work = engine.read(Request(**{**request, "sampling": sampling, "task": task}))
        incoming.engine = engine

    def take(self, incoming: Incoming) -> None:
        """Let a job that was read wait in its engine, on whose thread this must be."""
        self._coming.remove(incoming)
        engine, work = incoming.engine, incoming.work
        if engine is None:
            return
        if not incoming.is_wanted:
            engine.discard(work)
            return
        try:
            joined = engine.take(work)
        except Exception as error:
            engine.discard(work)
            self._refuse(incoming, error)
            return
        if joined:
            self._send({"joins": incoming.id, "leader": joined.leader, "text": joined.text})

    def _refuse(self, incoming: Incoming, error: Exception) -> None:
        self._send({"refused": incoming.id, "reason": reason_of(error)})
