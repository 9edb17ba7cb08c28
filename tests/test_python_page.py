"""What docs/python.md shows is what there is: its examples run with a real daemon, its tables name what exists."""

from __future__ import annotations

import ast
import builtins
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import DaemonProcess

import nrvna
from nrvna import Options
from nrvna.config import Sampling

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "python.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
# Says after each block what it printed, or where the page went wrong.
RUN = """
import contextlib, io, json, sys
names = {"__name__": "__main__"}
for block in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(block, block.strip().splitlines()[0], "exec"), names)
    print(json.dumps(printed.getvalue()), flush=True)
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory, model_file: Path) -> list[str]:
    """What each block of the page prints, run in their order."""
    home = tmp_path_factory.mktemp("home")
    (home / "report.txt").write_text((ROOT / "docs" / "reliability.md").read_text()[:3000])
    options = ("--ctx", "1024", "--parallel", "4", "--predict", "48")
    daemon = DaemonProcess(model_file, home / "work", options, home / "daemon.log")
    daemon.wait_ready()
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN],
        input=json.dumps(BLOCKS),
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    daemon.kill()
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(BLOCKS)), ids=[block.strip().splitlines()[-1][:40] for block in BLOCKS])
def test_an_example_prints_what_the_page_says(printed: list[str], number: int) -> None:
    lines = iter(printed[number].splitlines())
    for expected in re.findall(r"^ *print\(.*\)  # (.*)$", BLOCKS[number], re.M):
        assert expected in lines, printed[number]
    assert printed[number].strip() or "print(" not in BLOCKS[number]


SIGNATURES = re.findall(r"^[\w.]+\(.*\)$", "\n".join(re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)), re.M)


@pytest.mark.parametrize("shown", SIGNATURES, ids=lambda shown: shown.partition("(")[0])
def test_a_function_takes_what_the_page_says(shown: str) -> None:
    path, _, parameters = shown.partition("(")
    owner, _, name = path.partition(".")
    found = getattr(nrvna, owner)
    function: Callable[..., object] = getattr(found, name) if name else found
    own = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name != "self"
    ]
    real = ast.parse(f"def f{inspect.Signature(own)}: pass").body[0]
    assert ast.dump(ast.parse(f"def f({parameters}: pass").body[0]) == ast.dump(real)


@pytest.mark.parametrize("owner", ["Workspace", "Job"])
def test_the_page_names_every_public_member(owner: str) -> None:
    table = PAGE.partition("| Member |")[2].partition("\n\n")[0]
    named = set(re.findall(r"\w+", " ".join(re.findall(r"^\| (`.*?) \|", table, re.M))))
    assert {name for name in vars(getattr(nrvna, owner)) if not name.startswith("_")} <= named


def test_the_page_names_every_option() -> None:
    named = {name for cell in re.findall(r"^\| (`[^|]*) \|", PAGE, re.M) for name in re.findall(r"`(\w+)`", cell)}
    assert set(Options.__annotations__) - set(Sampling.__dataclass_fields__) <= named


def test_the_page_names_all_that_the_package_exports() -> None:
    assert [name for name in nrvna.__all__ if not name.startswith("_") and not re.search(rf"\b{name}\b", PAGE)] == []


def test_the_errors_of_the_page_are_what_they_are_said_to_be() -> None:
    rows = re.findall(r"^\| `(\w*Error)` \| `(\w+)` \|", PAGE, re.M)
    assert len(rows) == 8
    for name, base in rows:
        error = getattr(nrvna, name)
        assert issubclass(error, getattr(builtins, base, None) or getattr(nrvna, base))
        assert issubclass(error, nrvna.NrvnaError)
