"""The build script, as far as it goes without compiling; ./scripts/test itself runs the rest."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import build_llama
import pytest
from packages import ChecksumError, check_sha256, sha256_of

ROOT = Path(__file__).parents[2]


def test_the_pin_names_a_commit_a_version_and_a_checksum() -> None:
    pin = build_llama.Pin.read()
    assert pin.commit == "0c1e57098bba43ac29e6e3b677cdceebdd22334f"
    assert (pin.package, pin.version) == ("llama-cpp-python", "0.3.36")
    assert re.fullmatch("[0-9a-f]{64}", pin.sha256)
    assert tomllib.loads((ROOT / "vendor" / "llama_cpp.toml").read_text())["archive"]["sha256"] == pin.sha256


def test_content_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "archive"
    file.write_bytes(b"good")
    good = sha256_of(file)
    check_sha256(file, good)
    file.write_bytes(b"evil")
    with pytest.raises(ChecksumError, match="nothing of it was used"):
        check_sha256(file, good)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("[12/78] Building CXX object src/CMakeFiles/llama.dir/llama-model.cpp.o", "12 of 78 files  llama-model.cpp"),
        ("[78/78] Linking CXX shared library bin/libllama.so", "78 of 78 files  libllama.so"),
        ("ninja: no work to do.", None),
    ],
)
def test_progress_shows_which_of_how_many_files(line: str, shown: str | None) -> None:
    assert build_llama._ninja_progress(line) == shown


def run(*options: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "build_llama.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


def test_a_second_run_finds_the_build_and_does_nothing() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "build_llama.py")], capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).is_dir()
    assert "compiling" not in done.stderr and "fetching" not in done.stderr


def test_a_source_that_is_no_checkout_is_said_in_one_line(tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = run("--source", str(tmp_path), env=env)
    assert done.returncode == 1
    assert done.stderr == f"build_llama: --source {tmp_path} is no llama.cpp checkout: it has no include/llama.h\n"


@pytest.mark.parametrize("compiler", ["no-such-compiler", ""])
def test_a_machine_without_a_compiler_is_told_what_to_install(tmp_path: Path, compiler: str) -> None:
    env = {"HOME": str(tmp_path), "PATH": str(tmp_path), "CXX": compiler}
    done = run("--backend", "cpu", env=env)
    assert done.returncode == 1
    assert done.stderr.startswith("build_llama: no C++ compiler: install one")
    assert done.stderr.count("\n") == 1
