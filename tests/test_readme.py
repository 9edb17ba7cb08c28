"""What the README shows is what there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from nrvna.workspace import Workspace

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def example(word: str) -> str:
    """The one program of the README that has a word in it."""
    code: str
    [code] = [code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if word in code]
    return code


def test_the_example_of_a_program_that_queues_jobs_runs(served: Workspace, tmp_path: Path) -> None:
    (tmp_path / "work").symlink_to(served.path)
    command = [sys.executable, "-c", example("Workspace")]
    home = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=home, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 3


def test_the_example_of_the_binding_runs_and_is_short(model_file: Path) -> None:
    code = example("nrvna.llama")
    assert len(code.strip().splitlines()) <= 20
    build = "from nrvna.config import llama_dir; from nrvna.llama import load_library; load_library(llama_dir())\n"
    code = build + code.replace('"model.gguf"', repr(str(model_file)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 3


def test_the_files_that_the_readme_names_exist() -> None:
    named = re.findall(r"`\.?/?((?:nrvna|scripts|vendor)/[\w./]*)`", README)
    assert len(named) > 5
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_lines_that_check_shows_are_those_it_prints(model_file: Path) -> None:
    command = [sys.executable, "-m", "nrvna.daemon", "--check", str(model_file)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    [block] = re.findall(r"nrvnad --check ~/models/model.gguf\n(.*?)```", README, re.DOTALL)
    shown = [line.split()[0] for line in block.splitlines()]
    assert shown == [line.split()[0] for line in printed.splitlines()]
