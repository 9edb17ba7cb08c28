"""Jobs after others, urgent jobs and jobs with a time limit, as a real daemon with the real model answers them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from processes import DaemonProcess, until

from nrvna.job import Job, JobState, Receipt
from nrvna.order import Order
from nrvna.workspace import Workspace

StartDaemon = Callable[..., DaemonProcess]
SMALL = ("--ctx", "512", "--parallel", "2", "--temp", "0", "--predict", "12")
# Longer than any test waits.
ENDLESS = {"ignore_eos": True, "predict": 400}


def queued(workspace: Workspace, order: Order) -> str:
    [job_id] = workspace.submit_all([order])
    return job_id


def finished(workspace: Workspace, job_id: str) -> Job:
    until(lambda: workspace.find(job_id).is_finished, f"the end of {job_id}")
    return workspace.find(job_id)


def receipt_of(workspace: Workspace, job: Job) -> Receipt:
    receipt = workspace.receipt(job)
    assert receipt
    return receipt


def test_an_answer_goes_into_the_prompt_of_the_job_after_it(served: Workspace) -> None:
    first = served.submit("Name a colour.")
    second = queued(served, Order("Say it again: {result}", after=(first,)))
    third = queued(served, Order("{result:" + first + "} and {result:" + second + "}", after=(first, second)))
    last = finished(served, third)
    one, two = (served.answer(served.find(job_id)).rstrip("\n") for job_id in (first, second))
    assert last.state is JobState.DONE
    assert (Path(served.find(second).directory) / "filled.txt").read_text() == f"Say it again: {one}"
    assert (Path(last.directory) / "filled.txt").read_text() == f"{one} and {two}"
    assert served.prompt(last).startswith("{result:")


def test_the_filled_prompt_is_what_the_model_was_asked(start_daemon: StartDaemon, workspace: Workspace) -> None:
    # Only so does an answer not depend on what else the engine had in its memory.
    start_daemon(workspace.path, *SMALL, "--reproducible", "1")
    first = workspace.submit("Name an animal.")
    piped = queued(workspace, Order("Where does it live? {result}", after=(first,)))
    job = finished(workspace, piped)
    plain = workspace.submit((Path(job.directory) / "filled.txt").read_text())
    other = workspace.submit("Where does it live?")
    assert workspace.answer(finished(workspace, plain)) == workspace.answer(job)
    assert workspace.answer(finished(workspace, other)) != workspace.answer(job)


def test_a_job_that_exceeds_its_time_fails_and_so_do_those_after_it(served: Workspace) -> None:
    slow = queued(served, Order("Count.", ENDLESS, timeout=0.5))
    after = queued(served, Order("{result}", after=(slow,)))
    later = queued(served, Order("{result}", after=(after,)))
    neighbour = served.submit("Say hi.")
    job = finished(served, slow)
    assert (job.state, receipt_of(served, job).finish_reason) == (JobState.FAILED, "timeout")
    assert served.answer(job) == "no answer within its timeout of 0.5 s\n"
    assert f"the job {slow}, which it comes after, failed: no answer within its timeout of 0.5 s" in served.answer(
        finished(served, after)
    )
    assert finished(served, later).state is JobState.FAILED
    assert finished(served, neighbour).state is JobState.DONE


def test_time_in_the_queue_is_not_time_at_work(start_daemon: StartDaemon, workspace: Workspace) -> None:
    job_id = queued(workspace, Order("Say hi.", {"predict": 4}, timeout=30))
    daemon = start_daemon(workspace.path, *SMALL)
    assert finished(workspace, job_id).state is JobState.DONE
    assert "timeout" not in daemon.log


@pytest.mark.slow
def test_an_urgent_job_does_not_wait_for_the_pile(start_daemon: StartDaemon, workspace: Workspace) -> None:
    pile = workspace.submit_all(
        [Order(f"Tell me about the number {n}.", {"ignore_eos": True, "seed": n, "predict": 48}) for n in range(60)]
    )
    start_daemon(workspace.path, *SMALL)
    until(lambda: workspace.counts().done > 0, "the first answer")
    urgent = queued(workspace, Order("Name a prime.", priority=10))
    # From when it is on the disk, which may take a while.
    before = workspace.counts().done
    finished(workspace, urgent)
    ahead = workspace.counts().done - 1 - before
    assert ahead < 15
    assert workspace.counts().queued + workspace.counts().running > len(pile) / 2


@pytest.mark.slow
def test_a_pipeline_goes_on_after_its_daemon_was_killed(start_daemon: StartDaemon, workspace: Workspace) -> None:
    ids = [workspace.submit("Name a fruit.")]
    for number in range(6):
        ids.append(queued(workspace, Order(f"{number}: {{result}}", {"seed": number}, after=(ids[-1],))))
    first = start_daemon(workspace.path, *SMALL)
    until(lambda: workspace.counts().done >= 2, "two links")
    first.kill()
    start_daemon(workspace.path, *SMALL)
    assert finished(workspace, ids[-1]).state is JobState.DONE
    assert workspace.counts() == (0, 0, 7, 0)
