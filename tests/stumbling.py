"""A daemon whose real engine raises what nobody foresaw, where a job's prompt says so.

Run as ``python stumbling.py MODEL WORKSPACE [OPTION ...]``, as nrvnad is. ``STUMBLE SAMPLING KeyError`` in a prompt
makes the engine raise a KeyError when it samples for that job; POINTS has the other places, DAEMON_POINTS those in
the daemon itself.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_ASKED = re.compile(r"STUMBLE (\w+) (\w+)")


def _surrogate() -> Exception:
    try:
        "\ud800".encode()
    except UnicodeEncodeError as error:
        return error
    raise AssertionError


ERRORS: dict[str, Callable[[], Exception]] = {
    "KeyError": lambda: KeyError("\ud800"),
    "RecursionError": lambda: RecursionError("maximum recursion depth exceeded"),
    "RuntimeError": lambda: RuntimeError("two\nlines " + 1000 * "long "),
    "UnicodeEncodeError": _surrogate,
    "ZeroDivisionError": lambda: ZeroDivisionError("division by zero"),
    "OverflowError": lambda: OverflowError("int too large to convert to float"),
}


def _requests_of(value: Any) -> list[str]:
    """The prompts of whatever a function of the engine is about."""
    if isinstance(value, dict):
        return [str(value.get("prompt", ""))]
    if hasattr(value, "requests"):
        return [request.prompt for request in value.requests]
    if hasattr(value, "request"):
        return _requests_of(value.request)
    if hasattr(value, "texts"):
        return list(value.texts)
    if isinstance(value, tuple):
        return [text for each in value for text in _requests_of(each)]
    return [str(getattr(value, "prompt", value))]


def _stumble(owner: type, name: str, point: str, place: int = 1) -> None:
    """Make a method raise where the argument at that place is of a job that asks for it."""
    method = getattr(owner, name)

    @functools.wraps(method)
    def instead(*arguments: Any, **keywords: Any) -> Any:
        for text in _requests_of(arguments[place]):
            if (asked := _ASKED.search(text)) and asked[1] == point:
                raise ERRORS[asked[2]]()
        return method(*arguments, **keywords)

    setattr(owner, name, instead)


def _points() -> dict[str, tuple[type, str, int]]:
    from nrvna.engine.engine import Engine
    from nrvna.engine.intake import Intake
    from nrvna.engine.prompt import PromptEncoder
    from nrvna.engine.runner import Runner
    from nrvna.engine.work import AnswerWork

    return {
        "RESOLVING": (Intake, "_resolve", 1),
        "TOKENISING": (PromptEncoder, "encode", 1),
        "SAMPLER": (Runner, "begin", 1),
        "TAKING": (Engine, "take", 1),
        "SAMPLING": (AnswerWork, "forced", 0),
        "ADVANCING": (AnswerWork, "take", 0),
        "ENDING": (AnswerWork, "complete", 0),
        "RECEIPT": (Engine, "_receipt", 1),
    }


POINTS = ("RESOLVING", "TOKENISING", "SAMPLER", "TAKING", "SAMPLING", "ADVANCING", "ENDING", "RECEIPT")
CHOICE_POINTS = ("LOGITS", "PROBABILITIES")
DAEMON_POINTS = ("HANDING", "FILING")


def run_engine() -> int:
    from nrvna.engine.__main__ import main
    from nrvna.engine.work import ChoiceWork

    for point, where in _points().items():
        _stumble(where[0], where[1], point, where[2])
    _stumble(ChoiceWork, "take_logits", "LOGITS", 0)
    _stumble(ChoiceWork, "complete", "PROBABILITIES", 0)
    return main([])


def run_daemon(argv: list[str]) -> int:
    from nrvna import daemon, lease, serving
    from nrvna.engine import process

    process.COMMAND = (sys.executable, "-P", str(Path(__file__)), "--engine")
    prompts: dict[str, str] = {}
    make_request = serving.Daemon._request

    def request(self: serving.Daemon, claim: lease.Claim, system: str | None) -> Any:
        made = make_request(self, claim, system)
        prompts[claim.id] = made[0]["prompt"]
        if "STUMBLE HANDING" in made[0]["prompt"]:
            raise KeyError("handing")
        return made

    finish = lease.Lease.finish

    def filed(self: lease.Lease, claim: lease.Claim, *arguments: Any) -> None:
        if "STUMBLE FILING" in prompts[claim.id]:
            raise RecursionError("filing")
        finish(self, claim, *arguments)

    serving.Daemon._request = request  # type: ignore[method-assign]
    lease.Lease.finish = filed  # type: ignore[assignment, method-assign]
    return daemon.main(argv)


if __name__ == "__main__":
    sys.exit(run_engine() if sys.argv[1:] == ["--engine"] else run_daemon(sys.argv[1:]))
