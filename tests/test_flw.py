"""flw as a shell sees it: the list, answers, waiting, and what programs are told."""

from __future__ import annotations

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
from processes import command, on_terminal, until

from nrvna.columns import columns_of
from nrvna.facts import FIELDS
from nrvna.job import Job, JobState, Receipt
from nrvna.lease import Lease
from nrvna.listing import first_line
from nrvna.order import Order
from nrvna.progress import first_line as head_of_progress
from nrvna.progress import token_line
from nrvna.selection import Glance
from nrvna.workspace import Workspace

BIN = Path(sys.executable).parent


def test_flw_prints_the_answer_alone(workspace: Workspace) -> None:
    job_id = file_away(workspace, "q", "the\nanswer")
    done = command("flw", workspace.path, job_id)
    assert (done.returncode, done.stdout, done.stderr) == (0, "the\nanswer\n", "")


def test_flw_says_when_an_answer_was_cut(workspace: Workspace) -> None:
    job_id = file_away(workspace, "q", "the ans", "length")
    done = command("flw", workspace.path, job_id)
    assert (done.returncode, done.stdout) == (0, "the ans\n")
    assert "cut" in done.stderr and "NRVNA_PREDICT" in done.stderr


def test_flw_of_a_failed_job_gives_the_reason_and_exits_1(workspace: Workspace) -> None:
    job_id = file_away(workspace, "q", "too long", failed=True)
    done = command("flw", workspace.path, job_id)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"flw: {job_id} failed: too long\n")


def test_flw_of_a_waiting_job_exits_3_and_says_that_no_daemon_is_there(workspace: Workspace) -> None:
    job_id = workspace.submit("q")
    done = command("flw", workspace.path, job_id)
    assert (done.returncode, done.stdout) == (3, "")
    assert f"{job_id} is queued, and no daemon answers it (start one: nrvnad MODEL" in done.stderr


def test_flw_says_when_the_daemon_is_still_loading_its_model(workspace: Workspace) -> None:
    job_id = workspace.submit("q")
    lease = Lease(workspace, {"path": "m"})
    assert "is queued, and its daemon is still loading the model" in command("flw", workspace.path, job_id).stderr
    lease.announce_ready()
    assert command("flw", workspace.path, job_id).stderr == f"flw: {job_id} is queued; -w waits for it\n"
    lease.close()


@pytest.mark.parametrize("job_id", ["nope", "../input/x", "..", "a/b"])
def test_flw_of_no_job_exits_2_in_one_line(workspace: Workspace, job_id: str) -> None:
    done = command("flw", workspace.path, job_id)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_flw_of_no_workspace_exits_2_in_one_line(tmp_path: Path) -> None:
    done = command("flw", tmp_path / "nowhere")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_flw_lists_jobs_with_the_beginning_of_prompt_and_answer(workspace: Workspace) -> None:
    done_id = file_away(workspace, "first\nline two", "\nan answer\nof lines")
    failed_id = file_away(workspace, "bad", "a reason", failed=True, generated_tokens=None)
    cut_id = file_away(workspace, "long", "the beginning of", "length", generated_tokens=512)
    queued_id = workspace.submit("waits")
    [waiting_id] = workspace.submit_all([Order("{result}", after=(queued_id,))])
    assert [re.sub(r"\b\ds", "0s", line) for line in command("flw", workspace.path).stdout.splitlines()] == [
        f"{done_id}  done       0s    7  first → an answer",
        f"{failed_id}  failed     0s       bad → a reason",
        f"{cut_id}  cut        0s  512  long → the beginning of",
        f"{queued_id}  queued     0s       waits",
        f"{waiting_id}  waiting    0s       {{result}}",
    ]


def test_flw_lists_the_newest_jobs_last_and_all_when_asked(workspace: Workspace) -> None:
    ids = [workspace.submit(f"job {number}") for number in range(25)]
    assert [line.split()[0] for line in command("flw", workspace.path).stdout.splitlines()] == ids[-20:]
    assert [line.split()[0] for line in command("flw", "--all", workspace.path).stdout.splitlines()] == ids


