"""Real kills of daemon and engine while they work: nothing that was acknowledged is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from processes import DaemonProcess, command, until

from nrvna.job import JobState
from nrvna.lease import recover
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
    assert alive(engine)
    daemon.kill()
    until(lambda: not alive(engine), "the engine's end", 5)


@pytest.mark.slow
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


def times_begun(workspace: Workspace, job_id: str) -> int:
    return sum(path.read_text().count(job_id) for path in Path(workspace.processing).glob("*/.starts"))


@pytest.mark.slow
def test_a_job_that_kills_the_engine_again_and_again_is_set_aside_and_its_neighbours_are_not(
    start_daemon: StartDaemon, workspace: Workspace
) -> None:
    daemon = start_daemon(workspace.path, *SMALL, "--predict", "150")
    killer = workspace.submit("Write a long story.")
    others = [workspace.submit(f"Describe the number {number}.") for number in range(5)]
    # The first death hits everybody at work; after it they run alone, the oldest first: that is the killer.
    for times in (1, 2, 3):
        until(lambda times=times: times_begun(workspace, killer) == times, "its start")  # type: ignore[misc]
        os.kill(daemon.engine_pid(), signal.SIGABRT)
    until(lambda: states(workspace, [killer, *others]) <= {JobState.DONE, JobState.FAILED}, "the verdict")
    reason = workspace.answer(workspace.find(killer))
    assert reason.startswith("the engine died 3 times while it was at this job, last with signal SIGABRT; the end of")
    receipt = workspace.receipt(workspace.find(killer))
    assert receipt is not None and receipt.attempts == 3
    assert states(workspace, others) == {JobState.DONE}
    assert "Traceback" not in daemon.log


@pytest.mark.slow
def test_an_engine_that_cannot_start_again_is_tried_again_until_it_can(
    start_daemon: StartDaemon, workspace: Workspace, model_file: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model.gguf"
    model.symlink_to(model_file)
    daemon = start_daemon(workspace.path, *SMALL, model=model)
    model.unlink()
    os.kill(daemon.engine_pid(), signal.SIGKILL)
    daemon.wait_log("the engine cannot start: no model file")
    assert daemon.process.poll() is None

    def status() -> list[str]:
        return command("daemon", "--status", workspace.path).stdout.splitlines()

    until(lambda: status()[1].startswith("  the engine cannot start: no model file"), "the status")
    job_id = workspace.submit("Say yes.")
    model.symlink_to(model_file)
    until(lambda: workspace.find(job_id).state is JobState.DONE, "the answer")
    until(lambda: " at a time: " in status()[0] and status()[1].startswith("jobs"), "the status")


@pytest.mark.slow
def test_an_engine_that_hangs_does_not_keep_the_daemon_from_ending(
    start_daemon: StartDaemon, workspace: Workspace
) -> None:
    daemon = start_daemon(workspace.path, *SMALL)
    os.kill(daemon.engine_pid(), signal.SIGSTOP)
    job_id = workspace.submit("word " * 200_000)
    until(lambda: workspace.find(job_id).state is JobState.RUNNING, "the claim")
    assert daemon.stop() == 0
    assert workspace.find(job_id).state is JobState.QUEUED


def test_a_full_disk_loses_nothing(start_daemon: StartDaemon, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", small], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    try:
        workspace = Workspace(small / "workspace")
        daemon = start_daemon(workspace.path, *SMALL)
        job_id = workspace.submit("Say yes.")
        until(lambda: workspace.find(job_id).state is JobState.RUNNING, "the claim")
        ballast = small / "ballast"
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(512))
        daemon.wait_log("No space left on device; trying again until it works")
        assert workspace.find(job_id).state is JobState.RUNNING
        ballast.unlink()
        until(lambda: workspace.find(job_id).state is JobState.DONE, "the answer")
        assert workspace.receipt(workspace.find(job_id)) is not None
        assert daemon.stop() == 0
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_a_second_signal_ends_the_daemon_at_once_and_loses_nothing(
    start_daemon: StartDaemon, workspace: Workspace
) -> None:
    daemon = start_daemon(workspace.path, *SMALL, "--predict", "400")
    ids = [workspace.submit("Write a long story.") for _ in range(4)]
    until(lambda: running(workspace), "a running job")
    daemon.process.send_signal(signal.SIGTERM)
    daemon.process.send_signal(signal.SIGTERM)
    daemon.process.wait(5)
    recover(workspace)
    assert states(workspace, ids) == {JobState.QUEUED}
