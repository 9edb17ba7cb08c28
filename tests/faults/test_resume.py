"""Interrupted answers go on where they stopped, with the real model: the same bytes as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import DaemonProcess, until

from nrvna.job import JobState, Receipt
from nrvna.progress import parse
from nrvna.workspace import Workspace

StartDaemon = Callable[..., DaemonProcess]
Rounds = Callable[..., int]
REPRODUCIBLE = ("--reproducible", "1", "--ctx", "512", "--parallel", "6", "--temp", "0.8", "--repeat-penalty", "1.1")
CONTEXT = "You tell stories about a village with a mill, a bridge and nine houses. " * 3
TOPICS = ["mill", "bridge", "baker", "river", "school", "well", "road", "church", "smith", "inn"]


def submit_all(workspace: Workspace, count: int) -> list[str]:
    """Sampled jobs of different lengths, a seed for each, some behind a shared context."""
    ids = []
    for number in range(count):
        topic = TOPICS[number % len(TOPICS)]
        prompt = f"{CONTEXT if number % 3 else ''}Number {number}: tell me about the {topic}. 🦀"
        ids.append(workspace.submit(prompt, {"seed": number, "predict": 24 + number % 5 * 12}))
    return ids


def all_done(workspace: Workspace, ids: list[str]) -> bool:
    return all(workspace.find(job_id).state is JobState.DONE for job_id in ids)


def answers(workspace: Workspace, ids: list[str]) -> list[str]:
    return [workspace.answer(workspace.find(job_id)) for job_id in ids]


def receipts(workspace: Workspace, ids: list[str]) -> list[Receipt]:
    found = [workspace.receipt(workspace.find(job_id)) for job_id in ids]
    assert all(found)
    return [receipt for receipt in found if receipt]


@pytest.mark.slow
def test_killed_at_any_moment_answers_are_those_of_a_quiet_night(
    start_daemon: StartDaemon, tmp_path: Path, rounds: Rounds
) -> None:
    count = rounds(quick=12, ci=56, long=200)
    quiet, stormy = Workspace(tmp_path / "quiet"), Workspace(tmp_path / "stormy")
    quiet.create()
    stormy.create()
    expected_ids, ids = submit_all(quiet, count), submit_all(stormy, count)
    daemon = start_daemon(quiet.path, *REPRODUCIBLE)
    until(lambda: all_done(quiet, expected_ids), "the quiet answers", 600)
    daemon.stop()
    chance = random.Random(1)
    most, kills = rounds(quick=3, ci=16, long=60), 0
    while True:
        daemon = start_daemon(stormy.path, *REPRODUCIBLE)
        deadline = time.monotonic() + (chance.uniform(0.2, 2.5) if kills < most else 600)
        while time.monotonic() < deadline and not all_done(stormy, ids):
            time.sleep(0.01)
        if all_done(stormy, ids):
            break
        kills += 1
        if kills % 3:
            daemon.kill()
        else:
            # The engine alone, then all that is left.
            os.kill(daemon.engine_pid(), signal.SIGKILL)
            daemon.wait_log("starting another")
            daemon.stop(chance.choice([signal.SIGTERM, signal.SIGKILL]))
    found = receipts(stormy, ids)
    resumed = [receipt for receipt in found if receipt.resumed_tokens]
    tokens = sum(receipt.resumed_tokens or 0 for receipt in resumed)
    print(f"\n{count} jobs, {kills} kills: {len(resumed)} answers went on, with {tokens} tokens taken over")
    assert answers(stormy, ids) == answers(quiet, expected_ids)
    assert kills >= 2
    assert resumed
    assert all((receipt.attempts or 0) > 1 for receipt in resumed)
    assert all(receipt.reproducible for receipt in found)


def wait_for_tokens(workspace: Workspace, job_id: str, least: int) -> None:
    def is_there() -> bool:
        job = workspace.find(job_id)
        path = Path(job.directory) / "progress.jsonl"
        return path.exists() and len(parse(path.read_bytes()).tokens) >= least

    until(is_there, f"{least} tokens")


@pytest.mark.slow
def test_a_stopped_daemon_hands_its_tokens_to_the_next(start_daemon: StartDaemon, workspace: Workspace) -> None:
    daemon = start_daemon(workspace.path, "--ctx", "1024", "--parallel", "2")
    job_id = workspace.submit("Write a very long story.", {"predict": 200, "ignore_eos": True})
    wait_for_tokens(workspace, job_id, 20)
    assert daemon.stop() == 0
    assert workspace.find(job_id).state is JobState.QUEUED
    so_far = workspace.answer(workspace.find(job_id))
    kept = len(parse((Path(workspace.find(job_id).directory) / "progress.jsonl").read_bytes()).tokens)
    start_daemon(workspace.path, "--ctx", "1024", "--parallel", "2")
    until(lambda: all_done(workspace, [job_id]), "the answer")
    assert so_far
    assert workspace.answer(workspace.find(job_id)).startswith(so_far)
    [receipt] = receipts(workspace, [job_id])
    assert (receipt.resumed_tokens, receipt.generated_tokens, receipt.attempts) == (kept, 200, 2)


def test_a_killed_job_goes_on_with_the_seed_that_it_drew(start_daemon: StartDaemon, workspace: Workspace) -> None:
    options = ("--ctx", "512", "--parallel", "2", "--seed", "7")
    daemon = start_daemon(workspace.path, *options)
    job_id = workspace.submit("Write a very long story.", {"seed": -1, "predict": 120, "ignore_eos": True})
    wait_for_tokens(workspace, job_id, 10)
    daemon.kill()
    drawn = workspace.progress(workspace.find(job_id)).seed
    start_daemon(workspace.path, *options)
    until(lambda: all_done(workspace, [job_id]), "the answer")
    [receipt] = receipts(workspace, [job_id])
    assert receipt.sampling and receipt.sampling["seed"] == drawn != 7
    assert (receipt.resumed_tokens or 0) >= 10


def test_tokens_of_other_settings_are_not_taken_over(start_daemon: StartDaemon, workspace: Workspace) -> None:
    daemon = start_daemon(workspace.path, "--ctx", "512", "--parallel", "2", "--temp", "0.8", "--predict", "100")
    job_id = workspace.submit("Write a very long story.")
    wait_for_tokens(workspace, job_id, 10)
    assert daemon.stop() == 0
    start_daemon(workspace.path, "--ctx", "512", "--parallel", "2", "--temp", "0.2", "--predict", "20")
    until(lambda: all_done(workspace, [job_id]), "the answer")
    [receipt] = receipts(workspace, [job_id])
    assert (receipt.resumed_tokens, receipt.generated_tokens) == (0, 20)


def test_damaged_tokens_cost_the_tokens_and_not_the_job(start_daemon: StartDaemon, workspace: Workspace) -> None:
    daemon = start_daemon(workspace.path, "--ctx", "512", "--parallel", "2", "--predict", "60", "--temp", "0")
    job_id = workspace.submit("Write a very long story.")
    wait_for_tokens(workspace, job_id, 12)
    assert daemon.stop() == 0
    path = Path(workspace.find(job_id).directory) / "progress.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[5] = json.dumps([10**9, "no such token"]).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    start_daemon(workspace.path, "--ctx", "512", "--parallel", "2", "--predict", "60", "--temp", "0")
    until(lambda: all_done(workspace, [job_id]), "the answer")
    [receipt] = receipts(workspace, [job_id])
    assert receipt.resumed_tokens == 4
    assert "no such token" not in workspace.answer(workspace.find(job_id))
