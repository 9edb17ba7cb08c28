"""The commands that the scripts run, and their ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import children_of, is_running, until

SCRIPTS = Path(__file__).parents[2] / "scripts"
WAYS = {
    "run_logged": 'run_logged([*command], Path(sys.argv[1], "log"), Step("a step"))',
    "run_compiler": "run_compiler(command)",
    "run_step": 'run_step("a step", command, "")',
}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel does not see to it")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("way", WAYS)
def test_what_a_script_runs_ends_with_it(tmp_path: Path, way: str, number: signal.Signals) -> None:
    code = f"""
import sys
from pathlib import Path
from environment import run_step
from progress import Step, run_compiler, run_logged
command = ["sleep", "600"]
{WAYS[way]}
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(SCRIPTS)}
    ) as script:
        until(lambda: bool(children_of(script.pid)), "its child")
        [child] = children_of(script.pid)
        until(lambda: b"sleep" in Path(f"/proc/{child}/cmdline").read_bytes(), "the command")
        script.send_signal(number)
    try:
        until(lambda: not is_running(child), "the end of its child", 5)
    finally:
        if is_running(child):
            os.kill(child, signal.SIGKILL)


def test_a_compiler_that_is_waited_for_no_more_ends_with_all_that_it_started() -> None:
    code = """
import signal
from progress import run_compiler
signal.signal(signal.SIGTERM, signal.default_int_handler)
run_compiler(["sh", "-c", "sleep 600 & wait"])
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(SCRIPTS)}
    ) as script:
        until(lambda: bool(children_of(script.pid)), "its child")
        [shell] = children_of(script.pid)
        until(lambda: bool(children_of(shell)), "the child of its child")
        [sleep] = children_of(shell)
        script.terminate()
    until(lambda: not is_running(shell) and not is_running(sleep), "the end of both", 5)


def test_what_a_compiler_says_is_kept() -> None:
    sys.path.insert(0, str(SCRIPTS))
    from progress import run_compiler

    done = run_compiler(["sh", "-c", "echo made; echo warned >&2; exit 3"])
    assert (done.returncode, done.stdout, done.stderr) == (3, "made\n", "warned\n")