def test_flw_does_not_complain_when_its_reader_has_seen_enough(workspace: Workspace) -> None:
    for number in range(30):
        file_away(workspace, f"job {number}", "answer " * 2000)
    script = f'set -o pipefail; "{BIN / "flw"}" -a "{workspace.path}" | true'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_control_characters_do_not_reach_a_terminal(workspace: Workspace) -> None:
    job_id = file_away(workspace, "q", "red \x1b[31m \x9b31m bell \a\nnext\tline")
    shown = on_terminal(BIN / "flw", workspace.path, job_id)
    assert "\x1b[31m" not in shown and "\x9b" not in shown and "\a" not in shown
    assert "next\tline" in shown or "next    line" in shown
    assert command("flw", workspace.path, job_id).stdout == "red \x1b[31m \x9b31m bell \a\nnext\tline\n"


@pytest.mark.parametrize(
    ("text", "line"), [("a\nb", "a"), ("\n \n x", "x"), ("", ""), ("a\x1bb", "a␛b"), ("a\tb", "a b")]
)
def test_a_first_line_is_the_first_with_something_on_it(text: str, line: str) -> None:
    assert first_line(text) == line


@pytest.mark.slow
def test_ctrl_c_ends_waiting_quietly(workspace: Workspace) -> None:
    job_id = workspace.submit("q")
    arguments = [sys.executable, "-m", "nrvna.flw", "-w", workspace.path, job_id]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        # By its warning that no daemon is there, it is waiting.
        assert "still waiting" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr.read() == ""


def test_waiting_for_one_job_prints_its_answer_once_it_is_there(workspace: Workspace) -> None:
    job_id = workspace.submit("q")
    arguments = [sys.executable, "-m", "nrvna.flw", "-w", workspace.path, job_id]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(0.3)
        assert process.poll() is None
        lease = Lease(workspace, {"path": "m"})
        claim = lease.claim()
        assert claim is not None
        lease.finish(claim, "at last", Receipt(job_id, "stop", "q", "f", "0.1.0"))
        lease.close()
        assert process.stdout is not None
        assert process.stdout.read() == "at last\n"
        assert process.wait(10) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("failed", "code"), [(False, 0), (True, 1)])
def test_waiting_for_a_workspace_waits_for_what_is_unfinished_now(
    workspace: Workspace, failed: bool, code: int
) -> None:
    file_away(workspace, "an old failure", "reason", failed=True)
    job_id = workspace.submit("q")
    arguments = [str(BIN / "flw"), "-w", workspace.path]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None and "still waiting" in process.stderr.readline()
        lease = Lease(workspace, {"path": "m"})
        claim = lease.claim()
        assert claim is not None
        (lease.fail if failed else lease.finish)(claim, "x", Receipt(job_id, "stop", "q", "f", "0.1.0"))
        lease.close()
        assert process.stdout is not None
        assert [line.split()[0] for line in process.stdout] == [job_id]
        assert process.wait(10) == code


def test_flw_says_that_an_answer_is_not_the_one_that_was_filed(workspace: Workspace) -> None:
    job_id = file_away(workspace, "q", "the answer")
    (Path(workspace.find(job_id).directory) / "result.txt").write_text("the answwr")
    done = command("flw", workspace.path, job_id)
    assert done.returncode == 1
    assert done.stderr == "flw: this answer is damaged: it is not the one that its receipt was written for\n"


def test_flw_follows_an_answer_to_its_end(served: Workspace) -> None:
    job_id = served.submit("Count to fifty.", {"predict": 60})
    done = command("flw", "-f", served.path, job_id)
    assert done.returncode == 0
    assert done.stdout.rstrip("\n") == served.answer(served.find(job_id)).rstrip("\n")


def test_flw_follows_an_answer_as_it_grows(workspace: Workspace) -> None:
    job_id = workspace.submit("q")
    lease = Lease(workspace, {"path": "m"})
    claim = lease.claim()
    assert claim is not None
    lease.append_progress(claim, head_of_progress("key", 1))
    process = subprocess.Popen([BIN / "flw", "-f", workspace.path, job_id], stdout=subprocess.PIPE, bufsize=0)
    assert process.stdout
    for number, word in enumerate(("Once ", "upon ")):
        lease.append_progress(claim, token_line(number, word))
        assert process.stdout.read(len(word)).decode() == word
    lease.finish(claim, "Once upon a time", Receipt(job_id, "stop", "q", "f", "0.1.0"))
    assert process.stdout.read().decode() == "a time\n"
    assert process.wait(10) == 0
    process.stdout.close()
    lease.close()


