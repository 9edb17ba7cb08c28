"""``wrk --batch``: which jobs a file makes, what it says, and that doing it again makes none of them twice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from batch_files import answer_all, chat, embedding, write_lines
from processes import command, until

from nrvna import files
from nrvna.batch import queueing
from nrvna.batch.ledger import Ledger
from nrvna.batch.queueing import queue_batch
from nrvna.errors import JobError, SubmitError, WorkspaceError
from nrvna.order import Order
from nrvna.workspace import Workspace

GOOD = [chat("a", "one"), chat("b", "two", n=2, seed=1), embedding("c", ["three", "four"])]
BAD = [b"nonsense", chat("d", tools=[{"type": "function"}]), {"custom_id": "e"}]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in.jsonl", GOOD)


def batch_of(workspace: Workspace, path: Path, capsys: pytest.CaptureFixture[str], **asked: object) -> str:
    code = queue_batch(workspace, str(path), **asked)  # type: ignore[arg-type]
    printed = capsys.readouterr()
    assert code == (2 if "refused" in printed.err else 0)
    return printed.out.strip()


def prompts(workspace: Workspace) -> list[str]:
    return [workspace.prompt(job) for job in workspace.jobs()]


def test_each_request_becomes_jobs_and_the_batchs_id_is_printed(workspace: Workspace, path: Path) -> None:
    done = command("wrk", workspace.path, "--batch", path)
    assert done.returncode == 0
    assert done.stdout.startswith("batch_") and done.stdout.count("\n") == 1
    assert prompts(workspace) == ["one", "two", "two", "three", "four"]
    assert done.stderr.splitlines()[-1] == "wrk: 3 requests queued as 5 jobs"
    orders = [workspace.order(job) for job in workspace.jobs()]
    assert {order.batch for order in orders if order} == {done.stdout.strip()}
    ledger = Ledger(workspace, done.stdout.strip())
    ledger.refresh()
    assert [job for entry in ledger.entries() for job in entry.jobs] == [job.id for job in workspace.jobs()]
    assert ledger.is_complete


def test_lines_that_cannot_be_answered_stop_no_other(workspace: Workspace, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", [BAD[0], GOOD[0], BAD[1], b"", BAD[2], GOOD[1]])
    done = command("wrk", workspace.path, "--batch", path)
    assert done.returncode == 2
    assert done.stdout.startswith("batch_")
    assert prompts(workspace) == ["one", "two", "two"]
    assert done.stderr.splitlines() == [
        "wrk: line 1: it is no JSON: Expecting value at character 1",
        "wrk: line 3: body.tools is not supported: the model is given no tools",
        "wrk: line 5: method is missing",
        "wrk: the daemon's model answers, whatever the lines name (gpt-4o-mini); --model NAME asks for one",
        "wrk: 2 requests queued as 3 jobs, 3 lines refused",
    ]


def test_of_many_bad_lines_some_are_shown(workspace: Workspace, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", [b"nonsense"] * 500)
    done = command("wrk", workspace.path, "--batch", path)
    assert done.returncode == 2 and workspace.jobs() == []
    assert len(done.stderr.splitlines()) == 22
    assert "wrk: 480 more lines are no better" in done.stderr


def test_a_custom_id_that_is_there_twice_queues_nothing(workspace: Workspace, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", [GOOD[0], GOOD[1], b"", GOOD[0]])
    done = command("wrk", workspace.path, "--batch", path)
    reason = "the same custom_id stands there twice: 'a' in lines 1 and 4; nothing was queued"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"wrk: {path}: {reason}\n")
    assert workspace.jobs() == [] and list(Path(workspace.batches).iterdir()) == []


def test_the_same_file_again_is_the_same_batch_and_makes_no_job(
    workspace: Workspace, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = batch_of(workspace, path, capsys)
    assert batch_of(workspace, path, capsys) == first
    assert len(workspace.jobs()) == 5
    answer_all(workspace)
    copy = shutil.copy(path, path.with_name("copy.jsonl"))
    assert batch_of(workspace, Path(copy), capsys) == first
    assert len(workspace.jobs()) == 5


def test_again_makes_another_batch_of_it(
    workspace: Workspace, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = batch_of(workspace, path, capsys)
    second = batch_of(workspace, path, capsys, again=True)
    assert second == f"{first}-2" and len(workspace.jobs()) == 10
    assert batch_of(workspace, path, capsys) == second
    assert batch_of(workspace, path, capsys, again=True) == f"{first}-3"
    assert len(workspace.jobs()) == 15


def test_again_goes_on_with_one_that_was_interrupted(
    workspace: Workspace, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = batch_of(workspace, path, capsys)
    ledger = Path(workspace.batch(first)) / "ledger.jsonl"
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:2]))
    assert batch_of(workspace, path, capsys, again=True) == first


def test_jobs_that_are_nowhere_are_queued_again_and_no_others(
    workspace: Workspace, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = batch_of(workspace, path, capsys)
    jobs = workspace.jobs()
    for job in (jobs[0], jobs[2]):
        shutil.rmtree(job.directory)
    assert batch_of(workspace, path, capsys) == first
    ledger = Ledger(workspace, first)
    ledger.refresh()
    one, two, three = (entry.jobs for entry in ledger.entries())
    assert two[0] == jobs[1].id and three == (jobs[3].id, jobs[4].id)
    assert {*one, *two, *three} == {job.id for job in workspace.jobs()}
    assert [workspace.about(workspace.find(job))["settings"]["seed"] for job in two] == [1, 2]


def test_other_options_for_the_same_file_are_a_mistake(workspace: Workspace, path: Path) -> None:
    assert command("wrk", workspace.path, "--batch", path, "--model", "a", "--tag", "x").returncode == 0
    done = command("wrk", workspace.path, "--batch", path, "--model", "b", "--tag", "x")
    assert done.returncode == 2 and done.stdout == ""
    assert "was queued before, as batch_" in done.stderr and "or --again to queue it anew" in done.stderr
    assert command("wrk", workspace.path, "--batch", path, "--model", "a", "--tag", "x").returncode == 0
    assert len(workspace.jobs()) == 5
    assert command("wrk", workspace.path, "--batch", path, "--model", "b", "--again").returncode == 0
    assert len(workspace.jobs()) == 10


def test_what_is_asked_beside_it_is_asked_of_every_job(workspace: Workspace, path: Path) -> None:
    options = ("--model", "tiny", "--tag", "night", "--priority", "-5", "--timeout", "90s", "--temp", "0")
    done = command("wrk", workspace.path, "--batch", path, *options)
    assert done.returncode == 0 and "the daemon's model answers" not in done.stderr
    for job in workspace.jobs():
        order = workspace.order(job)
        assert order and (order.model, order.tags, order.priority, order.timeout) == ("tiny", ("night",), -5, 90)
    settings = [workspace.about(job)["settings"] for job in workspace.jobs()]
    assert settings[0] == {"temp": 0} and settings[3] == {}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("words",), "a prompt has no place beside --batch"),
        (("--system", "x"), "what is asked beside settings, model, tags"),
        (("--key", "k"), "--key has no place beside --batch"),
        (("-n", "2"), "-n has no place beside --batch"),
        (("--after", "nobody"), "no job nobody"),
        (("--tag", "a" * 65), "must be a word"),
    ],
)
def test_what_has_no_place_beside_a_batch_is_refused(
    workspace: Workspace, path: Path, options: tuple[str, ...], reason: str
) -> None:
    done = command("wrk", workspace.path, "--batch", path, *options)
    assert done.returncode == 2 and reason in done.stderr and done.stderr.count("\n") == 1
    assert workspace.jobs() == []


def test_a_batch_comes_from_standard_input_too(workspace: Workspace, path: Path) -> None:
    piped = command("wrk", workspace.path, "--batch", "-", stdin=path.read_bytes())
    assert piped.returncode == 0 and len(workspace.jobs()) == 5
    assert command("wrk", workspace.path, "--batch", path).stdout == piped.stdout
    assert len(workspace.jobs()) == 5


@pytest.mark.parametrize(
    ("name", "reason"), [("missing.jsonl", "No such file"), (".", "Is a directory"), ("empty", "there is no request")]
)
def test_a_file_that_cannot_be_read_is_named(workspace: Workspace, tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "empty").touch()
    done = command("wrk", workspace.path, "--batch", tmp_path / name)
    assert done.returncode == 2 and str(tmp_path) in done.stderr and reason in done.stderr
    assert done.stderr.count("\n") == 1


def test_two_at_once_make_each_job_once(workspace: Workspace, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", [chat(str(number), f"job {number}") for number in range(1500)])
    arguments = [sys.executable, "-m", "nrvna.wrk", workspace.path, "--batch", str(path)]
    racers = [
        subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    said = [racer.communicate(timeout=60) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert len({out for out, _ in said}) == 1
    assert sorted(err.splitlines()[-1] for _, err in said) == [
        "wrk: 0 requests queued as 0 jobs, 1500 queued before",
        "wrk: 0 requests queued as 0 jobs, 1500 queued before",
        "wrk: 1500 requests queued as 1500 jobs",
    ]
    assert sorted(prompts(workspace)) == sorted(f"job {number}" for number in range(1500))


def test_a_file_that_changes_while_it_is_read_is_not_mixed(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_lines(tmp_path / "in.jsonl", [chat(str(number)) for number in range(30)])
    monkeypatch.setattr(queueing, "_GROUP", 10)
    submit_all = Workspace.submit_all

    def submit_and_touch(*arguments: object) -> list[str]:
        os.utime(path, ns=(1, 1))
        return submit_all(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Workspace, "submit_all", submit_and_touch)
    with pytest.raises(JobError, match="was changed while it was read"):
        queue_batch(workspace, str(path))
    assert len(workspace.jobs()) == 10
    assert "wrk: 10 requests of batch_" in capsys.readouterr().err


@pytest.mark.parametrize("at", ["before", "between", "after"])
def test_a_disk_that_fails_leaves_what_the_same_command_goes_on_with(
    workspace: Workspace, path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Before the ledger is written, between it and the jobs, or when some jobs have appeared."""
    with monkeypatch.context() as patch:
        _break(patch, at)
        with pytest.raises(SubmitError if at != "before" else WorkspaceError):
            queue_batch(workspace, str(path))
    assert len(workspace.jobs()) == (2 if at == "after" else 0)
    assert "the same command goes on there" in capsys.readouterr().err
    batch_of(workspace, path, capsys)
    assert sorted(prompts(workspace)) == ["four", "one", "three", "two", "two"]


