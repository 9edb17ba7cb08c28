"""Several models in one workspace: who answers what."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import DaemonProcess, command, until

from nrvna.errors import WorkspaceError
from nrvna.job import JobState
from nrvna.lease import Lease
from nrvna.workspace import Workspace

StartDaemon = Callable[..., DaemonProcess]
SMALL = ("--ctx", "256", "--parallel", "1", "--predict", "4")
MODEL = {"path": "/models/A.gguf", "size": 1, "mtime_ns": 1}
OTHER = {"path": "/models/B.gguf", "size": 2, "mtime_ns": 1}


def model_of(workspace: Workspace, job_id: str) -> str:
    """The name of the file that answered a job, once it has."""
    until(lambda: workspace.find(job_id).is_finished, f"the end of {job_id}")
    job = workspace.find(job_id)
    assert job.state is JobState.DONE, workspace.answer(job)
    receipt = workspace.receipt(job)
    assert receipt and receipt.model
    return Path(receipt.model["path"]).name


def test_two_models_share_a_workspace_and_each_answers_its_own_jobs(
    start_daemon: StartDaemon, workspace: Workspace, model_file: Path, embedder_file: Path
) -> None:
    start_daemon(workspace.path, *SMALL)
    start_daemon(workspace.path, "--named", model=embedder_file)
    name = embedder_file.name.removesuffix(".gguf").upper()
    vector = command("wrk", workspace.path, "fish", "--embed", "--model", name).stdout.strip()
    text = command("wrk", workspace.path, "Say hello.").stdout.strip()
    named = command("wrk", workspace.path, "Say hello.", "--model", model_file.name).stdout.strip()
    nobodys = command("wrk", workspace.path, "Say hello.", "--model", "llama-70b").stdout.strip()
    assert model_of(workspace, vector) == embedder_file.name
    assert {model_of(workspace, text), model_of(workspace, named)} == {model_file.name}
    assert workspace.find(nobodys).state is JobState.QUEUED
    peers = workspace.peers()
    asked = (None, name, model_file.name, "llama-70b")
    assert [sum(peer.answers(each) for peer in peers) for each in asked] == [1, 1, 1, 0]


def test_a_named_daemon_alone_leaves_all_other_jobs_in_the_queue(
    start_daemon: StartDaemon, workspace: Workspace, model_file: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "Other.gguf"
    try:
        os.link(model_file, copy)
    except OSError:
        shutil.copy(model_file, copy)
    anybodys = [workspace.submit("Hello!") for _ in range(3)]
    mine = workspace.submit("Hello!", model="other")
    daemon = start_daemon(workspace.path, *SMALL, "--named", model=copy)
    assert model_of(workspace, mine) == "Other.gguf"
    assert daemon.stop() == 0
    assert {workspace.find(job_id).state for job_id in anybodys} == {JobState.QUEUED}


def test_a_second_model_without_a_name_is_refused_with_the_way_out(
    start_daemon: StartDaemon, workspace: Workspace, embedder_file: Path
) -> None:
    start_daemon(workspace.path, *SMALL)
    done = command("daemon", embedder_file, workspace.path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "with another model" in done.stderr and "--named" in done.stderr


def test_a_model_without_a_name_may_join_those_with_one(workspace: Workspace) -> None:
    leases = [Lease(workspace, OTHER, named=True), Lease(workspace, MODEL), Lease(workspace, MODEL)]
    third = {"path": "/models/C.gguf", "size": 3, "mtime_ns": 1}
    with pytest.raises(WorkspaceError, match="--named"):
        Lease(workspace, third)
    leases.append(Lease(workspace, third, named=True))
    assert [peer.named for peer in workspace.peers()].count(True) == 2
    for lease in leases:
        lease.close()


@pytest.mark.parametrize("named", [(True, False), (False, True), (True, True)])
def test_two_models_of_one_name_are_not_told_apart_and_the_second_is_refused(
    workspace: Workspace, named: tuple[bool, bool]
) -> None:
    first = Lease(workspace, MODEL, named=named[0])
    with pytest.raises(WorkspaceError, match=r"of the same name, /models/A\.gguf: .* asks for a could mean either"):
        Lease(workspace, {**MODEL, "path": "/elsewhere/a.GGUF"}, named=named[1])
    first.close()


def test_a_model_is_known_by_the_name_of_a_link_as_well(workspace: Workspace) -> None:
    lease = Lease(workspace, {**MODEL, "path": "/blobs/5f3a"}, "Tiny.gguf", named=True)
    job_id = workspace.submit("q", model="tiny")
    claim = lease.claim()
    assert claim is not None and claim.id == job_id
    assert [peer.answers("TINY.gguf") for peer in workspace.peers()] == [True]
    lease.close()


def test_a_job_of_no_named_daemon_does_not_hide_those_behind_it(workspace: Workspace) -> None:
    lease = Lease(workspace, MODEL, named=True)
    for number in range(300):
        workspace.submit(f"for anybody {number}")
    mine = workspace.submit("for a", model="a")
    claim = lease.claim()
    assert claim is not None and claim.id == mine
    assert lease.claim() is None
    lease.close()
