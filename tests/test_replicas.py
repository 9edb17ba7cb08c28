"""A daemon with several engines on the processor, with the real model."""

from __future__ import annotations

import json
import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from processes import DaemonProcess, command, until

from nrvna.config import llama_dir
from nrvna.job import JobState
from nrvna.llama import load_library
from nrvna.workspace import Workspace

StartDaemon = Callable[..., DaemonProcess]
TWO = ("--replicas", "2", "--ctx", "512", "--parallel", "4", "--temp", "0", "--predict", "40")
BOTH = {"replica 1", "replica 2"}


def start_two(start_daemon: StartDaemon, workspace: Workspace, *options: str, **more: Path) -> DaemonProcess:
    daemon = start_daemon(workspace.path, *TWO, *options, **more)
    for name in BOTH:
        daemon.wait_log(f"[{name}] ready:")
    return daemon


def states(workspace: Workspace, ids: Iterable[str]) -> set[JobState]:
    return {workspace.find(job_id).state for job_id in ids}


def wait_done(workspace: Workspace, ids: Iterable[str]) -> None:
    until(lambda: states(workspace, ids) == {JobState.DONE}, "all answers")


def wait_running(workspace: Workspace, ids: Iterable[str]) -> None:
    """Until these are at work with some of their answers on record."""
    until(lambda: all(workspace.answer(workspace.find(job_id)) for job_id in ids), "progress")


def attempts_of(workspace: Workspace, job_id: str) -> int:
    receipt = workspace.receipt(workspace.find(job_id))
    assert receipt is not None and receipt.attempts is not None
    return receipt.attempts


def answered(log: str) -> Counter[tuple[str, str]]:
    """Which engine answered which job, and how often."""
    found = re.findall(r"\[(replica \d+)\] (\S+) done:", log)
    return Counter((name, job_id) for name, job_id in found)


def test_two_engines_share_the_queue_and_answer_every_job_once(
    start_daemon: StartDaemon, workspace: Workspace
) -> None:
    ids = [workspace.submit(f"Describe the number {number}.") for number in range(24)]
    daemon = start_two(start_daemon, workspace)
    wait_done(workspace, ids)
    until(lambda: answered(daemon.log).total() == 24, "the log")
    assert set(answered(daemon.log).values()) == {1}
    by = Counter(name for name, _ in answered(daemon.log))
    assert set(by) == BOTH and min(by.values()) >= 6
    assert len(workspace.jobs()) == 24
    assert {attempts_of(workspace, job_id) for job_id in ids} == {1}
    status = command("daemon", "--status", workspace.path).stdout.splitlines()
    assert ", 8 at a time: " in status[0]
    assert status[1:3] == [f"  [replica {number}] ready, 4 at a time" for number in (1, 2)]
    assert "of 2 engines to be ready" in daemon.log


@pytest.mark.slow
def test_the_greedy_answers_of_two_engines_are_those_of_one(
    start_daemon: StartDaemon, workspace: Workspace, tmp_path: Path
) -> None:
    prompts = [f"Name something that weighs {number} kilograms." for number in range(8)]
    other = Workspace(tmp_path / "other")
    other.create()
    ids = [[place.submit(prompt, {"predict": 12}) for prompt in prompts] for place in (workspace, other)]
    # Reproducible, as which jobs run side by side may change the last bits.
    options = ("--ctx", "256", "--parallel", "2", "--temp", "0", "--reproducible", "1")
    start_daemon(workspace.path, *options, "--replicas", "2")
    wait_done(workspace, ids[0])
    start_daemon(other.path, *options)
    wait_done(other, ids[1])
    assert [workspace.answer(workspace.find(job_id)) for job_id in ids[0]] == [
        other.answer(other.find(job_id)) for job_id in ids[1]
    ]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system keeps nobody to some cores")
def test_each_engine_has_cores_of_its_own(start_daemon: StartDaemon, workspace: Workspace) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one core for both")
    daemon = start_two(start_daemon, workspace)
    first, second = (os.sched_getaffinity(pid) for pid in daemon.engine_pids())
    assert first and second and not first & second
    assert first | second == os.sched_getaffinity(0) == os.sched_getaffinity(daemon.process.pid)


@pytest.mark.slow
def test_an_engine_that_is_killed_costs_its_own_jobs_a_start_and_the_other_goes_on(
    start_daemon: StartDaemon, workspace: Workspace
) -> None:
    daemon = start_two(start_daemon, workspace)
    ids = [workspace.submit(f"Describe the number {number}.") for number in range(40)]
    wait_running(workspace, ids[:8])
    os.kill(daemon.engine_pids()[0], signal.SIGKILL)
    wait_done(workspace, ids)
    until(lambda: answered(daemon.log).total() == 40, "the log")
    assert set(answered(daemon.log).values()) == {1}
    assert len(workspace.jobs()) == 40
    hit = [job_id for job_id in ids if attempts_of(workspace, job_id) > 1]
    assert 1 <= len(hit) <= 4
    assert {attempts_of(workspace, job_id) for job_id in hit} == {2}
    before, after = daemon.log.split("[replica 1] the engine ended with signal SIGKILL")
    assert "[replica 2] the engine ended" not in daemon.log
    # No pause: there are answers of the other before the killed one is back.
    assert "[replica 2] " in after.partition("[replica 1] ready:")[0].replace("[replica 2] engine:", "")
    assert before.count("[replica 1] ready:") == after.count("[replica 1] ready:") == 1


