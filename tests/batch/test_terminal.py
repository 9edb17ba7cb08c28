"""What a person at a terminal sees of a batch while it is queued, and while it is waited for."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from batch_files import answer_all, chat, write_lines
from processes import command

from nrvna.workspace import Workspace

WRK = """
import sys
from nrvna.batch import queueing
from nrvna.workspace import Workspace
queueing._SHOW_AFTER_S = queueing._SHOW_EVERY_S = 0
sys.exit(queueing.queue_batch(Workspace(sys.argv[1]), sys.argv[2]))
"""
FLW = """
import sys
from nrvna.batch import output
from nrvna.workspace import Workspace
output._SHOW_EVERY_S = 0
sys.exit(output.write_batch(Workspace(sys.argv[1]), sys.argv[2], None, wait=True))
"""


class Watched:
    """A program whose standard error is a terminal."""

    def __init__(self, program: str, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, stderr=slave, text=True
        )
        os.close(slave)

    def read_until(self, text: str) -> str:
        """What is shown, up to a text or to the end of the program."""
        seen = ""
        with suppress(OSError):
            while text not in seen and (data := os.read(self._master, 1 << 16)):
                seen += data.decode()
        return seen

    def end(self) -> tuple[int, str]:
        out, _ = self.process.communicate(timeout=30)
        os.close(self._master)
        return self.process.returncode, out


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in.jsonl", [chat(str(number)) for number in range(450)])


def test_queueing_shows_how_far_it_is(workspace: Workspace, path: Path) -> None:
    wrk = Watched(WRK, workspace.path, str(path))
    seen = wrk.read_until("jobs\r\n")
    assert "\r\x1b[K200 of 450 requests\r\x1b[K400 of 450 requests" in seen
    assert seen.endswith("wrk: 450 requests queued as 450 jobs\r\n")
    assert "450 of 450 requests\r\x1b[Kwrk: the daemon's model" in seen
    code, out = wrk.end()
    assert code == 0 and out.startswith("batch_")


def test_waiting_shows_how_many_are_done(workspace: Workspace, path: Path) -> None:
    batch = command("wrk", workspace.path, "--batch", path).stdout.strip()
    flw = Watched(FLW, workspace.path, batch)
    assert "\r\x1b[K0 of 450 requests  0 s" in flw.read_until("0 s")
    answer_all(workspace, lambda _: ValueError("no luck"))
    code, out = flw.end()
    assert code == 1 and out.endswith("0 completed, 450 failed of 450\n")


def test_nothing_moves_where_there_is_no_terminal(workspace: Workspace, path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRK, workspace.path, str(path)], capture_output=True, text=True, check=True
    )
    assert "\x1b" not in done.stderr and "\r" not in done.stderr
