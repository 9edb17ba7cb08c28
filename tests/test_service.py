"""The daemon as a service: readiness, its unit, and who learns of which signals."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import DaemonProcess, children_of, is_running, until

from nrvna.workspace import Workspace

StartDaemon = Callable[..., DaemonProcess]
SMALL = ("--ctx", "256", "--parallel", "1")
ROOT = Path(__file__).parents[1]
UNIT = ROOT / "docs" / "nrvnad.service"


def test_systemd_is_told_when_it_is_ready_and_when_it_stops(
    start_daemon: StartDaemon, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        daemon = start_daemon(workspace.path, *SMALL, wait=False)
        assert systemd.recv(100) == b"READY=1"
        assert any(peer.ready for peer in workspace.peers())
        assert daemon.stop() == 0
        assert systemd.recv(100) == b"STOPPING=1"


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    verify = shutil.which("systemd-analyze")
    if verify is None:
        pytest.skip("systemd is not installed here")
    (tmp_path / UNIT.name).write_text(UNIT.read_text())
    done = subprocess.run([verify, "verify", tmp_path / UNIT.name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_log_file_is_opened_anew_when_asked(
    start_daemon: StartDaemon, workspace: Workspace, tmp_path: Path
) -> None:
    log, rotated = tmp_path / "nrvnad.log", tmp_path / "nrvnad.log.1"
    daemon = start_daemon(workspace.path, *SMALL, "--log-file", str(log), wait=False)
    until(lambda: log.exists() and "ready:" in log.read_text(), "the log")
    assert log.stat().st_mode & 0o777 == 0o600
    log.rename(rotated)
    daemon.process.send_signal(signal.SIGHUP)
    until(log.exists, "another log")
    assert daemon.stop() == 0
    assert "stopped" in log.read_text()
    assert "stopped" not in rotated.read_text()
    assert daemon.log == ""


def test_without_a_terminal_and_a_log_file_a_hangup_is_no_reason_to_stop(
    start_daemon: StartDaemon, workspace: Workspace
) -> None:
    daemon = start_daemon(workspace.path, *SMALL)
    # The tests may have a terminal; a service has none.
    if Path(f"/proc/{daemon.process.pid}/stat").read_text().rpartition(")")[2].split()[4] != "0":
        pytest.skip("these tests run in a terminal")
    daemon.process.send_signal(signal.SIGHUP)
    assert daemon.stop() == 0


def test_a_terminal_that_is_closed_ends_it_in_order(model_file: Path, workspace: Workspace, tmp_path: Path) -> None:
    child, terminal = pty.fork()
    if child == 0:
        log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(log, 2)
        os.execv(sys.executable, [sys.executable, "-m", "nrvna.daemon", str(model_file), workspace.path, *SMALL])
    log_file = tmp_path / "log"
    until(lambda: log_file.exists() and "ready:" in log_file.read_text(), "the daemon")
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert log_file.read_text().endswith("stopped\n")


IN_A_CONTAINER = ("unshare", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc")


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run([*IN_A_CONTAINER, "true"], check=False).returncode != 0,
    reason="no process can be the first one of its own here",
)
def test_the_first_process_of_a_container_buries_those_that_are_left_to_it(
    model_file: Path, workspace: Workspace, tmp_path: Path
) -> None:
    program = (*IN_A_CONTAINER, sys.executable, "-m", "nrvna.daemon")
    daemon = DaemonProcess(model_file, workspace.path, SMALL, tmp_path / "log", program=program)
    try:
        daemon.wait_ready()
        [first] = children_of(daemon.process.pid)
        [engine] = children_of(first)
        # It leaves the process behind that renders the model's template.
        [template] = children_of(engine)
        os.kill(engine, signal.SIGKILL)
        until(lambda: daemon.log.count("ready:") == 2, "another engine")
        until(lambda: not Path(f"/proc/{template}").exists(), "the funeral of what the engine left behind", 5)
        assert [is_running(child) for child in children_of(first)] == [True]
        # What the engine ended with is for its daemon to know.
        assert "the engine ended with signal SIGKILL" in daemon.log
        os.kill(first, signal.SIGTERM)
        assert daemon.process.wait(20) == 0
    finally:
        daemon.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="only there a process can ask for orphans")
def test_whoever_started_a_child_still_learns_how_it_ended() -> None:
    code = """
import ctypes, os, subprocess
from nrvna.service import reap_orphans
from processes import children_of, is_running, until

ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
own = subprocess.Popen(["sh", "-c", "exit 3"])
subprocess.run(["sh", "-c", "sleep 0.1 & sleep 0.1 &"])
assert len(children_of(os.getpid())) == 3
until(lambda: not any(map(is_running, children_of(os.getpid()))), "the end of all three", 5)
reap_orphans({own.pid})
assert own.wait() == 3
reap_orphans(set())
assert children_of(os.getpid()) == []
reap_orphans(set())
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_a_log_file_that_cannot_be_written_stops_it_in_one_line(workspace: Workspace, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nrvna.daemon", "--log-file", str(tmp_path / "no" / "log"), "m", workspace.path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"nrvnad: cannot write to the log file {tmp_path}/no/log: No such file or directory\n"
