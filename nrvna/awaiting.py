"""Waiting for jobs without blocking an event loop, and without a thread or a timer for each of them.

All who wait for jobs of a workspace in one event loop share one look at its folders, made in a worker thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Self

from nrvna.watch import Ended, Watch
from nrvna.workspace import Workspace


class Waiter:
    """Somebody who waits for some jobs, and is told of each as it ends. Leave it with :meth:`close`."""

    def __init__(self, waiting: Waiting, ids: Iterable[str]) -> None:
        self._waiting = waiting
        self._told: deque[Ended | BaseException] = deque()
        self._wakes: asyncio.Future[None] | None = None
        self.ids = set(ids)
        waiting.add(self)

    async def next(self) -> Ended:
        """The next that ends. Cancelling this loses none. Raises WorkspaceError."""
        while not self._told:
            self._wakes = asyncio.get_running_loop().create_future()
            await self._wakes
        told = self._told.popleft()
        if isinstance(told, BaseException):
            raise told
        return told

    def tell(self, told: Ended | BaseException) -> None:
        self._told.append(told)
        if self._wakes and not self._wakes.done():
            self._wakes.set_result(None)

    def close(self) -> None:
        self._waiting.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Waiting:
    """All who wait for jobs of one workspace in one event loop."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._waiters: dict[str, set[Waiter]] = {}
        self._is_new = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def wait_for(self, ids: Iterable[str]) -> Waiter:
        """Somebody who waits for these from now on."""
        return Waiter(self, ids)

    def add(self, waiter: Waiter) -> None:
        for job_id in waiter.ids:
            self._waiters.setdefault(job_id, set()).add(waiter)
        self._is_new.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look(), name="nrvna waits for jobs")

    def remove(self, waiter: Waiter) -> None:
        for job_id in waiter.ids:
            waiters = self._waiters.get(job_id, set())
            waiters.discard(waiter)
            if not waiters:
                self._waiters.pop(job_id, None)

    async def _look(self) -> None:
        """Look until nobody waits any more."""
        watch = Watch(self._workspace)
        try:
            while self._waiters:
                afresh = self._is_new.is_set()
                self._is_new.clear()
                ids = frozenset(self._waiters)
                for ended in await asyncio.to_thread(watch.look, ids, afresh=afresh):
                    for waiter in self._waiters.pop(ended.id, ()):
                        waiter.tell(ended)
                if self._waiters:
                    await self._pause(watch.pause_s)
        except BaseException as error:
            waiters, self._waiters = self._waiters, {}
            for waiter in set[Waiter]().union(*waiters.values()):
                waiter.tell(error)
            if not isinstance(error, Exception):
                raise

    async def _pause(self, seconds: float) -> None:
        """Shorter if there are new ones to wait for."""
        try:
            async with asyncio.timeout(seconds):
                await self._is_new.wait()
        except TimeoutError:
            pass
