"""The folder protocol, with real files and no daemon."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nrvna import files
from nrvna import lease as lease_module
from nrvna import workspace as workspace_module
from nrvna.errors import (
    JobError,
    JobNotFoundError,
    LeaseLostError,
    LostRaceError,
    SubmitError,
    UnsafeWorkspaceError,
    WorkspaceError,
)
from nrvna.job import JobState, Receipt, is_generated_id
from nrvna.lease import Claim, Lease, cancel, recover
from nrvna.progress import first_line, token_line
from nrvna.workspace import MAX_PROMPT_BYTES, Workspace
from nrvna.wrk import GROUP

MODEL = {"path": "/models/a.gguf", "size": 1, "mtime_ns": 1}


@pytest.fixture
def lease(workspace: Workspace) -> Lease:
    return Lease(workspace, MODEL)


def receipt(job_id: str) -> Receipt:
    return Receipt(job_id, "stop", "2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z", "0.1.0", generated_tokens=2)


def claimed(lease: Lease) -> Claim:
    claim = lease.claim()
    assert claim is not None
    return claim


def by_hand(workspace: Workspace, name: str, prompt: bytes | None, *, age_s: float = 60) -> Path:
    """A job folder as a user would make it, last touched some time ago."""
    folder = Path(workspace.path) / "input" / name
    folder.mkdir()
    if prompt is not None:
        (folder / "prompt.txt").write_bytes(prompt)
    for path in [*folder.iterdir(), folder]:
        about = path.lstat()
        os.utime(path, (about.st_atime - age_s, about.st_mtime - age_s), follow_symlinks=False)
    return folder


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


def test_jobs_are_claimed_in_the_order_they_were_queued(workspace: Workspace, lease: Lease) -> None:
    ids = [workspace.submit(f"job {number}") for number in range(300)]
    assert [claimed(lease).id for _ in ids] == ids
    assert lease.claim() is None


def test_a_job_made_by_hand_takes_its_turn_by_its_age(workspace: Workspace, lease: Lease) -> None:
    first = workspace.submit("queued by wrk")
    by_hand(workspace, "older", b"made by hand", age_s=3600)
    assert [claimed(lease).id, claimed(lease).id] == ["older", first]


def test_a_job_made_by_hand_is_left_alone_while_it_is_being_made(workspace: Workspace, lease: Lease) -> None:
    folder = by_hand(workspace, "mine", None, age_s=0)
    assert lease.claim() is None
    (folder / "prompt.txt").write_text("now it is there")
    assert lease.claim() is None
    for path in (folder / "prompt.txt", folder):
        os.utime(path, (0, 0))
    assert claimed(lease).id == "mine"


def test_a_job_queued_right_after_a_look_is_seen_by_the_next(workspace: Workspace, lease: Lease) -> None:
    for number in range(200):
        assert lease.claim() is None
        job_id = workspace.submit(f"job {number}")
        assert claimed(lease).id == job_id


def test_only_one_of_several_daemons_gets_a_job(workspace: Workspace) -> None:
    ids = {workspace.submit(f"job {number}") for number in range(200)}
    leases = [Lease(workspace, MODEL) for _ in range(4)]
    taken: list[list[str]] = [[] for _ in leases]

    def take(number: int) -> None:
        while claim := leases[number].claim():
            taken[number].append(claim.id)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    everything = [job_id for part in taken for job_id in part]
    assert len(everything) == len(set(everything)) == 200
    assert set(everything) == ids


def test_a_finished_job_has_its_answer_and_receipt(workspace: Workspace, lease: Lease) -> None:
    job_id = workspace.submit("q")
    lease.finish(claimed(lease), "the answer", receipt(job_id))
    job = workspace.find(job_id)
    assert (job.state, workspace.answer(job)) == (JobState.DONE, "the answer")
    found = workspace.receipt(job)
    assert found is not None
    assert found._replace(sha256=None, attempts=None) == receipt(job_id)
    assert (found.attempts, workspace.is_intact(job, found)) == (1, True)
    assert sorted(path.name for path in Path(job.directory).iterdir()) == [
        "job.json",
        "prompt.txt",
        "receipt.json",
        "result.txt",
    ]


def test_a_failed_job_has_its_reason(workspace: Workspace, lease: Lease) -> None:
    job_id = workspace.submit("q")
    lease.fail(claimed(lease), "too long", receipt(job_id))
    job = workspace.find(job_id)
    assert (job.state, workspace.answer(job)) == (JobState.FAILED, "too long\n")


def test_the_first_result_of_a_job_stands_and_another_job_of_its_name_gets_another(
    workspace: Workspace, lease: Lease
) -> None:
    by_hand(workspace, "daily", b"first")
    lease.finish(claimed(lease), "first answer", receipt("daily"))
    by_hand(workspace, "daily", b"second")
    again = claimed(lease)
    assert again.id.startswith("daily-")
    assert lease.prompt(again) == "second"
    lease.finish(again, "second answer", receipt(again.id))
    assert workspace.answer(workspace.find("daily")) == "first answer"
    assert workspace.answer(workspace.find(again.id)) == "second answer"


@pytest.mark.parametrize("kind", ["folder", "fifo", "link"])
@pytest.mark.parametrize("name", ["result.txt", "receipt.json", "progress.jsonl", "error.txt", "attempts.json"])
def test_what_lies_in_the_way_of_a_result_is_cleared_and_no_link_followed(
    workspace: Workspace, lease: Lease, tmp_path: Path, name: str, kind: str
) -> None:
    folder = by_hand(workspace, "mine", b"prompt")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    if kind == "folder":
        (folder / name / "deep").mkdir(parents=True)
    elif kind == "fifo":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to(victim)
    os.utime(folder, (0, 0))
    claim = claimed(lease)
    lease.append_progress(claim, b"so far")
    lease.finish(claim, "answer", receipt("mine"))
    assert workspace.answer(workspace.find("mine")) == "answer"
    assert (Path(workspace.find("mine").directory) / "receipt.json").is_file()
    assert victim.read_text() == "precious"


def test_a_job_whose_folder_was_removed_while_it_ran_is_nobodys_trouble(workspace: Workspace, lease: Lease) -> None:
    workspace.submit("q")
    claim = claimed(lease)
    shutil.rmtree(claim.directory)
    with pytest.raises(LostRaceError, match="was removed while it was being answered"):
        lease.finish(claim, "answer", receipt(claim.id))
    lease.requeue([claim])
    assert workspace.jobs() == []


@pytest.mark.parametrize("content", ['{"queued": "\\ud800"}', "[" * 200_000, "[]", "3", '{"queued": 5}', "", "\0"])
def test_a_strange_job_json_does_no_harm(workspace: Workspace, lease: Lease, content: str) -> None:
    folder = by_hand(workspace, "mine", b"prompt")
    (folder / "job.json").write_text(content)
    claim = claimed(lease)
    if "queued" not in content:
        with pytest.raises(JobError, match=r"job\.json is no JSON object"):
            lease.prompt(claim)
    lease.finish(claim, "answer", receipt("mine")._replace(queued=claim.queued))
    assert workspace.answer(workspace.find("mine")) == "answer"


def test_a_name_that_is_taken_in_the_queue_does_not_stop_the_others(workspace: Workspace, lease: Lease) -> None:
    by_hand(workspace, "same", b"one", age_s=100)
    first = claimed(lease)
    by_hand(workspace, "same", b"two", age_s=90)
    by_hand(workspace, "other", b"three", age_s=80)
    assert claimed(lease).id.startswith("same-")
    assert claimed(lease).id == "other"
    assert lease.prompt(first) == "one"


def test_one_bad_folder_of_a_dead_daemon_keeps_no_other_job_from_its_recovery(workspace: Workspace) -> None:
    processing = Path(workspace.path) / "processing"
    for name in ("dead-1/good", "dead-1/taken", "dead-2/good too"):
        (processing / name).mkdir(parents=True)
        (processing / name / "prompt.txt").write_text("prompt")
    (processing / "dead-1" / "good" / "progress.jsonl").mkdir()
    by_hand(workspace, "taken", b"prompt")
    recovered = recover(workspace)
    assert {"good", "good too"} < set(recovered)
    assert len([job for job in workspace.jobs() if job.id.startswith("taken")]) == 2
    assert list(processing.iterdir()) == []


def test_a_workspace_put_in_the_place_of_the_one_served_is_noticed(workspace: Workspace, lease: Lease) -> None:
    path = Path(workspace.path)
    path.rename(path.with_name("elsewhere"))
    with pytest.raises(WorkspaceError, match="No such file"):
        lease.claim()
    workspace.create()
    workspace.submit("q")
    with pytest.raises(LeaseLostError, match="was moved or replaced"):
        lease.claim()


def test_a_running_jobs_answer_can_be_watched_and_leaves_no_trace(workspace: Workspace, lease: Lease) -> None:
    job_id = workspace.submit("q")
    claim = claimed(lease)
    lease.append_progress(claim, first_line("key", 7))
    lease.append_progress(claim, token_line(1, "so "))
    lease.append_progress(claim, token_line(2, "far"))
    running = workspace.newest_running()
    assert running is not None and running.id == job_id
    assert workspace.answer(running) == "so far"
    lease.finish(claim, "so far so good", receipt(job_id))
    assert not (Path(workspace.find(job_id).directory) / "progress.jsonl").exists()


def test_a_job_put_back_is_the_next_one_again(workspace: Workspace, lease: Lease) -> None:
    first, second = workspace.submit("1"), workspace.submit("2")
    lease.requeue([claimed(lease)])
    assert [claimed(lease).id, claimed(lease).id] == [first, second]
    for job_id in (first, second):
        assert workspace.find(job_id).state is JobState.RUNNING


def test_crashes_are_counted_over_restarts(workspace: Workspace, lease: Lease) -> None:
    workspace.submit("q")
    for count in (0, 1, 2, 3):
        claim = claimed(lease)
        assert claim.crashes == count
        assert lease.record_crash(claim).crashes == count + 1
        lease.requeue([claim])


def test_a_living_daemons_jobs_are_not_recovered(workspace: Workspace, lease: Lease) -> None:
    job_id = workspace.submit("q")
    claimed(lease)
    assert recover(workspace) == []
    assert workspace.find(job_id).state is JobState.RUNNING
    assert [peer.pid for peer in workspace.peers()] == [os.getpid()]


def test_a_dead_daemons_jobs_go_back(workspace: Workspace) -> None:
    job_id = workspace.submit("q")
    script = f"""
