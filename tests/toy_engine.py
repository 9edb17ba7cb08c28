"""An engine without a model: it speaks nrvna/engine/protocol.py, and its answers follow from the prompts alone.

Run as ``python -I -S toy_engine.py [--step SECONDS] [--parent PID]``, it is there in 15 ms. Words at the beginning of
a prompt, one line's worth, command how its job goes:

    LONG 30         an answer of 30 tokens
    SLOW 20         a token at every 20th step only
    REFUSE          can never be answered
    CRASH, SEGV, OOM, EXIT
                    the engine ends by SIGABRT, SIGSEGV, SIGKILL or an exit code, in the middle of the answer
    SPAM            the same as CRASH, with a lot on standard error before
    READS           the engine ends while it reads the prompt
    LIMBO           the engine ends once it has read the prompt, at work on nothing
    MEMORY          before any of these its last words are that memory ran out; by itself it is a CRASH
    HANG            nothing more is ever heard of the engine
    PARENT          takes the daemon down as well

Where several engines share a machine, the one of a number cannot start while ``MODEL.broken-NUMBER`` exists.
What is resumed is trusted, as a model's engine trusts it: tokens of another job, or torn ones, show in the answer.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from typing import Any
from zlib import crc32

COMMANDS = ("MEMORY", "REFUSE", "CRASH", "SEGV", "OOM", "EXIT", "SPAM", "READS", "LIMBO", "HANG", "PARENT")
# From linux/prctl.h.
_PR_SET_PDEATHSIG = 1
# Where the faults strike: one token is on record by then, if the daemon is quick.
_FAULT_AT = 1


def commands_in(prompt: str) -> dict[str, int]:
    """What a prompt commands, with the number behind each."""
    found: dict[str, int] = {}
    words = prompt.split("\n", 1)[0].split(" ")
    while words:
        word = words.pop(0)
        if word in ("LONG", "SLOW"):
            found[word] = int(words.pop(0))
        elif word in COMMANDS:
            found[word] = 1
        else:
            break
    return found


def token_at(prompt: str, place: int) -> int:
    return crc32(f"{place} {prompt}".encode())


def text_of(token: int) -> str:
    """Some of it outside ASCII, and some tokens without a text of their own."""
    return "" if token % 7 == 0 else f" wörd{token:08x}"


def length_of(prompt: str) -> int:
    return commands_in(prompt).get("LONG", 3 + crc32(prompt.encode()) % 6)


def answer_of(prompt: str) -> str:
    """What this engine answers in the end, however often it was interrupted."""
    return "".join(text_of(token_at(prompt, place)) for place in range(length_of(prompt)))


class Work:
    """An answer in the making, and the jobs that asked for it: the first of them leads."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.leader = request["id"]
        self.ids = [self.leader]
        self.requests = {self.leader: request}
        self.prompt: str = request["prompt"]
        self.wants = [self.prompt, request["system"], request["sampling"]]
        self.commands = commands_in(self.prompt)
        self.key = f"{crc32(json.dumps(self.wants).encode()):08x}"
        resume = request["resume"] or {}
        self.tokens: list[int] = []
        if resume.get("key") == self.key:
            self.tokens = resume["tokens"][: length_of(self.prompt) - 1]
        self.seed = resume["seed"] if self.tokens else 7
        self.kept = len(self.tokens)
        self.steps = 0

    @property
    def answer(self) -> str:
        return "".join(map(text_of, self.tokens))

    def step(self) -> int | None:
        """The next token, unless it takes another step."""
        self.steps += 1
        if self.steps % self.commands.get("SLOW", 1):
            return None
        self.tokens.append(token_at(self.prompt, len(self.tokens)))
        return self.tokens[-1]

    def receipt(self, job_id: str, model: dict[str, Any]) -> dict[str, Any]:
        now = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        return {
            "id": job_id,
            "finish_reason": "stop",
            "queued": self.requests[job_id]["queued"],
            "started": now,
            "first_token": now,
            "finished": now,
            "nrvna": "toy",
            "prompt_tokens": len(self.prompt.split()),
            "cached_tokens": 0,
            "generated_tokens": len(self.tokens),
            "tokens_per_second": 1000.0,
            "sampling": self.requests[job_id]["sampling"],
            "model": model,
            "resumed_tokens": self.kept,
            "same_as": None if job_id == self.leader else self.leader,
        }


def _say_last_words(work: Work) -> None:
    if "MEMORY" in work.commands:
        os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")


