"""A chat template in Jinja, rendered in a process that may be lost: see sandbox.py for what it may do there."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from nrvna.engine.protocol import Unpacker, pack
from nrvna.engine.sandbox import CPU_S
from nrvna.errors import TemplateError

# -P: modules of the user's current folder are not the engine's.
_COMMAND = (sys.executable, "-P", "-m", "nrvna.engine.sandbox")
# Beyond the CPU time that the process gives itself: for one that does not even come to use it.
_PATIENCE_S = 60.0
# The longest rendering: some templates say the messages twice, some add pages of instructions.
_MOST_TIMES = 4
_MOST_MORE = 1 << 20
_PIPE_BYTES = 1 << 16
_LAST_MOMENT_S = 1.0


class TemplateLimitError(TemplateError):
    """A template that was ended: it took too long, or brought its process down."""


class ChatTemplate:
    """A compiled template. ``bos`` and ``eos`` are what it may write for those tokens.

    Raises TemplateError if it does not compile, TemplateLimitError if it takes too long. May be used from any thread.
    """

    def __init__(self, source: str, *, bos: str = "", eos: str = "") -> None:
        self.source = source
        self._tokens = {"bos_token": bos, "eos_token": eos}
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[Any, Any] | None = None
        self._lock = threading.Lock()
        with self._lock:
            self._start()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        now: datetime | None = None,
    ) -> str:
        """The messages as the model knows them from its training. ``variables`` are what the template takes besides,
        such as ``enable_thinking``; ``now`` is the date that it may tell the model.

        Raises TemplateError if the template fails, takes too much memory or writes a text out of all proportion, and
        TemplateLimitError if it takes more than a second of CPU time.
        """
        given = {
            "tools": None,
            "documents": None,
            **self._tokens,
            **(variables or {}),
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
        }
        size = sum(len(str(message.get("content"))) for message in messages)
        most = _MOST_TIMES * size + _MOST_MORE
        answer = self._ask({"variables": given, "now": (now or datetime.now()).isoformat(), "most": most})
        return str(answer["text"])

    def close(self) -> None:
        """End its process; a later rendering starts another."""
        if self._end is not None:
            self._end()
        self._process = self._end = None

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            try:
                if self._process is None or self._process.poll() is not None:
                    self._start()
                return self._exchange(request)
            except OSError as error:
                self.close()
                raise TemplateError(f"the chat template cannot be rendered: {error}") from error

    def _start(self) -> None:
        self.close()
        process = subprocess.Popen(_COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self._process = process
        self._end = weakref.finalize(self, _end, process)
        self._exchange({"template": self.source})

    def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        answers: list[dict[str, Any]] = []
        with suppress(BrokenPipeError):
            data = memoryview(pack(request))
            while data:
                data = data[os.write(process.stdin.fileno(), data) :]
            answers = self._read(process.stdout.fileno())
        if not answers:
            # Its own end tells more than the one that it is given.
            with suppress(subprocess.TimeoutExpired):
                process.wait(_LAST_MOMENT_S)
            self.close()
            raise TemplateLimitError(_last_words(process))
        if "error" in answers[0]:
            raise TemplateError(f"the chat template failed: {answers[0]['error']}")
        return answers[0]

    def _read(self, descriptor: int) -> list[dict[str, Any]]:
        """The next answer; none if the process ended or its time is up."""
        unpacker, poll = Unpacker(), select.poll()
        poll.register(descriptor, select.POLLIN)
        deadline = time.monotonic() + _PATIENCE_S
        while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            data = os.read(descriptor, _PIPE_BYTES)
            if answers := unpacker.feed(data):
                return answers
            if not data:
                break
        return []


def _last_words(process: subprocess.Popen[bytes]) -> str:
    if process.returncode == -signal.SIGPROF:
        return f"the chat template takes more than {CPU_S:.0f} s for a rendering"
    return f"the chat template brought its process down (exit code {process.returncode})"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
