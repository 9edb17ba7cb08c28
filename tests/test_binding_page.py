"""What docs/binding.md shows is what there is: programs, signatures, members and exceptions."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nrvna.errors
import nrvna.llama

PAGE = (Path(__file__).parents[1] / "docs" / "binding.md").read_text()
PROGRAM = re.compile(r"```python\n(.*?)```\n\n```console\n\$ python (\S+) (\S+)\n(.*?)```", re.DOTALL)
PROGRAMS = {match[2]: match for match in PROGRAM.finditer(PAGE)}
# Loads the build that the tests use, then runs the file as "python FILE MODEL" does.
RUN = """
import runpy, sys
from nrvna.config import llama_dir
from nrvna.llama import load_library
load_library(llama_dir())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_every_program_of_the_page_shows_what_it_prints() -> None:
    assert len(PROGRAMS) == PAGE.count("```python\n") >= 4


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_prints_what_the_page_says(
    name: str, model_file: Path, embedder_file: Path, tmp_path: Path
) -> None:
    code, _, model, output = PROGRAMS[name].groups()
    [file] = [file for file in (model_file, embedder_file) if file.name == model]
    program = tmp_path / name
    program.write_text(code)
    command = [sys.executable, "-c", RUN, str(program), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == output


SIGNATURES = re.findall(r"^\w+\([^`]*?\)$", "\n".join(re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)), re.M)


@pytest.mark.parametrize("shown", SIGNATURES, ids=lambda shown: shown.partition("(")[0])
def test_a_constructor_takes_what_the_page_says(shown: str) -> None:
    name, _, parameters = shown.partition("(")
    function = ast.parse(f"def {name}({parameters}: pass").body[0]
    signature = inspect.signature(getattr(nrvna.llama, name))
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    real = ast.parse(f"def {name}{inspect.Signature(bare)}: pass").body[0]
    assert ast.dump(function) == ast.dump(real)


def members(heading: str) -> list[tuple[str, str]]:
    """The class and the name of each member that the table of a section tells of."""
    section = re.split(r"^#", PAGE.partition(f"### {heading}\n")[2], maxsplit=1, flags=re.M)[0]
    table = section.partition("| Member |")[2].partition("\n\n")[0]
    found, owner = [], heading
    for cell in re.findall(r"^\| (`.*?) \|", table, re.M):
        for span in re.findall(r"`(.*?)`", cell):
            *owners, name = span.partition("(")[0].split(".")
            owner = owners[0] if owners else owner
            found.append((owner, name))
    return found


# What objects of the binding call on each other.
INTERNAL = {"let_go", "output_all"}
MEMBERS = [*members("Model"), *members("Context and Batch"), *members("Sampler")]


def test_the_members_that_the_page_names_exist() -> None:
    assert len(MEMBERS) > 50
    missing = [f"{owner}.{name}" for owner, name in MEMBERS if not hasattr(getattr(nrvna.llama, owner), name)]
    assert missing == []


@pytest.mark.parametrize("owner", ["Model", "Context", "Batch", "Sampler"])
def test_the_page_names_every_public_member(owner: str) -> None:
    public = {name for name in vars(getattr(nrvna.llama, owner)) if not name.startswith("_")}
    assert public - {name for named, name in MEMBERS if named == owner} - {"close"} - INTERNAL == set()


def test_the_page_names_all_that_the_package_exports() -> None:
    assert [name for name in nrvna.llama.__all__ if not re.search(rf"\b{name}\b", PAGE)] == []


def test_the_exceptions_of_the_page_are_what_they_are_said_to_be() -> None:
    rows = re.findall(r"^\| (`\w*Error`(?:, `\w+`)*) \| ([^|]*) \|", PAGE, re.M)
    assert len(rows) > 8
    for names, bases in rows:
        found = [getattr(nrvna.errors, name, None) or getattr(builtins, name) for name in re.findall(r"\w+", names)]
        said = [getattr(nrvna.errors, name, None) or getattr(builtins, name) for name in re.findall(r"\w+", bases)]
        for error, base in zip(found, said, strict=True) if said else ():
            assert issubclass(error, base)