def test_flw_follows_an_answer_that_is_begun_anew(workspace: Workspace) -> None:
    job_id = workspace.submit("q")
    lease = Lease(workspace, {"path": "m"})
    claim = lease.claim()
    assert claim is not None
    lease.append_progress(claim, head_of_progress("key", 1))
    lease.append_progress(claim, token_line(1, "Once"))
    process = subprocess.Popen(
        [BIN / "flw", "-f", workspace.path, job_id], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout
    assert process.stdout.read(4) == b"Once"
    lease.finish(claim, "Twice", Receipt(job_id, "stop", "q", "f", "0.1.0"))
    out, err = process.communicate(timeout=10)
    assert (out, err) == (b"\nTwice\n", b"flw: it was interrupted, and is answered anew:\n")
    lease.close()


def test_flw_cancels_a_queued_job_for_good(workspace: Workspace) -> None:
    job_id = workspace.submit("q")
    assert command("flw", "--cancel", workspace.path, job_id).returncode == 0
    done = command("flw", workspace.path, job_id)
    assert (done.returncode, done.stderr) == (1, f"flw: {job_id} failed: cancelled before it was begun\n")


def test_flw_cancels_a_running_job_and_its_neighbour_goes_on(served: Workspace) -> None:
    long = served.submit("Write a very long story.", {"predict": 900, "ignore_eos": True})
    until(lambda: served.find(long).state is JobState.RUNNING, "the claim")
    neighbour = served.submit("Say yes.")
    assert command("flw", "--cancel", served.path, long).returncode == 0
    job = served.find(long)
    receipt = served.receipt(job)
    assert receipt is not None and receipt.finish_reason == "cancelled"
    assert job.state is JobState.FAILED
    assert command("flw", "-w", served.path, neighbour).returncode == 0


def test_flw_cancels_no_job_that_is_done(workspace: Workspace) -> None:
    job_id = file_away(workspace, "q", "the answer")
    done = command("flw", "--cancel", workspace.path, job_id)
    assert (done.returncode, done.stderr) == (1, f"flw: {job_id} is done already\n")


@pytest.mark.slow
def test_flw_tells_when_no_daemon_is_there_to_confirm_the_end(workspace: Workspace) -> None:
    job_id = workspace.submit("q")
    lease = Lease(workspace, {"path": "m"})
    assert lease.claim()
    done = command("flw", "--cancel", workspace.path, job_id)
    assert done.returncode == 3
    assert "did not confirm that yet" in done.stderr
    lease.close()


@pytest.mark.parametrize("option", ["--follow", "--cancel"])
def test_flw_wants_a_job_to_follow_or_cancel(workspace: Workspace, option: str) -> None:
    done = command("flw", option, workspace.path)
    assert done.returncode == 2
    assert f"name a job too: flw {option} WORKSPACE ID" in done.stderr


# Which jobs are meant.


def queued_ids(workspace: Workspace, number: int) -> list[str]:
    return workspace.submit_all([f"prompt {at}" for at in range(number)])


def prompt_of(workspace: Workspace, name: str) -> str:
    return command("flw", "--prompt", workspace.path, name).stdout


def by_hand(workspace: Workspace, name: str) -> Job:
    folder = Path(workspace.input) / name
    folder.mkdir()
    (folder / "prompt.txt").write_text(f"prompt of {name}")
    return Job(name, JobState.QUEUED, str(folder))


@pytest.mark.parametrize("name", [lambda i: i, lambda i: i[:-3], lambda i: i[-6:], lambda i: i[-4:], lambda _: "@2"])
def test_a_job_is_found_by_its_id_its_beginning_its_end_or_its_place(
    workspace: Workspace, name: Callable[[str], str]
) -> None:
    ids = [f"20260101-00000{at}-000000-{end}" for at, end in enumerate(("aaaaa1", "bbbbb2", "ccccc3"))]
    for job_id in ids:
        by_hand(workspace, job_id)
    assert prompt_of(workspace, name(ids[1])) == f"prompt of {ids[1]}\n"


def test_places_count_from_the_newest(workspace: Workspace) -> None:
    queued_ids(workspace, 3)
    assert [prompt_of(workspace, f"@{place}") for place in (1, 2, 3)] == ["prompt 2\n", "prompt 1\n", "prompt 0\n"]


@pytest.mark.parametrize("place", ["@0", "@4", "@99999999999999999999", "@", "@one", "@-1", "@١"])
def test_a_place_where_no_job_is_exits_2_in_one_line(workspace: Workspace, place: str) -> None:
    queued_ids(workspace, 3)
    done = command("flw", workspace.path, place)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("flw: ") and place in done.stderr


def test_an_ambiguous_name_exits_2_and_names_the_newest_candidates(workspace: Workspace) -> None:
    ids = queued_ids(workspace, 7)
    done = command("flw", workspace.path, ids[0][:4])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"flw: {ids[0][:4]} could be 7 jobs: …, {', '.join(ids[2:])}: name more of one\n"


def test_an_end_of_three_characters_is_too_short_for_a_name(workspace: Workspace) -> None:
    [job_id] = queued_ids(workspace, 1)
    assert command("flw", workspace.path, job_id[-4:]).returncode == 3
    assert command("flw", workspace.path, job_id[-3:]).returncode == 2


def test_a_whole_id_is_never_ambiguous(workspace: Workspace) -> None:
    for name in ("mine", "mine-too"):
        by_hand(workspace, name)
    assert prompt_of(workspace, "mine") == "prompt of mine\n"
    assert prompt_of(workspace, "mine-") == "prompt of mine-too\n"


def test_an_end_that_two_share_is_not_what_a_narrow_list_shows(workspace: Workspace) -> None:
    tails = ("111111-abcdef", "222222-abcdef", "333333-123456")
    jobs = [by_hand(workspace, name) for name in (*(f"20260101-000000-{tail}" for tail in tails), "123456")]
    short = Glance(workspace).short_names(jobs)
    assert list(short.values()) == [*tails, "123456"]
    for job_id, name in short.items():
        assert Glance(workspace).named(name).id == job_id


# The list.


def listed(workspace: Workspace, *options: str) -> list[str]:
    return [line.split()[0] for line in command("flw", workspace.path, *options).stdout.splitlines()]


def test_the_list_can_be_as_long_as_one_likes(workspace: Workspace) -> None:
    ids = queued_ids(workspace, 25)
    assert listed(workspace, "-n", "3") == ids[-3:]
    assert listed(workspace, "-n", "23") == ids[-23:]


def test_a_list_can_be_of_one_tag_or_of_all_of_several(workspace: Workspace) -> None:
    tags: list[tuple[str, ...]] = [("a",), ("a", "b"), ("b",), ()]
    ids = workspace.submit_all([Order(str(some), tags=some) for some in tags])
    assert listed(workspace, "--tag", "a") == ids[:2]
    assert listed(workspace, "--tag", "a", "--tag", "b") == [ids[1]]
    assert listed(workspace, "--tag", "a", "-n", "1") == [ids[1]]
    assert listed(workspace, "--tag", "c") == []


def test_a_list_can_be_of_some_states(workspace: Workspace) -> None:
    done, cut = file_away(workspace, "q", "a"), file_away(workspace, "q", "a", "length")
    failed = file_away(workspace, "q", "a", failed=True)
    running = workspace.submit("q")
    lease = Lease(workspace, {"path": "m"})
    claimed(lease)
    queued = workspace.submit("q")
    [waiting] = workspace.submit_all([Order("q", after=(running,))])
    assert listed(workspace, "--state", "done") == [done, cut]
    assert listed(workspace, "--state", "cut") == [cut]
    assert listed(workspace, "--state", "failed") == [failed]
    assert listed(workspace, "--state", "running") == [running]
    assert listed(workspace, "--state", "queued") == [queued, waiting]
    assert listed(workspace, "--state", "waiting") == [waiting]
    assert listed(workspace, "--state", "cut,failed", "--state", "waiting") == [cut, failed, waiting]
    lease.close()


def test_the_age_is_since_a_job_was_queued(workspace: Workspace) -> None:
    moments = {"20200101-000000-000000-aaaaaa": r"\d{4}d", "mine": r"\ds"}
    for name in moments:
        by_hand(workspace, name)
    lines = command("flw", workspace.path).stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        name, state, age, *_ = line.split()
        assert state == "queued" and re.fullmatch(moments[name], age)


@pytest.mark.parametrize("name", ["99999999-999999-999999-aaaaaa", "00000230-000000-000000-aaaaaa"])
def test_a_folder_that_is_called_like_an_id_of_no_day_is_listed_like_any(workspace: Workspace, name: str) -> None:
    by_hand(workspace, name)
    for verb in ((), ("stats",), ("export",)):
        done = command("flw", *verb, workspace.path)
        assert (done.returncode, done.stderr) == (0, "")
    assert command("flw", workspace.path).stdout.startswith(f"{name}  queued")


@pytest.mark.parametrize("queued", ["0001-01-01T00:00:00", "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"])
def test_a_job_that_says_that_it_was_queued_at_the_end_of_time_is_listed_like_any(
    workspace: Workspace, queued: str
) -> None:
    by_hand(workspace, "mine")
    (Path(workspace.path) / "input" / "mine" / "job.json").write_text(json.dumps({"queued": queued}))
    done = command("flw", "--json", workspace.path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)[0]["id"] == "mine"


def test_a_running_job_shows_its_tokens_and_words_so_far(workspace: Workspace) -> None:
    workspace.submit("Tell me")
    lease = Lease(workspace, {"path": "m"})
    claim = claimed(lease)
    lease.append_progress(claim, head_of_progress("key", 1) + token_line(1, "Once ") + token_line(2, "upon"))
    assert command("flw", workspace.path).stdout.split()[3:] == ["2", "Tell", "me", "→", "Once", "upon"]
    lease.close()


WIDE = "東京タワーはどこにありますか、そして何メートルですか"


def screen(workspace: Workspace, columns: int, **env: str) -> list[str]:
    shown = on_terminal(BIN / "flw", workspace.path, columns=columns, env={"TERM": "xterm", "NO_COLOR": "", **env})
    return shown.splitlines()


def without_colours(line: str) -> str:
    return re.sub(r"\x1b\[\d*m", "", line)


@pytest.fixture
def busy(workspace: Workspace) -> Workspace:
    file_away(workspace, WIDE, "👩‍👩‍👧 family 👍🏽 " * 20)
    file_away(workspace, "short", "an answer " * 40, "length")
    file_away(workspace, "a long prompt " * 20, "no", failed=True)
    workspace.submit("e\u0301" * 200)
    return workspace


@pytest.mark.parametrize("columns", [200, 120, 80, 60, 40, 20])
def test_a_list_fits_its_window_also_with_wide_characters(busy: Workspace, columns: int) -> None:
    *lines, total = map(without_colours, screen(busy, columns))
    assert len(lines) == 5
    assert max(columns_of(line) for line in lines) <= columns
    # There is as much of the words as there is room for, but for half of a wide character.
    assert columns_of(lines[1]) >= columns - 2
    assert total.startswith("4 jobs: 1 queued, 2 done, 1 failed")


def test_a_wide_window_shows_whole_ids_and_a_narrow_one_ends_that_name_them(busy: Workspace) -> None:
    ids = [job.id for job in busy.jobs()]
    assert [line.split()[0] for line in screen(busy, 120)[1:5]] == ids
    short = [line.split()[0] for line in screen(busy, 80)[1:5]]
    assert short == [job_id[-6:] for job_id in ids]
    assert command("flw", busy.path, short[1]).stdout == "an answer " * 40 + "\n"


def test_states_that_ask_for_attention_are_coloured_on_a_terminal_only(busy: Workspace) -> None:
    coloured = screen(busy, 80)
    assert [line.count("\x1b[") for line in coloured] == [2, 0, 2, 2, 0, 0]
    assert "\x1b[33mcut   \x1b[m" in coloured[2] and "\x1b[31mfailed\x1b[m" in coloured[3]
    for plain in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert not any("\x1b" in line for line in screen(busy, 80, **plain))
    assert "\x1b" not in command("flw", busy.path, env={"TERM": "xterm"}).stdout


def test_an_empty_workspace_says_what_to_do_on_a_terminal(workspace: Workspace) -> None:
    assert on_terminal(BIN / "flw", workspace.path) == f'no jobs yet: wrk {workspace.path} "a prompt" queues one\n'
    done = command("flw", workspace.path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# For programs.


def test_json_has_every_documented_fact_of_every_job(workspace: Workspace) -> None:
    ids = [file_away(workspace, f"q {at}", "an answer") for at in range(23)]
    jobs = json.loads(command("flw", "--json", workspace.path).stdout)
    assert [job["id"] for job in jobs] == ids
    assert all(list(job) == list(FIELDS) for job in jobs)
    lines = command("flw", "--jsonl", workspace.path).stdout.splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == [f"q {at}" for at in range(23)]


def test_json_tells_of_a_done_job_what_was_asked_and_how_it_was_answered(workspace: Workspace) -> None:
    order = Order("2 + 2?", {"temp": 0.5}, "m", {"choices": ["4"]}, ("sums", "easy"), 3, (), "k", 60, "b")
    job_id = file_away(workspace, order, "4", "length", sampling={"seed": 7})
    done = command("flw", "--json", workspace.path, job_id)
    assert done.returncode == 0
    [job] = json.loads(done.stdout)
    assert job.pop("age_s") >= 0 and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", job.pop("queued"))
    receipt = job.pop("receipt")
    assert (receipt["finish_reason"], receipt["sampling"], receipt["attempts"]) == ("length", {"seed": 7}, 1)
    assert job == {
        "id": job_id,
        "state": "done",
        "cut": True,
        "waits_for": [],
        "tags": ["sums", "easy"],
        "priority": 3,
        "after": [],
        "key": "k",
        "model": "m",
        "timeout": 60,
        "batch": "b",
        "settings": {"temp": 0.5},
        "task": {"choices": ["4"]},
        "prompt": "2 + 2?",
        "filled": None,
        "answer": "4",
        "partial": None,
        "reasoning": None,
        "error": None,
    }


def test_json_tells_of_unfinished_and_failed_jobs_with_the_exit_code_of_their_states(workspace: Workspace) -> None:
    failed = file_away(workspace, "q", "a reason\n", failed=True)
    running = workspace.submit("q")
    lease = Lease(workspace, {"path": "m"})
    lease.append_progress(claimed(lease), head_of_progress("key", 1) + token_line(1, "so far"))
    [waiting] = workspace.submit_all([Order("q", after=(failed, running))])
    jobs = {}
    for job_id, code in ((failed, 1), (running, 3), (waiting, 3)):
        done = command("flw", workspace.path, job_id, "--jsonl")
        assert (done.returncode, done.stderr) == (code, "")
        jobs[job_id] = json.loads(done.stdout)
    assert (jobs[failed]["error"], jobs[failed]["answer"]) == ("a reason", None)
    assert (jobs[running]["partial"], jobs[running]["receipt"]) == ("so far", None)
    assert jobs[waiting]["waits_for"] == [running]
    lease.close()


def test_json_of_nothing_is_an_empty_array_or_no_line(workspace: Workspace) -> None:
    assert command("flw", "--json", workspace.path).stdout == "[]\n"
    assert command("flw", "--jsonl", workspace.path).stdout == ""


def test_json_on_a_terminal_steers_nothing(workspace: Workspace) -> None:
    file_away(workspace, "q", "red \x9b31m \x1b[31m ü")
    shown = on_terminal(BIN / "flw", "--jsonl", workspace.path)
    assert shown.isascii() and "\x1b" not in shown
    assert json.loads(shown)["answer"] == "red \x9b31m \x1b[31m ü"


def test_json_survives_half_a_surrogate_in_an_answer_that_grows(workspace: Workspace) -> None:
    workspace.submit("q")
    lease = Lease(workspace, {"path": "m"})
    lease.append_progress(claimed(lease), head_of_progress("key", 1) + token_line(1, "\ud83d"))
    assert json.loads(command("flw", "--jsonl", workspace.path).stdout)["partial"] == "\ud83d"
    lease.close()


def test_the_facts_are_documented_in_their_order() -> None:
    page = (Path(__file__).parents[1] / "docs" / "flw.md").read_text()
    section = page.partition("## For programs")[2].partition("\n## ")[0]
    assert dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.M)) == FIELDS


