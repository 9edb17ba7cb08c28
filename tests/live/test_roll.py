"""Which jobs a watch counts, and how."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nrvna.errors import WorkspaceError
from nrvna.files import remove
from nrvna.job import Receipt
from nrvna.lease import Claim, Lease
from nrvna.live.roll import Roll
from nrvna.workspace import Workspace


@pytest.fixture
def lease(workspace: Workspace) -> Iterator[Lease]:
    held = Lease(workspace, {"path": "m.gguf"})
    yield held
    held.close()


def claim(lease: Lease) -> Claim:
    claimed = lease.claim()
    assert claimed is not None
    return claimed


def receipt(job: Claim) -> Receipt:
    return Receipt(job.id, "stop", "q", "f", "0.1.0")


def counts(roll: Roll) -> tuple[int, int, int]:
    """Done, failed, unfinished, once every change shows."""
    time.sleep(0.06)
    # A second from now even a folder that took long to read is read again.
    roll.look(time.monotonic() + 1)
    return len(roll.done), len(roll.failed), len(roll.unfinished)


def test_what_was_finished_before_is_not_watched(workspace: Workspace, lease: Lease) -> None:
    workspace.submit_all(["a", "b", "c"])
    done, failed = claim(lease), claim(lease)
    lease.finish(done, "x", receipt(done))
    lease.fail(failed, "x", receipt(failed))
    assert counts(Roll(workspace, time.monotonic())) == (0, 0, 1)


def test_a_job_is_counted_through_all_its_states(workspace: Workspace, lease: Lease) -> None:
    workspace.submit_all(["a", "b"])
    roll = Roll(workspace, time.monotonic())
    assert counts(roll) == (0, 0, 2)
    first, second = claim(lease), claim(lease)
    assert counts(roll) == (0, 0, 2)
    assert set(roll.claimed) == {first.id, second.id}
    lease.finish(first, "x", receipt(first))
    lease.requeue([second])
    assert counts(roll) == (1, 0, 1)
    assert not roll.is_over(time.monotonic())
    second = claim(lease)
    lease.fail(second, "x", receipt(second))
    assert counts(roll) == (1, 1, 0)
    assert roll.is_over(time.monotonic())


def test_jobs_that_come_later_count_too(workspace: Workspace, lease: Lease) -> None:
    workspace.submit("a")
    roll = Roll(workspace, time.monotonic())
    workspace.submit_all(["b", "c"])
    # This one was never seen to be unfinished.
    first = claim(lease)
    lease.finish(first, "x", receipt(first))
    assert counts(roll) == (1, 0, 2)


def test_each_finished_job_is_told_of_once(workspace: Workspace, lease: Lease) -> None:
    workspace.submit_all(["a", "b"])
    roll = Roll(workspace, time.monotonic())
    told = []
    for _ in range(2):
        job = claim(lease)
        lease.finish(job, "x", receipt(job))
        for _ in range(3):
            told += [found.id for found in roll.look(time.monotonic())]
    time.sleep(0.06)
    told += [found.id for found in roll.look(time.monotonic() + 1)]
    assert sorted(told) == sorted(job.id for job in workspace.jobs())


def test_a_finished_job_is_seen_at_once_though_its_folder_is_not_read_yet(workspace: Workspace, lease: Lease) -> None:
    workspace.submit("a")
    job = claim(lease)
    roll = Roll(workspace, now := time.monotonic())
    lease.finish(job, "x", receipt(job))
    # Of a folder that took long to read the next reading is far away.
    roll._done._due = now + 1000
    assert [found.id for found in roll.look(now)] == [job.id]


def test_a_job_that_is_tried_again_counts_as_unfinished(workspace: Workspace, lease: Lease) -> None:
    workspace.submit("a")
    job = claim(lease)
    roll = Roll(workspace, time.monotonic())
    lease.fail(job, "x", receipt(job))
    assert counts(roll) == (0, 1, 0)
    (Path(workspace.failed) / job.id).rename(Path(workspace.input) / job.id)
    assert counts(roll) == (0, 0, 1)


def test_a_job_that_was_removed_is_not_waited_for(workspace: Workspace) -> None:
    job_id, other = workspace.submit_all(["a", "b"])
    roll = Roll(workspace, now := time.monotonic())
    remove(f"{workspace.input}/{job_id}")
    time.sleep(0.06)
    # It might just be on its way.
    roll.look(now + 0.1)
    assert roll.unfinished == {job_id, other}
    roll.look(now + 3)
    assert roll.unfinished == {other}


def test_a_workspace_that_is_gone_is_no_end(workspace: Workspace) -> None:
    workspace.submit("a")
    roll = Roll(workspace, time.monotonic())
    remove(workspace.path)
    with pytest.raises(WorkspaceError, match="cannot read"):
        roll.look(time.monotonic())