@pytest.mark.slow
def test_what_a_killed_engine_had_written_is_not_computed_again(
    start_daemon: StartDaemon, workspace: Workspace
) -> None:
    daemon = start_two(start_daemon, workspace, "--predict", "150")
    ids = [workspace.submit(f"Write a long story about {n} rivers.", {"ignore_eos": True}) for n in range(4)]
    wait_running(workspace, ids)
    os.kill(daemon.engine_pids()[1], signal.SIGKILL)
    wait_done(workspace, ids)
    receipts = [workspace.receipt(workspace.find(job_id)) for job_id in ids]
    resumed = [receipt for receipt in receipts if receipt and receipt.attempts == 2]
    assert len(resumed) == 2
    assert all(receipt.resumed_tokens for receipt in resumed)


def test_a_stop_hands_back_what_both_engines_are_at(start_daemon: StartDaemon, workspace: Workspace) -> None:
    daemon = start_two(start_daemon, workspace, "--predict", "400")
    ids = [workspace.submit(f"Write a story about {n} men.", {"ignore_eos": True}) for n in range(12)]
    # Any eight: they begin alike, so they need not start in their order.
    until(lambda: sum(bool(workspace.answer(workspace.find(job_id))) for job_id in ids) == 8, "progress")
    engines = daemon.engine_pids()
    assert len(engines) == 2
    assert daemon.stop() == 0
    assert states(workspace, ids) == {JobState.QUEUED}
    assert workspace.peers() == []
    assert not any(Path(f"/proc/{pid}").exists() for pid in engines)
    assert "Traceback" not in daemon.log


@pytest.mark.slow
def test_an_engine_that_cannot_start_again_is_said_once_and_the_other_answers(
    start_daemon: StartDaemon, workspace: Workspace, model_file: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model.gguf"
    model.symlink_to(model_file)
    daemon = start_two(start_daemon, workspace, model=model)
    model.unlink()
    os.kill(daemon.engine_pids()[0], signal.SIGKILL)
    said = "[replica 1] the engine cannot start: no model file"
    daemon.wait_log(said)
    ids = [workspace.submit(f"Describe the number {number}.", {"predict": 20}) for number in range(30)]
    wait_done(workspace, ids)
    assert daemon.log.count(said) == 1
    model.symlink_to(model_file)
    until(lambda: daemon.log.count("[replica 1] ready:") == 2, "the engine")
    assert daemon.process.poll() is None


@pytest.mark.slow
def test_the_log_of_several_engines_is_json_too(start_daemon: StartDaemon, workspace: Workspace) -> None:
    daemon = start_daemon(workspace.path, *TWO, "--log-json", wait=False)
    until(lambda: daemon.log.count("ready: ") == 2, "both engines")
    os.kill(daemon.engine_pids()[1], signal.SIGABRT)
    until(lambda: daemon.log.count("ready: ") == 3, "another engine")
    lines = [json.loads(line) for line in daemon.log.splitlines()]
    assert {line["from"] for line in lines if "from" in line} == {f"[{name}] engine" for name in BOTH}
    assert any(line["message"].startswith("[replica 2] the engine ended with signal SIGABRT") for line in lines)


def has_gpu() -> bool:
    return any(device.is_gpu for device in load_library(llama_dir()).devices())


def test_gpus_that_are_not_there_end_the_start_in_one_line_before_any_job_is_taken(
    model_file: Path, workspace: Workspace
) -> None:
    if has_gpu():
        pytest.skip("there is a GPU here")
    job_id = workspace.submit("Hello")
    for gpus in ("0,1", "0+1", "all"):
        done = command("daemon", "--gpus", gpus, model_file, workspace.path)
        assert done.returncode == 1
        assert done.stderr.startswith(f"nrvnad: NRVNA_GPUS is {gpus}, but llama.cpp")
        assert done.stderr.count("\n") == 1
    assert workspace.find(job_id).state is JobState.QUEUED
    assert list(Path(workspace.processing).iterdir()) == []


def test_check_does_not_promise_gpus_that_are_not_there(model_file: Path) -> None:
    if has_gpu():
        pytest.skip("there is a GPU here")
    done = command("daemon", "--check", "--gpus", "0,1", model_file)
    assert done.returncode == 1
    assert done.stdout.startswith("verdict       will not work: NRVNA_GPUS gives this engine 0, but llama.cpp")


def test_a_gpu_has_an_engine_of_its_own(start_daemon: StartDaemon, workspace: Workspace) -> None:
    if not has_gpu():
        pytest.skip("there is no GPU here, or llama.cpp was built without")
    daemon = start_daemon(workspace.path, "--gpus", "0", "--ctx", "512", "--predict", "8")
    environment = Path(f"/proc/{daemon.engine_pid()}/environ").read_bytes().split(b"\0")
    assert b"CUDA_VISIBLE_DEVICES=0" in environment
    job_id = workspace.submit("Hello")
    wait_done(workspace, [job_id])
