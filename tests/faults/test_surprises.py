"""What nobody foresaw: a real engine, and the daemon, that raise in the middle of a job. It is that job's failure."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import stumbling
from processes import DaemonProcess, until

from nrvna.job import JobState
from nrvna.workspace import Workspace

OPTIONS = ("--parallel", "4", "--ctx", "512", "--predict", "6", "--temp", "0")


@pytest.fixture
def daemon(model_file: Path, workspace: Workspace, tmp_path: Path) -> Iterator[DaemonProcess]:
    """A daemon that stumbles on demand; in the end it and its engine must be those that were started."""
    program = (sys.executable, stumbling.__file__)
    made = DaemonProcess(model_file, workspace.path, OPTIONS, tmp_path / "daemon.log", program=program)
    made.wait_ready()
    engine = made.engine_pid()
    yield made
    try:
        assert made.engine_pid() == engine
        assert "the engine ended" not in made.log
    finally:
        made.kill()


def finish(workspace: Workspace, ids: list[str]) -> list[JobState]:
    until(lambda: all(workspace.find(job_id).is_finished for job_id in ids), "the end of the queue")
    return [workspace.find(job_id).state for job_id in ids]


def reason_for(workspace: Workspace, job_id: str) -> str:
    job = workspace.find(job_id)
    assert job.state is JobState.FAILED
    receipt = workspace.receipt(job)
    assert receipt is not None and receipt.finish_reason == "error"
    reason = workspace.answer(job)
    assert receipt.error == reason.removesuffix("\n")
    return reason


def test_whatever_an_engine_raises_at_a_job_fails_that_job_and_no_other(
    daemon: DaemonProcess, workspace: Workspace
) -> None:
    good, bad = [], {}
    for number, point in enumerate(stumbling.POINTS):
        for error in stumbling.ERRORS:
            good.append(workspace.submit(f"Name the number {number}, not {error}."))
            bad[workspace.submit(f"Name the number {number}. STUMBLE {point} {error}")] = (point, error)
    assert set(finish(workspace, good)) == {JobState.DONE}
    finish(workspace, list(bad))
    for job_id, (_, error) in bad.items():
        reason = reason_for(workspace, job_id)
        assert reason.startswith(f"nrvna failed at this job, by a mistake of its own: {error}")
        assert reason.count("\n") == 1
    # Whoever mends it finds all of it in the log.
    assert daemon.log.count("Traceback") == len(bad)
    assert workspace.counts().queued == 0


def test_a_choice_that_makes_the_engine_raise_fails_alone(daemon: DaemonProcess, workspace: Workspace) -> None:
    assert daemon
    task = {"choices": ["yes", "no", "yes and no"]}
    bad = [
        workspace.submit(f"Is it? STUMBLE {point} OverflowError", task=task)
        for point in stumbling.CHOICE_POINTS
        for _ in range(2)
    ]
    good = workspace.submit("Is it?", task=task)
    assert finish(workspace, [good]) == [JobState.DONE]
    assert set(finish(workspace, bad)) == {JobState.FAILED}
    assert all("OverflowError" in reason_for(workspace, job_id) for job_id in bad)


def test_a_job_that_makes_the_daemon_raise_fails_alone(daemon: DaemonProcess, workspace: Workspace) -> None:
    good, bad = [], []
    for number in range(3):
        bad += [workspace.submit(f"Count to {number}. STUMBLE {point} x") for point in stumbling.DAEMON_POINTS]
        good.append(workspace.submit(f"Count to {number}."))
    assert set(finish(workspace, good)) == {JobState.DONE}
    assert set(finish(workspace, bad)) == {JobState.FAILED}
    assert daemon.process.poll() is None
    assert {reason_for(workspace, job_id).split("own: ")[1].split(";")[0] for job_id in bad} == {
        "KeyError: 'handing'",
        "RecursionError: filing",
    }
