"""Large batch files take the memory of small ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from batch_files import answer_all, chat, write_lines
from processes import command

from nrvna.workspace import Workspace

# Of a file of 16 MB, which Python's objects would make many times as large.
ALLOWED_KB = 4 * 1024
LINES = 4000


# What a process was before it became the tool counts too: a small one.
MEASURED = """
import resource, subprocess, sys
subprocess.run([sys.executable, "-m", *sys.argv[1:]], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak_kb(tool: str, *arguments: str) -> int:
    """The most memory that a call took."""
    command_line = [sys.executable, "-c", MEASURED, f"nrvna.{tool}", *arguments]
    return int(subprocess.run(command_line, check=True, capture_output=True, text=True).stdout)


@pytest.mark.slow
def test_a_large_file_takes_little_more_memory_than_a_small_one(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nrvna.files._flush", lambda _: None)
    out = str(tmp_path / "out.jsonl")
    peaks = {}
    for count in (40, LINES):
        requests = [chat(f"{count}-{number}", f"{number} " * 700) for number in range(count)]
        path = str(write_lines(tmp_path / f"{count}.jsonl", requests))
        queued = peak_kb("wrk", workspace.path, "--batch", path)
        batch = command("wrk", workspace.path, "--batch", path).stdout.strip()
        answer_all(workspace)
        peaks[count] = (queued, peak_kb("flw", workspace.path, "--batch", batch, "-o", out))
    assert Path(out).stat().st_size > 12_000_000
    assert all(large - small < ALLOWED_KB for small, large in zip(*peaks.values(), strict=True)), peaks
