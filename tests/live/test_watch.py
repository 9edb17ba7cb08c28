"""``flw --watch`` on real terminals: what they show while real jobs are answered, and how it leaves them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from processes import PATIENCE_S, DaemonProcess, command, until
from terminal_screen import TerminalScreen

from nrvna.columns import columns_of
from nrvna.files import remove
from nrvna.job import Receipt, new_id
from nrvna.lease import Lease
from nrvna.progress import first_line, token_line
from nrvna.workspace import Workspace

BIN = Path(sys.executable).parent
WATCH = (sys.executable, "-m", "nrvna.flw", "--watch")
PROMPTS = (
    "日本の首都はどこですか。{}の答えを日本語で書いてください。",
    "Repeat these {} times: 🦀 🐍 🦫 👨\u200d👩\u200d👧 ❤\ufe0f",
    "Tell a story about {} fish in the sea.",
    "Écris sur les {} me\u0301duses.",
    "次の文を{}回繰り返してください：東京都庁は新宿区にあります。",
)
TOO_LONG = "word " * 600
BAR = "█▒░"


class Served(NamedTuple):
    """A home in whose ``work`` a daemon answers."""

    home: Path
    work: Workspace
    daemon: DaemonProcess

    def queue(self, count: int) -> list[str]:
        """Prompts that all differ, as jobs that ask the same share an answer."""
        return self.work.submit_all([PROMPTS[number % len(PROMPTS)].format(new_id()[-4:]) for number in range(count)])

    @contextmanager
    def held(self) -> Iterator[None]:
        """The engine stands still meanwhile, so that what is to be seen can be seen on machines of any speed."""
        engine = self.daemon.engine_pid()
        os.kill(engine, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(engine, signal.SIGCONT)


@pytest.fixture(scope="module")
def served(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """With answers of 48 tokens at most: more than a line holds."""
    home = tmp_path_factory.mktemp("home")
    options = ("--predict", "48", "--temp", "0.7", "--seed", "1", "--parallel", "4", "--ctx", "512")
    daemon = DaemonProcess(model_file, home / "work", options, home / "daemon.log")
    daemon.wait_ready()
    yield Served(home, Workspace(home / "work"), daemon)
    daemon.kill()


def shell(home: Path, columns: int = 80, rows: int = 24) -> TerminalScreen:
    """A shell as a person has it, at home."""
    terminal = TerminalScreen(
        ["bash", "--noprofile", "--norc", "-i"],
        columns=columns,
        rows=rows,
        env={"HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}", "PS1": "$ ", "HISTFILE": ""},
        cwd=home,
    )
    terminal.wait_for("$")
    return terminal


def bars(terminal: TerminalScreen) -> list[int]:
    """The rows that hold a progress bar."""
    return [row for row, line in enumerate(terminal.lines()) if line.startswith(tuple(BAR))]


def frames_until(terminal: TerminalScreen, end: Callable[[], bool]) -> list[list[str]]:
    """The screens seen meanwhile, each other than the last."""
    frames: list[list[str]] = []

    def look() -> bool:
        if terminal.lines() not in frames[-1:]:
            frames.append(terminal.lines())
        return end()

    terminal.until(look, "the end of the view")
    return frames


def finished(terminal: TerminalScreen) -> int:
    """How many jobs are finished, as far as the screen says."""
    found = re.search(r"(\d+)/\d+", terminal.text)
    return int(found[1]) if found else 0


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 120])
def test_a_queue_is_watched_to_its_end(served: Served, columns: int) -> None:
    typed = 'flw --watch work; echo "exit $?"'
    with shell(served.home, columns) as terminal:
        with served.held():
            ids = served.queue(29)
            terminal.send(f"{typed}\r")
            terminal.wait_for("/29")
            too_long = served.work.submit(TOO_LONG)
            terminal.wait_for("/30")
        frames = frames_until(terminal, lambda: finished(terminal) > 8)
        with served.held():
            frames += frames_until(terminal, lambda: " tokens/s, about " in terminal.text)
        frames += frames_until(terminal, lambda: "exit 1" in terminal.lines())
        terminal.until(lambda: terminal.lines()[-1] == "$", "the shell's prompt")
        assert terminal.cursor_is_shown
        last = terminal.lines()
    # It is drawn in one place from the first frame to the last.
    for lines in frames[:-1]:
        assert lines[:2] == [f"$ {typed}", "work, served by SmolLM2-135M-Instruct.Q4_1"]
        assert [row for row, line in enumerate(lines) if line.startswith(tuple(BAR))] == [2]
        assert max(map(columns_of, lines)) < columns
    running = [line for lines in frames for line in lines[4:] if line.startswith(tuple(ids))]
    assert any("\u3040" <= char <= "\u9fff" for line in running for char in line)
    # The words that the model wrote last stand at the end of their lines, and fill them.
    assert columns - 3 < max(map(columns_of, running)) < columns
    assert last[2] == f"{'█' * 58}▒▒  30/30, 1 failed"
    assert last[3].startswith("all finished in ") and last[3].endswith(" tokens/s")
    assert last[4].startswith(f"failed  {too_long}  the prompt has ")
    assert last[5:] == ["exit 1", "$"]


@pytest.mark.slow
@pytest.mark.parametrize(("columns", "rows"), [(30, 10), (20, 5)])
def test_a_narrow_window_shows_what_fits(served: Served, columns: int, rows: int) -> None:
    home = {"HOME": str(served.home)}
    with TerminalScreen([*WATCH, "work"], columns=columns, rows=rows, cwd=served.home, env=home) as terminal:
        with served.held():
            ids = served.queue(7)
            terminal.wait_for("/7")
            too_long = served.work.submit(TOO_LONG)
        # Jobs by the ends of their ids, each with some words.
        frames = frames_until(terminal, lambda: any(f"\n{job_id[-6:]}  " in terminal.text for job_id in ids))
        frames += frames_until(terminal, lambda: terminal.process.poll() is not None)
        assert terminal.wait_end() == 1
        last = terminal.lines()
    assert all(max(map(columns_of, lines)) < columns for lines in frames if lines)
    assert "8/8, 1 failed" in "\n".join(last)
    assert last[-1].startswith(f"{'failed  ' if columns == 30 else ''}{too_long[-6:]}  the")


@pytest.mark.slow
def test_a_window_may_change_its_size_meanwhile(served: Served) -> None:
    with shell(served.home, 100, 30) as terminal:
        with served.held():
            served.queue(16)
            terminal.send("flw --watch work\r")
            terminal.wait_for("/16")
        terminal.until(lambda: finished(terminal) > 0, "the first answers")
        with served.held():
            for columns, rows in ((60, 30), (30, 12), (20, 6), (120, 40), (80, 24)):
                terminal.resize(columns, rows)

                def fits(columns: int = columns) -> bool:
                    # A bar takes what its numbers leave of the line, up to a limit.
                    lines = [terminal.lines()[row] for row in bars(terminal)]
                    return [columns_of(line) for line in lines] == [
                        min(columns - 1, 62 + len(line.split()[-1])) for line in lines[:1]
                    ]

                terminal.until(fits, f"a frame of {columns} columns and nothing else")
                terminal.look(0.3)
                assert fits()
                assert max(map(columns_of, terminal.lines()[1:])) < columns
        terminal.wait_for("all finished in")
        terminal.until(lambda: terminal.lines()[-1] == "$", "the shell's prompt")
        # Nothing of earlier frames is left, neither above nor below.
        assert [line.split()[0] for line in terminal.lines()[-4:]] == ["work,", "█" * 60, "all", "$"]
        assert len(bars(terminal)) == 1


@pytest.mark.skipif(not shutil.which("tmux"), reason="no tmux is here")
def test_a_terminal_that_breaks_lines_anew_keeps_one_frame(workspace: Workspace, tmp_path: Path) -> None:
    workspace.submit_all(["x"] * 16)
    lease = Lease(workspace, {"path": "m.gguf"})
    claim = lease.claim()
    assert claim
    words = " ".join(["東京 words"] * 20)
    lease.append_progress(claim, first_line(None, 0) + token_line(1, words))

    def tmux(*arguments: str) -> str:
        server = ["tmux", "-S", str(tmp_path / "tmux"), "-f", "/dev/null"]
        return subprocess.run([*server, *arguments], stdout=subprocess.PIPE, check=True).stdout.decode()

    def lines(*since: str) -> list[str]:
        return tmux("capture-pane", "-p", *since).rstrip().split("\n")

    view = shlex.join(["env", f"HOME={tmp_path}", "LC_ALL=C.UTF-8", *WATCH, workspace.path])
    tmux("new-session", "-d", "-x", "110", "-y", "30", f"echo before; {view}; sleep 60")
    try:
        for columns in (110, 60, 35, 100):
            tmux("resize-window", "-x", str(columns))

            def fits(columns: int = columns) -> bool:
                return len(lines()) >= 4 and columns_of(lines()[-1]) in (columns - 2, columns - 1)

            until(fits, f"a frame of {columns} columns")
            *_, title, bar, numbers, running = lines()
            assert title == f"{'~/workspace, served by ' if columns > 40 else ''}m (being loaded)"
            assert bar == f"{'░' * min(60, columns - 1 - 6)}  0/16"
            assert numbers == "1 running, 15 waiting"
            assert running.endswith("東京 words")
            assert sum(line.startswith("░") for line in lines()) == 1
            # In the window or above it: what breaks into more lines pushes the first ones out.
            assert lines("-S", "-")[0] == "before"
    finally:
        tmux("kill-server")
        lease.close()


@pytest.fixture
def unserved(workspace: Workspace) -> Workspace:
    """Two jobs that no daemon answers."""
    workspace.submit_all(["one", "two"])
    return workspace


def test_ctrl_c_ends_it_and_leaves_the_terminal_as_it_was(unserved: Workspace) -> None:
    with TerminalScreen([*WATCH, unserved.path]) as terminal:
        terminal.wait_for("2 waiting")
        assert not terminal.cursor_is_shown
        terminal.send("\x03")
        assert terminal.wait_end() == 130
        assert terminal.lines()[1:] == [f"{'░' * 60}  0/2", "2 waiting"]
        # Below the last frame, at the beginning of a line.
        assert (terminal.screen.cursor.x, terminal.screen.cursor.y) == (0, 3)
        assert terminal.cursor_is_shown
        assert terminal.echoes


def test_who_ends_it_by_a_signal_gets_a_tidy_terminal_too(unserved: Workspace) -> None:
    with TerminalScreen([*WATCH, unserved.path]) as terminal:
        terminal.wait_for("2 waiting")
        terminal.process.terminate()
        assert terminal.wait_end() == -signal.SIGTERM
        assert terminal.cursor_is_shown
        assert terminal.echoes


def test_keys_that_are_pressed_do_not_show(unserved: Workspace) -> None:
    with TerminalScreen([*WATCH, unserved.path]) as terminal:
        terminal.wait_for("2 waiting")
        before = terminal.lines()
        terminal.send("hello\r\r")
        terminal.look(0.6)
        assert terminal.lines() == before


def test_what_stays_the_same_is_not_written_again(unserved: Workspace) -> None:
    with TerminalScreen([*WATCH, unserved.path]) as terminal:
        terminal.wait_for("2 waiting")
        terminal.look(0.3)
        written = len(terminal.written)
        terminal.look(1.0)
        assert len(terminal.written) == written
        unserved.submit("three")
        terminal.wait_for("3 waiting")
        # The line with no news among them is left alone.
        assert b"no daemon" not in terminal.written[written:]


def test_ctrl_z_stops_it_and_fg_goes_on_below(unserved: Workspace, tmp_path: Path) -> None:
    with shell(tmp_path, rows=30) as terminal:
        terminal.send("flw --watch workspace\r")
        terminal.wait_for("2 waiting")
        terminal.send("\x1a")
        terminal.wait_for("Stopped")
        assert terminal.cursor_is_shown
        terminal.send("echo still a shell\r")
        terminal.until(lambda: "still a shell" in terminal.lines(), "the shell's answer")
        unserved.submit("three")
        terminal.send("fg\r")
        terminal.wait_for("3 waiting")
        assert [line for line in terminal.lines() if "waiting" in line] == ["2 waiting", "3 waiting"]
        assert not terminal.cursor_is_shown
        terminal.send("\x03")
        terminal.until(lambda: terminal.lines()[-1] == "$", "the shell's prompt")
        terminal.send("echo code $?\r")
        terminal.until(lambda: "code 130" in terminal.lines(), "the exit code")


@pytest.mark.usefixtures("unserved")
def test_in_the_background_it_leaves_the_terminal_to_the_shell(tmp_path: Path) -> None:
    with shell(tmp_path, rows=30) as terminal:
        terminal.send("flw --watch workspace &\r")
        terminal.wait_for("[1]")
        terminal.look(1.0)
        terminal.send("echo mine\r")
        terminal.until(lambda: "mine" in terminal.lines(), "the shell's answer")
        assert "waiting" not in terminal.text
        terminal.send("fg\r")
        terminal.wait_for("2 waiting")
        terminal.send("\x03")
        terminal.until(lambda: terminal.lines()[-1] == "$", "the shell's prompt")


def test_colours_are_used_on_a_terminal_unless_they_are_not_wanted(unserved: Workspace) -> None:
    for environment, has_colour in (({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True)):
        with TerminalScreen([*WATCH, unserved.path], env=environment) as terminal:
            terminal.wait_for("2 waiting")
            assert (b"\x1b[33m" in terminal.written) == has_colour


def test_a_terminal_of_the_locale_c_gets_a_bar_of_ascii(unserved: Workspace) -> None:
    with TerminalScreen([*WATCH, unserved.path], env={"LANG": "C", "LC_ALL": "C"}) as terminal:
        terminal.wait_for("2 waiting")
        assert terminal.lines()[1] == f"{'.' * 60}  0/2"
        assert terminal.written.isascii()


def test_words_never_steer_the_terminal(workspace: Workspace) -> None:
    workspace.submit("x")
    lease = Lease(workspace, {"path": "\x1b[2Jmodel.gguf"})
    claim = lease.claim()
    assert claim
    lease.append_progress(claim, first_line(None, 0) + token_line(1, "\x1b[2J\x9b2J red\r\n\a words"))
    with TerminalScreen([*WATCH, workspace.path]) as terminal:
        terminal.wait_for("words")
        assert "1 token   ␛[2J�2J red␍ ␇ words" in terminal.lines()[3]
        assert b"\x1b[2J" not in terminal.written
    lease.close()


def test_where_all_is_finished_it_says_so_and_ends(workspace: Workspace) -> None:
    with TerminalScreen([*WATCH, workspace.path]) as terminal:
        assert terminal.wait_end() == 0
        assert terminal.lines() == ["nothing to wait for: every job is finished"]
    done = command("flw", "--watch", workspace.path)
    assert (done.returncode, done.stdout) == (0, "nothing to wait for: every job is finished\n")


def test_without_a_terminal_there_is_a_plain_line_now_and_then(workspace: Workspace) -> None:
    workspace.submit_all(["one", "two"])
    lease = Lease(workspace, {"path": "m.gguf"})
    with subprocess.Popen(
        [*WATCH, workspace.path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() == "0 of 2 finished\n"
        first, second = lease.claim(), lease.claim()
        assert first and second
        lease.finish(first, "x", Receipt(first.id, "stop", "q", "f", "0.1.0", generated_tokens=7))
        lease.fail(second, "x", Receipt.of_failure(second.id, "q", "x"))
        lease.close()
        said = process.stdout.read()
        assert process.wait(PATIENCE_S) == 1
        assert process.stderr.read() == ""
    assert re.fullmatch(rf"2 of 2 finished in \d s, 1 failed, 7 tokens(, \d tokens/s)?; failed: {second.id}\n", said)


@pytest.mark.slow
def test_a_log_of_real_jobs_ends_with_their_sum(served: Served) -> None:
    with served.held():
        served.queue(6)
        process = subprocess.Popen([*WATCH, served.work.path], stdout=subprocess.PIPE, text=True)
        assert process.stdout
        assert process.stdout.readline() == "0 of 6 finished\n"
    with process:
        *_, last = process.stdout
        assert process.wait(PATIENCE_S) == 0
    assert re.fullmatch(r"6 of 6 finished in \d+ s, \d+ tokens(, \d+ tokens/s)?\n", last)


def test_a_dumb_terminal_gets_plain_lines(unserved: Workspace) -> None:
    with TerminalScreen([*WATCH, unserved.path], env={"TERM": "dumb"}, columns=200) as terminal:
        terminal.wait_for("nrvnad MODEL")
        terminal.send("\x03")
        assert terminal.wait_end() == 130
        assert b"\x1b" not in terminal.written
        assert terminal.lines()[0].startswith("0 of 2 finished, no daemon answers them: nrvnad MODEL ")


def test_a_workspace_that_goes_away_ends_it_in_one_line(unserved: Workspace) -> None:
    with TerminalScreen([*WATCH, unserved.path], columns=200) as terminal:
        terminal.wait_for("2 waiting")
        remove(unserved.path)
        assert terminal.wait_end() == 2
        assert terminal.cursor_is_shown
        assert terminal.lines()[3:] == [f"flw: cannot read {unserved.path}: No such file or directory"]


def processor_time_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
def test_ten_thousand_queued_jobs_are_watched_for_little(workspace: Workspace) -> None:
    for _ in range(10_000):
        folder = Path(workspace.input) / new_id()
        folder.mkdir()
        (folder / "job.json").write_bytes(b"{}")
    lease = Lease(workspace, {"path": "m.gguf"})
    lease.announce_ready()
    with TerminalScreen([*WATCH, workspace.path]) as terminal:
        terminal.wait_for("0/10000")
        terminal.look(0.5)
        began, used = time.monotonic(), processor_time_s(terminal.process.pid)
        while time.monotonic() - began < 4:
            claim = lease.claim()
            assert claim
            terminal.look(0.1)
            lease.finish(claim, "x", Receipt(claim.id, "stop", "q", "f", "0.1.0", generated_tokens=5))
        used = processor_time_s(terminal.process.pid) - used
        terminal.until(lambda: re.search(r" [1-9]\d+/10000", terminal.text), "the jobs that were finished")
    lease.close()
    # A fiftieth of a core where nothing else runs.
    assert used / 4 < 0.1


def test_a_single_job_is_followed_and_not_watched(unserved: Workspace) -> None:
    done = command("flw", "--watch", unserved.path, unserved.jobs()[0].id)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--watch is of a whole workspace" in done.stderr.splitlines()[-1]
