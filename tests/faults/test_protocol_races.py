"""What comes in each other's way: ids, clocks, crowds, daemons, and things that are no files where files belong."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from claims import MODEL, claimed, receipt
from power import in_memory

import nrvna
from nrvna import files, job
from nrvna.errors import JobError, LostRaceError, SubmitError, WorkspaceError
from nrvna.finished import ask_again, remove_finished
from nrvna.job import Job, JobState, Receipt, new_id, order_of_time
from nrvna.lease import Lease, cancel, recover
from nrvna.progress import token_line
from nrvna.workspace import REMOVED, Workspace

Rounds = Callable[..., int]
Result = TypeVar("Result")
PACKAGE = Path(nrvna.__file__).parents[1]


def within(seconds: float, work: Callable[[], Result]) -> Result:
    """Its result, or a failure where a test would hang for ever."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    assert results, f"not done within {seconds} s"
    return results[0]


def started(script: str, *arguments: str) -> subprocess.Popen[str]:
    """A process of its own, with this very package."""
    path = os.pathsep.join([str(PACKAGE), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


# Ids.


def same_ids(monkeypatch: pytest.MonkeyPatch, *ids: str) -> None:
    """Let these be the next ids, as chance and the clock could have it."""
    waiting = iter(ids)
    monkeypatch.setattr("nrvna.submit.new_id", lambda after_us: next(waiting, None) or new_id(after_us))


def test_two_jobs_that_got_the_same_id_are_two_jobs(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = new_id()
    same_ids(monkeypatch, chosen, chosen)
    ids = [workspace.submit("first"), workspace.submit("second")]
    assert ids[0] == chosen != ids[1]
    assert [workspace.prompt(workspace.find(job_id)) for job_id in ids] == ["first", "second"]


def test_an_id_under_which_there_is_a_result_already_is_not_given_again(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = Lease(workspace, MODEL)
    done = workspace.submit("first")
    lease.finish(claimed(lease), "the first answer", receipt(done))
    same_ids(monkeypatch, done)
    second = workspace.submit("second")
    assert second != done
    lease.finish(claimed(lease), "the second answer", receipt(second))
    answers = [workspace.answer(workspace.find(job_id)) for job_id in (done, second)]
    assert answers == ["the first answer", "the second answer"]


def test_an_id_that_is_being_written_by_somebody_else_is_not_taken(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = new_id()
    staging = Path(workspace.input) / f".{taken}"
    staging.mkdir()
    same_ids(monkeypatch, taken)
    assert workspace.submit("mine") != taken
    assert list(staging.iterdir()) == []


# Moves onto folders that appear between the look and the move: empty ones, which a plain rename replaces.


def test_a_submit_replaces_no_folder_that_appears_under_its_id(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = new_id()
    (Path(workspace.input) / taken).mkdir()
    same_ids(monkeypatch, taken)
    monkeypatch.setattr("nrvna.submit._Submission._is_taken", lambda *_: False)
    job_id = workspace.submit("mine")
    assert job_id != taken
    assert list((Path(workspace.input) / taken).iterdir()) == []


def test_a_claim_replaces_no_folder(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = Lease(workspace, MODEL)
    job_id = workspace.submit("q")
    in_the_way = Path(lease._folder) / job_id
    in_the_way.mkdir()
    monkeypatch.setattr(lease, "_own_name", lambda name: name)
    with pytest.raises(WorkspaceError):
        lease.claim()
    assert list(in_the_way.iterdir()) == []
    assert workspace.find(job_id).state is JobState.QUEUED


@pytest.mark.parametrize("ending", ["finish", "fail", "requeue", "recover"])
def test_a_job_that_moves_on_replaces_no_folder(workspace: Workspace, ending: str) -> None:
    lease = Lease(workspace, MODEL)
    job_id = workspace.submit("q")
    claim = claimed(lease)
    target = {"finish": workspace.output, "fail": workspace.failed}.get(ending, workspace.input)
    in_the_way = Path(target) / job_id
    in_the_way.mkdir()
    if ending == "finish":
        lease.finish(claim, "answer", receipt(job_id))
    elif ending == "fail":
        lease.fail(claim, "reason", receipt(job_id))
    elif ending == "requeue":
        lease.requeue([claim])
    else:
        os.close(lease._lock)
        assert recover(workspace) != [job_id]
    [moved] = [path for path in Path(target).iterdir() if path != in_the_way]
    assert (moved / "prompt.txt").read_text() == "q"
    assert list(in_the_way.iterdir()) == []


def test_a_job_that_finds_its_second_name_taken_too_stays_where_it_was(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = Lease(workspace, MODEL)
    job_id = workspace.submit("q")
    claim = claimed(lease)
    for name in (job_id, "other"):
        (Path(workspace.output) / name).mkdir()
    monkeypatch.setattr("nrvna.lease._other", lambda _: "other")
    with pytest.raises(WorkspaceError):
        lease.finish(claim, "answer", receipt(job_id))
    assert (Path(claim.directory) / "result.txt").read_text() == "answer"
    assert list((Path(workspace.output) / "other").iterdir()) == []


def test_a_daemon_replaces_no_folder_that_has_its_name(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", bytes)
    in_the_way = Path(workspace.processing) / f"{os.uname().nodename}-{os.getpid()}-000000"
    in_the_way.mkdir()
    with pytest.raises(WorkspaceError, match="File exists"):
        Lease(workspace, MODEL)
    assert list(in_the_way.iterdir()) == []


def test_a_job_that_is_asked_again_replaces_no_folder(workspace: Workspace) -> None:
    lease = Lease(workspace, MODEL)
    first, second = workspace.submit_all(["one", "two"])
    for job_id in (first, second):
        lease.fail(claimed(lease), "reason", receipt(job_id))
    in_the_way = Path(workspace.input) / first
    in_the_way.mkdir()
    failed = [Job(job_id, JobState.FAILED, f"{workspace.failed}/{job_id}") for job_id in (first, second)]
    with pytest.raises(SubmitError, match="File exists") as raised:
        ask_again(workspace, failed)
    assert raised.value.queued == [second]
    assert list(in_the_way.iterdir()) == []
    assert (Path(workspace.failed) / first / "prompt.txt").read_text() == "one"


def test_a_job_that_is_removed_replaces_no_folder(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = Lease(workspace, MODEL)
    job_id = workspace.submit("q")
    lease.finish(claimed(lease), "answer", receipt(job_id))
    monkeypatch.setattr(os, "urandom", bytes)
    in_the_way = Path(workspace.output) / f"{REMOVED}{job_id}-000000"
    in_the_way.mkdir()
    with pytest.raises(WorkspaceError, match="File exists"):
        remove_finished(workspace, [workspace.find(job_id)])
    assert workspace.answer(workspace.find(job_id)) == "answer"


def test_a_file_system_that_cannot_rename_exclusively_has_nothing_replaced_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_rename_exclusively", lambda *_: errno.EINVAL)
    for name in ("origin", "target"):
        (tmp_path / name).mkdir()
    with pytest.raises(FileExistsError):
        files.move(str(tmp_path / "origin"), str(tmp_path / "target"))
    files.move(str(tmp_path / "origin"), str(tmp_path / "elsewhere"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "target"]


def test_a_group_is_waited_for_with_the_kernels_own_call(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = ctypes.CDLL(None, use_errno=True)

    class Library:
        renameat2 = real.renameat2

        @staticmethod
        def syncfs(descriptor: int) -> int:
            synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
            return int(real.syncfs(descriptor))

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Library)
    workspace.submit_all(["one", "two"])
    [folder] = synced
    assert folder.startswith(workspace.input)


# Clocks.


@pytest.mark.parametrize("steps_s", [(0, -3600), (0, 3600, 0), (0, 82800, -3600, 0), (0, 0, -1, -2, -3)])
def test_jobs_stay_in_order_when_the_clock_is_set(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, steps_s: tuple[int, ...]
) -> None:
    real, real_ns = time.time, time.time_ns
    ids = []
    for step in steps_s:
        monkeypatch.setattr(time, "time", lambda step=step: real() + step)
        monkeypatch.setattr(time, "time_ns", lambda step=step: real_ns() + step * 1_000_000_000)
        # As in a process of its own, which knows nothing of the ids before.
        monkeypatch.setattr(job, "_last_id_us", 0)
        ids += [workspace.submit("one"), *workspace.submit_all(["two", "three"])]
    lease = Lease(workspace, MODEL)
    assert [claimed(lease).id for _ in ids] == ids


# Crowds.


@pytest.fixture
def crowd(tmp_path: Path, rounds: Rounds) -> Iterator[Workspace]:
    """A workspace with a great many jobs; only the first and the last have a prompt."""
    with in_memory(tmp_path) as folder:
        made = Workspace(folder / "crowd")
        made.create()
        number = rounds(quick=20_000, ci=100_000, long=100_000)
        for at in range(number):
            place = f"{made.input}/{order_of_time(1_700_000_000_000_000 + at)}-{at % 0x1000000:06x}"
            os.mkdir(place, 0o700)  # noqa: PTH102 - pathlib takes as long again
            if at in (0, number - 1):
                Path(place, "prompt.txt").write_text(f"prompt {at}")
                Path(place, "job.json").write_text("{}")
        yield made


def test_a_crowd_is_listed_and_its_first_is_claimed_at_once(crowd: Workspace) -> None:
    begin = time.perf_counter()
    flw = started("from nrvna.flw import run; run()", crowd.path)
    out, _ = flw.communicate(timeout=60)
    listed = time.perf_counter() - begin
    lease = Lease(crowd, MODEL)
    begin = time.perf_counter()
    claim = claimed(lease)
    taken = time.perf_counter() - begin
    total = crowd.counts().queued + 1
    print(f"{total} queued jobs: flw lists in {listed:.2f} s, the first is claimed in {taken:.2f} s")
    assert (flw.returncode, len(out.splitlines())) == (0, 20)
    assert out.splitlines()[-1].endswith(f"prompt {total - 1}")
    assert lease.prompt(claim) == "prompt 0"
    # Machines that are shared have slow moments: half a second is the aim.
    assert listed < 2 and taken < 2


@pytest.mark.parametrize("daemons", [2, 4])
def test_each_of_a_thousand_jobs_is_claimed_by_exactly_one_of_several_daemons(
    workspace: Workspace, daemons: int
) -> None:
    ids = workspace.submit_all([f"job {number}" for number in range(1000)])
    script = f"""
import sys
from nrvna.lease import Lease
from nrvna.workspace import Workspace
lease = Lease(Workspace(sys.argv[1]), {MODEL!r})
while claim := lease.claim():
    print(claim.id, claim.directory, lease.prompt(claim), sep="\\t")
"""
    processes = [started(script, workspace.path) for _ in range(daemons)]
    lines = [line.split("\t") for process in processes for line in process.communicate(timeout=60)[0].splitlines()]
    assert [process.returncode for process in processes] == [0] * daemons
    assert sorted(line[0] for line in lines) == ids
    assert {line[0]: line[2] for line in lines} == {job_id: f"job {at}" for at, job_id in enumerate(ids)}
    # They are all dead now.
    assert sorted(recover(workspace)) == ids


# Daemons.


@pytest.mark.parametrize("kind", [fcntl.LOCK_EX, fcntl.LOCK_SH])
def test_daemons_start_one_after_the_other(workspace: Workspace, kind: int) -> None:
    Lease(workspace, MODEL).close()
    with (Path(workspace.private) / "start.lock").open() as held:
        fcntl.flock(held, kind)
        leases: list[Lease] = []
        thread = threading.Thread(target=lambda: leases.append(Lease(workspace, MODEL)), daemon=True)
        thread.start()
        thread.join(0.3)
        assert leases == []
    thread.join(20)
    assert len(leases) == 1
    leases[0].close()


def test_a_daemon_holds_its_lock_as_long_as_it_lives(workspace: Workspace) -> None:
    lease = Lease(workspace, MODEL)
    with (Path(lease._folder) / ".lock").open() as other:
        for kind in (fcntl.LOCK_SH, fcntl.LOCK_EX):
            with pytest.raises(BlockingIOError):
                fcntl.flock(other, kind | fcntl.LOCK_NB)
        lease.close()
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_living_daemon_keeps_nobody_waiting_who_looks_or_recovers(workspace: Workspace) -> None:
    lease = Lease(workspace, MODEL)
    job_id = workspace.submit("q")
    claimed(lease)
    assert [peer.pid for peer in within(10, workspace.peers)] == [os.getpid()]
    assert within(10, lambda: recover(workspace)) == []
    assert workspace.find(job_id).state is JobState.RUNNING


def test_a_dead_daemon_is_seen_as_dead_by_two_who_look_at_once(workspace: Workspace) -> None:
    lease = Lease(workspace, MODEL)
    os.close(lease._lock)
    with (Path(lease._folder) / ".lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert workspace.peers() == []


def test_a_dead_daemons_jobs_are_recovered_by_one_only(workspace: Workspace) -> None:
    workspace.submit("q")
    lease = Lease(workspace, MODEL)
    claim = claimed(lease)
    os.close(lease._lock)
    for kind in (fcntl.LOCK_EX, fcntl.LOCK_SH):
        with (Path(lease._folder) / ".lock").open() as other:
            fcntl.flock(other, kind)
            assert recover(workspace) == []
    assert recover(workspace) == [claim.id]


# Things that are no files.


@pytest.mark.parametrize("kind", ["fifo", "device", "link", "folder"])
@pytest.mark.parametrize("name", ["prompt.txt", "job.json", "attempts.json", "progress.jsonl", "cancel"])
def test_what_is_no_file_is_not_followed_and_keeps_nobody_waiting(
    workspace: Workspace, tmp_path: Path, name: str, kind: str
) -> None:
    folder = Path(workspace.input) / "mine"
    folder.mkdir()
    (folder / "prompt.txt").write_text("a prompt")
    (folder / "job.json").write_text("{}")
    victim = tmp_path / "victim"
    victim.write_text('{"settings": {"seed": 7}, "crashes": 9, "begun": 9}')
    place = folder / name
    place.unlink(missing_ok=True)
    put_there(place, kind, victim)
    within(20, lambda: live_through(workspace, name))
    assert victim.read_text() == '{"settings": {"seed": 7}, "crashes": 9, "begun": 9}'
    found = workspace.find("mine")
    assert found.is_finished
    for path in Path(found.directory).iterdir():
        assert stat.S_ISREG(path.lstat().st_mode) or path.name in ("prompt.txt", "job.json"), path


def put_there(place: Path, kind: str, victim: Path) -> None:
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "link":
        place.symlink_to(victim)
    elif kind == "folder":
        (place / "deep").mkdir(parents=True)
    else:
        try:
            # One that never comes to an end.
            os.mknod(place, stat.S_IFCHR | 0o600, os.makedev(1, 5))
        except PermissionError:
            pytest.skip("only root can make devices")


def live_through(workspace: Workspace, name: str) -> bool:
    """All that can become of a job, one after the other."""
    lease = Lease(workspace, MODEL)
    claim = claimed(lease)
    assert (claim.begun, claim.crashes, claim.settings) == (0, 0, {})
    assert (workspace.prompt(workspace.find(claim.id)) == "a prompt") == (name != "prompt.txt")
    workspace.answer(workspace.find(claim.id))
    assert lease.is_cancelled(claim) == (name == "cancel")
    assert lease.progress(claim).tokens == ()
    lease.record_starts([claim])
    lease.cut_progress(claim, 1)
    lease.append_progress(claim, token_line(1, "one "))
    lease.cut_progress(claim, 0)
    lease.append_progress(claim, token_line(1, "one "))
    crashed = lease.record_crash(claim)
    lease.requeue([crashed], [crashed])
    again = claimed(lease)
    assert (again.begun, again.crashes) == (2, 1)
    lease.record_starts([again])
    os.close(lease._lock)
    assert recover(workspace) == ["mine"]
    heir = Lease(workspace, MODEL)
    last = claimed(heir)
    assert (last.begun, last.crashes) == (3, 1)
    cancel(workspace, workspace.find(last.id))
    try:
        heir.prompt(last)
    except JobError as error:
        assert name in str(error)
        heir.fail(last, str(error), Receipt.of_failure(last.id, last.queued, str(error)))
    else:
        heir.finish(last, "an answer", receipt(last.id))
    heir.close()
    return True


def test_a_folder_that_vanishes_while_it_is_claimed_is_a_lost_race(workspace: Workspace) -> None:
    lease = Lease(workspace, MODEL)
    found = workspace.find(workspace.submit("q"))
    assert cancel(workspace, found)
    with pytest.raises(LostRaceError):
        lease.claim_this(found)
