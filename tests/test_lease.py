"""A daemon's side of the folders, with real files and no daemon: claiming, filing, putting back."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from claims import MODEL, by_hand, claimed, receipt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nrvna import lease as lease_module
from nrvna.errors import (
    JobError,
    LeaseLostError,
    LostRaceError,
    UnsafeWorkspaceError,
    WorkspaceError,
)
from nrvna.job import JobState, is_generated_id
from nrvna.lease import Claim, Lease, cancel, recover
from nrvna.progress import first_line, token_line
from nrvna.workspace import Workspace


@pytest.fixture
def lease(workspace: Workspace) -> Lease:
    return Lease(workspace, MODEL)


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


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"queued": "\\ud800"}', r"job\.json holds \\ud800, half a character"),
        ('{"\\udcff": 1}', r"job\.json holds \\udcff, the byte 0xff, which is not UTF-8"),
        ("[" * 200_000, r"job\.json is nested more than 100 deep"),
        ('{"tags": ' + "[" * 900 + "]" * 900 + "}", r"job\.json is nested more than 100 deep"),
        ("[]", r"job\.json is no JSON object"),
        ("3", r"job\.json is no JSON object"),
        ("", r"job\.json is no JSON object"),
        ("\0", r"job\.json is no JSON object"),
        ('{"queued": 5}', None),
    ],
)
def test_a_strange_job_json_does_no_harm(
    workspace: Workspace, lease: Lease, content: str, reason: str | None
) -> None:
    folder = by_hand(workspace, "mine", b"prompt")
    (folder / "job.json").write_text(content)
    claim = claimed(lease)
    if reason:
        with pytest.raises(JobError, match=reason):
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


def test_files_stand_beside_an_answer_and_beside_a_reason(workspace: Workspace, lease: Lease) -> None:
    answered, failed = workspace.submit("one"), workspace.submit("two")
    lease.finish(claimed(lease), "Yes.", receipt(answered), {"reasoning.txt": b"Hm.", "result.npy": b"\x93NUMPY"})
    lease.fail(claimed(lease), "never came to an answer", receipt(failed), {"reasoning.txt": b"Hm, hm."})
    jobs = [workspace.find(answered), workspace.find(failed)]
    assert [workspace.reasoning(job) for job in jobs] == ["Hm.", "Hm, hm."]
    assert (Path(jobs[0].directory) / "result.npy").read_bytes() == b"\x93NUMPY"


def test_what_was_put_beside_an_answer_before_it_came_is_removed(workspace: Workspace, lease: Lease) -> None:
    folder = by_hand(workspace, "mine", b"prompt")
    (folder / "reasoning.txt").write_text("not the model's")
    os.utime(folder, (1, 1))
    lease.finish(claimed(lease), "answer", receipt("mine"))
    assert workspace.reasoning(workspace.find("mine")) == ""