import os, sys
from nrvna.lease import Lease
from nrvna.workspace import Workspace
lease = Lease(Workspace({workspace.path!r}), {MODEL!r})
print(lease.claim().id, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == job_id
    assert workspace.find(job_id).state is JobState.RUNNING
    assert workspace.peers() == []
    assert recover(workspace) == [job_id]
    assert workspace.find(job_id).state is JobState.QUEUED
    assert list((Path(workspace.path) / "processing").iterdir()) == []


def test_a_lease_that_is_closed_is_gone(workspace: Workspace, lease: Lease) -> None:
    lease.close()
    assert workspace.peers() == []
    assert recover(workspace) == []


def test_a_second_daemon_with_the_same_model_is_welcome_and_one_with_another_is_not(
    workspace: Workspace, lease: Lease
) -> None:
    Lease(workspace, MODEL).close()
    with pytest.raises(WorkspaceError, match=rf"served already by process {os.getpid()} with another model"):
        Lease(workspace, {**MODEL, "size": 2})
    lease.close()
    Lease(workspace, {**MODEL, "size": 2}).close()


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_a_prompt_that_is_no_regular_file_is_not_read(
    workspace: Workspace, lease: Lease, tmp_path: Path, kind: str
) -> None:
    folder = by_hand(workspace, "mine", None)
    prompt = folder / "prompt.txt"
    if kind == "link":
        (tmp_path / "secret").write_text("secret")
        prompt.symlink_to(tmp_path / "secret")
    elif kind == "fifo":
        os.mkfifo(prompt)
    else:
        prompt.mkdir()
    for path in (prompt, folder):
        os.utime(path, (0, 0), follow_symlinks=False)
    with pytest.raises(JobError, match=r"prompt\.txt"):
        lease.prompt(claimed(lease))


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, r"holds no prompt\.txt"), (b"", "empty"), (b"\xff", "not UTF-8"), (b"a\0", "NUL")],
)
def test_a_job_made_by_hand_without_a_good_prompt_says_why(
    workspace: Workspace, lease: Lease, content: bytes | None, reason: str
) -> None:
    by_hand(workspace, "mine", content)
    with pytest.raises(JobError, match=reason):
        lease.prompt(claimed(lease))


