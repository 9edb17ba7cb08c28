"""The engine as a process of its own, spoken to over its pipes as the daemon does."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from nrvna.config import Config, Sampling
from nrvna.engine.protocol import Unpacker, pack
from nrvna.environment import engine_environment

COMMAND = [sys.executable, "-P", "-m", "nrvna.engine"]
CONFIG = Config(parallel=2, ctx=2048, reproducible=1)
SAMPLING = Sampling(temp=0.8, predict=12, seed=1, ignore_eos=True)
# One that still goes on when the next message has been heard.
LONGER = replace(SAMPLING, predict=100)
LONG = "Here is a list of words: " + "apple pear " * 800
PATIENCE_S = 60.0
# Long enough for some steps, had it made any.
QUIET_S = 0.5

Message = dict[str, Any]


class Engine:
    """An engine's pipes."""

    def __init__(self, model_file: Path, command: Sequence[str] = COMMAND) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=engine_environment(CONFIG),
            process_group=0,
        )
        self._unpacker = Unpacker()
        self._messages: list[Message] = []
        self.send({"path": str(model_file), "model": {"path": str(model_file)}, "config": CONFIG.to_dict()})

    def send(self, message: Message) -> None:
        assert self.process.stdin is not None
        os.write(self.process.stdin.fileno(), pack(message))

    def add(self, name: str, prompt: str, resume: Message | None = None, sampling: Sampling = SAMPLING) -> None:
        about = {"id": name, "prompt": prompt, "queued": "", "system": None, "task": {}, "resume": resume}
        self.send({"add": {**about, "sampling": asdict(sampling)}})

    def next(self, patience_s: float = PATIENCE_S) -> Message | None:
        """What it says next, None if it says nothing for so long."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + patience_s
        while not self._messages:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                return None
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            assert data, "the engine died"
            self._messages = self._unpacker.feed(data)
        return self._messages.pop(0)

    def until(self, kind: str) -> tuple[list[Message], Any]:
        """What it says before the next message of a kind, and that message's first value."""
        before: list[Message] = []
        while message := self.next():
            if kind in message:
                return before, message[kind]
            before.append(message)
        raise AssertionError(f"no {kind} within {PATIENCE_S} s, but {before}")

    def has_ended(self) -> bool:
        """Whether it closes its stdout within the time one has patience for."""
        assert self.process.stdout is not None
        while select.select([self.process.stdout], [], [], PATIENCE_S)[0]:
            if not os.read(self.process.stdout.fileno(), 1 << 16):
                return True
        return False

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture(scope="module")
def engine(model_file: Path) -> Iterator[Engine]:
    made = Engine(model_file)
    made.until("ready")
    yield made
    made.end()


def tokens_of(news: list[Message], name: str) -> list[int]:
    return [message["new"][name][0] for message in news if name in message.get("new", {})]


def test_a_job_is_read_waits_starts_and_is_decoded_once_it_has_its_go(engine: Engine) -> None:
    engine.add("a", "Name three primes.")
    assert [engine.next(), engine.next()] == [{"reads": "a"}, {"waits": "a"}]
    _, starts = engine.until("starts")
    assert starts.keys() == {"a"}
    assert (starts["a"]["seed"], starts["a"]["kept"]) == (1, 0)
    assert engine.next(QUIET_S) is None
    engine.send({"go": ["a"]})
    news, done = engine.until("done")
    assert done == "a"
    assert len(tokens_of(news, "a")) == SAMPLING.predict - 1
    assert all(message.keys() == {"new"} for message in news)
    # The step that ended it told of nothing else.
    assert news[-1] == {"new": {}}


def test_others_go_on_while_a_job_waits_for_its_go(engine: Engine) -> None:
    engine.add("first", "Name three primes.", sampling=LONGER)
    engine.until("starts")
    engine.send({"go": ["first"]})
    engine.until("new")
    engine.add("second", "Name three rivers.")
    before, starts = engine.until("starts")
    assert starts.keys() == {"second"}
    after, _ = engine.until("done")
    assert len(tokens_of(before + after, "first")) == LONGER.predict - 2
    assert tokens_of(before + after, "second") == []
    assert engine.next(QUIET_S) is None
    # While it is held up, it still hears of others and starts them.
    engine.add("third", "Name three trees.")
    _, starts = engine.until("starts")
    assert starts.keys() == {"third"}
    engine.send({"go": ["third", "second"]})
    engine.until("done")
    engine.until("done")