# Answers of several jobs, and what stands beside them.


def test_answers_of_several_jobs_have_their_ids_above_them(workspace: Workspace) -> None:
    first, second = file_away(workspace, "q", "one"), file_away(workspace, "q", "two\n")
    done = command("flw", workspace.path, second, first, second)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"==> {second} <==\ntwo\n\n==> {first} <==\none\n"


def test_of_several_jobs_what_is_not_ready_counts_more_than_what_failed(workspace: Workspace) -> None:
    failed, good = file_away(workspace, "q", "why", failed=True), file_away(workspace, "q", "yes")
    queued = workspace.submit("q")
    done = command("flw", workspace.path, failed, good)
    assert (done.returncode, done.stdout) == (1, f"==> {good} <==\nyes\n")
    assert command("flw", workspace.path, queued, failed, good).returncode == 3


def test_waiting_for_several_prints_each_as_soon_as_it_is_there(workspace: Workspace) -> None:
    ids = workspace.submit_all(["one", "two"])
    arguments = [str(BIN / "flw"), "-w", workspace.path, *ids]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        lease = Lease(workspace, {"path": "m"})
        assert process.stdout is not None
        for number, job_id in enumerate(ids):
            lease.finish(claimed(lease), f"answer {job_id}", Receipt(job_id, "stop", "q", "f", "0.1.0"))
            lines = [process.stdout.readline() for _ in range(2 + number)]
            assert lines[number:] == [f"==> {job_id} <==\n", f"answer {job_id}\n"]
        lease.close()
        assert process.wait(10) == 0


