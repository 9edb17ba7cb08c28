"""The engine's process: takes messages on stdin, answers on stdout (see protocol.py). Started by the daemon."""

from __future__ import annotations

import ctypes
import logging
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from nrvna import logs
from nrvna.config import LOG_LEVELS, Config
from nrvna.engine.check import check_model
from nrvna.engine.devices import explain, list_devices, open_library, require_gpus
from nrvna.engine.encoder import Encoder
from nrvna.engine.engine import Engine, Event
from nrvna.engine.intake import Intake
from nrvna.engine.machine import take_share
from nrvna.engine.protocol import Ready, Unpacker, pack, pack_files
from nrvna.engine.runner import Runner
from nrvna.engine.tally import Tally
from nrvna.engine.vectors import Vectors
from nrvna.errors import EncoderError, NrvnaError
from nrvna.job import Receipt
from nrvna.limits import Limits
from nrvna.task import ANSWER, EMBED, RERANK

log = logging.getLogger("nrvna.engine")

# From linux/prctl.h.
_PR_SET_PDEATHSIG = 1
# What others wait so that those who start do so a step earlier: less than a tenth of a small model's step on a CPU.
_GO_PATIENCE_S = 0.002
# How long the first jobs of a pile wait for others that are being read.
_READING_PATIENCE_S = 0.2
# How soon after its parent a process that checks a model ends.
_WATCH_EVERY_S = 0.5
# The most that a thread at work on a prompt, in Python, keeps one that has just computed a step from going on.
_SWITCH_S = 0.001
# Steps of a pile after which it is said where their time went.
_WORTH_A_WORD = 100

# By the kind of job that each answers; some answer several.
Engines = dict[str, Engine | Vectors]


class Channel:
    """Both directions of the pipe. A thread reads, so that the daemon never waits for a decode to be heard.

    What else is to be heard on the thread of the engines goes the same way, with :meth:`put`.
    """

    def __init__(self) -> None:
        # The protocol gets a descriptor of its own: whatever prints to stdout then lands in the log.
        self._output = os.dup(1)
        self._writing = threading.Lock()
        os.dup2(2, 1)
        self._messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        unpacker = Unpacker()
        try:
            while data := os.read(0, 1 << 16):
                for message in unpacker.feed(data):
                    self.put(message)
        except Exception:
            # Deaf, it would be of no use to anybody.
            log.exception("the engine does not understand its daemon")
            os._exit(1)
        self._leave()

    def _leave(self) -> NoReturn:
        """The daemon is gone or wants no more: nothing here is worth another moment."""
        os._exit(0)

    def put(self, message: dict[str, Any]) -> None:
        """Let this be heard after what came before it. From any thread."""
        self._messages.put(message)

    def next(self, wait_s: float | None) -> dict[str, Any] | None:
        """The next message, None if there is none within that time; without a time it waits for ever."""
        try:
            return self._messages.get(timeout=wait_s) if wait_s != 0 else self._messages.get_nowait()
        except queue.Empty:
            return None

    def send(self, message: dict[str, Any]) -> None:
        """Tell the daemon. From any thread."""
        data = memoryview(pack(message))
        try:
            with self._writing:
                while data:
                    data = data[os.write(self._output, data) :]
        except BrokenPipeError:
            self._leave()


def serve(channel: Channel) -> int:
    """Load the model that the first message names and answer jobs until stdin ends."""
    sys.setswitchinterval(_SWITCH_S)
    first = channel.next(None)
    assert first is not None
    config, path = Config.from_dict(first["config"]), Path(first["path"])
    _configure_logging(config, first.get("name", ""))
    os.nice(config.nice)
    config = take_share(config, *first.get("share", (0, 1)))
    try:
        require_gpus(config)
        limits = Limits.from_dict(first.get("limits"))
        engines, ready = _open_engines(path, config, first["model"], limits, channel)
    except (NrvnaError, OSError, MemoryError) as error:
        channel.send({"fatal": str(error)})
        return 1
    intake = Intake(engines, channel.send, lambda incoming: channel.put({"read": incoming}))
    channel.send({"ready": ready.to_dict()})
    while True:
        _answer_pile(engines, channel, intake)


