"""Real kills of daemon and engine while they work: nothing that was acknowledged is lost."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from processes import DaemonProcess, until

from nrvna.job import JobState
from nrvna.workspace import Workspace

StartDaemon = Callable[..., DaemonProcess]
SMALL = ("--ctx", "512", "--parallel", "4", "--temp", "0", "--predict", "24")


def states(workspace: Workspace, ids: list[str]) -> set[JobState]:
    return {workspace.find(job_id).state for job_id in ids}


def running(workspace: Workspace) -> bool:
    return workspace.newest_running() is not None


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_jobs_survive_the_daemons_death_and_are_answered_by_the_next(
    start_daemon: StartDaemon, workspace: Workspace
) -> None:
    ids = [workspace.submit(f"Describe the number {number}.") for number in range(8)]
    chance = random.Random(1)
    for _ in range(3):
        daemon = start_daemon(workspace.path, *SMALL)
        time.sleep(chance.uniform(0.0, 0.6))
        daemon.kill()
    start_daemon(workspace.path, *SMALL)
    until(lambda: states(workspace, ids) == {JobState.DONE}, "all answers")
    assert len(workspace.jobs()) == len(ids)


def test_the_engine_dies_with_its_daemon(start_daemon: StartDaemon, workspace: Workspace) -> None:
    daemon = start_daemon(workspace.path, *SMALL)
    engine = daemon.engine_pid()
    daemon.kill()
    until(lambda: not alive(engine), "the engine's end", 5)


def test_a_living_daemon_takes_over_the_jobs_of_a_dead_one(start_daemon: StartDaemon, workspace: Workspace) -> None:
    dying = start_daemon(workspace.path, *SMALL, "--predict", "400")
    ids = [workspace.submit("Write a long story.") for _ in range(3)]
    until(lambda: running(workspace), "a running job")
    heir = start_daemon(workspace.path, *SMALL)
    dying.kill()
    until(lambda: states(workspace, ids) == {JobState.DONE}, "all answers")
    assert "of a daemon that died back into the queue" in heir.log


def test_the_daemon_survives_the_engines_death(start_daemon: StartDaemon, workspace: Workspace) -> None:
    daemon = start_daemon(workspace.path, *SMALL)
    ids = [workspace.submit(f"Describe the number {number}.") for number in range(6)]
    until(lambda: running(workspace), "a running job")
    os.kill(daemon.engine_pid(), signal.SIGKILL)
    until(lambda: states(workspace, ids) == {JobState.DONE}, "all answers")
    assert "the engine ended with signal SIGKILL" in daemon.log
    assert "Traceback" not in daemon.log


def test_a_job_that_kills_the_engine_again_and_again_is_set_aside(
    start_daemon: StartDaemon, workspace: Workspace
) -> None:
    daemon = start_daemon(workspace.path, *SMALL, "--predict", "400")
    job_id = workspace.submit("Write a long story.")
    processing = Path(workspace.path) / "processing"
    for _ in range(3):
        until(lambda: any(processing.glob("*/*/partial.txt")), "a first token")
        os.kill(daemon.engine_pid(), signal.SIGABRT)
        until(lambda: not any(processing.glob("*/*/partial.txt")), "the job's return")
    assert daemon.log.count("the engine ended with signal SIGABRT while it answered 1 jobs; starting another") == 3
    until(lambda: workspace.find(job_id).is_finished, "the verdict")
    job = workspace.find(job_id)
    assert job.state is JobState.FAILED
    assert workspace.answer(job) == "the engine died 3 times while it answered this job, last with signal SIGABRT\n"
    after = workspace.submit("Say yes.")
    until(lambda: workspace.find(after).state is JobState.DONE, "the next answer")


def test_a_second_signal_ends_the_daemon_at_once_and_loses_nothing(
    start_daemon: StartDaemon, workspace: Workspace
) -> None:
    daemon = start_daemon(workspace.path, *SMALL, "--predict", "400")
    ids = [workspace.submit("Write a long story.") for _ in range(4)]
    until(lambda: running(workspace), "a running job")
    daemon.process.send_signal(signal.SIGTERM)
    daemon.process.send_signal(signal.SIGTERM)
    daemon.process.wait(5)
    workspace.recover()
    assert states(workspace, ids) == {JobState.QUEUED}