@pytest.mark.parametrize("options", [["-w"], ["-w", "@1"], ["-f", "@1"], ["-w", "--json", "@1"]])
def test_waiting_ends_when_its_time_is_over(workspace: Workspace, options: list[str]) -> None:
    workspace.submit("q")
    began = time.monotonic()
    assert command("flw", workspace.path, *options, "--timeout", "0.5").returncode == 3
    assert 0.5 < time.monotonic() - began < 10


def test_waiting_for_a_tag_counts_what_was_finished_before(workspace: Workspace) -> None:
    job_id = file_away(workspace, Order("q", tags=("t",)), "why", failed=True)
    file_away(workspace, Order("q", tags=("other",)), "why", failed=True)
    done = command("flw", "-w", workspace.path, "--tag", "t")
    assert (done.returncode, [line.split()[0] for line in done.stdout.splitlines()]) == (1, [job_id])


def test_what_was_asked_is_shown_with_the_answers_that_it_wanted(workspace: Workspace) -> None:
    parent = file_away(workspace, "first", "the answer")
    [child] = workspace.submit_all([Order("Given: {result}", after=(parent,))])
    assert prompt_of(workspace, child) == "Given: {result}\n"
    lease = Lease(workspace, {"path": "m"})
    lease.prompt(claimed(lease))
    assert prompt_of(workspace, child) == "Given: the answer\n"
    [known] = json.loads(command("flw", "--json", workspace.path, child).stdout)
    assert (known["prompt"], known["filled"]) == ("Given: {result}", "Given: the answer")
    lease.close()


