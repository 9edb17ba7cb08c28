"""Whatever keeps jobs safe is there for a reason that some test knows: take it away, and that test fails.

The sites are found in the source: every wait for the disk, every move that replaces nothing, every lock.
"""

from __future__ import annotations

import ast
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import NamedTuple

import pytest

import nrvna

Rounds = Callable[..., int]
PACKAGE = Path(nrvna.__file__).parent
TESTS = Path(__file__).parents[1]
SOURCES = ("files.py", "workspace.py", "submit.py", "lease.py", "finished.py")
# A test that hangs has noticed as well.
PATIENCE_S = 120
POWER_CUTS, RACES = "faults/test_power_cut.py", "faults/test_protocol_races.py"
FOLDERS, JOBS_IN = "test_workspace.py", "test_submit.py"
# Those of the tests that take long and know nothing of this.
LEFT_OUT = (
    "not crowd and not thousand_jobs and not arrives_as_it_was_given and not moves_is_always_found and not kill"
)
WORKERS = 2


class Mutant(NamedTuple):
    """A piece of a source file, what stands there instead, and where a test that minds is looked for first."""

    file: str
    line: int
    original: str
    changed: str
    column: int
    end_line: int
    end_column: int
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.original} -> {self.changed}"

    def apply(self, package: Path) -> None:
        path = package / self.file
        lines = path.read_bytes().splitlines(keepends=True)
        head, tail = lines[self.line - 1][: self.column], lines[self.end_line - 1][self.end_column :]
        lines[self.line - 1 : self.end_line] = [head + self.changed.encode() + tail]
        path.write_bytes(b"".join(lines))


def mutants() -> list[Mutant]:
    return [mutant for name in SOURCES for mutant in _mutants_of(name)]


def _mutants_of(name: str) -> Iterator[Mutant]:
    source = (PACKAGE / name).read_text()
    for node in ast.walk(ast.parse(source)):
        for part, changed, tests in _changes(node):
            assert part.end_lineno is not None and part.end_col_offset is not None
            original = ast.get_source_segment(source, part)
            assert original is not None
            yield Mutant(
                name, part.lineno, original, changed, part.col_offset, part.end_lineno, part.end_col_offset, tests
            )


def _changes(node: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, str, tuple[str, ...]]]:
    durable, other = (POWER_CUTS, FOLDERS), (RACES, FOLDERS, JOBS_IN)
    match node:
        # Waits for the disk.
        case ast.Expr(ast.Call(ast.Name("sync" | "sync_tree" | "_flush") | ast.Attribute(_, "fsync"))):
            yield node, "pass", durable
        case ast.Call(ast.Name("_sync_file_system")):
            yield node, "True", durable
        case ast.Call(ast.Attribute(_, "syncfs")):
            yield node, "0", other
        case ast.Call(ast.Name("write" | "append" as name), _, keywords):
            given = [keyword.value for keyword in keywords if keyword.arg == "durable"]
            if not given and name == "write":
                yield node, f"{ast.unparse(node)[:-1]}, durable=False)", durable
            elif given and not (isinstance(given[0], ast.Constant) and given[0].value is False):
                yield given[0], "False", durable
        # Moves that replace nothing.
        case ast.Call(ast.Name("move") as function):
            yield function, "os.rename", other
        case ast.Call(_, arguments):
            for argument in arguments:
                if isinstance(argument, ast.Name) and argument.id == "_RENAME_NOREPLACE":
                    yield argument, "0", other
    match node:
        case ast.If(ast.Call(ast.Attribute(_, "lexists")) as test, [ast.Raise()]):
            yield test, "False", other
        # Locks.
        case ast.Expr(ast.Call(ast.Attribute(_, "flock"))):
            yield node, "pass", other
        case ast.BinOp(left, ast.BitOr(), ast.Attribute(_, "LOCK_NB")):
            yield node, ast.unparse(left), other
        case ast.Call(ast.Name("locked") as function, [_, *kinds]):
            yield node, "suppress()" if kinds else "__import__('contextlib').nullcontext(True)", other
    for kind, instead in (("LOCK_EX", "LOCK_SH"), ("LOCK_SH", "LOCK_EX")):
        for place in _arguments(node):
            for part in ast.walk(place):
                if isinstance(part, ast.Attribute) and part.attr == kind:
                    yield part, f"fcntl.{instead}", other


def _arguments(node: ast.AST) -> list[ast.expr]:
    """What a lock's kind can be given by."""
    match node:
        case ast.Call(ast.Name("locked") | ast.Attribute(_, "flock"), arguments):
            return arguments
        case ast.FunctionDef("locked"):
            return node.args.defaults
    return []


def test_mutants_are_found_wherever_something_is_kept_safe() -> None:
    source = "".join((PACKAGE / name).read_text() for name in SOURCES)
    found = [mutant.original for mutant in mutants()]
    for text in ("sync(", "write(", "move", "fcntl.flock(", "os.fsync(", "locked("):
        assert sum(text in original for original in found), text
    assert sum(original == "move" for original in found) == source.count(" move(") - source.count("def move(")


def copied_package(folder: Path, mutant: Mutant | None = None) -> Path:
    """The package's sources in a folder of their own, with one change; the folder is to be imported from."""
    package = folder / "nrvna"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    if mutant:
        mutant.apply(package)
    return folder


def run_tests(copy: Path, names: tuple[str, ...]) -> tuple[bool, str]:
    """Whether the tests pass with that package, and what they said."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("CI", None)
    command = [sys.executable, "-P", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-k", LEFT_OUT]
    try:
        done = subprocess.run(
            [*command, f"--basetemp={copy / 'tests'}", *(str(TESTS / name) for name in names)],
            cwd=TESTS.parent,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, "it hung"
    # Anything else is no verdict: a copy that cannot be imported, tests that are not found.
    assert done.returncode in (0, 1), done.stdout
    return done.returncode == 0, done.stdout


def test_the_tests_pass_with_a_copy_that_is_not_changed(tmp_path: Path, rounds: Rounds) -> None:
    if not rounds(quick=0, ci=1, long=1):
        pytest.skip("these tests run anyway here: with CI=true or --long")
    copy = copied_package(tmp_path)
    place = [sys.executable, "-P", "-c", "import nrvna; print(nrvna.__file__)"]
    found = subprocess.run(
        place, env={**os.environ, "PYTHONPATH": str(copy)}, capture_output=True, text=True, check=True
    )
    assert Path(found.stdout.strip()).parent == copy / "nrvna"
    passed, said = run_tests(copy, (POWER_CUTS, FOLDERS, RACES))
    assert passed, said


@pytest.mark.slow
def test_nothing_that_keeps_jobs_safe_can_be_taken_away_unnoticed(tmp_path: Path, rounds: Rounds) -> None:
    every = mutants()
    number = rounds(quick=2, ci=len(every), long=len(every))
    chosen = every if number >= len(every) else random.Random(date.today().toordinal()).sample(every, number)

    def survives(mutant: Mutant) -> str | None:
        folder = tmp_path / str(every.index(mutant))
        folder.mkdir()
        passed, said = run_tests(copied_package(folder, mutant), mutant.tests)
        shutil.rmtree(folder)
        print(f"{mutant}: {'survived' if passed else _first_failure(said)}")
        return str(mutant) if passed else None

    with ThreadPoolExecutor(WORKERS) as pool:
        survivors = [name for name in pool.map(survives, chosen) if name]
    assert survivors == []


def _first_failure(said: str) -> str:
    return next((line for line in said.splitlines() if line.startswith("FAILED")), said)[:150]
