"""flw's verbs as a shell sees them: cancel, retry, rm, purge, export and stats."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from claims import claimed, file_away
from processes import DaemonProcess, command, on_terminal, until

from nrvna.job import JobState, timestamp
from nrvna.lease import Lease
from nrvna.order import Order
from nrvna.workspace import Workspace

BIN = Path(sys.executable).parent
VERBS = ("cancel", "retry", "rm", "purge", "export", "stats")


def flw(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return command("flw", *arguments)


def state(workspace: Workspace, job_id: str) -> JobState:
    return workspace.find(job_id).state


def listed(workspace: Workspace) -> list[str]:
    return [job.id for job in workspace.jobs()]


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help_of_its_own_with_examples(verb: str) -> None:
    done = flw(verb, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: flw {verb} ")
    assert f"  flw {verb} ~/work" in done.stdout and "exit codes: 0 " in done.stdout


def test_a_workspace_that_is_called_like_a_verb_is_reached_by_its_path(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "cancel")
    workspace.create()
    job_id = workspace.submit("q")
    done = subprocess.run([BIN / "flw", "./cancel"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(job_id)


# cancel


def test_cancel_ends_a_queued_job_for_good(workspace: Workspace) -> None:
    job_id = workspace.submit("q")
    done = flw("cancel", workspace.path, job_id[-6:])
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{job_id}\n", "")
    shown = flw(workspace.path, job_id)
    assert (shown.returncode, shown.stderr) == (1, f"flw: {job_id} failed: cancelled before it was begun\n")


def test_the_old_option_still_cancels(workspace: Workspace) -> None:
    job_id = workspace.submit("q")
    assert flw("--cancel", workspace.path, job_id).returncode == 0
    assert state(workspace, job_id) is JobState.FAILED


def test_cancel_ends_a_running_job_and_its_neighbour_goes_on(served: Workspace) -> None:
    long = served.submit("Write a very long story.", {"predict": 900, "ignore_eos": True})
    until(lambda: state(served, long) is JobState.RUNNING, "the claim")
    neighbour = served.submit("Say yes.")
    assert flw("cancel", served.path, long).returncode == 0
    receipt = served.receipt(served.find(long))
    assert receipt is not None and receipt.finish_reason == "cancelled"
    assert flw("-w", served.path, neighbour).returncode == 0


def test_cancel_ends_all_of_a_tag_or_all_there_are(workspace: Workspace) -> None:
    done = file_away(workspace, Order("q", tags=("t",)), "the answer")
    tagged = workspace.submit_all([Order("q", tags=("t",))] * 2)
    others = workspace.submit_all(["q"] * 3)
    assert flw("cancel", workspace.path, "--tag", "t").stdout.split() == tagged
    assert [state(workspace, job_id) for job_id in others] == [JobState.QUEUED] * 3
    assert flw("cancel", workspace.path, "--all").stdout.split() == others
    assert state(workspace, done) is JobState.DONE
    assert (flw("cancel", workspace.path, "--all").returncode, workspace.counts().queued) == (0, 0)


def test_cancel_says_which_of_several_was_done_and_ends_the_others(workspace: Workspace) -> None:
    done_id = file_away(workspace, "q", "the answer")
    queued = workspace.submit("q")
    done = flw("cancel", workspace.path, done_id, queued)
    assert (done.returncode, done.stdout, done.stderr) == (1, f"{queued}\n", f"flw: {done_id} is done already\n")


@pytest.mark.slow
def test_cancel_says_when_no_daemon_confirms_it(workspace: Workspace) -> None:
    job_id = workspace.submit("q")
    lease = Lease(workspace, {"path": "m"})
    claimed(lease)
    done = flw("cancel", workspace.path, job_id)
    assert (done.returncode, done.stdout) == (3, "")
    assert "did not confirm that yet" in done.stderr
    lease.close()


def test_cancel_ends_the_jobs_of_a_dead_daemon(workspace: Workspace) -> None:
    job_id = workspace.submit("q")
    lease = Lease(workspace, {"path": "m"})
    claimed(lease)
    os.close(lease._lock)
    done = flw("cancel", workspace.path, job_id)
    assert (done.returncode, done.stdout) == (0, f"{job_id}\n")
    assert state(workspace, job_id) is JobState.FAILED


# retry


@pytest.mark.slow
def test_retry_has_a_failed_job_answered_by_a_daemon(
    workspace: Workspace, start_daemon: Callable[..., DaemonProcess]
) -> None:
    start_daemon(workspace.path, "--predict", "8", "--temp", "0")
    job_id = workspace.submit("Write a very long story.", {"predict": 2000, "ignore_eos": True})
    until(lambda: state(workspace, job_id) is JobState.RUNNING, "the claim")
    assert flw("cancel", workspace.path, job_id).returncode == 0
    # Its own settings would have it answer for long.
    about = Path(workspace.find(job_id).directory) / "job.json"
    about.write_text(re.sub(r'"settings": \{.*?\}', '"settings": {}', about.read_text()))
    done = flw("retry", workspace.path, job_id)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{job_id}\n", "")
    answered = flw("-w", workspace.path, job_id)
    assert answered.returncode == 0 and answered.stdout.strip()
    job = workspace.find(job_id)
    receipt = workspace.receipt(job)
    assert receipt is not None and receipt.attempts == 1
    assert not (Path(job.directory) / "error.txt").exists()


def test_retry_asks_all_again_that_failed_and_parents_first(workspace: Workspace) -> None:
    parent = file_away(workspace, "q", "why", failed=True)
    child = file_away(workspace, Order("q", after=(parent,)), "its parent failed", failed=True)
    done_id = file_away(workspace, "q", "the answer")
    done = flw("retry", workspace.path, "--state", "failed")
    assert (done.stdout.split(), done.stderr) == ([parent, child], "")
    assert [state(workspace, job_id) for job_id in (parent, child, done_id)] == [
        JobState.QUEUED,
        JobState.QUEUED,
        JobState.DONE,
    ]


def test_retry_warns_of_a_parent_that_would_fail_the_job_once_more(workspace: Workspace) -> None:
    parent = file_away(workspace, "q", "why", failed=True)
    child = file_away(workspace, Order("q", after=(parent,)), "its parent failed", failed=True)
    done = flw("retry", workspace.path, child)
    assert done.stdout == f"{child}\n"
    assert done.stderr == f"flw: {child} comes after {parent}, which failed: retry that too\n"


def test_retry_leaves_answers_alone_unless_told_otherwise(workspace: Workspace) -> None:
    job_id = file_away(workspace, Order("q", tags=("t",)), "the answer")
    done = flw("retry", workspace.path, job_id)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"flw: {job_id} is done: --again throws its answer away and asks once more\n"
    assert flw("retry", workspace.path, "--tag", "t").stdout == ""
    assert state(workspace, job_id) is JobState.DONE
    assert flw("retry", workspace.path, "--tag", "t", "--again").stdout == f"{job_id}\n"
    assert state(workspace, job_id) is JobState.QUEUED


def test_retry_of_what_is_in_the_queue_changes_nothing(workspace: Workspace) -> None:
    job_id = workspace.submit("q")
    done = flw("retry", workspace.path, job_id)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", f"flw: {job_id} is queued already\n")


# rm


def test_rm_removes_finished_jobs_and_prints_which(workspace: Workspace) -> None:
    ids = [file_away(workspace, "q", "a", failed=at == 1) for at in range(3)]
    done = flw("rm", workspace.path, "@1", ids[1])
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [ids[2], ids[1]], "")
    assert listed(workspace) == [ids[0]]


def test_rm_removes_what_is_unfinished_only_by_force(workspace: Workspace) -> None:
    queued = workspace.submit("q")
    done = flw("rm", workspace.path, queued)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"flw: {queued} is not finished: --force cancels, and removes, what is not\n"
    assert flw("rm", "-f", workspace.path, queued).stdout == f"{queued}\n"
    assert listed(workspace) == []


def test_rm_removes_a_running_job_by_force(served: Workspace) -> None:
    job_id = served.submit("Write a very long story.", {"predict": 900, "ignore_eos": True})
    until(lambda: state(served, job_id) is JobState.RUNNING, "the claim")
    assert flw("rm", "--force", served.path, job_id).stdout == f"{job_id}\n"
    assert job_id not in listed(served)


def test_rm_keeps_an_answer_that_an_unfinished_job_waits_for(workspace: Workspace) -> None:
    parent = file_away(workspace, "q", "the answer")
    [child] = workspace.submit_all([Order("{result}", after=(parent,))])
    done = flw("rm", workspace.path, parent)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"flw: {parent} stays: {child}, which is not finished, comes after it\n"
    assert flw("rm", "-f", workspace.path, parent).stdout == f"{parent}\n"


def test_rm_frees_the_key_of_a_job(workspace: Workspace) -> None:
    job_id = file_away(workspace, Order("q", key="k"), "the answer")
    flw("rm", workspace.path, job_id)
    assert workspace.submit_all([Order("q", key="k")]) != [job_id]


# purge


def old(workspace: Workspace, order: Order | str, *, days: float, failed: bool = False) -> str:
    """A job that was queued, and finished, so many days ago."""
    then = time.time() - days * 86400
    job_id = file_away(workspace, order, "a", failed=failed, finished=timestamp(then))
    job = workspace.find(job_id)
    stamp = timestamp(then)
    name = f"{stamp[:10].replace('-', '')}-{stamp[11:19].replace(':', '')}-000000-{job_id[-6:]}"
    Path(job.directory).rename(Path(job.directory).parent / name)
    return name


def test_purge_removes_what_has_been_finished_for_so_long(workspace: Workspace) -> None:
    ids = [old(workspace, "q", days=days) for days in (30, 8, 6, 1)]
    assert flw("purge", workspace.path, "--older", "7d").stdout.split() == ids[:2]
    assert listed(workspace) == ids[2:]
    assert flw("purge", workspace.path, "--older", "25h").stdout.split() == [ids[2]]


def test_purge_goes_by_when_a_job_was_finished_and_not_by_when_it_was_queued(workspace: Workspace) -> None:
    long = old(workspace, "q", days=9)
    receipt = Path(workspace.output) / long / "receipt.json"
    receipt.write_text(re.sub(r'"finished": "[^"]*"', f'"finished": "{timestamp(time.time())}"', receipt.read_text()))
    assert flw("purge", workspace.path, "--older", "7d").stdout == ""


def test_purge_can_be_of_some_states_and_tags(workspace: Workspace) -> None:
    done, failed = old(workspace, "q", days=9), old(workspace, "q", days=9, failed=True)
    tagged = old(workspace, Order("q", tags=("t",)), days=9)
    assert flw("purge", workspace.path, "--older", "1w", "--state", "failed").stdout.split() == [failed]
    assert flw("purge", workspace.path, "--older", "1w", "--tag", "t").stdout.split() == [tagged]
    assert listed(workspace) == [done]


def test_purge_tries_out_what_it_would_remove(workspace: Workspace) -> None:
    job_id = old(workspace, "q", days=9)
    assert flw("purge", workspace.path, "--older", "1w", "--dry-run").stdout == f"{job_id}\n"
    assert listed(workspace) == [job_id]
    shown = on_terminal(BIN / "flw", "purge", workspace.path, "--older", "1w")
    assert shown == f"{job_id}\n1 job removed\n"


def test_purge_keeps_an_answer_that_an_unfinished_job_waits_for(workspace: Workspace) -> None:
    parent = old(workspace, "q", days=9)
    [child] = workspace.submit_all([Order("{result}", after=(parent,))])
    done = flw("purge", workspace.path, "--older", "1w")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"flw: {parent} stays: {child}, which is not finished, comes after it\n"


def test_purge_sweeps_up_what_a_killed_one_left(workspace: Workspace) -> None:
    left = Path(workspace.output) / ".removed-20260101-000000-000000-aaaaaa-000000"
    left.mkdir()
    (left / "result.txt").touch()
    assert flw("purge", workspace.path, "--older", "1w").returncode == 0
    assert not left.exists()


def test_a_purge_that_is_killed_leaves_whole_jobs_and_can_be_gone_on_with(workspace: Workspace) -> None:
    ids = {old(workspace, "q", days=9) for _ in range(40)}
    process = subprocess.Popen(
        [str(BIN / "flw"), "purge", workspace.path, "--older", "1w"], stdout=subprocess.PIPE, text=True
    )
    until(lambda: len(listed(workspace)) < len(ids) or process.poll() is not None, "the first removal")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for job in workspace.jobs():
        assert workspace.answer(job) == "a" and workspace.prompt(job) == "q"
    flw("purge", workspace.path, "--older", "1w")
    assert list(Path(workspace.output).iterdir()) == []


# export


@pytest.fixture
def answered(workspace: Workspace) -> Workspace:
    file_away(workspace, Order("one,\ntwo", tags=("a", "b")), 'an "answer"\nof lines', sampling={"seed": 7})
    file_away(workspace, "in vain", "a reason", failed=True)
    file_away(workspace, "code?", "```py\nx = 1", "length", model={"path": "/models/m.gguf"})
    workspace.submit("not yet")
    return workspace


def test_export_writes_all_that_is_finished_as_lines(answered: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "all.jsonl"
    assert flw("export", answered.path, "-o", file).stdout == ""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["prompt"] for line in lines] == ["one,\ntwo", "in vain", "code?"]
    shown = [json.loads(line) for line in flw("export", answered.path).stdout.splitlines()]
    assert [line["answer"] for line in shown] == [line["answer"] for line in lines]


def test_export_writes_a_table_that_reads_back(answered: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "all.csv"
    flw("export", answered.path, "-o", file)
    with file.open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["state"] for row in rows] == ["done", "failed", "done"]
    assert (rows[0]["prompt"], rows[0]["answer"]) == ("one,\ntwo", 'an "answer"\nof lines')
    assert (rows[0]["tags"], rows[0]["seed"], rows[0]["generated_tokens"]) == ("a b", "7", "7")
    assert (rows[1]["error"], rows[2]["cut"], rows[2]["model"]) == ("a reason", "true", "/models/m.gguf")


def test_export_writes_a_text_to_read_in_which_no_cut_answer_spoils_the_next(
    answered: Workspace, tmp_path: Path
) -> None:
    ids = listed(answered)
    file = tmp_path / "all.md"
    flw("export", answered.path, "-o", file)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]*Z", "NOW", file.read_text())
    assert text == (
        f'## {ids[0]}\n\nNOW, done, a, b\n\n> one,\n> two\n\nan "answer"\nof lines\n\n'
        f"## {ids[1]}\n\nNOW, failed\n\n> in vain\n\na reason\n\n"
        f"## {ids[2]}\n\nNOW, cut\n\n> code?\n\n```py\nx = 1\n```\n"
    )


def test_export_can_be_of_some_jobs_in_the_order_named(answered: Workspace) -> None:
    ids = listed(answered)
    lines = flw("export", answered.path, ids[3], ids[0]).stdout.splitlines()
    assert [json.loads(line)["id"] for line in lines] == [ids[3], ids[0]]
    assert json.loads(flw("export", answered.path, "--tag", "a").stdout)["id"] == ids[0]


def test_export_leaves_a_file_as_it_was_if_it_cannot_write_it_whole(answered: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "all.jsonl"
    file.write_text("before")
    script = 'ulimit -f 0; exec "$0" export "$1" -o "$2"'
    done = subprocess.run(
        ["bash", "-c", script, BIN / "flw", answered.path, file], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (2, f"flw: cannot write {file}: File too large\n")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["all.jsonl"]
    assert file.read_text() == "before"


def test_export_keeps_the_mode_of_a_file_and_what_links_to_it(answered: Workspace, tmp_path: Path) -> None:
    file, link = tmp_path / "all.jsonl", tmp_path / "link.jsonl"
    file.write_text("before")
    file.chmod(0o640)
    link.symlink_to(file)
    flw("export", answered.path, "-o", link)
    assert link.is_symlink() and len(file.read_text().splitlines()) == 3
    assert file.stat().st_mode & 0o777 == 0o640


def test_export_writes_to_what_is_no_file_as_it_is(answered: Workspace) -> None:
    done = flw("export", answered.path, "-o", "/dev/stdout")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 3)


@pytest.mark.parametrize("place", ["no/such/folder/x.md", "."])
def test_export_names_the_place_where_it_cannot_write(answered: Workspace, tmp_path: Path, place: str) -> None:
    done = flw("export", answered.path, "-o", tmp_path / place)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"flw: cannot write {tmp_path / place}: ")


# stats


def at(second: float) -> str:
    return timestamp(1_750_000_000 + second)


def answer_between(workspace: Workspace, queued: float, started: float, finished: float, **more: object) -> str:
    times = {"queued": at(queued), "started": at(started), "finished": at(finished)}
    model = {"path": "/models/small.gguf"}
    return file_away(workspace, "q", "a", **{"model": model, "prompt_tokens": 10, **times, **more})  # type: ignore[arg-type]


def test_stats_sums_up_tokens_over_the_time_in_which_there_was_work(workspace: Workspace) -> None:
    answer_between(workspace, 0, 1, 11, generated_tokens=100)
    answer_between(workspace, 0, 6, 21, generated_tokens=200, cached_tokens=4)
    answer_between(workspace, 50, 100, 110, generated_tokens=60, reason="length")
    answer_between(workspace, 50, 100, 110, generated_tokens=60, same_as="another")
    found = json.loads(flw("stats", "--json", workspace.path).stdout)
    assert found["tokens"] == {"prompt": 30, "cached": 4, "generated": 360}
    assert (found["busy_s"], found["tokens_per_second"], found["jobs_per_hour"]) == (30, 12, 480)
    assert found["wait_s"] == {"median": 6, "p95": 50}
    assert found["answer_s"] == {"median": 10, "p95": 15}
    assert found["jobs"] == {"queued": 0, "waiting": 0, "running": 0, "done": 4, "cut": 1, "failed": 0}
    assert found["models"] == [{"model": "small.gguf", "jobs": 4, "generated": 360, "tokens_per_second": 12}]


def test_stats_counts_failures_by_their_reasons_without_what_is_one_jobs_alone(workspace: Workspace) -> None:
    for tokens in (5000, 6100):
        file_away(workspace, "q", f"the prompt has {tokens} tokens, of 4,096 allowed", failed=True)
    file_away(workspace, "q", "the job 20260101-000000-000000-aaaaaa failed: no", failed=True)
    found = json.loads(flw("stats", "--json", workspace.path).stdout)
    assert found["failures"] == [
        {"reason": "the prompt has N tokens, of N allowed", "jobs": 2},
        {"reason": "the job ID failed: no", "jobs": 1},
    ]


def test_stats_can_be_of_what_was_finished_lately(workspace: Workspace) -> None:
    answer_between(workspace, 0, 1, 11)
    file_away(workspace, "q", "a", finished=timestamp(time.time()), started=timestamp(time.time() - 2))
    workspace.submit("not yet")
    found = json.loads(flw("stats", "--json", "--since", "1h", workspace.path).stdout)
    assert found["jobs"] == {"queued": 1, "waiting": 0, "running": 0, "done": 1, "cut": 0, "failed": 0}


def test_stats_are_readable(workspace: Workspace) -> None:
    answer_between(workspace, 0, 1, 11, generated_tokens=100)
    answer_between(workspace, 0, 4000, 7600, generated_tokens=5000, cached_tokens=9)
    file_away(workspace, "q", "it failed", failed=True)
    parent = workspace.submit("q")
    workspace.submit_all([Order("q", after=(parent,))])
    assert flw("stats", workspace.path).stdout.splitlines() == [
        "jobs      5: 2 queued (1 waiting), 2 done, 1 failed",
        "tokens    20 in prompts (9 of them computed for others before), 5,107 generated",
        "busy      1 h 00 min: 1.41 tokens a second, 2.0 jobs an hour",
        "wait      half within 1.0 s, 95 % within 1 h 06 min",
        "answer    half within 10.0 s, 95 % within 1 h 00 min",
        "models    small.gguf: 2 jobs, 5,100 tokens, 1.41 a second",
        "failures  1 × it failed",
    ]


def test_stats_of_a_real_daemon_agree_with_its_receipts(served: Workspace) -> None:
    ids = served.submit_all([f"Name a number near {n}." for n in range(4)])
    assert flw("-w", served.path, *ids).returncode == 0
    found = json.loads(flw("stats", "--json", served.path).stdout)
    receipts = [receipt for job in served.jobs() if (receipt := served.receipt(job))]
    own = [receipt for receipt in receipts if receipt.same_as is None]
    assert found["tokens"]["generated"] == sum(receipt.generated_tokens or 0 for receipt in own)
    assert found["jobs"]["done"] == served.counts().done
    assert found["busy_s"] > 0 and found["tokens_per_second"] > 0
