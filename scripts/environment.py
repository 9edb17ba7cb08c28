"""The checkout's own virtual environment: made once, brought up to date when pyproject.toml changes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from progress import CommandError, Step, ends_with_us, run_logged

ROOT = Path(__file__).parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"


class SetupError(Exception):
    """A step of the set-up that failed: which, why, and what to do."""


def ensure_environment(extras: str) -> None:
    """Make .venv and install the checkout into it, editable, with these extras. Raises SetupError."""
    if not _works():
        with Step("making .venv") as step:
            _run("making .venv", [sys.executable, "-m", "venv", "--clear", str(VENV)], step, _VENV_HINT)
    stamp = VENV / f"installed-{extras.replace(',', '-')}"
    wanted = hashlib.sha256(f"{sys.version} {ROOT}".encode() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    with Step("installing nrvna and what it needs into .venv") as step:
        pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
        _run("installing", [*pip, "--editable", f"{ROOT}[{extras}]"], step, _PIP_HINT)
    stamp.write_text(wanted)


_VENV_HINT = "Python's venv module is needed (Debian, Ubuntu: apt install python3-venv)."
_PIP_HINT = "Packages come from PyPI: is it reachable from here?"


def _works() -> bool:
    try:
        return subprocess.run([PYTHON, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _run(name: str, command: list[str], step: Step, hint: str) -> None:
    try:
        run_logged(command, ROOT / "build" / "setup.log", step, lambda line: line.strip()[:70])
    except CommandError as error:
        raise SetupError(
            f"{error.tail}\n{name} failed: {error}. {hint} All of its output is in {error.log}."
        ) from error


def run_step(name: str, command: list[str | Path], hint: str) -> None:
    """Run one of the checkout's own commands, its output left as it is. Raises SetupError if it fails."""
    words = [str(part) for part in command]
    code = subprocess.run(words, cwd=ROOT, check=False, preexec_fn=ends_with_us()).returncode
    if code == -2 or code == 130:
        raise KeyboardInterrupt
    if code:
        raise SetupError(f"{name} failed with exit code {code}. {hint}")
