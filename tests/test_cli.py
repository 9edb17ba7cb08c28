"""wrk and flw as a shell sees them, on a workspace without a daemon and on one with the real model."""

from __future__ import annotations

import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import command, until

from nrvna.flw import first_line
from nrvna.job import JobState, Receipt, is_generated_id
from nrvna.lease import Lease
from nrvna.progress import first_line as head_of_progress
from nrvna.progress import token_line
from nrvna.prompts import compose
from nrvna.terminal import printable
from nrvna.workspace import Workspace
from nrvna.wrk import main as wrk_main

BIN = Path(sys.executable).parent


def queued_prompt(workspace: Workspace) -> str:
    [job] = workspace.jobs()
    return workspace.prompt(job)


def file_away(workspace: Workspace, prompt: str, answer: str, reason: str = "stop", *, failed: bool = False) -> str:
    """A finished job, filed as a daemon does it."""
    job_id = workspace.submit(prompt)
    lease: Lease = Lease(workspace, {"path": "m"})
    claim = lease.claim()
    assert claim is not None and claim.id == job_id
    receipt = Receipt(job_id, reason, "q", "f", "0.1.0", generated_tokens=7)
    (lease.fail if failed else lease.finish)(claim, answer, receipt)
    lease.close()
    return job_id


def test_wrk_prints_the_id_alone_and_returns_at_once(workspace: Workspace) -> None:
    done = command("wrk", workspace.path, "What", "is this?")
    assert done.returncode == 0
    assert is_generated_id(done.stdout.removesuffix("\n"))
    assert done.stderr == ""
    assert queued_prompt(workspace) == "What is this?"


@pytest.mark.parametrize("words", [[], ["-"]])
def test_wrk_reads_a_pipe(workspace: Workspace, words: list[str]) -> None:
    assert command("wrk", workspace.path, *words, stdin="piped ü\n".encode()).returncode == 0
    assert queued_prompt(workspace) == "piped ü\n"


def test_wrk_puts_what_is_piped_under_the_words(workspace: Workspace) -> None:
    assert command("wrk", workspace.path, "Review", "this:", "-", stdin=b"diff\n").returncode == 0
    assert queued_prompt(workspace) == "Review this:\n\ndiff\n"


def test_wrk_leaves_the_standard_input_of_a_loop_alone(workspace: Workspace) -> None:
    wrk = f'"{BIN / "wrk"}" "{workspace.path}"'
    script = f'printf "a\\nb\\nc\\n" | while read -r x; do {wrk} "job $x" || exit 9; done'
    subprocess.run(["bash", "-c", script], check=True, stdout=subprocess.DEVNULL)
    assert sorted(workspace.prompt(job) for job in workspace.jobs()) == ["job a", "job b", "job c"]


def test_wrk_takes_a_prompt_of_many_megabytes_from_a_pipe(workspace: Workspace) -> None:
    prompt = "0123456789abcde\n" * (1 << 19)
    assert command("wrk", workspace.path, stdin=prompt.encode()).returncode == 0
    assert queued_prompt(workspace) == prompt


@pytest.mark.parametrize(
    ("words", "stdin", "reason"),
    [
        ([""], b"", "the prompt is empty"),
        (["-"], b"", "the prompt is empty"),
        ([], b"", "the prompt is empty"),
        ([], b"a\0b", "the prompt holds a NUL byte at position 1"),
        ([], b"caf\xe9", "the prompt is not UTF-8: byte 0xe9 at position 3"),
    ],
)
def test_wrk_refuses_a_bad_prompt_in_one_line(
    workspace: Workspace, words: list[str], stdin: bytes, reason: str
) -> None:
    done = command("wrk", workspace.path, *words, stdin=stdin)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"wrk: {reason}\n")
    assert workspace.jobs() == []


