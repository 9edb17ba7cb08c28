"""A workspace's folders, with real files and no daemon: queueing and looking."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from nrvna import files
from nrvna import submit as submit_module
from nrvna.errors import (
    JobError,
    JobNotFoundError,
    SubmitError,
    WorkspaceError,
)
from nrvna.job import JobState
from nrvna.order import MAX_PROMPT_BYTES
from nrvna.pile import GROUP
from nrvna.workspace import Workspace


def test_a_submitted_job_is_queued_with_its_prompt(workspace: Workspace) -> None:
    job = workspace.find(workspace.submit("What is a queue?"))
    assert (job.state, workspace.prompt(job)) == (JobState.QUEUED, "What is a queue?")


def test_jobs_are_private_to_their_user(workspace: Workspace) -> None:
    job = workspace.find(workspace.submit("secret"))
    assert stat.S_IMODE(Path(job.directory).stat().st_mode) == 0o700
    assert stat.S_IMODE((Path(job.directory) / "prompt.txt").stat().st_mode) == 0o600
    assert stat.S_IMODE(Path(workspace.path).stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("", "the prompt is empty"),
        (" \n\t", "the prompt is empty"),
        ("a\0b", "NUL byte at position 1"),
        (b"caf\xe9", "not UTF-8: byte 0xe9 at position 3"),
        ("\ud800", "not UTF-8"),
        (b"x" * (MAX_PROMPT_BYTES + 1), "more than the 16777216 allowed"),
    ],
)
def test_a_prompt_that_can_never_run_is_refused_and_leaves_nothing(
    workspace: Workspace, prompt: str | bytes, reason: str
) -> None:
    with pytest.raises(JobError, match=reason):
        workspace.submit(prompt)
    assert list((Path(workspace.path) / "input").iterdir()) == []


@pytest.mark.parametrize("job_id", ["nope", "../input", "", "."])
def test_a_job_that_does_not_exist_is_an_error(workspace: Workspace, job_id: str) -> None:
    with pytest.raises(JobNotFoundError):
        workspace.find(job_id)


def test_the_context_is_read_as_it_is_now(workspace: Workspace) -> None:
    assert workspace.context() is None
    Path(workspace.context_file).write_text("Be brief.\n")
    assert workspace.context() == "Be brief."
    Path(workspace.context_file).write_text(" \n")
    assert workspace.context() is None


@pytest.mark.parametrize("content", [b"\xff", b"a\0b", b"x" * (1 << 20) + b"y"])
def test_a_context_that_cannot_be_used_is_an_error_that_names_the_file(workspace: Workspace, content: bytes) -> None:
    Path(workspace.context_file).write_bytes(content)
    with pytest.raises(WorkspaceError, match=r"context\.txt cannot be used"):
        workspace.context()


def test_a_folder_that_is_no_workspace_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"no workspace .*wrk --init"):
        Workspace(tmp_path / "nowhere").check()
    with pytest.raises(WorkspaceError, match=r"no workspace: make it one with"):
        Workspace(tmp_path).check()


def test_making_a_workspace_twice_keeps_what_is_in_it(workspace: Workspace) -> None:
    job_id = workspace.submit("q")
    workspace.create()
    assert workspace.find(job_id).state is JobState.QUEUED


def test_a_workspace_that_cannot_be_written_is_an_error_that_says_so(workspace: Workspace) -> None:
    inbox = Path(workspace.path) / "input"
    inbox.rmdir()
    inbox.write_text("in the way")
    with pytest.raises(WorkspaceError, match=f"cannot queue a job in {workspace.path}: Not a directory"):
        workspace.submit("q")


def test_a_queued_job_wakes_a_daemon_that_listens(workspace: Workspace) -> None:
    listener = workspace.open_wake()
    assert listener is not None
    workspace.submit("q")
    assert os.read(listener, 10) == b"\n"
    os.close(listener)


@pytest.mark.parametrize("kind", ["missing", "file", "link"])
def test_a_spoilt_wake_fifo_does_no_harm(workspace: Workspace, tmp_path: Path, kind: str) -> None:
    wake = Path(workspace.path) / ".nrvna" / "wake"
    wake.unlink()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    if kind == "file":
        wake.write_text("precious")
    elif kind == "link":
        wake.symlink_to(victim)
    workspace.submit("q")
    assert workspace.open_wake() is None
    assert victim.read_text() == "precious"
    assert kind != "file" or wake.read_text() == "precious"


def test_many_jobs_wait_for_the_disk_together(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    flushes = 0
    real_fsync, real_sync_all = os.fsync, files._sync_file_system

    def fsync(descriptor: int) -> None:
        nonlocal flushes
        flushes += 1
        real_fsync(descriptor)

    def sync_all(path: str) -> bool:
        nonlocal flushes
        flushes += 1
        return real_sync_all(path)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(files, "_sync_file_system", sync_all)
    prompts = [f"job {number}" for number in range(1000)]
    ids = [
        job_id for start in range(0, 1000, GROUP) for job_id in workspace.submit_all(prompts[start : start + GROUP])
    ]
    assert [job.id for job in workspace.jobs()] == ids
    assert [workspace.prompt(job) for job in workspace.jobs()] == prompts
    assert flushes <= 30


def test_a_group_with_a_prompt_that_cannot_run_queues_none(workspace: Workspace) -> None:
    with pytest.raises(JobError, match="is empty"):
        workspace.submit_all(["good", " "])
    assert list(Path(workspace.input).iterdir()) == []


def test_a_submit_that_the_disk_does_not_confirm_names_the_job_that_may_run(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    monkeypatch.setattr(submit_module, "sync", refuse)
    with pytest.raises(SubmitError, match=r"did not confirm that \S+ will run, but it may: Input/output") as caught:
        workspace.submit("q")
    [job_id] = caught.value.uncertain
    assert job_id in str(caught.value)
    assert workspace.find(job_id).state is JobState.QUEUED


def test_what_is_asked_beside_a_prompt_has_a_limit_too(workspace: Workspace) -> None:
    with pytest.raises(JobError, match="16777216 are allowed"):
        workspace.submit("hello", task={"documents": ["x" * (1 << 20)] * 17})
    assert list((Path(workspace.path) / "input").iterdir()) == []


def test_a_context_begins_after_its_byte_order_mark(workspace: Workspace) -> None:
    Path(workspace.context_file).write_bytes(b"\xef\xbb\xbfBe brief.\r\n")
    assert workspace.context() == "Be brief."
