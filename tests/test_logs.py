"""The log as a program reads it."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from processes import DaemonProcess, command, until

from nrvna.logs import JsonFormatter, message_of, wrapped
from nrvna.workspace import Workspace

StartDaemon = Callable[..., DaemonProcess]
SMALL = ("--ctx", "512", "--parallel", "2", "--predict", "5", "--log-json")


def records(log: str) -> list[dict[str, Any]]:
    """What the log says, every line of it."""
    found = [json.loads(line) for line in log.splitlines()]
    assert all({"time", "level", "message"} <= record.keys() for record in found)
    return found


def test_each_line_of_a_daemons_log_is_an_object_and_tells_of_jobs_by_fields(
    start_daemon: StartDaemon, workspace: Workspace
) -> None:
    daemon = start_daemon(workspace.path, *SMALL, "--log-level", "debug", "--llama-log-level", "info")
    done = workspace.submit("Count to a hundred.", {"ignore_eos": True})
    bad = workspace.submit("Hello!", {"temp": 100})
    until(lambda: all(workspace.find(name).is_finished for name in (done, bad)), "both jobs")
    assert daemon.stop() == 0
    log = records(daemon.log)
    moment = datetime.fromisoformat(log[0]["time"])
    assert moment.utcoffset() == timedelta(0)
    assert abs((datetime.now(UTC) - moment).total_seconds()) < 120
    assert {record["level"] for record in log} >= {"debug", "info", "warn"}
    assert any(record.get("from") == "engine" for record in log)
    about = {(record["job"], record["state"]): record for record in log if "job" in record}
    assert set(about) == {(done, "running"), (done, "done"), (bad, "failed")}
    assert about[done, "done"]["tokens"] == 5
    assert about[done, "done"]["tokens_per_second"] > 0
    assert "tokens" not in about[bad, "failed"]
    assert about[bad, "failed"]["message"].startswith(f"{bad} failed: the job's temp")


def test_the_variable_asks_for_it_too_and_the_last_word_is_an_object_as_well(tmp_path: Path) -> None:
    done = command("daemon", tmp_path / "m.gguf", tmp_path / "w", env={"NRVNA_LOG_JSON": "1"})
    assert done.returncode == 2
    [record] = records(done.stderr)
    assert record["level"] == "error"
    assert record["message"].startswith(f"no model file {tmp_path / 'm.gguf'}")


@pytest.mark.slow
def test_an_engine_that_crashes_leaves_the_log_readable_and_its_last_words_plain(
    start_daemon: StartDaemon, workspace: Workspace
) -> None:
    daemon = start_daemon(workspace.path, *SMALL, "--predict", "400", "--log-level", "debug")
    job_id = workspace.submit("Write a very long story.", {"ignore_eos": True})
    for deaths in range(1, 4):
        until(lambda: starts(daemon, job_id) > daemon.log.count("signal SIGABRT"), "a start")
        os.kill(daemon.engine_pid(), signal.SIGABRT)
        until(partial(has_died, daemon, deaths), "the end of the engine")
    until(lambda: workspace.find(job_id).is_finished, "the end of the job")
    assert daemon.stop() == 0
    records(daemon.log)
    reason = workspace.answer(workspace.find(job_id))
    assert "the engine died 3 times" in reason
    assert '"message"' not in reason


def starts(daemon: DaemonProcess, job_id: str) -> int:
    return daemon.log.count(f"{job_id} is begun")


def has_died(daemon: DaemonProcess, times: int) -> bool:
    return daemon.log.count("signal SIGABRT") >= times


@pytest.mark.parametrize("line", ["GGML_ASSERT(n > 0) failed", "[1, 2]", '"text"', "{broken", "[" * 100_000])
def test_what_is_no_object_becomes_one(line: str) -> None:
    record = json.loads(wrapped(line, "engine"))
    assert (record["message"], record["from"], record["level"]) == (line, "engine", "error")
    assert message_of(wrapped(line, "engine")) == line


def test_what_is_an_object_stays_as_it_is() -> None:
    line = '{"message": "one", "level": "info"}'
    assert wrapped(line, "engine") == line
    assert message_of(line) == "one"


def test_a_message_of_any_characters_and_an_exception_stay_on_one_line() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        raised = sys.exc_info()
    record = logging.LogRecord("nrvna", logging.ERROR, __file__, 1, "a \udce4\n%s", ("b",), raised)
    line = JsonFormatter().format(record)
    assert "\n" not in line and line.isascii()
    message = json.loads(line)["message"]
    assert message.startswith("a \udce4\nb\nTraceback") and message.endswith("ValueError: first\nsecond")
