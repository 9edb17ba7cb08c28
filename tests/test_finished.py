"""Finished jobs that are asked again or removed, with real files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from claims import MODEL, claimed, receipt

from nrvna.errors import SubmitError
from nrvna.finished import ask_again, remove_finished
from nrvna.job import JobState, Receipt
from nrvna.lease import Lease, cancel
from nrvna.order import Order
from nrvna.priorities import Priorities
from nrvna.submit import key_path
from nrvna.workspace import Workspace


@pytest.fixture
def lease(workspace: Workspace) -> Lease:
    return Lease(workspace, MODEL)


def finished(workspace: Workspace, lease: Lease, order: Order | str, *, failed: bool = True) -> str:
    [job_id] = workspace.submit_all([order])
    claim = claimed(lease)
    assert claim.id == job_id
    if failed:
        lease.fail(claim, "a reason", Receipt.of_failure(job_id, claim.queued, "a reason"))
    else:
        lease.finish(claim, "an answer", receipt(job_id))
    return job_id


def names(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def asked_again(workspace: Workspace, *ids: str) -> list[str]:
    return ask_again(workspace, [workspace.find(job_id) for job_id in ids])


@pytest.mark.parametrize("failed", [True, False])
def test_a_job_asked_again_is_answered_anew_under_its_id(workspace: Workspace, lease: Lease, failed: bool) -> None:
    job_id = finished(workspace, lease, "q", failed=failed)
    assert asked_again(workspace, job_id) == [job_id]
    assert workspace.find(job_id).state is JobState.QUEUED
    claim = claimed(lease)
    assert (claim.id, lease.prompt(claim), claim.begun, claim.crashes) == (job_id, "q", 0, 0)
    lease.finish(claim, "another answer", receipt(job_id))
    job = workspace.find(job_id)
    assert workspace.answer(job) == "another answer"
    assert names(job.directory) == ["job.json", "prompt.txt", "receipt.json", "result.txt"]


def test_a_job_asked_again_stands_where_it_was_in_the_queue(workspace: Workspace, lease: Lease) -> None:
    job_id = finished(workspace, lease, "first")
    workspace.submit("second")
    asked_again(workspace, job_id)
    assert claimed(lease).id == job_id


def test_a_crash_and_a_cancel_of_before_do_not_count_when_it_is_asked_again(
    workspace: Workspace, lease: Lease
) -> None:
    job_id = workspace.submit("q")
    for _ in range(3):
        lease.requeue([lease.record_crash(claimed(lease))])
    claim = claimed(lease)
    lease.fail(claim, "it crashes", receipt(job_id))
    # As if they had come back in a power cut, or too late.
    directory = Path(workspace.find(job_id).directory)
    (directory / "attempts.json").write_text('{"begun": 4, "crashes": 3}')
    (directory / "cancel").touch()
    asked_again(workspace, job_id)
    claim = claimed(lease)
    assert (claim.begun, claim.crashes, lease.is_cancelled(claim)) == (0, 0, False)


def test_a_job_asked_again_has_its_priority_again(workspace: Workspace, lease: Lease) -> None:
    job_id = finished(workspace, lease, Order("q", priority=7))
    priorities = Priorities(workspace)
    priorities.refresh()
    assert priorities.of(job_id) == 0
    asked_again(workspace, job_id)
    priorities.refresh()
    assert priorities.of(job_id) == 7


def test_a_job_asked_again_is_still_that_of_its_key(workspace: Workspace, lease: Lease) -> None:
    order = Order("q", key="k")
    job_id = finished(workspace, lease, order)
    asked_again(workspace, job_id)
    assert workspace.submit_all([order]) == [job_id]
    assert workspace.counts().queued == 1


def test_a_parent_asked_again_is_waited_for_again(workspace: Workspace, lease: Lease) -> None:
    parent = finished(workspace, lease, "first")
    child = finished(workspace, lease, Order("Given: {result}", after=(parent,)))
    assert asked_again(workspace, parent, child) == [parent, child]
    claim = claimed(lease)
    assert claim.id == parent
    assert lease.claim() is None
    lease.finish(claim, "the answer", receipt(parent))
    assert lease.prompt(claimed(lease)) == "Given: the answer"


def test_whoever_asks_again_wakes_an_idle_daemon(workspace: Workspace, lease: Lease) -> None:
    job_id = finished(workspace, lease, "q")
    bell = workspace.open_wake()
    assert bell is not None
    os.set_blocking(bell, False)
    asked_again(workspace, job_id)
    assert os.read(bell, 10)
    os.close(bell)


def test_a_job_that_is_gone_is_passed_over(workspace: Workspace, lease: Lease) -> None:
    jobs = [workspace.find(finished(workspace, lease, name)) for name in ("gone", "here")]
    shutil.rmtree(jobs[0].directory)
    assert ask_again(workspace, jobs) == [jobs[1].id]
    assert remove_finished(workspace, jobs) == []


def test_a_job_whose_return_the_disk_does_not_confirm_is_said_to_be_uncertain(
    workspace: Workspace, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = workspace.find(finished(workspace, lease, "q"))

    def broken(_: str) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("nrvna.finished.sync", broken)
    with pytest.raises(SubmitError, match="may: Input/output error") as raised:
        ask_again(workspace, [job])
    assert raised.value.uncertain == [job.id]


@pytest.mark.parametrize("failed", [True, False])
def test_a_removed_job_leaves_nothing(workspace: Workspace, lease: Lease, failed: bool) -> None:
    job = workspace.find(finished(workspace, lease, Order("q", key="k", priority=3), failed=failed))
    assert remove_finished(workspace, [job]) == [job.id]
    lease.close()
    left = [str(path.relative_to(workspace.path)) for path in Path(workspace.path).rglob("*") if job.id in path.name]
    assert left == []
    assert names(workspace.output) == names(workspace.failed) == names(workspace.keys) == []


def test_a_key_that_has_gone_to_another_job_stays(workspace: Workspace, lease: Lease) -> None:
    order = Order("q", key="k")
    old = workspace.find(finished(workspace, lease, order))
    Path(key_path(workspace, "k")).write_text("another")
    remove_finished(workspace, [old])
    assert Path(key_path(workspace, "k")).read_text() == "another"


def test_what_was_left_of_a_removed_job_is_swept_away_and_was_not_seen_before(
    workspace: Workspace, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = workspace.find(finished(workspace, lease, "q", failed=False))
    with monkeypatch.context() as patch:
        patch.setattr("nrvna.finished.remove", lambda _: None)
        remove_finished(workspace, [job])
    assert workspace.jobs() == []
    assert len(names(workspace.output)) == 1
    workspace.sweep_staging()
    assert names(workspace.output) == []


def test_several_waiting_jobs_are_cancelled_at_once(workspace: Workspace) -> None:
    ids = workspace.submit_all(["one", "two", "three"])
    assert cancel(workspace, *workspace.jobs()) == ids
    assert [job.state for job in workspace.jobs()] == [JobState.FAILED] * 3
    assert names(workspace.processing) == []