def test_wrk_does_not_make_a_workspace_that_is_mistyped(tmp_path: Path) -> None:
    done = command("wrk", tmp_path / "wrok", "hello")
    assert done.returncode == 2
    assert done.stderr.startswith(f"wrk: no workspace {tmp_path / 'wrok'}: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "wrok").exists()


def test_wrk_makes_a_workspace_when_asked(tmp_path: Path) -> None:
    assert command("wrk", "--init", tmp_path / "new").returncode == 0
    assert command("wrk", "--init", tmp_path / "new", "hello").returncode == 0
    assert queued_prompt(Workspace(tmp_path / "new")) == "hello"


def test_wrk_says_in_one_line_that_it_may_not_write(workspace: Workspace, tmp_path: Path) -> None:
    for folder in (Path(workspace.path), *tmp_path.parents[:2], tmp_path, Path(workspace.path) / ".nrvna"):
        folder.chmod(0o755)
    (Path(workspace.path) / "input").chmod(0o555)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        # Permissions do not bind root, and nobody may not be able to run this Python: hence no command here.
        sys.stderr = os.fdopen(write, "w")
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            code = wrk_main([workspace.path, "hello"])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 99
        sys.stderr.flush()
        os._exit(code)
    os.close(write)
    with os.fdopen(read) as said:
        assert said.read() == f"wrk: cannot queue a job in {workspace.path}: Permission denied\n"
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 1


@pytest.mark.parametrize(
    ("words", "piped", "prompt"),
    [
        (["a", "b"], None, b"a b"),
        ([], b"x\n", b"x\n"),
        (["a"], b"x", b"a\n\nx"),
        (["caf\udce9"], None, b"caf\xe9"),
    ],
)
def test_a_prompt_is_composed_as_a_shell_user_expects(words: list[str], piped: bytes | None, prompt: bytes) -> None:
    assert compose(words, [], piped) == prompt


def on_terminal(*arguments: str | Path) -> str:
    """What a command shows on a terminal, standard output and error together."""
    controller, terminal = pty.openpty()
    with subprocess.Popen([str(part) for part in arguments], stdin=terminal, stdout=terminal, stderr=terminal):
        os.close(terminal)
        shown = b""
        try:
            while data := os.read(controller, 1000):
                shown += data
        except OSError:
            pass
    os.close(controller)
    return shown.decode().replace("\r\n", "\n")


def test_wrk_has_a_friendly_word_on_a_terminal_only(workspace: Workspace) -> None:
    job_id, word = on_terminal(BIN / "wrk", workspace.path, "hello").splitlines()
    assert is_generated_id(job_id)
    assert word == f"queued, and waiting for a daemon: nrvnad MODEL {workspace.path}"


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
    failed_id = file_away(workspace, "bad", "a reason", failed=True)
    cut_id = file_away(workspace, "long", "the beginning of", "length")
    queued_id = workspace.submit("waits")
    assert command("flw", workspace.path).stdout.splitlines() == [
        f"{done_id}  done     first → an answer",
        f"{failed_id}  failed   bad → a reason",
        f"{cut_id}  cut      long → the beginning of",
        f"{queued_id}  queued   waits",
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
    ("text", "width", "line"),
    [("a\nb", 10, "a"), ("\n \n x", 10, "x"), ("0123456789", 5, "0123…"), ("", 5, ""), ("a\x1bb", 9, "a␛b")],
)
def test_a_first_line_fits_its_width(text: str, width: int, line: str) -> None:
    assert first_line(text, width) == line


def test_printable_text_stays_as_it_is() -> None:
    assert printable("naïve\n\t東京 🦀") == "naïve\n\t東京 🦀"


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        ("{wrk} {ws} hello 2>&-", 0, ""),
        ("{wrk} {ws} - <&-", 2, "wrk: the prompt is empty\n"),
        ("{wrk} {ws} hello >/dev/full", 1, "is queued, but standard output failed: No space left on device\n"),
        ("{flw} {ws} >/dev/full", 2, "flw: standard output failed: No space left on device\n"),
        ("{flw} {ws} >&-", 0, ""),
        ("{flw} {ws} 2>&-", 0, ""),
    ],
)
def test_a_closed_or_full_stream_is_no_traceback(workspace: Workspace, script: str, code: int, said: str) -> None:
    file_away(workspace, "q", "a")
    names = {"wrk": BIN / "wrk", "flw": BIN / "flw", "ws": workspace.path}
    filled = script.format(**{name: shlex.quote(str(path)) for name, path in names.items()})
    done = subprocess.run(["bash", "-c", filled], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stderr.endswith(said) and done.stderr.count("\n") == said.count("\n")


def test_text_beyond_the_locale_is_printed_all_the_same(workspace: Workspace) -> None:
    job_id = file_away(workspace, "Frage 東京", "naïve 🦀")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert command("flw", workspace.path, job_id, env=plain).stdout == "naïve 🦀\n"
    assert "Frage 東京 → naïve 🦀" in command("flw", workspace.path, env=plain).stdout


def test_wrk_says_so_when_it_leaves_a_pipe_unread(workspace: Workspace) -> None:
    done = command("wrk", workspace.path, "Summarise", stdin=b"data")
    assert done.returncode == 0
    assert done.stderr == "wrk: standard input is not part of this prompt; a last - would put it there\n"


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


@pytest.mark.parametrize(("failed", "code"), [(False, 0), (True, 1)])
def test_waiting_for_a_workspace_waits_for_what_is_unfinished_now(
    workspace: Workspace, failed: bool, code: int
) -> None:
    file_away(workspace, "an old failure", "reason", failed=True)
    job_id = workspace.submit("q")
    with subprocess.Popen([BIN / "flw", "-w", workspace.path], stdout=subprocess.PIPE, text=True) as process:
        time.sleep(0.3)
        lease = Lease(workspace, {"path": "m"})
        claim = lease.claim()
        assert claim is not None
        (lease.fail if failed else lease.finish)(claim, "x", Receipt(job_id, "stop", "q", "f", "0.1.0"))
        lease.close()
        assert process.stdout is not None
        assert [line.split()[0] for line in process.stdout] == [job_id]
        assert process.wait(10) == code


def test_the_road_of_a_job_from_wrk_to_flw(served: Workspace) -> None:
    job_id = command("wrk", served.path, "Say only the word: yes").stdout.strip()
    done = command("flw", "-w", served.path, job_id)
    assert done.returncode == 0
    assert done.stdout.strip()
    job = served.find(job_id)
    receipt = served.receipt(job)
    assert job.state is JobState.DONE and receipt is not None
    assert receipt.queued <= (receipt.started or "") <= receipt.finished
    assert receipt.model and receipt.model["path"].endswith("SmolLM2-135M-Instruct.Q4_1.gguf")


def test_many_wrk_at_once_all_get_their_answers(served: Workspace) -> None:
    running = [
        subprocess.Popen([BIN / "wrk", served.path, f"Name a number near {n}."], stdout=subprocess.PIPE, text=True)
        for n in range(10)
    ]
    ids = [process.communicate()[0].strip() for process in running]
    assert len(set(ids)) == 10
    until(lambda: all(served.find(job_id).is_finished for job_id in ids), "ten answers")
    assert all(served.find(job_id).state is JobState.DONE for job_id in ids)


@pytest.mark.parametrize("name", ["nrvnad", "wrk", "flw"])
def test_an_installed_command_is_the_module_of_its_name(name: str) -> None:
    module = {"nrvnad": "daemon"}.get(name, name)
    installed = subprocess.run([BIN / name, "--help"], capture_output=True, text=True, check=True).stdout
    assert installed == command(module, "--help").stdout
    assert f"usage: {name} " in installed


def test_wrk_queues_a_job_for_each_line_and_leaves_out_blank_ones(workspace: Workspace) -> None:
    done = command("wrk", workspace.path, "Translate:", "--lines", "-", stdin=b"one\n\n  \ntwo\r\nlast")
    assert (done.returncode, done.stderr) == (0, "")
    jobs = workspace.jobs()
    assert done.stdout.split() == [job.id for job in jobs]
    assert [workspace.prompt(job) for job in jobs] == [
        "Translate:\n\none",
        "Translate:\n\ntwo",
        "Translate:\n\nlast",
    ]


def test_wrk_names_the_lines_that_cannot_run_and_queues_the_others(workspace: Workspace, tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_bytes(b"good\n\nbad\0\ncaf\xe9\nalso good\n")
    done = command("wrk", workspace.path, "--lines", lines)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "wrk: line 3: the prompt holds a NUL byte at position 3",
        "wrk: line 4: the prompt is not UTF-8: byte 0xe9 at position 3",
    ]
    assert [workspace.prompt(job) for job in workspace.jobs()] == ["good", "also good"]
    assert len(done.stdout.split()) == 2


def test_wrk_prints_each_id_while_its_lines_still_come(workspace: Workspace) -> None:
    process = subprocess.Popen(
        [BIN / "wrk", workspace.path, "--lines", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    assert process.stdin and process.stdout
    for number in range(3):
        process.stdin.write(b"job %d\n" % number)
        job_id = process.stdout.readline().decode().strip()
        assert workspace.prompt(workspace.find(job_id)) == f"job {number}"
    process.stdin.close()
    assert process.wait(10) == 0
    process.stdout.close()


def test_wrk_says_that_there_are_no_such_lines(workspace: Workspace, tmp_path: Path) -> None:
    done = command("wrk", workspace.path, "--lines", tmp_path / "none.txt")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"wrk: cannot read {tmp_path / 'none.txt'}: No such file or directory\n"


@pytest.mark.parametrize("tool", ["wrk", "flw"])
def test_a_workspace_that_others_can_write_to_is_refused_with_its_remedy(workspace: Workspace, tool: str) -> None:
    Path(workspace.path, "input").chmod(0o777)
    done = command(tool, workspace.path, *(["hello"] if tool == "wrk" else []))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert f"`chmod go-w {workspace.path}/input`" in done.stderr


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
