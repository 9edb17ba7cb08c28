"""The manual pages: what they say is what the tools take, and the programs that show them find no fault."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nrvna.config import SETTINGS
from nrvna.manual import man_page, page_of
from nrvna.tools import Tool, all_tools, options_of, places_of, value_of

PAGES = Path(__file__).parents[1] / "docs" / "man"
TOOLS = ("wrk", "flw", "nrvnad")


def shown(page: Path, columns: int = 80) -> str:
    """A page as a terminal of so many columns shows it, without bold and underlines."""
    if shutil.which("man") is None:
        pytest.skip("man is not installed here")
    environment = {**os.environ, "MANWIDTH": str(columns), "LC_ALL": "C.UTF-8", "MAN_KEEP_FORMATTING": ""}
    done = subprocess.run(["man", "-l", page], env=environment, capture_output=True, text=True, check=True)
    return re.sub(r".\x08|\x1b\[\d*m", "", done.stdout)


@pytest.mark.parametrize("name", TOOLS)
def test_the_page_in_docs_is_up_to_date(name: str) -> None:
    current = (PAGES / f"{name}.1").read_text() == page_of(name)
    assert current, "make them anew: python -m nrvna.manual --write docs/man"


def test_the_command_prints_the_page() -> None:
    command = [sys.executable, "-m", "nrvna.manual", "wrk"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == page_of("wrk")


@pytest.mark.parametrize("name", TOOLS)
def test_the_page_shows_every_argument_at_80_columns(name: str) -> None:
    text = shown(PAGES / f"{name}.1")
    assert max(len(line) for line in text.splitlines()) <= 80
    parser = all_tools()[name].parser
    for action in options_of(parser):
        entry = " ".join(filter(None, (", ".join(action.option_strings), value_of(action))))
        assert re.search(rf"^ +{re.escape(entry)}(\s|$)", text, re.M), entry
    for action in places_of(parser):
        assert re.search(rf"^ +{value_of(action)}\s", text, re.M)


@pytest.mark.parametrize("name", TOOLS)
def test_the_page_has_the_sections_that_readers_look_for(name: str) -> None:
    headings = re.findall(r"^([A-Z ]+)$", shown(PAGES / f"{name}.1"), re.M)
    wanted = ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXAMPLES", "EXIT STATUS", "FILES", "SEE ALSO"]
    assert [heading for heading in headings if heading in wanted] == wanted


def test_the_daemons_page_names_every_variable_with_its_default() -> None:
    text = shown(PAGES / "nrvnad.1")
    section = text.partition("\nENVIRONMENT\n")[2].partition("\nEXAMPLES\n")[0]
    for setting in SETTINGS:
        default = str(setting.shown_default or setting.default).strip("`")
        words = f"{setting.variable} as {setting.daemon_option}; default: {default}"
        assert words.replace(" ", "") in re.sub(r"\s", "", section)


@pytest.mark.parametrize("name", TOOLS)
def test_groff_finds_no_fault(name: str) -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed here")
    command = ["groff", "-man", "-Tutf8", "-ww", str(PAGES / f"{name}.1")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", TOOLS)
def test_mandoc_finds_no_fault(name: str) -> None:
    if shutil.which("mandoc") is None:
        pytest.skip("mandoc is not installed here")
    command = ["mandoc", "-Tlint", "-Wwarning", str(PAGES / f"{name}.1")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def odd_tool() -> Tool:
    epilog = """Prose of more
than one line.

notes:
  .hidden   a file's name
  'quoted'  \\n is not a new line

exit codes:
  0  well, or
     nearly
  3  not so well
"""
    parser = argparse.ArgumentParser(
        prog="odd-tool", description="Do odd things. And then .more of them.", epilog=epilog
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help=".first, then 'second' → third")
    parser.add_argument("--back-slash", metavar="X", help=r"takes \fBa\fR and 100%% of `~/x^2`")
    parser.add_argument("--secret", help=argparse.SUPPRESS)
    parser.add_argument("--hue", choices=["red", "blue"], default="red", help="a colour; %(default)s by itself")
    verb = argparse.ArgumentParser(prog="odd-tool undo", description="Undo it.")
    verb.add_argument("--all", action="store_true", help="everything")
    return Tool(parser, {"undo": verb})


@pytest.fixture
def odd_page(tmp_path: Path) -> Path:
    page = tmp_path / "odd-tool.1"
    page.write_text(man_page(odd_tool(), has_environment=False, files={"./a-b": "it"}, see_also=["wrk", "flw"]))
    return page


def test_a_page_shows_what_roff_would_take_for_its_own(odd_page: Path) -> None:
    text = re.sub(r"[ \n]+", " ", shown(odd_page))
    assert odd_page.read_text().isascii()
    assert r"takes \fBa\fR and 100% of ~/x^2" in text
    assert ".first, then 'second' → third" in text
    assert ".hidden a file's name 'quoted' \\n is not a new line" in text
    assert "EXIT STATUS 0 well, or nearly 3 not so well" in text
    assert "{red,blue} a colour; red by itself" in text
    assert "--secret" not in text
    assert "Prose of more than one line." in text
    assert "SEE ALSO wrk(1), flw(1)" in text


def test_a_page_tells_of_verbs(odd_page: Path) -> None:
    text = re.sub(r"[ \n]+", " ", shown(odd_page))
    assert "odd-tool [options] NAME ..." in text
    assert "COMMANDS undo odd-tool undo [options] Undo it. -h, --help" in text
    assert "--all everything" in text


def test_groff_finds_no_fault_with_what_is_odd(odd_page: Path) -> None:
    test_groff_finds_no_fault(str(odd_page.with_suffix("")))