def _open_engines(
    path: Path, config: Config, model: dict[str, Any], limits: Limits, channel: Channel
) -> tuple[Engines, Ready]:
    """What answers each kind of job with this model. Raises what Runner raises."""

    def report(fraction: float) -> None:
        channel.send({"loading": round(fraction, 3)})

    def tell(tried: Limits) -> None:
        channel.send({"tries": tried.to_dict()})

    explain(open_library(config), config)
    try:
        runner = Runner(path, config, report, limits=limits, on_try=tell)
    except EncoderError:
        encoder = Encoder(path, config, report)
        vectors = Vectors(encoder.embedder, {"model": model, "llama_cpp": encoder.build.commit}, gated=True)
        return {EMBED: vectors, RERANK: vectors}, encoder.ready()
    vectors = Vectors(runner.embedder, {"model": model, "llama_cpp": runner.build.commit}, gated=True)
    return {ANSWER: Engine(runner, model, gated=True), EMBED: vectors, RERANK: vectors}, runner.ready()


def _answer_pile(engines: Engines, channel: Channel, intake: Intake) -> None:
    """Answer jobs from the first that comes until none is left."""
    message = channel.next(None)
    different = list(dict.fromkeys(engines.values()))
    # The first jobs of a pile come one by one, and are done sooner if they begin together.
    while message:
        _hear(different, intake, message)
        patience_s = max(engine.patience_s for engine in different)
        message = channel.next(max(patience_s, _READING_PATIENCE_S) if intake.is_reading else patience_s)
    for engine in different:
        engine.tally = Tally()
    while busy := [engine for engine in different if not engine.is_idle]:
        wait_s = None if all(engine.is_held_up for engine in busy) else 0
        while message := channel.next(wait_s):
            _hear(different, intake, message)
            wait_s = 0
        begun = {job_id: start for engine in different for job_id, start in engine.start().items()}
        if begun:
            channel.send({"starts": {job_id: start._asdict() for job_id, start in begun.items()}})
            # Their go is mostly there before they would miss a step.
            if message := channel.next(_GO_PATIENCE_S):
                _hear(different, intake, message)
        for engine in different:
            if engine.is_idle or engine.is_held_up:
                continue
            events = engine.step()
            with engine.tally.timed("emit"):
                _emit(channel, events)
    for engine in different:
        # A few jobs on their own are no measure of anything, and suspects run alone by the dozen.
        level = logging.INFO if engine.tally.steps >= _WORTH_A_WORD else logging.DEBUG
        log.log(level, "nothing left: %s", engine.tally)
        if isinstance(engine, Vectors) and ANSWER in engines and not intake.is_reading:
            # The answers may need it.
            engine.rest()


def _emit(channel: Channel, events: list[Event]) -> None:
    unfinished = (event for event in events if event.receipt is None)
    channel.send({"new": {event.id: (event.token, event.text, event.draws) for event in unfinished}})
    for event in events:
        if event.receipt is not None:
            channel.send(_done(event, event.receipt))


def _done(event: Event, receipt: Receipt) -> dict[str, Any]:
    done = {"done": event.id, "answer": event.answer, "receipt": receipt._asdict()}
    return {**done, "beside": pack_files(event.beside)}


def _hear(engines: list[Engine | Vectors], intake: Intake, message: dict[str, Any]) -> None:
    match message:
        case {"add": request}:
            intake.add(request)
        case {"read": incoming}:
            intake.take(incoming)
        case {"go": ids}:
            for engine in engines:
                engine.go(ids)
        case {"drop": job_id}:
            intake.drop(job_id)
            for engine in engines:
                engine.drop(job_id)


def _die_with_parent() -> None:
    """Where the kernel can see to it: stopped or busy, this process would not notice that its stdin has ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _request() -> dict[str, Any]:
    """All that stdin brings, for what is done once. Ends the process if whoever asked is there no more."""
    requests = Unpacker().feed(sys.stdin.buffer.read())
    parent = requests[0].get("parent", os.getppid()) if requests else None
    if os.getppid() != parent:
        os._exit(1)
    if sys.platform != "linux":
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    return requests[0]


def _watch(parent: int) -> None:
    """End with the parent, where the kernel does not see to it."""
    while os.getppid() == parent:
        time.sleep(_WATCH_EVERY_S)
    os._exit(1)


def _configure_logging(config: Config, name: str = "") -> None:
    logs.configure(config, logs.engine(name))
    llama = logging.getLogger("nrvna.llama")
    llama.setLevel(LOG_LEVELS[config.llama_log_level])
    # llama.cpp takes the cells that all sequences share for the context of one.
    llama.addFilter(lambda record: "possible training context overflow" not in record.getMessage())


def main(argv: list[str]) -> int:
    _die_with_parent()
    if argv[:1] == ["--check"]:
        request = _request()
        config = Config.from_dict(request["config"])
        _configure_logging(config)
        return check_model(Path(request["path"]), config)
    if argv[:1] == ["--devices"]:
        return list_devices(Config.from_dict(_request()["config"]))
    return serve(Channel())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