def _break(patch: pytest.MonkeyPatch, at: str) -> None:
    if at == "before":
        patch.setattr("nrvna.batch.ledger.append", _failing_after(1, files.append))
    else:
        patch.setattr("nrvna.submit.move", _failing_after(2 if at == "after" else 0, files.move))


def _failing_after(count: int, work: Callable[..., None]) -> Callable[..., None]:
    """What does its work so many times, and then finds the disk full."""
    left = [count]

    def attempt(*arguments: Any, **named: Any) -> None:
        if left[0] == 0:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        work(*arguments, **named)

    return attempt


def test_its_jobs_can_be_answered_while_the_rest_is_queued(workspace: Workspace, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", [chat(str(number), f"job {number}") for number in range(1000)])
    answered = [0]
    is_over = threading.Event()

    def answer() -> None:
        while not is_over.is_set():
            answered[0] += answer_all(workspace)

    daemon = threading.Thread(target=answer)
    daemon.start()
    try:
        for _ in range(2):
            assert command("wrk", workspace.path, "--batch", path).returncode == 0
        until(lambda: answered[0] == 1000, "all answers")
    finally:
        is_over.set()
        daemon.join()
    assert len(workspace.jobs()) == 1000


def test_a_plain_order_is_what_is_asked_if_nothing_is(
    workspace: Workspace, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert batch_of(workspace, path, capsys, base=Order("")) == batch_of(workspace, path, capsys)
