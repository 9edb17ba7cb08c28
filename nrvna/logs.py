"""The log of daemon and engine: lines for a person, or an object a line for a program."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from nrvna.config import LOG_LEVELS, Config
from nrvna.job import timestamp
from nrvna.jsontext import read_json

# What a record may say of a job, given as ``extra``.
FIELDS = ("job", "state", "tokens", "tokens_per_second")
_NAMES = {number: name for name, number in LOG_LEVELS.items()}


def configure(config: Config, who: str = "") -> None:
    """Let nrvna's loggers write to standard error as ``config`` says; ``who`` names a process beside the daemon."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(who) if config.log_json else _plain_formatter(who))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("nrvna").setLevel(LOG_LEVELS[config.log_level])


def engine(name: str) -> str:
    """What the lines of an engine's process begin with; ``name`` tells it from others of the daemon, if there are."""
    return f"[{name}] engine" if name else "engine"


def _plain_formatter(who: str) -> logging.Formatter:
    sender = f"{who}: " if who else ""
    return logging.Formatter(f"%(asctime)s %(levelname)-7s {sender}%(message)s", datefmt="%H:%M:%S")


class JsonFormatter(logging.Formatter):
    """Each record as a line of JSON: ``time`` (ISO 8601, UTC), ``level``, ``message``, and those of FIELDS it has."""

    def __init__(self, who: str = "") -> None:
        super().__init__()
        self._who = {"from": who} if who else {}

    def format(self, record: logging.LogRecord) -> str:
        about = {name: getattr(record, name) for name in FIELDS if getattr(record, name, None) is not None}
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        level = _NAMES.get(record.levelno, record.levelname.lower())
        return _line(record.created, level, message, **self._who, **about)


def wrapped(line: str, who: str) -> str:
    """A line that is no record, such as what a library prints as it aborts, as one of its own."""
    return line if _record(line) else _line(time.time(), "error", line, **{"from": who})


def message_of(line: str) -> str:
    """What a record of JSON says, or the line itself if it is none."""
    return str(_record(line).get("message", line))


def _record(line: str) -> dict[str, Any]:
    try:
        content = read_json(line)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _line(created: float, level: str, message: str, **about: object) -> str:
    # Escapes keep every string, also one with unpaired surrogates, in ASCII.
    return json.dumps({"time": timestamp(created), "level": level, "message": message, **about})
