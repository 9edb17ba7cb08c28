"""What grows while one looks: the answer of a running job, and the numbers whose speed is asked for."""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from os.path import join

from nrvna.errors import JobError
from nrvna.files import read_from
from nrvna.progress import pieces
from nrvna.workspace import PROGRESS

# Of an answer's text no more is kept than a wide line shows.
_LAST_CHARACTERS = 400
_MAX_BYTES = 64 * 1024 * 1024
_PACE_OVER_S = 10.0


class Growth:
    """A claimed job's answer, of whose file each look reads only what was added since the last one.

    ``is_begun``: there is such a file; a job that waits in its daemon has none. ``since`` is when it was begun, or
    else claimed, in seconds since the epoch. Of its ``tokens``, ``grown`` were seen to come.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._path = join(directory, PROGRESS)
        self._inode = 0
        self._offset = 0
        self.tokens = 0
        self.last_words = ""
        self.is_begun = False
        self.since = self._changed()
        self._read()
        self.grown = 0

    def look(self) -> int:
        """The number of tokens that came since the last look."""
        before = self.tokens
        self._read()
        more = max(0, self.tokens - before)
        self.grown += more
        return more

    def _read(self) -> None:
        with suppress(OSError, JobError):
            inode, size, data = read_from(self._path, self._offset, _MAX_BYTES)
            if inode != self._inode or size < self._offset:
                # Begun, or begun anew.
                self._inode, self._offset, self.tokens, self.last_words = inode, 0, 0, ""
                self.since, self.is_begun = self._changed(), True
                _, _, data = read_from(self._path, 0, _MAX_BYTES)
            whole = data[: data.rfind(b"\n") + 1]
            count, text = pieces(whole)
            self._offset += len(whole)
            self.tokens += count
            self.last_words = (self.last_words + text)[-_LAST_CHARACTERS:]

    def _changed(self) -> float:
        """When the job's folder was last moved or got a file."""
        with suppress(OSError):
            return os.stat(self._directory).st_ctime
        return 0.0


class Speed:
    """How fast a number grew lately."""

    def __init__(self, over_s: float, least_s: float) -> None:
        self._over_s = over_s
        self._least_s = least_s
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, now: float, number: int) -> None:
        self._seen.append((now, number))
        while len(self._seen) > 2 and self._seen[1][0] <= now - self._over_s:
            self._seen.popleft()

    def per_second(self) -> float | None:
        """None as long as there is too little to go by."""
        if not self._seen:
            return None
        (begin, before), (end, after) = self._seen[0], self._seen[-1]
        return (after - before) / (end - begin) if end - begin >= self._least_s else None


class Pace:
    """How fast jobs get finished, by the last of them; they may take milliseconds or hours each."""

    def __init__(self, now: float) -> None:
        self.restart(now)

    def restart(self, now: float) -> None:
        """Forget what was, as what follows says more."""
        self._since = now
        self._finished: deque[tuple[float, int]] = deque()
        self._number = 0

    def note(self, now: float, count: int, at_a_time: int) -> None:
        """That ``count`` more are finished, of which about so many run at a time."""
        if count:
            self._finished.append((now, count))
            self._number += count
        # Jobs that run together often end together: some such groups make a measure, and so do some seconds.
        enough = max(20, 4 * at_a_time)
        while self._finished and now - self._finished[0][0] > _PACE_OVER_S:
            if self._number - self._finished[0][1] < enough:
                break
            self._since, oldest = self._finished.popleft()
            self._number -= oldest

    def per_second(self, now: float, at_a_time: int) -> float | None:
        """None as long as there is too little to go by."""
        span = now - self._since
        return self._number / span if self._number >= max(3, at_a_time) and span >= 1 else None
