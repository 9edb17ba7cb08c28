"""Take the pictures of docs/pictures: ``flw`` and ``flw --watch`` on terminals of 80 and 120 columns, at real work.

    python scripts/pictures.py

needs what ``./scripts/test`` sets up. A daemon answers some thirty jobs with the small model, which takes a minute.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The terminal and the daemon are those of the tests.
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fetch_model import model_path  # noqa: E402
from processes import DaemonProcess  # noqa: E402
from terminal_picture import picture  # noqa: E402
from terminal_screen import TerminalScreen  # noqa: E402

from nrvna.order import Order  # noqa: E402
from nrvna.workspace import Workspace  # noqa: E402

FOLDER = ROOT / "docs" / "pictures"
WIDTHS = (80, 120)
ROWS = 24
PROMPTS = (
    "Explain what a B-tree is.",
    "Write a limerick about tests.",
    "日本の首都はどこですか。日本語で答えてください。",
    "Summarise: a queue is a folder, a job is a folder in it.",
    "Name three rivers and what lives in them 🐟",
    "What is a mutex for?",
    "寿司について短い文章を書いてください。",
    "Tell a story about a lighthouse keeper and a crab 🦀",
    "Why is the sky blue?",
    "Translate into French: the answer is in the file.",
)
JOBS = 30
_FINISHED = re.compile(r"(\d+)/\d+, 1 failed")


def shell(home: Path, columns: int) -> TerminalScreen:
    """A shell at home in which ``flw`` is this one."""
    environment = {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PS1": "$ ",
        "HISTFILE": "",
    }
    command = ["bash", "--noprofile", "--norc", "-i"]
    terminal = TerminalScreen(command, columns=columns, rows=ROWS, env=environment, cwd=home)
    terminal.wait_for("$")
    return terminal


def take(terminal: TerminalScreen, name: str, title: str) -> None:
    """Write what is on the screen as a picture."""
    path = FOLDER / f"{name}-{terminal.screen.columns}.svg"
    path.write_text(picture(terminal.screen, title))
    print(path.relative_to(ROOT), f"{path.stat().st_size / 1000:.0f} kB")


def take_watch(workspace: Workspace, terminals: list[TerminalScreen]) -> None:
    """In the middle of it, with a failure and a guess at the time left."""
    for terminal in terminals:
        terminal.send("flw --watch work\r")
        terminal.wait_for(f"/{JOBS}")
    workspace.submit("Review this: " + "word " * 3000)

    def is_telling(terminal: TerminalScreen) -> bool:
        finished = _FINISHED.search(terminal.text)
        return bool(finished and int(finished[1]) >= JOBS // 3 and " left" in terminal.text)

    for terminal in terminals:
        terminal.until(lambda terminal=terminal: is_telling(terminal), "the middle of the work")  # type: ignore[misc]
        take(terminal, "watch", "flw --watch: thirty jobs, a third of them finished")
    for terminal in terminals:
        terminal.wait_for("all finished", 300)


def take_list(terminals: list[TerminalScreen]) -> None:
    """Of the newest jobs, when all are finished."""
    for terminal in terminals:
        terminal.send("clear\r")
        terminal.until(lambda terminal=terminal: terminal.lines() == ["$"], "an empty screen")  # type: ignore[misc]
        terminal.send("flw work\r")
        is_there = lambda terminal=terminal: len(terminal.lines()) > 2 and terminal.lines()[-1] == "$"  # noqa: E731
        terminal.until(is_there, "the list")
        take(terminal, "list", "flw: the newest jobs of a workspace")


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        workspace = Workspace(Path(home, "work"))
        workspace.create()
        # Tokens of their own for each, as jobs that ask the same share an answer.
        workspace.submit_all([Order(PROMPTS[n % len(PROMPTS)], {"seed": n}) for n in range(JOBS)])
        options = ("--predict", "80", "--parallel", "8", "--ctx", "2048")
        daemon = DaemonProcess(model_path(), workspace.path, options, Path(home, "daemon.log"))
        try:
            with shell(Path(home), WIDTHS[0]) as narrow, shell(Path(home), WIDTHS[1]) as wide:
                take_watch(workspace, [narrow, wide])
                take_list([narrow, wide])
        finally:
            daemon.kill()
    return 0


if __name__ == "__main__":
    sys.exit(main())
