"""What the daemon's page shows runs as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from processes import command

from nrvna.workspace import Workspace

PAGE = (Path(__file__).parents[1] / "docs" / "nrvnad.md").read_text()


def test_the_commands_run_one_after_the_other(
    model_file: Path, embedder_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = model_file.parents[1]
    assert embedder_file.parent == model_file.parent
    (tmp_path / ".local" / "share").mkdir(parents=True)
    (tmp_path / ".local" / "share" / "nrvna").symlink_to(data)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    lines = re.findall(r"^\$ (.*)$", PAGE, re.MULTILINE)
    assert len(lines) > 12
    try:
        done = subprocess.run(
            ["bash", "-euc", "\n".join(lines)], capture_output=True, text=True, timeout=300, check=False
        )
    finally:
        command("daemon", "--stop", tmp_path / "work")
    assert done.returncode == 0, done.stderr
    counts = Workspace(tmp_path / "work").counts()
    assert (counts.queued, counts.running, counts.done, counts.failed) == (0, 0, 4, 0)


def test_the_codes_that_it_lists_are_those_of_the_help() -> None:
    words = " ".join(command("daemon", "--help").stdout.split())
    assert "3 with --status none runs, 4 with --status it is not ready yet" in words
    assert "| 3 | | | none runs | |" in PAGE and "| 4 | | | loading, not ready yet | |" in PAGE