def test_what_stands_beside_answers_is_chosen_by_tag_too(workspace: Workspace) -> None:
    ids = [file_away(workspace, Order(f"q {at}", tags=("t",)), "a") for at in range(2)]
    file_away(workspace, "q", "a")
    receipts = command("flw", "--receipt", workspace.path, "--tag", "t").stdout
    assert re.findall(r'"id": "(.*)"', receipts) == ids
    prompts = command("flw", "--prompt", workspace.path, "--tag", "t").stdout
    assert prompts == f"==> {ids[0]} <==\nq 0\n\n==> {ids[1]} <==\nq 1\n"


# The pager.


def test_an_answer_is_opened_in_the_pager_as_text(workspace: Workspace, tmp_path: Path) -> None:
    job_id = file_away(workspace, "q", "red \x1b[31m\n東京")
    kept = tmp_path / "kept"
    shown = on_terminal(BIN / "flw", "--open", workspace.path, job_id, env={"PAGER": f"cat > '{kept}'; echo paged"})
    assert shown == "paged\n"
    assert kept.read_text() == "red ␛[31m\n東京\n"


def test_less_shows_an_answer_where_no_pager_is_named(workspace: Workspace, tmp_path: Path) -> None:
    job_id = file_away(workspace, "q", "the answer")
    less = tmp_path / "less"
    less.write_text('#!/bin/sh\necho "less $*"; cat\n')
    less.chmod(0o755)
    script = f"unset PAGER; exec '{BIN / 'flw'}' --open '{workspace.path}' {job_id}"
    shown = on_terminal("sh", "-c", script, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert shown == "less -R\nthe answer\n"


def test_an_answer_that_is_piped_needs_no_pager(workspace: Workspace) -> None:
    job_id = file_away(workspace, "q", "the answer")
    done = command("flw", "--open", workspace.path, job_id, env={"PAGER": "false"})
    assert (done.returncode, done.stdout) == (0, "the answer\n")


def test_a_pager_that_is_not_there_is_named_in_one_line(workspace: Workspace) -> None:
    job_id = file_away(workspace, "q", "the answer")
    shown = on_terminal(BIN / "flw", "--open", workspace.path, job_id, env={"PAGER": "no-such-pager"})
    assert shown.splitlines()[-1] == "flw: the pager 'no-such-pager' cannot be run: set PAGER to another"


# Why an answer may be long in coming.


def test_a_job_that_comes_after_another_says_so(workspace: Workspace) -> None:
    lease = Lease(workspace, {"path": "/models/small.gguf"})
    lease.announce_ready()
    parents = workspace.submit_all(["one", "two"])
    [child] = workspace.submit_all([Order("q", after=tuple(parents))])
    said = f"flw: {child} is queued, and comes after {parents[0]}, which is queued, and 1 more; -w waits for it\n"
    assert command("flw", workspace.path, child).stderr == said
    for job_id in parents:
        lease.finish(claimed(lease), "an answer", Receipt(job_id, "stop", "q", "f", "0.1.0"))
    assert command("flw", workspace.path, child).stderr == f"flw: {child} is queued; -w waits for it\n"
    lease.close()


@pytest.mark.slow
def test_a_job_for_a_model_that_no_daemon_serves_says_so(workspace: Workspace) -> None:
    lease = Lease(workspace, {"path": "/models/small.gguf"})
    lease.announce_ready()
    job_id = workspace.submit("q", model="large")
    clause = "asks for the model large, which no daemon here serves (they serve small.gguf)"
    assert (
        command("flw", workspace.path, job_id).stderr == f"flw: {job_id} is queued, and {clause}; -w waits for it\n"
    )
    waiting = command("flw", "-w", workspace.path, job_id, "--timeout", "2.5")
    assert waiting.stderr.splitlines() == [
        f"flw: still waiting, and {clause}",
        f"flw: {job_id} is still queued, and {clause}",
    ]
    served = workspace.submit("q", model="Small")
    assert command("flw", workspace.path, served).stderr == f"flw: {served} is queued; -w waits for it\n"
    lease.close()


def test_an_answer_that_was_cut_says_what_would_allow_more(workspace: Workspace) -> None:
    job_id = file_away(workspace, "q", "the ans", "length")
    remedy = "a larger wrk --predict, or NRVNA_PREDICT for nrvnad, allows more"
    assert command("flw", workspace.path, job_id).stderr == f"flw: this answer was cut after 7 tokens: {remedy}\n"


def test_options_may_stand_anywhere(workspace: Workspace) -> None:
    ids = [file_away(workspace, "q", f"answer {at}") for at in range(2)]
    done = command("flw", workspace.path, ids[0], "-w", ids[1])
    assert (done.returncode, done.stdout.count("answer")) == (0, 2)
