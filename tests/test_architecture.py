"""The design's rules on who may import whom, and what the tools may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "nrvna"

# Room by room, what each may import of nrvna. "nrvna" itself holds the version.
ALLOWED = {
    # Loads them when they are asked for.
    "__init__": {"client", "handle", "request", "job", "errors"},
    "errors": set(),
    "config": {"jsontext", "errors"},
    "environment": {"config"},
    "job": {"errors"},
    "jsontext": {"errors"},
    "files": {"jsontext", "errors"},
    "terminal": set(),
    "arguments": {"terminal"},
    "columns": set(),
    "progress": {"jsontext"},
    "lines": set(),
    "task": {"errors", "jsontext"},
    "ask": {"config", "grammar", "lines", "task", "errors", "jsontext"},
    "asked": {"config", "request", "order", "task", "errors"},
    "durations": {"errors"},
    "prompts": {"order", "results", "lines", "errors"},
    "pile": {"workspace", "order", "lines", "prompts", "asked", "errors", "jsontext"},
    "order": {"job", "errors", "jsontext"},
    "results": {"order", "errors"},
    "parents": {"workspace", "job", "order", "results", "files", "lines", "errors"},
    "priorities": {"workspace"},
    "workspace": {"job", "order", "files", "lines", "jsontext", "submit", "progress", "errors"},
    "submit": {"workspace", "job", "order", "results", "files", "jsontext", "errors"},
    "lease": {
        *("workspace", "parents", "priorities", "job", "order", "files", "lines", "progress", "jsontext", "errors"),
    },
    "finished": {"lease", "submit", "workspace", "job", "files", "errors"},
    "service": {"environment"},
    "logs": {"config", "job", "jsontext"},
    "limits": set(),
    "startpage": {"config", "engine", "terminal", "workspace"},
    "control": {"config", "environment", "files", "terminal", "workspace", "errors"},
    "tune": {"config", "engine", "terminal", "errors"},
    "grammar": {"grammar", "jsontext", "errors"},
    "batch": {
        *("batch", "workspace", "job", "order", "task", "config", "grammar", "files", "lines", "jsontext"),
        *("terminal", "errors"),
    },
    "wrk": {
        *("workspace", "order", "lines", "prompts", "pile", "ask", "collect", "selection", "durations", "arguments"),
        *("batch", "terminal", "errors"),
    },
    "live": {"live", "workspace", "files", "progress", "job", "columns", "terminal", "config", "errors"},
    "placement": {"config", "environment", "engine", "errors"},
    "replica": {"placement", "engine", "lease", "limits", "errors"},
    "dispatch": {"replica", "lease"},
    "filing": {"replica", "lease", "job", "errors"},
    "troubles": {"errors"},
    "serving": {
        *("replica", "dispatch", "filing", "troubles", "placement", "service", "startpage", "engine"),
        *("workspace", "lease", "progress", "job", "task", "config", "errors"),
    },
    "daemon": {
        *("serving", "control", "tune", "placement", "engine", "workspace", "service", "logs", "config"),
        *("environment", "arguments", "terminal", "errors"),
    },
    "tools": {"wrk", "flw", "daemon"},
    "manual": {"tools", "arguments", "config"},
    "completion": {"completion", "tools", "arguments", "config"},
    # From Python: what is asked, how it is waited for, jobs, and the workspace.
    "request": {"handle", "order", "results", "task", "config", "grammar", "errors", "jsontext"},
    "watch": {"workspace", "awaiting", "job", "files", "errors"},
    "awaiting": {"watch", "workspace"},
    "handle": {"watch", "lease", "job", "task", "files", "jsontext", "errors"},
    "client": {"handle", "request", "watch", "workspace", "job", "order", "errors"},
    "selection": {"workspace", "job", "order", "files", "errors"},
    "which": {"selection", "durations", "arguments", "errors"},
    "outlook": {"workspace", "job", "order", "errors"},
    "waiting": {"workspace", "outlook", "columns", "terminal", "errors"},
    "facts": {"selection", "job"},
    "listing": {"selection", "facts", "job", "files", "lines", "durations", "columns", "terminal"},
    "collect": {"workspace", "waiting", "outlook", "job", "terminal", "errors"},
    "export": {"workspace", "selection", "facts", "job", "files", "errors"},
    "stats": {"selection", "job", "lines", "terminal"},
    "verbs": {
        *("workspace", "lease", "finished", "selection", "which", "collect", "export", "stats", "waiting"),
        *("job", "files", "arguments", "terminal", "errors"),
    },
    "flw": {
        *("workspace", "selection", "which", "listing", "collect", "waiting", "verbs", "job", "arguments"),
        *("live", "batch", "terminal", "errors"),
    },
    "llama": {"llama", "errors"},
    "engine": {
        *("engine", "llama", "grammar", "config", "environment", "job", "task", "progress", "logs", "limits"),
        *("lines", "jsontext", "errors"),
    },
}
# The engine's side of the pipe, of which the daemon loads the part that needs no model.
DAEMON_MAY_LOAD = {"nrvna.engine.process", "nrvna.engine.protocol"}
HEAVY = {"numpy", "cffi", "_cffi_backend", "jinja2", "platformdirs"}


def room_of(module: str) -> str:
    return module.split(".")[1] if module.count(".") else ""


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_the_rooms_it_may(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    own = {name for name in imports_of(path) if name.split(".")[0] == "nrvna"}
    assert {room_of(name) for name in own} - {""} <= ALLOWED.get(room, set())


@pytest.mark.parametrize(
    "path",
    [
        path
        for folder in ("", "grammar", "live", "completion", "batch")
        for path in sorted((PACKAGE / folder).glob("*.py"))
    ],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_daemon_and_tools_import_the_standard_library_alone(path: Path) -> None:
    others = {name.split(".")[0] for name in imports_of(path)} - {"nrvna"}
    assert others <= set(sys.stdlib_module_names)


def loaded_by(module: str) -> set[str]:
    code = f"import sys, {module}; print(*sys.modules, sep='\\n')"
    return set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )


@pytest.mark.parametrize("module", ["nrvna.wrk", "nrvna.flw", "nrvna.daemon"])
def test_no_tool_loads_numpy_cffi_or_the_model(module: str) -> None:
    loaded = loaded_by(module)
    assert not HEAVY & loaded
    assert {name for name in loaded if name.startswith("nrvna.llama")} == set()


def test_wrk_and_flw_load_nothing_of_the_engine() -> None:
    for module in ("nrvna.wrk", "nrvna.flw"):
        assert not any(name.startswith(("nrvna.engine", "nrvna.batch")) for name in loaded_by(module))


def test_the_daemon_loads_only_the_engines_end_of_the_pipe() -> None:
    engine = {name for name in loaded_by("nrvna.daemon") if name.startswith("nrvna.engine.")}
    assert engine == DAEMON_MAY_LOAD


def users_of(*attributes: str) -> set[str]:
    """The modules that call these functions of os, or methods of their names."""
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute) or node.attr not in attributes:
                continue
            # A string's replace is no transition.
            if node.attr != "replace" or (isinstance(node.value, ast.Name) and node.value.id == "os"):
                found.add(path.name)
    return found


def test_only_submission_lease_and_what_comes_after_move_jobs() -> None:
    assert users_of("rename", "renames", "replace") == {"files.py"}
    movers = {path.name for path in SOURCES if names_imported_by(path, "nrvna.files") & {"move", "replace"}}
    assert movers == {"submit.py", "lease.py", "finished.py"}


def test_only_the_files_room_waits_for_the_disk() -> None:
    assert users_of("fsync", "fdatasync", "sync") == {"files.py"}


def names_imported_by(path: Path, module: str) -> set[str]:
    return {
        alias.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == module
        for alias in node.names
    }


def test_only_the_runner_touches_the_model_of_the_engine() -> None:
    users = {path.name for path in (PACKAGE / "engine").glob("*.py") if "nrvna.llama" in imports_of(path)}
    # prompt.py and renderer.py tokenise, chain.py says what a sampler is made of, check.py looks at a model without
    # running it, fitting.py how much of it fits, two try it out before it serves, embedder.py and encoder.py run it
    # for jobs that want no text, devices.py looks for GPUs before there is a model, and asks where its weights went.
    assert users == {
        "runner.py",
        "prompt.py",
        "renderer.py",
        "chain.py",
        "check.py",
        "fitting.py",
        "devices.py",
        "shape.py",
        "reproducible.py",
        "embedder.py",
        "encoder.py",
    }