class Toy:
    """The engine's side of the pipe."""

    def __init__(self, step_s: float, parent: int) -> None:
        self._step_s = step_s
        self._parent = parent
        self._rest = b""
        self._waiting: list[Work] = []
        self._unconfirmed: dict[str, Work] = {}
        self._running: list[Work] = []

    def run(self) -> None:
        first = None
        while first is None:
            first = next(iter(self._hear(None)), None)
        self._model = first["model"]
        self._end_if_broken(f"{first['path']}.broken-{first['share'][0]}")
        limits = first["limits"] or {"parallel": 1 << 31, "context": 512}
        self._parallel = min(first["config"]["parallel"] or 4, limits["parallel"])
        context = min(512, limits["context"])
        self._send({"tries": {"parallel": self._parallel, "context": context, "layers": 0}})
        self._send({"loading": 1.0})
        shape = {"parallel": self._parallel, "context": context, "threads": 1}
        self._send({"ready": {"description": "toy", "backend": "none", **shape}})
        while True:
            self._start()
            for message in self._hear(self._step_s if self._running else None):
                self._obey(message)
            if self._running:
                self._step()

    def _end_if_broken(self, path: str) -> None:
        if os.path.exists(path):  # noqa: PTH110 - pathlib would take longer than all the rest
            self._send({"fatal": "it is broken"})
            os._exit(1)

    def _hear(self, wait_s: float | None) -> list[dict[str, Any]]:
        if not select.select([0], (), (), wait_s)[0]:
            return []
        data = os.read(0, 1 << 16)
        if not data:
            os._exit(0)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def _send(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        try:
            while data:
                data = data[os.write(1, data) :]
        except BrokenPipeError:
            os._exit(0)

    def _obey(self, message: dict[str, Any]) -> None:
        if "add" in message:
            self._add(message["add"])
        elif "go" in message:
            self._running += [work for job_id in message["go"] if (work := self._unconfirmed.pop(job_id, None))]
        elif "drop" in message:
            self._drop(message["drop"])

    def _add(self, request: dict[str, Any]) -> None:
        job_id = request["id"]
        self._send({"reads": job_id})
        work = Work(request)
        if "READS" in work.commands:
            _say_last_words(work)
            os.abort()
        if "REFUSE" in work.commands:
            self._send({"refused": job_id, "reason": "it said so itself"})
            return
        self._send({"waits": job_id})
        if "LIMBO" in work.commands:
            os.abort()
        for other in [*self._running, *self._unconfirmed.values(), *self._waiting]:
            if other.wants == work.wants:
                other.ids.append(job_id)
                other.requests[job_id] = request
                self._send({"joins": job_id, "leader": other.leader, "text": other.answer})
                return
        self._waiting.append(work)

    def _drop(self, job_id: str) -> None:
        for work in [*self._running, *self._unconfirmed.values(), *self._waiting]:
            if job_id in work.ids:
                work.ids.remove(job_id)
        self._running = [work for work in self._running if work.ids]
        self._waiting = [work for work in self._waiting if work.ids]

    def _start(self) -> None:
        free = self._parallel - len(self._running) - len(self._unconfirmed)
        begun, self._waiting = self._waiting[:free], self._waiting[free:]
        if begun:
            self._unconfirmed.update({work.leader: work for work in begun})
            starts = {work.leader: {"key": work.key, "seed": work.seed, "kept": work.kept} for work in begun}
            self._send({"starts": starts})

    def _step(self) -> None:
        new: dict[str, Any] = {}
        done: list[Work] = []
        for work in self._running:
            self._break_if_told(work, len(self._running) - 1)
            token = work.step()
            if len(work.tokens) == length_of(work.prompt):
                done.append(work)
            elif token is not None:
                new |= {job_id: [token, text_of(token), 1] for job_id in work.ids}
        self._running = [work for work in self._running if work not in done]
        self._send({"new": new})
        for work in done:
            for job_id in work.ids:
                receipt = work.receipt(job_id, self._model)
                self._send({"done": job_id, "answer": work.answer, "receipt": receipt, "beside": {}})

    def _break_if_told(self, work: Work, neighbours: int) -> None:
        if len(work.tokens) < _FAULT_AT:
            return
        faults = [name for name in work.commands if name in COMMANDS]
        if faults:
            os.write(2, b"toy: %s beside %d others\n" % (faults[0].encode(), neighbours))
        _say_last_words(work)
        if "SPAM" in work.commands:
            for number in range(5000):
                os.write(2, b"a line of a log that nobody will ever want to read, %d\n" % number)
            os.write(2, b"the last words\n")
            os.abort()
        if "CRASH" in work.commands or faults == ["MEMORY"]:
            os.abort()
        if "SEGV" in work.commands:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "OOM" in work.commands:
            os.kill(os.getpid(), signal.SIGKILL)
        if "EXIT" in work.commands:
            os._exit(3)
        if "HANG" in work.commands:
            _hang()
        if "PARENT" in work.commands:
            # Never anybody who has only inherited this process.
            if self._parent and os.getppid() == self._parent:
                os.kill(self._parent, signal.SIGKILL)
            os._exit(4)


def _hang() -> None:
    # It would not notice otherwise that its daemon is gone.
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    while os.getppid() != 1:
        time.sleep(0.5)


def main(argv: list[str]) -> None:
    options = dict(zip(argv[::2], argv[1::2], strict=True))
    Toy(float(options.get("--step", 0.001)), int(options.get("--parent", 0))).run()


if __name__ == "__main__":
    main(sys.argv[1:])
