"""The daemon as a process, with the real model: what it answers, refuses and survives."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from make_models import make_parts
from processes import DaemonProcess, children_of, command, is_running, until

from nrvna.job import JobState
from nrvna.workspace import Workspace

StartDaemon = Callable[..., DaemonProcess]
SMALL = ("--ctx", "512", "--parallel", "4")


def wait_for(workspace: Workspace, job_id: str, state: JobState) -> str:
    """Wait until the job is in that state; returns its answer or reason."""
    until(lambda: workspace.find(job_id).is_finished, f"the end of {job_id}")
    job = workspace.find(job_id)
    assert job.state is state, workspace.answer(job)
    return workspace.answer(job)


def by_hand(workspace: Workspace, name: str, prompt: bytes | None) -> None:
    folder = Path(workspace.path) / "input" / name
    folder.mkdir()
    if prompt is not None:
        (folder / "prompt.txt").write_bytes(prompt)


def test_the_daemon_makes_its_workspace_and_answers(start_daemon: StartDaemon, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "new" / "place")
    daemon = start_daemon(workspace.path, *SMALL, "--predict", "8")
    assert wait_for(workspace, workspace.submit("Hello!"), JobState.DONE)
    assert daemon.stop() == 0


def test_jobs_queued_before_the_daemon_are_answered_in_order(start_daemon: StartDaemon, workspace: Workspace) -> None:
    ids = [workspace.submit(f"Name the number {number}.") for number in range(6)]
    start_daemon(workspace.path, *SMALL, "--parallel", "1", "--predict", "4")
    for job_id in ids:
        wait_for(workspace, job_id, JobState.DONE)
    receipts = [workspace.receipt(workspace.find(job_id)) for job_id in ids]
    started = [receipt.started for receipt in receipts if receipt and receipt.started]
    assert len(started) == 6
    assert started == sorted(started)


def test_an_option_reaches_the_receipt(start_daemon: StartDaemon, workspace: Workspace) -> None:
    start_daemon(workspace.path, *SMALL, "--predict", "5", "--temp", "0.3", "--seed", "42", "--top-k", "7")
    job_id = workspace.submit("Count to a hundred.")
    wait_for(workspace, job_id, JobState.DONE)
    receipt = workspace.receipt(workspace.find(job_id))
    assert receipt is not None and receipt.sampling is not None
    assert (receipt.finish_reason, receipt.generated_tokens) == ("length", 5)
    assert {key: receipt.sampling[key] for key in ("temp", "seed", "top_k")} == {"temp": 0.3, "seed": 42, "top_k": 7}


def test_the_context_file_goes_with_every_job(start_daemon: StartDaemon, workspace: Workspace) -> None:
    start_daemon(workspace.path, *SMALL, "--predict", "4")
    plain = workspace.submit("Hello!")
    wait_for(workspace, plain, JobState.DONE)
    Path(workspace.context_file).write_text("You answer in one word. " * 10)
    informed = workspace.submit("Hello!")
    wait_for(workspace, informed, JobState.DONE)
    counts = [receipt.prompt_tokens for job in workspace.jobs() if (receipt := workspace.receipt(job))]
    assert counts[1] is not None and counts[0] is not None
    assert counts[1] > counts[0] + 20


def test_bad_jobs_fail_with_their_reason_and_the_daemon_goes_on(
    start_daemon: StartDaemon, workspace: Workspace
) -> None:
    by_hand(workspace, "good", b"Say yes.")
    by_hand(workspace, "empty", b" ")
    by_hand(workspace, "nothing", None)
    by_hand(workspace, "nul", b"a\0b")
    by_hand(workspace, "latin1", b"caf\xe9")
    too_long = workspace.submit("word " * 2000)
    daemon = start_daemon(workspace.path, *SMALL, "--predict", "4")
    assert wait_for(workspace, "empty", JobState.FAILED) == "the prompt is empty\n"
    assert wait_for(workspace, "nothing", JobState.FAILED) == "the job's folder holds no prompt.txt\n"
    assert "NUL byte at position 1" in wait_for(workspace, "nul", JobState.FAILED)
    assert "not UTF-8" in wait_for(workspace, "latin1", JobState.FAILED)
    reason = wait_for(workspace, too_long, JobState.FAILED)
    assert "tokens, but 511 fit beside the answer" in reason
    assert wait_for(workspace, "good", JobState.DONE)
    assert "Traceback" not in daemon.log
    for job in workspace.jobs():
        receipt = workspace.receipt(job)
        assert receipt is not None
        assert (receipt.error is None) == (job.state is JobState.DONE)


def test_a_bad_context_file_holds_the_queue_until_it_is_mended(
    start_daemon: StartDaemon, workspace: Workspace
) -> None:
    Path(workspace.context_file).write_bytes(b"\xff")
    daemon = start_daemon(workspace.path, *SMALL, "--predict", "4")
    job_id = workspace.submit("Hello!")
    daemon.wait_log("cannot be used as context")
    assert workspace.find(job_id).state is JobState.QUEUED
    Path(workspace.context_file).unlink()
    wait_for(workspace, job_id, JobState.DONE)
    assert daemon.log.count("cannot be used as context") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_hands_unfinished_jobs_back(start_daemon: StartDaemon, workspace: Workspace, number: int) -> None:
    daemon = start_daemon(workspace.path, *SMALL, "--parallel", "2", "--predict", "400")
    ids = [workspace.submit("Write a very long story.") for _ in range(5)]
    until(lambda: workspace.newest_running() is not None, "a running job")
    assert daemon.stop(number) == 0
    assert workspace.peers() == []
    assert [workspace.find(job_id).state for job_id in ids] == [JobState.QUEUED] * 5
    assert "Traceback" not in daemon.log


def test_a_second_daemon_with_another_model_is_refused_in_one_line(
    start_daemon: StartDaemon, workspace: Workspace, model_file: Path, tmp_path: Path
) -> None:
    first = start_daemon(workspace.path, *SMALL)
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF")
    second = start_daemon(workspace.path, *SMALL, model=other, wait=False)
    assert second.process.wait(20) == 1
    assert "is served already by process" in second.log and str(model_file) in second.log
    assert second.log.count("\n") == 1
    assert first.process.poll() is None


@pytest.mark.slow
def test_two_daemons_with_one_model_share_the_queue(start_daemon: StartDaemon, workspace: Workspace) -> None:
    daemons = [start_daemon(workspace.path, *SMALL, "--parallel", "1", "--predict", "16") for _ in range(2)]
    ids = [workspace.submit(f"Name the number {number}.") for number in range(12)]
    for job_id in ids:
        wait_for(workspace, job_id, JobState.DONE)

    def done() -> list[int]:
        return [daemon.log.count(" done: ") for daemon in daemons]

    # A job is done before the log says so.
    until(lambda: sum(done()) == 12, "both logs to tell of all jobs")
    assert all(done())


@pytest.mark.parametrize("kind", ["missing", "empty", "not gguf", "cut"])
def test_a_model_that_cannot_be_loaded_ends_the_daemon_in_one_line_and_costs_no_job(
    start_daemon: StartDaemon, workspace: Workspace, model_file: Path, tmp_path: Path, kind: str
) -> None:
    bad = tmp_path / "bad.gguf"
    content = {"empty": b"", "not gguf": b"<html>", "cut": model_file.read_bytes()[:5_000_000]}
    if kind in content:
        bad.write_bytes(content[kind])
    job_id = workspace.submit("Hello!")
    daemon = start_daemon(workspace.path, model=bad, wait=False)
    assert daemon.process.wait(20) == (2 if kind == "missing" else 1)
    last = daemon.log.splitlines()[-1]
    assert last.startswith("nrvnad: ") and str(bad) in last
    assert "Traceback" not in daemon.log
    assert workspace.find(job_id).state is JobState.QUEUED


@pytest.mark.parametrize(
    ("options", "env", "words"),
    [
        (["--temp", "hot"], {}, ["--temp", "'hot'", "from 0 to 10"]),
        ([], {"NRVNA_TOP_P": "1.5"}, ["NRVNA_TOP_P", "'1.5'", "from 0 to 1"]),
        ([], {"NRVNA_LOG_LEVEL": "loud"}, ["NRVNA_LOG_LEVEL", "'loud'", "error, warn, info, debug"]),
    ],
)
def test_a_bad_setting_stops_the_daemon_by_name_value_and_range(
    tmp_path: Path, options: list[str], env: dict[str, str], words: list[str]
) -> None:
    done = command("daemon", tmp_path / "m.gguf", tmp_path / "w", *options, env=env)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert all(word in done.stderr for word in words)
    assert not (tmp_path / "w").exists()


def test_a_library_that_was_never_built_is_said_in_one_line(
    start_daemon: StartDaemon, workspace: Workspace, tmp_path: Path
) -> None:
    (tmp_path / "nothing").mkdir()
    daemon = start_daemon(workspace.path, "--llama-dir", str(tmp_path / "nothing"), wait=False)
    assert daemon.process.wait(20) == 1
    last = daemon.log.splitlines()[-1]
    assert last.startswith("nrvnad: llama.cpp is not built") and "build_llama.py" in last
    assert "Traceback" not in daemon.log


def test_check_says_what_there_is_to_know_of_a_good_model(model_file: Path) -> None:
    done = command("daemon", "--check", model_file)
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert done.returncode == 0
    assert (rows["format"], rows["architecture"], rows["quantization"]) == ("GGUF", "llama", "Q4_1")
    assert rows["context"].startswith("8192 tokens trained")
    assert rows["template"].startswith("yes")
    assert "needed" in rows["memory"] and "free" in rows["memory"]
    assert rows["verdict"] == "will work"


def test_check_refuses_a_model_that_does_not_fit(model_file: Path) -> None:
    done = command("daemon", "--check", model_file, "--parallel", "256", "--ctx", "1000000")
    assert done.returncode == 1
    assert "will not work: it does not fit" in done.stdout


def test_settings_too_large_together_are_said_in_one_line(start_daemon: StartDaemon, workspace: Workspace) -> None:
    daemon = start_daemon(workspace.path, "--ctx", "16777216", "--parallel", "256", wait=False)
    assert daemon.process.wait(20) == 1
    assert daemon.log.splitlines()[-1].startswith("nrvnad: 256 jobs of 16777216 tokens are more than")


def test_modules_in_the_current_folder_are_not_the_engines(tmp_path: Path) -> None:
    (tmp_path / "queue.py").write_text("raise SystemExit('the wrong queue')")
    nrvnad = [str(Path(sys.executable).parent / "nrvnad"), "--check", str(tmp_path / "queue.py")]
    done = subprocess.run(nrvnad, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "is no GGUF model" in done.stdout


def test_check_of_no_model_exits_1_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "page.gguf").write_text("<html>")
    for path, reason in ((tmp_path / "page.gguf", "is no GGUF model"), (tmp_path / "mod\udce9l", "no model file")):
        done = command("daemon", "--check", path)
        assert (done.returncode, done.stdout.count("\n"), done.stderr) == (1, 1, "")
        assert reason in done.stdout


def test_check_names_the_part_of_a_model_that_is_missing(model_file: Path, tmp_path: Path) -> None:
    first, second, _ = make_parts(tmp_path / "parts", 3)
    assert "will work" in command("daemon", "--check", first).stdout
    second.unlink()
    # What is named as a part counts as one, whatever is in it.
    alone = tmp_path / "alone-00001-of-00002.gguf"
    alone.symlink_to(model_file)
    for path, missing in ((first, second.name), (alone, "alone-00002-of-00002.gguf")):
        done = command("daemon", "--check", path)
        assert done.returncode == 1
        assert done.stdout.startswith(f"verdict       will not work: {path} is one of ")
        assert f", and {missing} is missing in that folder: download all parts" in done.stdout
        assert done.stdout.count("\n") == 1 and done.stderr == ""


def test_what_is_no_file_is_refused_at_once_as_a_model_or_beside_one(tmp_path: Path, model_file: Path) -> None:
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as channel:
        channel.bind(str(tmp_path / "socket.gguf"))
    for way in (["--check"], ["--tune"], []):
        workspace = [] if way else [tmp_path / "workspace"]
        for path in (pipe, tmp_path / "socket.gguf", Path("/dev/zero")):
            done = command("daemon", *way, path, *workspace)
            assert done.returncode == (1 if way else 2)
            assert str(path) in done.stdout + done.stderr and "Traceback" not in done.stderr
    done = command("daemon", "--check", model_file, "--chat-template", pipe)
    assert done.stdout.endswith(f"will not work: cannot read the chat template {pipe}: it is no regular file\n")
    done = command("daemon", model_file, tmp_path / "workspace", "--lora", f"a={pipe}")
    assert done.returncode == 1 and f"cannot read the adapter {pipe}: it is no regular file" in done.stderr


def stopped_child(process: subprocess.Popen[bytes]) -> int:
    """The first child of a process, which does not come to notice anything by itself any more."""
    until(lambda: bool(children_of(process.pid)), "a child")
    [child] = children_of(process.pid)
    until(lambda: b"libllama" in Path(f"/proc/{child}/maps").read_bytes(), "llama.cpp in it")
    os.kill(child, signal.SIGSTOP)
    return child


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process that is stopped does not notice")
@pytest.mark.parametrize(
    ("way", "number"),
    [
        ("--check", signal.SIGTERM),
        ("--check", signal.SIGKILL),
        ("--tune", signal.SIGTERM),
        # A daemon that is asked to end waits for what it has begun.
        ("--gpus=all", signal.SIGKILL),
    ],
)
def test_no_child_outlives_the_command_that_started_it(
    way: str, number: signal.Signals, model_file: Path, tmp_path: Path
) -> None:
    words = [way, str(model_file)] + ([str(tmp_path / "workspace")] if "=" in way else [])
    # As nohup does: else the system ends what is stopped once its parent is gone.
    with subprocess.Popen(
        ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", sys.executable, "-m", "nrvna.daemon", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        child = stopped_child(process)
        process.send_signal(number)
        try:
            process.wait(10)
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGSTOP)
            until(lambda: not is_running(child), "the end of its child", 5)
        finally:
            if is_running(child):
                os.kill(child, signal.SIGKILL)


def test_check_says_of_settings_that_are_too_large_together_that_they_are(model_file: Path) -> None:
    done = command("daemon", "--check", model_file, "--parallel", "256", "--ctx", "16777216")
    assert done.returncode == 1
    assert "will not work: 256 jobs of 16777216 tokens are more than llama.cpp counts" in done.stdout


def test_the_result_is_the_text_and_the_receipt_is_json(served: Workspace) -> None:
    job_id = served.submit("Say only the word: yes")
    wait_for(served, job_id, JobState.DONE)
    folder = Path(served.find(job_id).directory)
    receipt = json.loads((folder / "receipt.json").read_text())
    assert receipt["id"] == job_id
    assert set(receipt) == {
        *("id", "finish_reason", "queued", "started", "first_token", "finished", "prompt_tokens", "generated_tokens"),
        *("tokens_per_second", "sampling", "model", "template", "llama_cpp", "nrvna", "error"),
        *("cached_tokens", "same_as", "reproducible", "resumed_tokens", "attempts", "sha256", "kv_type"),
        *("stopped_by", "reasoning_tokens", "probabilities", "task", "notes"),
    }
    assert (folder / "result.txt").read_text()


def test_a_job_has_settings_of_its_own(served: Workspace) -> None:
    own = served.submit("Say only the word: yes", {"predict": 30, "ignore_eos": True, "seed": 5})
    wait_for(served, own, JobState.DONE)
    receipt = served.receipt(served.find(own))
    assert receipt is not None and receipt.sampling is not None
    assert receipt.generated_tokens == 30
    assert (receipt.sampling["seed"], receipt.sampling["temp"]) == (5, 0.0)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"predict": 0}, "the job's predict is '0', but must be a whole number from 1 to 1000000"),
        ({"ctx": 5}, "the job's setting ctx = 5 is none that a job can have"),
    ],
)
def test_a_job_with_settings_that_cannot_be_fails_with_the_reason(
    served: Workspace, settings: dict[str, int], reason: str
) -> None:
    job_id = served.submit("Hello", settings)
    wait_for(served, job_id, JobState.FAILED)
    assert served.answer(served.find(job_id)).strip() == reason


def test_identical_jobs_in_the_queue_get_one_answer_and_a_receipt_each(served: Workspace) -> None:
    jobs = [served.submit("Name three rivers of France.", {"predict": 20}) for _ in range(3)]
    receipts = []
    for job_id in jobs:
        wait_for(served, job_id, JobState.DONE)
        receipt = served.receipt(served.find(job_id))
        assert receipt is not None and receipt.id == job_id
        receipts.append(receipt)
    assert len({served.answer(served.find(job_id)) for job_id in jobs}) == 1
    assert [receipt.same_as for receipt in receipts] == [None, jobs[0], jobs[0]]


def test_niceness_is_the_engines_alone(start_daemon: StartDaemon, workspace: Workspace) -> None:
    daemon = start_daemon(workspace.path, "--nice", "7", "--parallel", "1", "--ctx", "256")
    assert os.getpriority(os.PRIO_PROCESS, daemon.engine_pid()) == 7
    assert os.getpriority(os.PRIO_PROCESS, daemon.process.pid) == os.getpriority(os.PRIO_PROCESS, 0)


def test_check_says_what_a_model_made_for_vectors_is_good_for(embedder_file: Path) -> None:
    done = command("daemon", "--check", embedder_file)
    assert done.returncode == 0
    assert "384 numbers, pooled by mean" in done.stdout
    assert "will work for vectors alone: queue with `wrk --embed`" in done.stdout


@pytest.mark.parametrize("template", ["{{ bad", None])
def test_a_template_that_was_asked_for_and_cannot_be_used_ends_the_start(
    model_file: Path, workspace: Workspace, tmp_path: Path, template: str | None
) -> None:
    path = tmp_path / "template.jinja"
    if template is not None:
        path.write_text(template)
    done = command("daemon", "--chat-template", path, model_file, workspace.path)
    assert done.returncode == 1
    assert str(path) in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
