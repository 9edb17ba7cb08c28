"""Completion as the shells themselves do it."""

from __future__ import annotations

import argparse
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nrvna.completion import SHELLS, script
from nrvna.completion.kinds import kind_of
from nrvna.tools import Tool, all_tools, options_of
from nrvna.workspace import Workspace

PATIENCE_S = 20.0


def verb(name: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"demo {name}", description=description)
    parser.add_argument("workspace", metavar="WORKSPACE")
    parser.add_argument("ids", nargs="+", metavar="ID")
    parser.add_argument("--older", metavar="AGE", help="only those that are older")
    return parser


def demo() -> dict[str, Tool]:
    """A tool with verbs, and with every kind of argument."""
    parser = argparse.ArgumentParser(prog="demo")
    parser.add_argument("workspace", metavar="WORKSPACE")
    parser.add_argument("id", nargs="?", metavar="ID")
    parser.add_argument("--after", action="append", metavar="ID", help="it's [odd]: with \\ and 'quotes'")
    parser.add_argument("-o", "--output", metavar="FILE", help="where it goes")
    parser.add_argument("--colour", choices=["never", "always"], help="in colour")
    parser.add_argument("--with-model", metavar="MODEL", help="a model")
    parser.add_argument("--hidden", help=argparse.SUPPRESS)
    return {
        "demo": Tool(parser, {"rm": verb("rm", "Remove jobs."), "retry": verb("retry", "Try jobs again. Or not.")})
    }


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files, folders and a workspace "work" to complete."""
    folder = tmp_path / "here"
    for name in ("models", "my work/input", "empty"):
        (folder / name).mkdir(parents=True)
    for name in ("words.txt", "big.gguf", "models/small.gguf", "models/notes.txt"):
        (folder / name).write_text("")
    Workspace(str(folder / "work")).create()
    for number in range(3):
        (folder / "work" / "input" / f"2026110{number}-waits").mkdir()
    for place in ("output", "failed", "processing/daemon"):
        (folder / "work" / place / f"20261103-{place.split('/')[0]}").mkdir(parents=True)
    (folder / "my work" / "input" / "20261101-spaced").mkdir()
    monkeypatch.chdir(folder)
    return folder


def needs(shell: str) -> str:
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed here")
    return found


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_reads_its_script_without_complaint(shell: str, tmp_path: Path) -> None:
    text = subprocess.run(
        [sys.executable, "-m", "nrvna.completion", shell], capture_output=True, text=True, check=True
    ).stdout
    (tmp_path / "script").write_text(text)
    done = subprocess.run([needs(shell), "-n", tmp_path / "script"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_options_take_what_their_help_says() -> None:
    kinds = {
        name: kind_of(action)
        for tool in all_tools().values()
        for action in options_of(tool.parser)
        for name in action.option_strings
        if action.nargs != 0
    }
    assert kinds["--lines"].name == kinds["--schema"].name == kinds["--log-file"].name == "file"
    assert kinds["--llama-dir"].name == "folder"
    assert kinds["--overflow"].words == ("fail", "truncate-left", "truncate-right", "truncate-middle")
    assert kinds["--temp"].name == "text"


# bash


class Bash:
    """What bash's completion function replies to words of which the last is being typed."""

    def __init__(self, tools: dict[str, Tool], folder: Path) -> None:
        self._script = folder / "completion.bash"
        self._script.write_text(script("bash", tools))

    def __call__(self, *words: str) -> list[str]:
        # What compopt says outside of a completion is of no interest.
        code = 'source "$0"; COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)); _nrvna "$1" 2>/dev/null'
        code += '; [[ ${#COMPREPLY[@]} == 0 ]] || printf "%s\\n" "${COMPREPLY[@]}"'
        command = ["bash", "--norc", "-c", code, str(self._script), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.fixture
def bash(here: Path, tmp_path: Path) -> Bash:
    assert here
    needs("bash")
    return Bash(all_tools(), tmp_path)


@pytest.fixture
def demo_bash(here: Path, tmp_path: Path) -> Bash:
    assert here
    needs("bash")
    return Bash(demo(), tmp_path)


def test_bash_knows_the_options_of_each_tool(bash: Bash) -> None:
    assert bash("wrk", "--sch") == ["--schema"]
    assert bash("flw", "--wai") == ["--wait"]
    assert bash("/usr/bin/nrvnad", "--che") == ["--check"]
    assert bash("wrk", "--stat") == []


def test_bash_knows_what_an_option_may_be_set_to(bash: Bash) -> None:
    assert bash("wrk", "work", "--overflow", "truncate-r") == ["truncate-right"]
    assert bash("wrk", "work", "--overflow", "=", "truncate-r") == ["truncate-right"]
    assert bash("wrk", "work", "--overflow", "=") == ["fail", "truncate-left", "truncate-right", "truncate-middle"]
    assert bash("nrvnad", "--log-level", "") == ["error", "warn", "info", "debug"]


def test_bash_lists_a_workspaces_jobs_the_newest_first(bash: Bash) -> None:
    newest = ["20261103-processing", "20261103-output", "20261103-failed"]
    assert bash("flw", "work", "") == [*newest, "20261102-waits", "20261101-waits", "20261100-waits"]
    assert bash("flw", "--wait", "work/", "20261101") == ["20261101-waits"]
    assert bash("flw", "work", "none") == []


@pytest.mark.parametrize("written", ['"my work"', "'my work'", r"my\ work", "$PWD/'my work'"])
def test_bash_finds_the_workspace_as_it_was_written(bash: Bash, written: str) -> None:
    assert bash("flw", written, "2") == ["20261101-spaced"]


def test_bash_finds_a_workspace_at_home(bash: Bash, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    assert bash("flw", "~/work", "20261102") == ["20261102-waits"]


@pytest.mark.parametrize(
    "written", ["$(touch ran)", "`touch ran`", "work;touch ran", "a touch ran", '"$(touch ran)"']
)
def test_bash_runs_nothing_that_stands_in_the_line(bash: Bash, here: Path, written: str) -> None:
    assert bash("flw", written, "") == []
    assert not (here / "ran").exists()


def test_bash_lists_fifty_jobs_at_most(bash: Bash, here: Path) -> None:
    for number in range(200):
        (here / "work" / "output" / f"20261104-{number:03}").mkdir()
    assert bash("flw", "work", "") == [f"20261104-{number:03}" for number in range(199, 149, -1)]


def test_bash_lists_nothing_of_a_folder_that_is_no_workspace(bash: Bash) -> None:
    assert bash("flw", "empty", "") == []
    assert bash("flw", "nowhere", "") == []


def test_bash_knows_verbs_and_what_they_take(demo_bash: Bash) -> None:
    assert demo_bash("demo", "r") == ["rm", "retry"]
    assert demo_bash("demo", "rm", "--o") == ["--older"]
    assert demo_bash("demo", "--o") == ["--output"]
    assert demo_bash("demo", "rm", "--older", "7d", "work", "20261101-waits", "20261102") == ["20261102-waits"]
    # A folder of a verb's name is a workspace where a verb has been.
    assert demo_bash("demo", "rm", "r") == []


def test_bash_offers_jobs_as_the_value_of_an_option(demo_bash: Bash) -> None:
    assert demo_bash("demo", "work", "--after", "20261102") == ["20261102-waits"]


def test_bash_offers_no_options_after_two_dashes(demo_bash: Bash) -> None:
    assert demo_bash("demo", "--", "--o") == []


# A shell at its prompt.


class Terminal:
    """A shell in a terminal: keys go in; F12 has it tell the line that it holds."""

    def __init__(self, command: list[str], start: str) -> None:
        self._seen = ""
        self._child, self._terminal = pty.fork()
        if self._child == 0:
            os.environ.update(TERM="xterm", PS1="> ", HISTFILE="/dev/null", ZDOTDIR="/nonexistent")
            os.execv(command[0], command)
        os.set_blocking(self._terminal, False)
        self.press(start)

    def press(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def read_until(self, pattern: str) -> str:
        """What was shown up to a pattern, which this waits for; it is not shown again."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := re.search(pattern, self._seen)):
            assert time.monotonic() < deadline, f"waited for {pattern!r} in {self._seen!r}"
            try:
                self._seen += re.sub(r"\x1b\[[\d;?]*[a-zA-Z]|\r", "", os.read(self._terminal, 65536).decode())
            except BlockingIOError:
                time.sleep(0.01)
        shown, self._seen = self._seen[: found.end()], self._seen[found.end() :]
        return shown

    def line(self) -> str:
        """The line as it stands; it is then cleared."""
        self.press("\x1b[24~")
        held = self.read_until(r"<<<(.*?)>>>").rpartition("<<<")[2].removesuffix(">>>")
        self.press("\x15")
        return held

    def close(self) -> None:
        os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)
        os.close(self._terminal)


# Has zsh tell its line.
TELL = """zle_highlight=(none); unsetopt beep
tell() { print -rn -- "<<<$BUFFER>>>" }; zle -N tell; bindkey "\\e[24~" tell
bindkey "^I" complete-word; bindkey "^U" kill-whole-line; echo rea""dy
"""
StartShell = Callable[[str, dict[str, Tool]], Terminal]


@pytest.fixture
def start_shell(here: Path, tmp_path: Path) -> Iterator[StartShell]:
    """Starts a shell in the folder ``here`` that has read the completion of some tools."""
    assert here
    started: list[Terminal] = []

    def start(shell: str, tools: dict[str, Tool]) -> Terminal:
        path = needs(shell)
        file = tmp_path / f"completion.{shell}"
        file.write_text(script(shell, tools))
        if shell == "bash":
            setup = f'source {file}; bind -x \'"\\e[24~": printf "<%s>" "<<$READLINE_LINE>>"\'; echo rea""dy\n'
            terminal = Terminal([path, "--norc", "--noprofile"], setup)
        else:
            setup = f"autoload -U compinit; compinit -u -D; source {file}; {TELL}"
            terminal = Terminal([path, "-f", "-i"], setup)
        started.append(terminal)
        terminal.read_until("ready")
        return terminal

    yield start
    for terminal in started:
        terminal.close()


def test_in_bash_a_key_completes_the_line(start_shell: StartShell) -> None:
    terminal = start_shell("bash", all_tools())
    for typed, completed in {
        "wrk --sch": "wrk --schema ",
        "wrk wor": "wrk work/",
        "wrk work --lines wo": "wrk work --lines wor",
        "wrk work --lines wor": "wrk work --lines wor",
        "wrk work --lines words": "wrk work --lines words.txt ",
        "wrk work --schema=words": "wrk work --schema=words.txt ",
        "flw my": r"flw my\ work/",
        r"flw my\ work/ 2": r"flw my\ work/ 20261101-spaced ",
        "flw work 20261102": "flw work 20261102-waits ",
        "nrvnad bi": "nrvnad big.gguf ",
        "nrvnad models/": "nrvnad models/small.gguf ",
        "nrvnad big.gguf wor": "nrvnad big.gguf work/",
        "nrvnad --log-level d": "nrvnad --log-level debug ",
    }.items():
        terminal.press(f"{typed}\t")
        assert terminal.line() == completed


def test_in_bash_two_keys_list_the_newest_jobs(start_shell: StartShell) -> None:
    terminal = start_shell("bash", all_tools())
    terminal.press("flw work \t")
    assert terminal.line() == "flw work 2026110"
    terminal.press("flw work 2026110\t\t")
    listed = terminal.read_until("20261100-waits")
    assert listed.index("20261103-processing") < listed.index("20261102-waits") < listed.index("20261100-waits")


def test_in_bash_verbs_stand_beside_folders(start_shell: StartShell, here: Path) -> None:
    (here / "retried").mkdir()
    terminal = start_shell("bash", demo())
    terminal.press("demo retr\t\t")
    assert set(terminal.read_until(r"ret\w+/?\s+ret\w+/?").split()) >= {"retried/", "retry"}


def test_zsh_completes_the_line(start_shell: StartShell) -> None:
    terminal = start_shell("zsh", all_tools())
    for typed, completed in {
        "wrk --sch": "wrk --schema=",
        "wrk wor": "wrk work/",
        "wrk work --lines words": "wrk work --lines words.txt ",
        "wrk work --overflow truncate-r": "wrk work --overflow truncate-right ",
        "wrk work --overflow=truncate-r": "wrk work --overflow=truncate-right ",
        "flw my": r"flw my\ work/",
        r"flw my\ work/ 2": r"flw my\ work/ 20261101-spaced ",
        "flw -w work 20261102": "flw -w work 20261102-waits ",
        "nrvnad bi": "nrvnad big.gguf ",
        "nrvnad models/": "nrvnad models/small.gguf ",
        "nrvnad --log-level d": "nrvnad --log-level debug ",
        "wrk --raw --ra": "wrk --raw --ra",
        "wrk --choices a --gram": "wrk --choices a --gram",
    }.items():
        terminal.press(f"{typed}\t")
        assert terminal.line() == completed


def test_zsh_finds_the_script_where_it_looks_for_such(here: Path, tmp_path: Path) -> None:
    (tmp_path / "functions").mkdir()
    (tmp_path / "functions" / "_nrvna").write_text(script("zsh", all_tools()))
    setup = f"fpath=({tmp_path}/functions $fpath); autoload -U compinit; compinit -u -D; {TELL}"
    terminal = Terminal([needs("zsh"), "-f", "-i"], setup)
    try:
        terminal.read_until("ready")
        for typed, completed in {
            "flw work 20261102": "flw work 20261102-waits ",
            "wrk --sch": "wrk --schema=",
        }.items():
            terminal.press(f"{typed}\t")
            assert terminal.line() == completed
    finally:
        terminal.close()
    assert here


def test_zsh_shows_what_the_options_do(start_shell: StartShell) -> None:
    terminal = start_shell("zsh", all_tools())
    terminal.press("wrk --em\t")
    assert terminal.line() == "wrk --embed "
    terminal.press("flw --re\t")
    terminal.read_until(r"--receipt +-- print how the job was answered, in JSON")


def test_zsh_lists_the_newest_jobs_first(start_shell: StartShell) -> None:
    terminal = start_shell("zsh", all_tools())
    terminal.press("flw work 2026110\t")
    listed = terminal.read_until("20261100-waits")
    assert listed.index("20261103-processing") < listed.index("20261102-waits") < listed.index("20261100-waits")


def test_zsh_finds_a_workspace_at_home(start_shell: StartShell, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    terminal = start_shell("zsh", all_tools())
    terminal.press("flw ~/work 20261102\t")
    assert terminal.line() == "flw ~/work 20261102-waits "


def test_zsh_runs_nothing_that_stands_in_the_line(start_shell: StartShell, here: Path) -> None:
    terminal = start_shell("zsh", all_tools())
    for workspace in ("$(touch ran)", "'*(e:touch ran:)'", "'w*(e:touch ran:)'"):
        terminal.press(f"flw {workspace} \t")
        assert terminal.line().rstrip() == f"flw {workspace}"
    assert not (here / "ran").exists()


def test_zsh_knows_verbs_and_what_they_take(start_shell: StartShell) -> None:
    terminal = start_shell("zsh", demo())
    for typed, completed in {
        "demo ret": "demo retry ",
        "demo wor": "demo work/",
        "demo rm --o": "demo rm --older=",
        "demo rm wor": "demo rm work/",
        "demo rm work 20261101-waits 20261102": "demo rm work 20261101-waits 20261102-waits ",
        "demo work --after 20261102": "demo work --after 20261102-waits ",
        "demo --colour=al": "demo --colour=always ",
    }.items():
        terminal.press(f"{typed}\t")
        assert terminal.line() == completed
    terminal.press("demo --a\t --after 1 --af\t")
    assert terminal.line().split() == ["demo", "--after", "--after", "1", "--after="]


# fish


class Fish:
    """What fish offers at the end of a line: each with what it says about it."""

    def __init__(self, tools: dict[str, Tool], folder: Path) -> None:
        self._script = folder / "completion.fish"
        self._script.write_text(script("fish", tools))

    def __call__(self, line: str) -> dict[str, str]:
        command = ["fish", "--no-config", "-c", "source $argv[1]; complete -C $argv[2]", str(self._script), line]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return dict(row.partition("\t")[::2] for row in done.stdout.splitlines())


@pytest.fixture
def fish(here: Path, tmp_path: Path) -> Fish:
    assert here
    needs("fish")
    return Fish(all_tools(), tmp_path)


def test_fish_completes_options_and_says_what_they_do(fish: Fish) -> None:
    assert fish("wrk --emb") == {"--embed": "turn the prompt into a vector"}
    assert fish("flw -")["-w"] == "wait until it is finished"


def test_fish_completes_values(fish: Fish) -> None:
    assert set(fish("wrk work --overflow truncate-r")) == {"truncate-right"}
    assert set(fish("wrk work --overflow=truncate-r")) == {"--overflow=truncate-right"}
    assert set(fish("wrk work --lines wor")) == {"words.txt", "work/"}


def test_fish_completes_places(fish: Fish) -> None:
    assert set(fish("wrk wo")) == {"work/"}
    assert set(fish("nrvnad ")) >= {"big.gguf", "models/"}
    assert set(fish("nrvnad models/")) == {"models/small.gguf"}
    assert set(fish("nrvnad --temp 0 big.gguf wor")) == {"work/"}
    assert fish("wrk work wor") == {}


def test_fish_lists_a_workspaces_jobs_the_newest_first(
    fish: Fish, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = ["20261103-processing", "20261103-output", "20261103-failed"]
    assert list(fish("flw -w work ")) == [*newest, "20261102-waits", "20261101-waits", "20261100-waits"]
    assert list(fish("flw 'my work' 2")) == ["20261101-spaced"]
    assert fish("flw empty 2") == {}
    monkeypatch.setenv("HOME", str(here))
    assert list(fish("flw ~/work 20261102")) == ["20261102-waits"]


def test_fish_knows_verbs_and_what_they_take(here: Path, tmp_path: Path) -> None:
    assert here
    needs("fish")
    fish = Fish(demo(), tmp_path)
    assert fish("demo ret") == {"retry": "try jobs again"}
    assert set(fish("demo wor")) == {"work/"}
    assert fish("demo rm --o") == {"--older": "only those that are older"}
    assert fish("demo --o") == {"--output": "where it goes"}
    assert set(fish("demo rm --older 7d work 20261101-waits 20261102")) == {"20261102-waits"}
    assert set(fish("demo work --after 20261102")) == {"20261102-waits"}
    assert fish("demo --af") == {"--after": "it's [odd]: with \\ and 'quotes'"}
    assert fish("demo rm ret") == {}
