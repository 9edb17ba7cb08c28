"""The daemon, with an engine that breaks on demand: what dies, hangs, stops, is full or goes away, and what then."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from processes import until
from toy_engine import answer_of, commands_in
from zygote import StartToy, ToyDaemon, Zygote, jobs_claimed_by

from nrvna.job import JobState
from nrvna.lease import recover
from nrvna.workspace import Workspace

SOON = {"restart_s": 0.02}
UNENDING = "LONG 100000 SLOW 10 story"
SAID_AGAIN = "trying again until it works"


def state(workspace: Workspace, job_id: str) -> JobState:
    return workspace.find(job_id).state


def is_over(workspace: Workspace) -> bool:
    counts = workspace.counts()
    return counts.queued + counts.running == 0


def wait_until_over(workspace: Workspace, patience_s: float = 30.0) -> None:
    until(lambda: is_over(workspace), "the end of the queue", patience_s)


def check_answers(workspace: Workspace, prompts: dict[str, str]) -> None:
    """Every job is done once, with its answer."""
    found = Counter(workspace.prompt(job) for job in workspace.jobs())
    for job_id, prompt in prompts.items():
        job = workspace.find(job_id)
        assert job.state is JobState.DONE, workspace.answer(job)
        assert workspace.answer(job) == answer_of(prompt)
        receipt = workspace.receipt(job)
        assert receipt is not None and workspace.is_intact(job, receipt)
        assert found[prompt] == 1


def queue(workspace: Workspace, prompts: list[str]) -> dict[str, str]:
    return dict(zip(workspace.submit_all(prompts), prompts, strict=True))


def claimed_by(workspace: Workspace, daemon: ToyDaemon) -> set[str]:
    return jobs_claimed_by(workspace, daemon.child)


def progress_of(workspace: Workspace, job_id: str) -> str:
    return workspace.answer(workspace.find(job_id))


def wait_running(workspace: Workspace, *ids: str) -> None:
    """Until these are at work with some of their answers on record."""
    until(lambda: all(progress_of(workspace, job_id) for job_id in ids), "progress")


def attempts_of(workspace: Workspace, job_id: str) -> int:
    receipt = workspace.receipt(workspace.find(job_id))
    assert receipt is not None and receipt.attempts is not None
    return receipt.attempts


# Jobs that kill.


@pytest.mark.parametrize(
    ("killer", "end", "last"),
    [
        ("CRASH", "signal SIGABRT", "toy: CRASH beside 0 others"),
        ("SEGV", "signal SIGSEGV", "toy: SEGV beside 0 others"),
        ("OOM", "signal SIGKILL", "toy: OOM beside 0 others"),
        ("EXIT", "exit code 3", "toy: EXIT beside 0 others"),
        ("SPAM", "signal SIGABRT", "the last words"),
        ("READS", "signal SIGABRT", ""),
    ],
)
def test_a_job_that_kills_the_engine_is_set_aside_and_its_30_neighbours_are_answered(
    start_toy: StartToy, workspace: Workspace, killer: str, end: str, last: str
) -> None:
    good = queue(workspace, [f"good {number}" for number in range(15)])
    bad = workspace.submit(f"{killer} bad")
    good |= queue(workspace, [f"good {number}" for number in range(15, 30)])
    daemon = start_toy(workspace.path, "--parallel", "4", pace=SOON)
    wait_until_over(workspace)
    reason = workspace.answer(workspace.find(bad))
    assert reason.startswith(
        f"the engine died 3 times while it was at this job, last with {end}; the end of its log:"
    )
    # A suspect runs alone.
    assert reason.rstrip("\n").endswith(last)
    assert attempts_of(workspace, bad) == 3
    check_answers(workspace, good)
    assert all(attempts_of(workspace, job_id) <= 2 for job_id in good)
    assert daemon.log.count("the engine ended with") == 3


def test_a_job_that_the_engine_dies_of_while_it_is_at_nothing_is_found_and_set_aside(
    start_toy: StartToy, workspace: Workspace
) -> None:
    good = queue(workspace, [f"good {number}" for number in range(2)])
    bad = workspace.submit("LIMBO bad")
    good |= queue(workspace, [f"good {number}" for number in range(2, 12)])
    daemon = start_toy(workspace.path, "--parallel", "4", pace=SOON)
    wait_until_over(workspace)
    assert workspace.answer(workspace.find(bad)).startswith("the engine died 3 times while it was at this job")
    check_answers(workspace, good)
    assert all(attempts_of(workspace, job_id) <= 2 for job_id in good)
    assert "one job at a time, until it is known why" in daemon.log
    # Its three, those that made the daemon careful, and two more for each time that another was done in between.
    assert daemon.log.count("the engine ended with") <= 9


@pytest.mark.slow
def test_jobs_that_kill_unseen_are_all_found_in_a_long_queue(start_toy: StartToy, workspace: Workspace) -> None:
    prompts = [f"{'LIMBO ' if number % 20 == 7 else ''}job {number}" for number in range(60)]
    jobs = queue(workspace, prompts)
    start_toy(workspace.path, "--parallel", "4", pace=SOON)
    wait_until_over(workspace)
    good = {job_id: prompt for job_id, prompt in jobs.items() if not commands_in(prompt)}
    check_answers(workspace, good)
    assert all(state(workspace, job_id) is JobState.FAILED for job_id in jobs.keys() - good.keys())


@pytest.mark.slow
def test_several_killers_are_all_set_aside_and_nobody_else_is(start_toy: StartToy, workspace: Workspace) -> None:
    prompts = [f"{'CRASH ' if number % 8 == 5 else ''}job {number}" for number in range(40)]
    jobs = queue(workspace, prompts)
    start_toy(workspace.path, "--parallel", "8", pace=SOON)
    wait_until_over(workspace)
    good = {job_id: prompt for job_id, prompt in jobs.items() if not commands_in(prompt)}
    check_answers(workspace, good)
    assert all(state(workspace, job_id) is JobState.FAILED for job_id in jobs.keys() - good.keys())


def test_want_of_memory_is_no_jobs_fault_while_there_is_something_less_to_try(
    start_toy: StartToy, workspace: Workspace
) -> None:
    bad = workspace.submit("MEMORY LONG 9 story")
    good = queue(workspace, [f"good {number}" for number in range(12)])
    daemon = start_toy(workspace.path, "--parallel", "4", pace=SOON)
    wait_until_over(workspace)
    assert re.findall(r"for want of memory: starting another with (.*)", daemon.log) == [
        "2 jobs at a time, 512 tokens each",
        "1 job at a time, 512 tokens each",
        "1 job at a time, 256 tokens each",
    ]
    # Then it is the job after all.
    assert workspace.answer(workspace.find(bad)).startswith("the engine died 3 times while it was at this job")
    check_answers(workspace, good)


def test_memory_that_runs_out_while_a_prompt_is_read_is_that_jobs_own_matter(
    start_toy: StartToy, workspace: Workspace
) -> None:
    bad = workspace.submit("READS MEMORY too large")
    daemon = start_toy(workspace.path, "--parallel", "4", pace=SOON)
    wait_until_over(workspace)
    assert state(workspace, bad) is JobState.FAILED
    assert "starting another with" not in daemon.log


@pytest.mark.slow
def test_an_engine_that_hangs_is_replaced_and_what_it_hung_at_is_set_aside(
    start_toy: StartToy, workspace: Workspace
) -> None:
    good = queue(workspace, [f"good {number}" for number in range(3)])
    bad = workspace.submit("HANG bad")
    good |= queue(workspace, [f"good {number}" for number in range(3, 8)])
    daemon = start_toy(workspace.path, "--parallel", "4", "--stall", "1", pace=SOON)
    wait_until_over(workspace)
    assert "last with no progress for 1 s" in workspace.answer(workspace.find(bad))
    check_answers(workspace, good)
    assert all(attempts_of(workspace, job_id) <= 2 for job_id in good)
    assert daemon.log.count("the engine made no progress for 1 s: ending it") == 3


@pytest.mark.slow
def test_an_idle_engine_and_one_that_is_at_it_do_not_count_as_hung(start_toy: StartToy, workspace: Workspace) -> None:
    daemon = start_toy(workspace.path, "--stall", "1")
    job_id = workspace.submit("LONG 2 SLOW 1000 slow")
    until(lambda: state(workspace, job_id) is JobState.DONE, "the answer")
    time.sleep(1.5)
    assert "no progress" not in daemon.log


def test_a_job_that_takes_the_daemon_down_is_set_aside_after_some_starts(
    start_toy: StartToy, workspace: Workspace
) -> None:
    good = queue(workspace, [f"good {number}" for number in range(5)])
    bad = workspace.submit("PARENT bad")
    good |= queue(workspace, [f"good {number}" for number in range(5, 10)])
    starts = 0
    while not is_over(workspace):
        starts += 1
        assert starts <= 10
        daemon = start_toy(workspace.path, "--parallel", "4", wait=False)
        until(lambda daemon=daemon: daemon.child.poll() is not None or is_over(workspace), "an end")  # type: ignore[misc]
    assert workspace.answer(workspace.find(bad)).startswith("the daemon went down each of the 6 times")
    check_answers(workspace, good)


# Daemons that die, stop or share.


@pytest.mark.slow
def test_the_jobs_of_a_dead_daemon_are_back_within_two_seconds(
    start_toy: StartToy,
    workspace: Workspace,
    rounds: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    start_toy(workspace.path, "--parallel", "2")
    took = []
    for number in range(rounds(quick=2, ci=5, long=30)):
        dying = start_toy(workspace.path, "--parallel", "8")
        jobs = queue(workspace, [f"LONG 12 SLOW 5 job {number} {place}" for place in range(50)])
        until(lambda dying=dying: len(claimed_by(workspace, dying)) >= 2, "its claims")  # type: ignore[misc]
        dying.child.kill()
        began = time.monotonic()
        until(lambda dying=dying: not claimed_by(workspace, dying), "the recovery")  # type: ignore[misc]
        took.append(time.monotonic() - began)
        wait_until_over(workspace)
        check_answers(workspace, jobs)
    with capsys.disabled():
        print(f"\njobs of a dead daemon were back after {min(took):.2f} to {max(took):.2f} s")
    assert max(took) < 2


def flw_cancel(zygote: Zygote, workspace: Workspace, job_id: str) -> int:
    return zygote.fork("zygote:run_tool", "flw", ["--cancel", workspace.path, job_id]).wait()


@pytest.mark.parametrize("daemons", [2, 4])
def test_daemons_share_a_queue_and_answer_every_job_once(
    start_toy: StartToy, workspace: Workspace, rounds: Callable[..., int], daemons: int
) -> None:
    started = [start_toy(workspace.path, "--parallel", "4") for _ in range(daemons)]
    jobs: dict[str, str] = {}
    count = rounds(quick=200, ci=1000, long=1000)
    for first in range(0, count, 100):
        jobs |= queue(workspace, [f"job {number}" for number in range(first, first + 100)])
    wait_until_over(workspace)
    check_answers(workspace, jobs)
    assert all(attempts_of(workspace, job_id) == 1 for job_id in jobs)
    until(lambda: sum(daemon.log.count(" done: ") for daemon in started) == count, "the logs")
    assert all(daemon.log.count(" done: ") for daemon in started)


@pytest.mark.slow
def test_a_daemon_that_was_stopped_keeps_its_jobs_and_goes_on(start_toy: StartToy, workspace: Workspace) -> None:
    sleeper, peer = (start_toy(workspace.path, "--parallel", "4") for _ in range(2))
    jobs = queue(workspace, [f"LONG 12 SLOW 20 job {number}" for number in range(80)])
    until(lambda: len(claimed_by(workspace, sleeper)) >= 4, "its claims")
    sleeper.child.signal(signal.SIGSTOP)
    time.sleep(0.05)
    held = claimed_by(workspace, sleeper)
    assert held
    time.sleep(3)
    assert claimed_by(workspace, sleeper) == held
    sleeper.child.signal(signal.SIGCONT)
    wait_until_over(workspace)
    check_answers(workspace, jobs)
    assert all(attempts_of(workspace, job_id) == 1 for job_id in jobs)
    assert "of a daemon that died" not in peer.log


# Signals.


def test_sigterm_hands_jobs_back_with_what_there_is_of_their_answers(
    start_toy: StartToy, workspace: Workspace
) -> None:
    daemon = start_toy(workspace.path, "--parallel", "4")
    jobs = queue(workspace, [f"LONG 300 SLOW 5 job {number}" for number in range(6)])
    wait_running(workspace, *list(jobs)[:4])
    began = time.monotonic()
    daemon.child.signal(signal.SIGTERM)
    assert daemon.child.wait(5) == 0
    assert time.monotonic() - began < 5
    assert {state(workspace, job_id) for job_id in jobs} == {JobState.QUEUED}
    kept = [Path(workspace.input, job_id, "progress.jsonl") for job_id in list(jobs)[:4]]
    assert all(path.exists() for path in kept)
    start_toy(workspace.path, "--parallel", "8", pace={"step_s": 0.0001})
    wait_until_over(workspace)
    check_answers(workspace, jobs)
    receipts = [workspace.receipt(workspace.find(job_id)) for job_id in list(jobs)[:4]]
    assert all(receipt and receipt.resumed_tokens for receipt in receipts)


@pytest.mark.slow
def test_a_daemon_ends_in_time_beside_a_hung_engine(start_toy: StartToy, workspace: Workspace) -> None:
    daemon = start_toy(workspace.path)
    job_id = workspace.submit("HANG bad")
    daemon.wait_log("toy: HANG")
    daemon.child.signal(signal.SIGTERM)
    assert daemon.child.wait(5) == 0
    assert state(workspace, job_id) is JobState.QUEUED


def test_a_second_signal_ends_the_daemon_at_once(start_toy: StartToy, workspace: Workspace) -> None:
    daemon = start_toy(workspace.path, pace={"_STOP_PATIENCE_S": 30.0})
    job_id = workspace.submit("HANG bad")
    daemon.wait_log("toy: HANG")
    daemon.child.signal(signal.SIGTERM)
    time.sleep(0.3)
    assert daemon.child.poll() is None
    daemon.child.signal(signal.SIGTERM)
    assert daemon.child.wait(1) == 1
    recover(workspace)
    assert state(workspace, job_id) is JobState.QUEUED


def test_sighup_opens_the_log_anew(start_toy: StartToy, workspace: Workspace, tmp_path: Path) -> None:
    log = tmp_path / "nrvnad.log"
    daemon = start_toy(workspace.path, "--log-file", str(log), wait=False)
    until(lambda: log.exists() and "ready:" in log.read_text(), "the log")
    old = log.rename(tmp_path / "nrvnad.log.1")
    daemon.child.signal(signal.SIGHUP)
    until(log.exists, "the new log")
    before = old.read_text()
    job_id = workspace.submit("hello")
    until(lambda: f"{job_id} done" in log.read_text(), "its line in the new log")
    assert old.read_text() == before


def test_a_storm_of_hangups_costs_nothing(start_toy: StartToy, workspace: Workspace, tmp_path: Path) -> None:
    log = tmp_path / "nrvnad.log"
    daemon = start_toy(workspace.path, "--log-file", str(log), wait=False)
    until(lambda: log.exists() and "ready:" in log.read_text(), "the log")
    jobs = queue(workspace, [f"job {number}" for number in range(50)])
    while not is_over(workspace):
        daemon.child.signal(signal.SIGHUP)
    check_answers(workspace, jobs)
    assert "Traceback" not in log.read_text()


# Cancelling.


def test_queued_and_running_jobs_are_cancelled(zygote: Zygote, start_toy: StartToy, workspace: Workspace) -> None:
    daemon = start_toy(workspace.path, "--parallel", "1")
    running, waiting, good = (workspace.submit(prompt) for prompt in (UNENDING, "SLOW 9 waits", "good"))
    wait_running(workspace, running)
    assert flw_cancel(zygote, workspace, waiting) == 0
    assert flw_cancel(zygote, workspace, running) == 0
    until(lambda: state(workspace, good) is JobState.DONE, "the one that was not cancelled")
    for job_id in (running, waiting):
        receipt = workspace.receipt(workspace.find(job_id))
        assert receipt is not None and receipt.finish_reason == "cancelled"
    assert daemon.child.poll() is None


@pytest.mark.slow
def test_a_cancel_that_a_stopped_daemon_did_not_confirm_says_so_and_holds_later(
    zygote: Zygote, start_toy: StartToy, workspace: Workspace
) -> None:
    daemon = start_toy(workspace.path)
    job_id = workspace.submit("LONG 400 SLOW 5 story")
    wait_running(workspace, job_id)
    daemon.child.signal(signal.SIGSTOP)
    assert flw_cancel(zygote, workspace, job_id) == 3
    assert state(workspace, job_id) is JobState.RUNNING
    daemon.child.signal(signal.SIGCONT)
    until(lambda: workspace.find(job_id).is_finished, "its end")


@pytest.mark.slow
def test_a_cancel_holds_if_the_daemon_dies_before_it_hears_of_it(
    zygote: Zygote, start_toy: StartToy, workspace: Workspace
) -> None:
    daemon = start_toy(workspace.path)
    job_id = workspace.submit(UNENDING)
    wait_running(workspace, job_id)
    daemon.child.signal(signal.SIGSTOP)
    assert flw_cancel(zygote, workspace, job_id) == 3
    daemon.child.kill()
    start_toy(workspace.path)
    until(lambda: state(workspace, job_id) is JobState.FAILED, "the cancel")
    assert workspace.answer(workspace.find(job_id)).startswith("cancelled")


# Workspaces that go away.


def test_a_workspace_that_was_deleted_is_said_once_and_not_made_again(
    start_toy: StartToy, workspace: Workspace
) -> None:
    daemon = start_toy(workspace.path, pace={"TEND_EVERY_S": 0.05})
    job_id = workspace.submit(UNENDING)
    wait_running(workspace, job_id)
    shutil.rmtree(Path(workspace.path).rename(f"{workspace.path}.trash"))
    said = f"cannot claim a job in {workspace.path}: No such file or directory; {SAID_AGAIN}"
    daemon.wait_log(said)
    time.sleep(1)
    assert daemon.log.count(said) == 1
    assert daemon.log.count(SAID_AGAIN) <= 4
    daemon.child.signal(signal.SIGTERM)
    assert daemon.child.wait(5) == 0
    assert not Path(workspace.path).exists()


def test_a_workspace_that_is_deleted_piece_by_piece_is_not_made_again(
    start_toy: StartToy, workspace: Workspace
) -> None:
    daemon = start_toy(workspace.path, pace={"TEND_EVERY_S": 0.05})
    wait_running(workspace, workspace.submit(UNENDING))
    while Path(workspace.path).exists():
        shutil.rmtree(workspace.path, ignore_errors=True)
    time.sleep(0.5)
    assert not Path(workspace.path).exists()
    # It ends once its own folder is gone from a workspace that is still there.
    if daemon.child.poll() is None:
        daemon.child.signal(signal.SIGTERM)
        assert daemon.child.wait(5) == 0
    else:
        assert daemon.child.wait() == 1
        assert daemon.log.count("was moved or replaced while it was being served") == 1
    assert not Path(workspace.path).exists()


def test_a_workspace_that_was_replaced_ends_its_daemon(start_toy: StartToy, workspace: Workspace) -> None:
    daemon = start_toy(workspace.path)
    Path(workspace.path).rename(f"{workspace.path}.old")
    workspace.create()
    assert daemon.child.wait(10) == 1
    assert "was moved or replaced while it was being served" in daemon.log


@pytest.mark.slow
def test_a_workspace_that_was_moved_away_and_back_goes_on(start_toy: StartToy, workspace: Workspace) -> None:
    daemon = start_toy(workspace.path, pace={"TEND_EVERY_S": 0.05})
    jobs = queue(workspace, [f"LONG 20 SLOW 20 job {number}" for number in range(12)])
    until(lambda: bool(claimed_by(workspace, daemon)), "its claims")
    away = Path(workspace.path).rename(f"{workspace.path}.away")
    daemon.wait_log(SAID_AGAIN)
    time.sleep(1)
    assert not Path(workspace.path).exists()
    away.rename(workspace.path)
    wait_until_over(workspace)
    check_answers(workspace, jobs)
    assert daemon.log.count(SAID_AGAIN) <= 5
    assert "works again" in daemon.log


def test_a_job_that_was_removed_while_the_engine_died_of_it_holds_nobody_up(
    start_toy: StartToy, workspace: Workspace
) -> None:
    daemon = start_toy(workspace.path, "--stall", "1", pace=SOON)
    bad = workspace.submit("HANG bad")
    daemon.wait_log("toy: HANG")
    shutil.rmtree(workspace.find(bad).directory)
    good = queue(workspace, ["good"])
    until(lambda: all(state(workspace, job_id) is JobState.DONE for job_id in good), "the next job")


# Disks that are full or refuse, and other shortages.


def mount(*arguments: str | Path) -> bool:
    return subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode == 0


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    if not mount(*options, folder):
        pytest.skip("only root can mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=512k", "none") as folder:
        yield folder


@pytest.fixture
def few_inodes(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "few", "-t", "tmpfs", "-o", "nr_inodes=80", "none") as folder:
        yield folder


def fill_blocks(folder: Path) -> list[Path]:
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(512))
    return [ballast]


def fill_inodes(folder: Path) -> list[Path]:
    made: list[Path] = []
    with suppress(OSError):
        while True:
            path = folder / f"ballast-{len(made)}"
            path.touch()
            made.append(path)
    return made


def exercise_full_disk(
    zygote: Zygote, start_toy: StartToy, disk: Path, fill: Callable[[Path], list[Path]], rounds: int, tmp_path: Path
) -> None:
    workspace = Workspace(disk / "workspace")
    daemon = start_toy(workspace.path, "--parallel", "4", pace={"TEND_EVERY_S": 0.05})
    jobs: dict[str, str] = {}
    for number in range(rounds):
        before = daemon.log.count(SAID_AGAIN)
        jobs |= queue(workspace, [f"LONG 12 SLOW 10 job {number} {place}" for place in range(6)])
        until(lambda: bool(claimed_by(workspace, daemon)), "its claims")
        ballast = fill(disk)
        with (tmp_path / "wrk.log").open("w+") as log:
            child = zygote.fork(
                "zygote:run_tool", "wrk", [workspace.path, "no room"], out=log.fileno(), err=log.fileno()
            )
            assert child.wait() == 1
            log.seek(0)
            assert log.read() == f"wrk: cannot queue a job in {workspace.path}: {os.strerror(errno.ENOSPC)}\n"
        assert list(Path(workspace.input).glob(".*")) == []
        until(lambda before=before: daemon.log.count(SAID_AGAIN) > before, "the trouble to be said")  # type: ignore[misc]
        time.sleep(0.4)
        assert daemon.log.count(SAID_AGAIN) - before <= 3
        for path in ballast:
            path.unlink()
        wait_until_over(workspace)
        assert "works again" in daemon.log
    check_answers(workspace, jobs)
    assert len(workspace.jobs()) == len(jobs)
    daemon.child.signal(signal.SIGTERM)
    assert daemon.child.wait(5) == 0


def test_a_disk_without_room_loses_nothing_and_is_said_once(
    zygote: Zygote, start_toy: StartToy, small_disk: Path, rounds: Callable[..., int], tmp_path: Path
) -> None:
    exercise_full_disk(zygote, start_toy, small_disk, fill_blocks, rounds(quick=2, ci=4, long=6), tmp_path)


def test_a_disk_without_inodes_loses_nothing_and_is_said_once(
    zygote: Zygote, start_toy: StartToy, few_inodes: Path, tmp_path: Path
) -> None:
    exercise_full_disk(zygote, start_toy, few_inodes, fill_inodes, 1, tmp_path)


@pytest.mark.slow
def test_a_workspace_that_becomes_read_only_loses_nothing_and_goes_on(
    start_toy: StartToy, workspace: Workspace
) -> None:
    daemon = start_toy(workspace.path, "--parallel", "4", pace={"TEND_EVERY_S": 0.05})
    jobs = queue(workspace, [f"LONG 12 SLOW 10 job {number}" for number in range(40)])
    until(lambda: bool(claimed_by(workspace, daemon)), "its claims")
    # A view of it on top: the real one cannot be made so while a daemon has its lock open for writing.
    with mounted(Path(workspace.path), "--bind", workspace.path):
        # Not in the middle of a write.
        until(lambda: mount("-o", "remount,bind,ro", workspace.path), "a moment without a writer", 10)
        daemon.wait_log("Read-only file system")
        time.sleep(1)
        assert daemon.log.count(SAID_AGAIN) <= 4
    wait_until_over(workspace)
    check_answers(workspace, jobs)


@pytest.mark.slow
def test_a_daemon_short_of_descriptors_fails_no_job_for_it(start_toy: StartToy, workspace: Workspace) -> None:
    daemon = start_toy(workspace.path, "--parallel", "2", pace={"TEND_EVERY_S": 0.05})
    jobs = queue(workspace, [f"LONG 6 SLOW 10 job {number}" for number in range(60)])
    until(lambda: workspace.counts().done >= 1, "the first answer")
    pid = daemon.child.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (4, limits[1]))
    daemon.wait_log("Too many open files")
    time.sleep(0.5)
    assert daemon.log.count(SAID_AGAIN) <= 5
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    wait_until_over(workspace)
    check_answers(workspace, jobs)


def test_a_receipt_says_how_often_a_job_was_begun(start_toy: StartToy, workspace: Workspace) -> None:
    daemon = start_toy(workspace.path, pace={"KEEP_EVERY_S": 0.01})
    job_id = workspace.submit("LONG 60 SLOW 20 story")
    for _ in range(2):
        known = progress_of(workspace, job_id)
        until(lambda known=known: len(progress_of(workspace, job_id)) > len(known), "progress")  # type: ignore[misc]
        daemon.child.kill()
        daemon = start_toy(workspace.path, pace={"KEEP_EVERY_S": 0.01})
    until(lambda: state(workspace, job_id) is JobState.DONE, "the answer")
    receipt = json.loads(Path(workspace.find(job_id).directory, "receipt.json").read_text())
    assert receipt["attempts"] == 3
    assert receipt["resumed_tokens"] > 0
    check_answers(workspace, {job_id: "LONG 60 SLOW 20 story"})
