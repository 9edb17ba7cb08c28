"""Daemons that go on by themselves, started, looked at and ended from a shell."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from processes import DaemonProcess, children_of, command, until

from nrvna import control
from nrvna.job import JobState
from nrvna.lease import Lease
from nrvna.workspace import Workspace, holds_lock

StartDaemon = Callable[..., DaemonProcess]
SMALL = ("--ctx", "256", "--parallel", "1")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workspace]:
    """A workspace that is not there yet; daemons that serve it in the end are killed."""
    workspace = Workspace(tmp_path / "my work")
    yield workspace
    for peer in workspace.peers():
        with suppress(ProcessLookupError):
            os.kill(peer.pid, signal.SIGKILL)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_it_returns_once_a_daemon_is_ready_that_outlives_it_and_answers(model_file: Path, place: Workspace) -> None:
    started = command("daemon", "--daemonize", *SMALL, "--predict", "4", model_file, place.path)
    assert (started.returncode, started.stderr) == (0, "")
    [peer] = place.peers()
    assert peer.ready
    assert os.getsid(peer.pid) == peer.pid
    assert str(Path(f"/proc/{peer.pid}/fd/0").readlink()) == os.devnull
    log = Path(place.path) / ".nrvna" / "nrvnad.log"
    assert "ready: " in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600
    job_id = place.submit("Hello!")
    until(lambda: place.find(job_id).state is JobState.DONE, "the answer")
    assert command("daemon", "--stop", place.path).returncode == 0
    assert not is_running(peer.pid)
    assert log.read_text().endswith("stopped\n")


def test_its_page_says_in_five_lines_what_runs_where_and_how_to_use_it(model_file: Path, place: Workspace) -> None:
    place.create()
    place.submit("one")
    place.submit("two", model="another")
    options = (*SMALL, "--temp", "0.5", "--named")
    page = command("daemon", "--daemonize", model_file, *options, place.path).stdout.splitlines()
    assert [line[:9].strip() for line in page] == ["model", "runs on", "workspace", "settings", "use it"]
    model, runs_on, workspace, settings, use = (line[11:] for line in page)
    assert "Q4_1" in model and str(model_file) in model and f"({model_file.stat().st_size / 1e6:.0f} MB)" in model
    assert "thread" in runs_on and runs_on.endswith("1 job at a time, 256 tokens each")
    assert workspace == f"{place.path}: 2 jobs wait"
    assert settings == "NRVNA_TEMP=0.5 NRVNA_CTX=256 NRVNA_PARALLEL=1 NRVNA_NAMED=1 (the others are the defaults)"
    assert f"`wrk --model {model_file.name} '{place.path}' PROMPT`" in use
    assert f"`nrvnad --stop '{place.path}'`" in use and use.endswith(f"log: {place.log_file}")


def test_the_commands_of_its_page_run_as_they_stand(model_file: Path, place: Workspace) -> None:
    page = command("daemon", "--daemonize", *SMALL, "--predict", "4", model_file, place.path).stdout
    commands = page.splitlines()[-1].split("`")[1::2]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for line in commands:
        line = line.replace("PROMPT", "Hello")
        done = subprocess.run(["bash", "-c", line], env={**os.environ, "PATH": path}, check=False)
        assert done.returncode == 0, line
    assert place.peers() == []
    assert len(place.jobs()) == 1


def test_a_daemon_in_the_foreground_shows_the_page_in_its_log(
    start_daemon: StartDaemon, workspace: Workspace
) -> None:
    daemon = start_daemon(workspace.path, *SMALL)
    daemon.wait_log("use it")
    lines = daemon.log.splitlines()
    [ready] = [number for number, line in enumerate(lines) if " INFO    ready: " in line]
    assert " INFO    model " in lines[ready + 1]


def test_on_a_terminal_the_page_stands_without_times(model_file: Path, workspace: Workspace) -> None:
    child, terminal = pty.fork()
    if child == 0:
        arguments = ["-m", "nrvna.daemon", str(model_file), workspace.path, *SMALL]
        os.execv(sys.executable, [sys.executable, *arguments])
    said = b""
    while b"use it" not in said:
        said += os.read(terminal, 4096)
    os.write(terminal, b"\x03")
    with suppress(OSError):
        while data := os.read(terminal, 4096):
            said += data
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert b"\r\nmodel      " in said
    assert b"Ctrl-C stops" in said


def test_a_terminal_sees_how_loading_goes(model_file: Path, place: Workspace) -> None:
    child, terminal = pty.fork()
    if child == 0:
        arguments = ["-m", "nrvna.daemon", "--daemonize", str(model_file), place.path, *SMALL]
        os.execv(sys.executable, [sys.executable, *arguments])
    said = b""
    with suppress(OSError):
        while data := os.read(terminal, 4096):
            said += data
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert f"\r\x1b[Kloading {model_file.name}: ".encode() in said
    # What stays is the page alone.
    assert said.rpartition(b"\x1b[K")[2].startswith(b"model ")


def test_a_daemon_that_cannot_start_is_told_by_its_reason(place: Workspace, tmp_path: Path) -> None:
    bad = tmp_path / "page.gguf"
    bad.write_text("<html>")
    done = command("daemon", "--daemonize", bad, place.path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"nrvnad: {bad} is no GGUF model")
    assert place.peers() == []


def test_an_engine_that_dies_while_the_daemon_starts_is_told_with_the_log_where_it_is(
    model_file: Path, place: Workspace
) -> None:
    starting = subprocess.Popen(
        [sys.executable, "-m", "nrvna.daemon", "--daemonize", str(model_file), place.path],
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: bool(place.peers() and children_of(place.peers()[0].pid)), "an engine that starts")
    os.kill(children_of(place.peers()[0].pid)[0], signal.SIGKILL)
    _, said = starting.communicate(timeout=20)
    ended = f"the engine ended with signal SIGKILL before it had loaded {model_file}"
    assert said == f"nrvnad: {ended}; its log is {place.log_file}\n"


def test_a_daemon_that_is_killed_while_it_starts_is_told_with_its_log(model_file: Path, place: Workspace) -> None:
    starting = subprocess.Popen(
        [sys.executable, "-m", "nrvna.daemon", "--daemonize", str(model_file), place.path],
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: bool(place.peers()), "a daemon that starts")
    os.kill(place.peers()[0].pid, signal.SIGKILL)
    _, said = starting.communicate(timeout=30)
    assert starting.returncode == 1
    assert said == f"nrvnad: the daemon ended with signal SIGKILL; its log is {place.log_file}\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_does_not_want_to_wait_leaves_no_half_started_daemon(
    model_file: Path, place: Workspace, number: int
) -> None:
    starting = subprocess.Popen(
        [sys.executable, "-m", "nrvna.daemon", "--daemonize", str(model_file), place.path],
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: bool(place.peers()), "a daemon that starts")
    [peer] = place.peers()
    assert not peer.ready
    starting.send_signal(number)
    _, said = starting.communicate(timeout=30)
    assert (starting.returncode, said) == (130, "nrvnad: stopped before it was ready\n")
    assert place.peers() == []
    assert not is_running(peer.pid)


def test_a_log_file_that_cannot_be_written_is_said_before_anything_starts(model_file: Path, place: Workspace) -> None:
    done = command("daemon", "--daemonize", "--log-file", "/no/log", model_file, place.path)
    assert done.returncode == 2
    assert done.stderr == "nrvnad: cannot write to the log file /no/log: No such file or directory\n"
    assert place.peers() == []


def test_relative_paths_mean_what_they_did_for_the_shell(
    model_file: Path, place: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-m.gguf").symlink_to(model_file)
    done = command("daemon", "--daemonize", *SMALL, "--log-file=a.log", "--", "-m.gguf", "my work")
    assert (done.returncode, done.stderr) == (0, "")
    assert "ready: " in (tmp_path / "a.log").read_text()
    assert place.peers()[0].answers("-m")


def test_stop_ends_every_daemon_of_the_workspace_and_of_no_other(
    start_daemon: StartDaemon, workspace: Workspace, tmp_path: Path
) -> None:
    mine = [start_daemon(workspace.path, *SMALL) for _ in range(2)]
    other = start_daemon(tmp_path / "other", *SMALL)
    done = command("daemon", "--stop", workspace.path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(line.split(",")[0] for line in done.stdout.splitlines()) == sorted(
        f"stopped process {daemon.process.pid}" for daemon in mine
    )
    assert [daemon.process.wait(1) for daemon in mine] == [0, 0]
    assert other.process.poll() is None


def test_stop_where_none_runs_has_what_it_wanted(workspace: Workspace) -> None:
    done = command("daemon", "--stop", workspace.path)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"nrvnad: no daemon serves {workspace.path}\n"


@pytest.mark.parametrize("way", ["--stop", "--status"])
def test_a_mistyped_workspace_is_not_taken_for_one_without_a_daemon(way: str, tmp_path: Path) -> None:
    done = command("daemon", way, tmp_path / "wrok")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"nrvnad: no workspace {tmp_path / 'wrok'}: ")


def test_stop_kills_no_process_that_merely_has_the_number_of_a_daemon(workspace: Workspace) -> None:
    with subprocess.Popen(["sleep", "60"]) as innocent:
        # One died; the other's lock is held, but by a process that this number does not stand for outside of its
        # container.
        leases = [Lease(workspace, {"path": "a"}) for _ in range(2)]
        for folder in map(Path, workspace.daemon_folders()):
            about = json.loads((folder / ".daemon.json").read_text())
            (folder / ".daemon.json").write_text(json.dumps({**about, "pid": innocent.pid}))
        os.close(leases[0]._lock)
        [peer] = workspace.peers()
        assert not holds_lock(peer)
        done = command("daemon", "--stop", workspace.path)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"process {innocent.pid} runs on {os.uname().nodename}, or in a container" in done.stderr
        assert innocent.poll() is None
        innocent.kill()


def test_stop_says_what_it_waits_for_and_gives_up_in_the_end(
    start_daemon: StartDaemon,
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    daemon = start_daemon(workspace.path, *SMALL)
    pid = daemon.process.pid
    daemon.process.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(control, "_SAY_WAITING_AFTER_S", 0.1)
    monkeypatch.setattr(control, "_END_PATIENCE_S", 1.0)
    assert control.stop(workspace) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"nrvnad: waiting for process {pid} to hand its jobs back"
    assert said[1] == f"nrvnad: process {pid} has not ended within 1 s: `kill -9 {pid}` loses no job"
    daemon.process.send_signal(signal.SIGCONT)
    assert daemon.process.wait(20) == 0


def test_status_tells_by_words_and_code_how_the_daemon_is_doing(
    start_daemon: StartDaemon, workspace: Workspace, model_file: Path
) -> None:
    workspace.submit("for another", model="another")
    done = command("daemon", "--status", workspace.path)
    assert (done.returncode, done.stdout.splitlines()[0]) == (3, f"no daemon serves {workspace.path}")
    daemon = start_daemon(workspace.path, *SMALL, wait=False)
    until(lambda: bool(workspace.peers()), "a daemon that starts")
    daemon.process.send_signal(signal.SIGSTOP)
    done = command("daemon", "--status", workspace.path)
    row, jobs = done.stdout.splitlines()
    assert (done.returncode, jobs) == (4, "jobs         1 queued, 0 running, 0 done, 0 failed")
    assert row.startswith(f"process {daemon.process.pid}") and " loading since 20" in row
    daemon.process.send_signal(signal.SIGCONT)
    daemon.wait_ready()
    done = command("daemon", "--status", workspace.path)
    assert done.returncode == 0
    assert " ready since 20" in done.stdout
    assert done.stdout.splitlines()[0].endswith(f", 0 jobs at hand, 1 at a time: {model_file}")


WRONG = [
    ([], "name a model and a workspace"),
    (["m.gguf"], "name a workspace too"),
    (["m.gguf", "w", "x"], "unrecognized arguments: x"),
    (["--daemonize", "m.gguf"], "name a workspace too"),
    (["--stop"], "--stop needs a WORKSPACE"),
    (["--status"], "--status needs a WORKSPACE"),
    (["--check"], "--check needs a MODEL"),
    (["--tune"], "--tune needs a MODEL"),
    (["--stop", "END", "m.gguf"], "a text that ends answers is --stop-text"),
    (["--status", "w", "x"], "--status takes a WORKSPACE alone, not 'x' as well"),
    (["--check", "m.gguf", "w"], "--check takes a MODEL alone, not 'w' as well"),
    (["--tune", "m.gguf", "w"], "--tune takes a MODEL alone, not 'w' as well"),
    (["--stop", "--status", "w"], "argument --status: not allowed with argument --stop"),
    (["--daemonize", "--check", "m.gguf"], "argument --check: not allowed with argument --daemonize"),
    (["--stop", "w", "--temp", "1"], "--temp is for a daemon that starts, not for --stop"),
    (["--status", "--log-json", "w"], "--log-json is for a daemon that starts, not for --status"),
    (["--within", "5", "m.gguf", "w"], "--within is for --tune alone"),
    (["--tune", "--within", "soon", "m.gguf"], "--within is 'soon', but must be a whole number of seconds"),
    (["--tune", "--within", "0", "m.gguf"], "--within is '0', but must be a whole number of seconds"),
    (["--batch-tokens", "100", "m.gguf", "w"], "--batch-tokens is '100', but must be 0, or a whole number from 256"),
    (["--temp"], "argument --temp: expected one argument"),
    (["--frobnicate", "m.gguf", "w"], "unrecognized arguments: --frobnicate"),
]


@pytest.mark.parametrize(("arguments", "reason"), WRONG, ids=lambda value: " ".join(value) if value else "nothing")
def test_a_wrong_call_is_refused_in_one_line_that_names_what_is_wrong(arguments: list[str], reason: str) -> None:
    done = command("daemon", *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("nrvnad: ") and reason in done.stderr


def test_words_may_stand_between_options(model_file: Path, workspace: Workspace) -> None:
    done = command("daemon", model_file, "--temp", "hot", workspace.path)
    assert done.stderr.startswith("nrvnad: --temp is 'hot'")


def test_a_bad_variable_does_not_keep_a_daemon_from_being_stopped(workspace: Workspace) -> None:
    assert command("daemon", "--stop", workspace.path, env={"NRVNA_TEMP": "hot"}).returncode == 0


def test_status_looks_at_a_workspace_that_may_only_be_read(workspace: Workspace, tmp_path: Path) -> None:
    shutil.copytree(workspace.path, tmp_path / "copy", ignore=shutil.ignore_patterns("wake"))
    (tmp_path / "copy" / "input").chmod(0o577)
    done = command("daemon", "--status", tmp_path / "copy")
    assert done.returncode == 3


def test_a_shell_that_closed_the_standard_streams_gets_a_daemon_all_the_same(
    model_file: Path, place: Workspace
) -> None:
    words = ["-m", "nrvna.daemon", "--daemonize", *SMALL, str(model_file), place.path]
    done = subprocess.run(["sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, *words], check=False)
    assert done.returncode == 0
    assert [peer.ready for peer in place.peers()] == [True]
    assert command("daemon", "--stop", place.path).returncode == 0
