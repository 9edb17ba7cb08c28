"""The engine's process: takes messages on stdin, answers on stdout (see protocol.py). Started by the daemon."""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any

from nrvna.config import LOG_LEVELS, Config, Sampling
from nrvna.engine.check import check_model
from nrvna.engine.engine import Engine, Request
from nrvna.engine.protocol import Ready, Unpacker, pack
from nrvna.engine.runner import Runner
from nrvna.errors import JobError, NrvnaError, TemplateError, TokenizeError


class Channel:
    """Both directions of the pipe. A thread reads, so that the daemon never waits for a decode to be heard."""

    def __init__(self) -> None:
        # The protocol gets a descriptor of its own: whatever prints to stdout then lands in the log.
        self._output = os.dup(1)
        os.dup2(2, 1)
        self._messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        unpacker = Unpacker()
        while data := os.read(0, 1 << 16):
            for message in unpacker.feed(data):
                self._messages.put(message)
        # The daemon is gone or wants no more: nothing here is worth another moment.
        os._exit(0)

    def next(self, *, wait: bool) -> dict[str, Any] | None:
        """The next message; None if there is none yet and none is waited for."""
        try:
            return self._messages.get(block=wait)
        except queue.Empty:
            return None

    def send(self, message: dict[str, Any]) -> None:
        data = memoryview(pack(message))
        while data:
            data = data[os.write(self._output, data) :]


def serve(channel: Channel) -> int:
    """Load the model that the first message names and answer jobs until stdin ends."""
    first = channel.next(wait=True)
    assert first is not None
    config, path = Config.from_dict(first["config"]), Path(first["path"])
    _configure_logging(config)
    try:
        runner = Runner(path, config, progress=lambda fraction: channel.send({"loading": round(fraction, 3)}))
        engine = Engine(runner, first["model"])
    except (NrvnaError, OSError, MemoryError) as error:
        channel.send({"fatal": str(error)})
        return 1
    shape = runner.shape
    ready = Ready(
        description=f"{runner.model.metadata.get('general.name', path.stem)}, {runner.model.quantization}",
        backend=runner.build.backend,
        slots=shape.slots,
        context=shape.context,
        threads=shape.threads,
    )
    channel.send({"ready": ready.to_dict()})
    while True:
        while message := channel.next(wait=engine.is_idle):
            _add(engine, channel, message["add"])
        for job_id in engine.start():
            channel.send({"begins": job_id})
        events = engine.step()
        if texts := {event.id: event.text for event in events if event.text and not event.receipt}:
            channel.send({"text": texts})
        for event in events:
            if event.receipt:
                channel.send({"done": event.id, "answer": event.answer, "receipt": event.receipt._asdict()})


def _add(engine: Engine, channel: Channel, request: dict[str, Any]) -> None:
    job_id = request["id"]
    # Templates and tokenisers run on the user's text: if one of them kills the process, the daemon knows at what.
    channel.send({"begins": job_id})
    try:
        engine.add(Request(**{**request, "sampling": Sampling(**request["sampling"])}))
    except (JobError, TemplateError, TokenizeError) as error:
        channel.send({"refused": job_id, "reason": str(error)})
    else:
        channel.send({"waits": job_id})


def _configure_logging(config: Config) -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)-7s engine: %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("nrvna").setLevel(LOG_LEVELS[config.log_level])
    logging.getLogger("nrvna.llama").setLevel(LOG_LEVELS[config.llama_log_level])


def main(argv: list[str]) -> int:
    if argv[:1] == ["--check"]:
        first = Unpacker().feed(sys.stdin.buffer.read())[0]
        config = Config.from_dict(first["config"])
        _configure_logging(config)
        return check_model(Path(first["path"]), config)
    return serve(Channel())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
