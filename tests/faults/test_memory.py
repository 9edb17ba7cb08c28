"""Where the memory is not there: real engines that the kernel refuses address space, at their start and later."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import DaemonProcess, command, limit_growth

from nrvna.job import JobState
from nrvna.workspace import Workspace

Start = Callable[..., DaemonProcess]

OPTIONS = ("--ctx", "1024", "--temp", "0", "--predict", "8", "--ignore-eos", "1")
JOBS = 8


def queue(workspace: Path, words: int) -> list[str]:
    prompts = [f"{number}: {'apple ' * words}" for number in range(JOBS)]
    done = command("wrk", workspace, "--lines", "-", stdin="\n".join(prompts).encode())
    return done.stdout.split()


def assert_all_answered(workspace: Path, ids: list[str]) -> None:
    assert len(ids) == JOBS
    done = command("flw", "-w", workspace)
    assert done.returncode == 0, done.stderr
    jobs = [Workspace(workspace).find(job_id) for job_id in ids]
    assert {job.state for job in jobs} == {JobState.DONE}


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group whose processes are killed where they take more than some megabytes that they have not yet."""
    root = Path("/sys/fs/cgroup/memory")
    names = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
    if not root.is_dir():
        root, names = Path("/sys/fs/cgroup"), ("memory.max", "memory.swap.max")
    group = root / f"nrvna-test-{os.getpid()}"
    try:
        group.mkdir()
        for name in names:
            if (group / name).exists():
                (group / name).write_text("4194304")
        if not (group / names[0]).exists():
            group.rmdir()
            pytest.skip("no memory limits in control groups here")
    except OSError as error:
        pytest.skip(f"control groups cannot be made here: {error}")
    yield group
    group.rmdir()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "work"


def test_an_engine_without_the_memory_starts_with_fewer_jobs_at_a_time_and_says_so(
    start_daemon: Start, folder: Path
) -> None:
    daemon = start_daemon(folder, *OPTIONS, "--parallel", "64", address_space=1_500_000_000)
    assert "not enough memory for 64 jobs at a time, 1024 tokens each: trying 32 jobs at a time" in daemon.log
    [ready] = [line for line in daemon.log.splitlines() if "ready:" in line]
    assert any(f"{count} jobs at a time" in ready for count in (32, 16, 8, 4))
    assert "(memory allows no more)" in daemon.log
    assert_all_answered(folder, queue(folder, 20))


@pytest.mark.slow
def test_a_context_that_was_asked_for_is_cut_last_and_never_without_a_word(start_daemon: Start, folder: Path) -> None:
    daemon = start_daemon(folder, *OPTIONS[2:], "--ctx", "65536", address_space=1_500_000_000)
    said = daemon.log
    assert said.index("trying 1 job at a time, 65536 tokens each") < said.index("trying 1 job at a time, 32768")
    assert "NRVNA_CTX is 65536, but there is memory for 32768 tokens alone" in said
    assert_all_answered(folder, queue(folder, 20))


@pytest.mark.slow
def test_an_engine_that_dies_for_want_of_memory_costs_no_job_and_comes_back_smaller(
    start_daemon: Start, folder: Path
) -> None:
    daemon = start_daemon(folder, *OPTIONS, "--parallel", str(JOBS))
    # Less than the first batch takes: of 500 KB it found enough at times. The prompts are read in what there is.
    limit_growth(daemon.engine_pid(), 100_000)
    ids = queue(folder, 150)
    daemon.wait_log("for want of memory: starting another with 4 jobs at a time, 1024 tokens each")
    assert_all_answered(folder, ids)
    assert "4 jobs at a time, 1024 tokens each, " in daemon.log
    # They died with it once, which is no crash of theirs: nobody ran alone.
    receipts = [Workspace(folder).receipt(Workspace(folder).find(job_id)) for job_id in ids]
    assert {receipt.attempts for receipt in receipts if receipt} == {1, 2}


@pytest.mark.slow
def test_an_engine_that_the_kernel_kills_for_its_memory_costs_no_job_and_comes_back_smaller(
    start_daemon: Start, folder: Path, small_group: Path
) -> None:
    daemon = start_daemon(folder, *OPTIONS, "--parallel", str(JOBS))
    (small_group / "cgroup.procs").write_text(str(daemon.engine_pid()))
    ids = queue(folder, 150)
    daemon.wait_log(
        "the engine ended with signal SIGKILL for want of memory: starting another with 4 jobs at a time, 1024"
    )
    assert_all_answered(folder, ids)


@pytest.mark.slow
def test_an_engine_that_somebody_kills_is_not_taken_for_one_without_memory(start_daemon: Start, folder: Path) -> None:
    daemon = start_daemon(folder, *OPTIONS, "--parallel", str(JOBS))
    os.kill(daemon.engine_pid(), signal.SIGKILL)
    daemon.wait_log("the engine ended with signal SIGKILL, at work on 0 jobs; starting another")
    assert_all_answered(folder, queue(folder, 20))
    assert "want of memory" not in daemon.log