def test_a_prompt_that_cannot_be_read_just_now_is_no_bad_job(
    workspace: Workspace, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.submit("q")
    claim = claimed(lease)

    def refuse(path: str, *_: object) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)

    with monkeypatch.context() as patch:
        patch.setattr(lease_module, "read", refuse)
        with pytest.raises(WorkspaceError, match="Too many open files"):
            lease.prompt(claim)
    assert lease.prompt(claim) == "q"


def test_what_is_no_folder_or_hidden_is_no_job(workspace: Workspace, lease: Lease, tmp_path: Path) -> None:
    inbox = Path(workspace.path) / "input"
    (inbox / "note.txt").write_text("hello")
    (inbox / ".hidden").mkdir()
    (inbox / "link").symlink_to(tmp_path)
    assert lease.claim() is None
    assert workspace.jobs() == []


@pytest.mark.parametrize("name", [os.fsdecode(b"caf\xe9"), "new\nline", "x" * 210])
def test_a_folder_whose_name_can_be_no_id_gets_one(workspace: Workspace, lease: Lease, name: str) -> None:
    by_hand(workspace, name, b"prompt")
    assert [job.id for job in workspace.jobs()] == [name]
    claim = claimed(lease)
    assert is_generated_id(claim.id)
    assert lease.prompt(claim) == "prompt"


