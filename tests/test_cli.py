"""wrk and flw as a shell sees them, on a workspace without a daemon and on one with the real model."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from claims import file_away
from processes import command, on_terminal, until

from nrvna.job import JobState, is_generated_id
from nrvna.prompts import Part, compose, part_of_words
from nrvna.terminal import printable
from nrvna.workspace import Workspace
from nrvna.wrk import main as wrk_main

BIN = Path(sys.executable).parent


def queued_prompt(workspace: Workspace) -> str:
    [job] = workspace.jobs()
    return workspace.prompt(job)


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
    # Those that pytest made, one more where it runs in several processes, are its user's alone.
    above = [folder for folder in tmp_path.parents if folder.name.startswith(("pytest-", "popen-"))]
    for folder in (*above, tmp_path, Path(workspace.path), Path(workspace.path) / ".nrvna"):
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
    ("parts", "prompt"),
    [
        ([Part(b"a b")], Part(b"a b")),
        ([Part(b"a"), Part(b"x\n")], Part(b"a\n\nx\n")),
        ([part_of_words("caf\udce9", waits=True)], Part(b"caf\xe9")),
        (
            [Part("é".encode()), Part(b"b{result}", (1,)), Part(b"{result}")],
            Part("é\n\nb{result}\n\n{result}".encode(), (4,)),
        ),
    ],
)
def test_a_prompt_is_composed_as_a_shell_user_expects(parts: list[Part], prompt: Part) -> None:
    assert compose(parts) == prompt


def test_wrk_has_a_friendly_word_on_a_terminal_only(workspace: Workspace) -> None:
    job_id, word = on_terminal(BIN / "wrk", workspace.path, "hello").splitlines()
    assert is_generated_id(job_id)
    assert word == f"queued, and waiting for a daemon: nrvnad MODEL {workspace.path}"


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