@pytest.mark.parametrize(
    "job",
    [
        # llama.cpp looks through the vocabulary for each.
        {"sampling": replace(SAMPLING, dry_multiplier=1.0, dry_sequence_breakers=tuple(map(str, range(600))))},
        {"prompt": "aé" * 1_400_000},
    ],
    ids=["breakers", "megabytes"],
)
def test_others_go_on_while_a_job_is_read_that_takes_long(engine: Engine, job: dict[str, Any]) -> None:
    engine.add("a", "Count:", sampling=replace(SAMPLING, predict=1500))
    engine.until("starts")
    engine.send({"go": ["a"]})
    engine.until("new")
    began = time.monotonic()
    for _ in range(20):
        engine.until("new")
    pace_s = (time.monotonic() - began) / 20
    engine.add("b", **{"prompt": "x", **job})
    engine.until("reads")
    began, steps = time.monotonic(), 0
    while (message := engine.next()) and message not in ({"waits": "b"}, {"refused": "b", "reason": ANY}):
        steps += "a" in message.get("new", {})
    took_s = time.monotonic() - began
    for name in ("a", "b"):
        engine.send({"drop": name})
    while engine.next(QUIET_S):
        pass
    # Both want a core, and so may others: a step takes longer meanwhile.
    assert steps > took_s / pace_s / 8 > 1


def test_an_answer_goes_on_from_what_another_engine_told_of_it(engine: Engine) -> None:
    def answer(name: str, resume: Message | None) -> tuple[Message, list[int], Message]:
        engine.add(name, "Describe a mill.", resume)
        start = engine.until("starts")[1][name]
        engine.send({"go": [name]})
        news: list[Message] = []
        while "done" not in (message := engine.next() or {"done": None}):
            news.append(message)
        return start, tokens_of(news, name), message

    start, tokens, whole = answer("whole", None)
    record = {"key": start["key"], "seed": start["seed"], "tokens": tokens[:5], "draws": [1] * 5}
    resumed, rest, done = answer("resumed", record)
    assert (resumed["kept"], rest) == (5, tokens[5:])
    assert done["answer"] == whole["answer"]
    assert (done["receipt"]["resumed_tokens"], whole["receipt"]["resumed_tokens"]) == (5, 0)


def test_what_joins_another_is_told_its_text_and_never_starts(engine: Engine) -> None:
    engine.add("leader", "Name three primes.", sampling=LONGER)
    engine.until("starts")
    engine.send({"go": ["leader"]})
    _, new = engine.until("new")
    engine.add("follower", "Name three primes.", sampling=LONGER)
    before, _ = engine.until("reads")
    joins = None
    while not joins:
        message = engine.next()
        assert message is not None and "starts" not in message
        joins = message if "joins" in message else None
        before += [] if joins else [message]
    text = new["leader"][1] + "".join(message["new"]["leader"][1] for message in before if "new" in message)
    assert joins == {"joins": "follower", "leader": "leader", "text": text}
    news, _ = engine.until("done")
    assert tokens_of(news, "follower") == tokens_of(news, "leader") != []
    engine.until("done")


@pytest.mark.slow
def test_every_step_of_a_long_prompt_is_a_sign_of_life(engine: Engine) -> None:
    engine.add("long", LONG)
    engine.until("starts")
    engine.send({"go": ["long"]})
    news, _ = engine.until("done")
    first = next(place for place, message in enumerate(news) if message["new"])
    assert news[:first] == [{"new": {}}] * 3


def test_it_ends_without_a_word_when_nobody_reads_what_it_says(
    model_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    engine = Engine(model_file)
    try:
        engine.until("ready")
        engine.add("a", "Name three primes.")
        engine.until("starts")
        assert engine.process.stdout is not None
        # A daemon that stops closes both; here it cannot hear of that by its stdin first.
        engine.process.stdout.close()
        engine.send({"go": ["a"]})
        assert engine.process.wait(PATIENCE_S) == 0
    finally:
        engine.end()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills the children of a process that died")
@pytest.mark.parametrize("state", [signal.SIGCONT, signal.SIGSTOP])
def test_it_dies_with_its_parent_even_when_it_is_stopped(model_file: Path, state: signal.Signals) -> None:
    # Its stdin stays open beyond its parent's death: that would tell it otherwise.
    through = f"import subprocess, time; subprocess.Popen({COMMAND}); time.sleep(600)"
    parent = Engine(model_file, [sys.executable, "-c", through])
    try:
        parent.until("ready")
        [child] = Path(f"/proc/{parent.process.pid}/task/{parent.process.pid}/children").read_text().split()
        os.kill(int(child), state)
        parent.process.kill()
        parent.process.wait()
        assert parent.has_ended(), "it lives on without its parent"
    finally:
        parent.end()