def test_a_job_that_moves_is_always_found(workspace: Workspace, lease: Lease) -> None:
    job_id = workspace.submit("q")
    stop = threading.Event()

    def move() -> None:
        while not stop.is_set():
            if claim := lease.claim():
                lease.requeue([claim])

    mover = threading.Thread(target=move)
    mover.start()
    try:
        for _ in range(2000):
            assert workspace.find(job_id).state in (JobState.QUEUED, JobState.RUNNING)
    finally:
        stop.set()
        mover.join()


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

    monkeypatch.setattr(workspace_module, "sync", refuse)
    with pytest.raises(SubmitError, match=r"did not confirm that \S+ will run, but it may: Input/output") as caught:
        workspace.submit("q")
    [job_id] = caught.value.uncertain
    assert job_id in str(caught.value)
    assert workspace.find(job_id).state is JobState.QUEUED


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o772])
@pytest.mark.parametrize("folder", ["", "input", "processing", "output", "failed", ".nrvna"])
def test_a_workspace_that_others_can_write_to_is_refused(workspace: Workspace, folder: str, mode: int) -> None:
    path = Path(workspace.path) / folder
    path.chmod(mode)
    words = rf"others can write to {str(path).rstrip('/')}.*chmod go-w"
    with pytest.raises(UnsafeWorkspaceError, match=words):
        workspace.check()
    with pytest.raises(UnsafeWorkspaceError, match=words):
        Lease(workspace, MODEL)
    path.chmod(0o755)
    workspace.check()


def test_a_job_that_asks_for_another_model_is_left_in_the_queue(workspace: Workspace, lease: Lease) -> None:
    other = [workspace.submit(f"for another {number}", model="b") for number in range(300)]
    mine = [workspace.submit("for a", model=name) for name in ("a", "A.gguf", "/models/a.gguf")]
    anybody = workspace.submit("for anybody")
    assert [claimed(lease).id for _ in range(4)] == [*mine, anybody]
    assert lease.claim() is None
    assert {workspace.find(job_id).state for job_id in other} == {JobState.QUEUED}


def test_deaths_without_progress_count_against_a_job_only_after_some(workspace: Workspace) -> None:
    job_id = workspace.submit("q")
    found = []
    for _ in range(6):
        dead = Lease(workspace, MODEL)
        claim = claimed(dead)
        dead.record_starts([claim])
        os.close(dead._lock)
        assert recover(workspace) == [job_id]
        again = Lease(workspace, MODEL)
        found.append(claimed(again).crashes)
        again.requeue([again_claim(workspace, again)])
        again.close()
    assert found == [0, 0, 0, 1, 2, 3]


def again_claim(workspace: Workspace, lease: Lease) -> Claim:
    """The claim of the only job that runs, for putting it back."""
    job = workspace.newest_running()
    assert job is not None and job.directory.startswith(lease._folder)
    return Claim(job.id, job.directory, "", 0, 0, {})


def test_deaths_with_progress_are_not_held_against_a_job(workspace: Workspace) -> None:
    workspace.submit("q")
    for number in range(8):
        dead = Lease(workspace, MODEL)
        claim = claimed(dead)
        assert (claim.begun, claim.crashes) == (number, 0)
        dead.record_starts([claim])
        dead.cut_progress(claim, number)
        if not number:
            dead.append_progress(claim, first_line("key", 1))
        dead.append_progress(claim, token_line(number, "word "))
        os.close(dead._lock)
        recover(workspace)


def test_a_job_that_only_waited_in_a_daemon_that_died_gains_no_attempt(workspace: Workspace) -> None:
    workspace.submit("begun")
    workspace.submit("waited")
    dead = Lease(workspace, MODEL)
    begun, waited = claimed(dead), claimed(dead)
    dead.record_starts([begun])
    os.close(dead._lock)
    recover(workspace)
    heir = Lease(workspace, MODEL)
    assert [claimed(heir).begun, claimed(heir).begun] == [1, 0]
    assert waited.begun == 0


def test_progress_goes_on_where_it_was_kept(workspace: Workspace, lease: Lease) -> None:
    workspace.submit("q")
    claim = claimed(lease)
    lease.append_progress(claim, first_line("key", 7))
    lease.append_progress(claim, b"".join(token_line(token, f"{token} ") for token in range(5)) + b'[5, "tor')
    assert lease.progress(claim).tokens == (0, 1, 2, 3, 4)
    lease.cut_progress(claim, 3)
    lease.append_progress(claim, token_line(9, "nine"))
    found = lease.progress(claim)
    assert (found.key, found.seed, found.tokens, found.text) == ("key", 7, (0, 1, 2, 9), "0 1 2 nine")


def test_a_queued_job_is_cancelled_for_good(workspace: Workspace, lease: Lease) -> None:
    job_id = workspace.submit("q")
    assert cancel(workspace, workspace.find(job_id))
    job = workspace.find(job_id)
    found = workspace.receipt(job)
    assert found is not None and found.finish_reason == "cancelled"
    assert job.state is JobState.FAILED
    assert lease.claim() is None
    assert len(list(Path(workspace.processing).iterdir())) == 1


def test_a_running_job_is_marked_and_stays_so_when_it_is_put_back(workspace: Workspace, lease: Lease) -> None:
    job_id = workspace.submit("q")
    claim = claimed(lease)
    assert not cancel(workspace, workspace.find(job_id))
    assert lease.is_cancelled(claim)
    lease.requeue([claim])
    assert lease.is_cancelled(claimed(lease))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(prompt=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_a_prompt_arrives_as_it_was_given(workspace: Workspace, prompt: str) -> None:
    if not prompt.strip():
        return
    lease = Lease(workspace, MODEL)
    job_id = workspace.submit(prompt)
    claim = claimed(lease)
    assert (claim.id, lease.prompt(claim)) == (job_id, prompt)
    lease.finish(claim, prompt, receipt(job_id))
    lease.close()
    result = Path(workspace.find(job_id).directory) / "result.txt"
    assert result.read_bytes() == prompt.encode()
    assert json.loads((result.parent / "receipt.json").read_text())["id"] == job_id
