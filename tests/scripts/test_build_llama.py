"""The build script, as far as it goes without compiling; ./scripts/test itself runs the rest."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import build_llama
import pytest
from build_target import Cuda, Target
from cuda_toolkit import ToolkitError, find_nvcc
from nvidia_tools import fake_nvcc, fake_nvidia_smi
from packages import ChecksumError, check_sha256, sha256_of
from processes import until

from nrvna.config import llama_dir
from nrvna.llama.location import MANIFEST, Build, find_build
from nrvna.llama.processor import LIBRARY

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


@pytest.fixture
def fresh_cache(tmp_path: Path) -> dict[str, str]:
    """An environment whose cache holds llama.cpp's source and nothing that was compiled."""
    tree = build_llama.PinnedSource(build_llama.Pin.read()).tree()
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    folder = Path(tmp_path, "cache", "nrvna", "llama")
    folder.mkdir(parents=True)
    (folder / tree.name).symlink_to(tree)
    return environment


def run(*options: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "build_llama.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


def test_a_second_run_finds_the_build_and_does_nothing() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "build_llama.py")], capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).is_dir()
    assert "compiling" not in done.stderr and "fetching" not in done.stderr


def copy_of_the_build(folder: Path) -> Path:
    """The build that the tests use, as one of its own: nothing but its record is written to."""
    build = find_build(llama_dir())
    copy = folder / build.directory.name
    copy.mkdir(parents=True)
    for file in build.directory.iterdir():
        if file.name != MANIFEST:
            (copy / file.name).symlink_to(file)
    replace(build, directory=copy).write()
    return copy


def test_a_build_from_before_instructions_were_recorded_is_kept_and_its_record_completed(
    tmp_path: Path,
) -> None:
    copy = copy_of_the_build(tmp_path)
    record = json.loads((copy / MANIFEST).read_text())
    record.pop("instructions")
    (copy / MANIFEST).write_text(json.dumps(record))
    (copy / LIBRARY).unlink(missing_ok=True)
    done = run("--backend", "cpu", "--target", str(tmp_path), env=dict(os.environ))
    assert done.returncode == 0 and "compiling" not in done.stderr
    build = Build.read(copy)
    assert build and build.instructions == build_llama.instructions() and not build.misfit()
    assert record.items() <= json.loads((copy / MANIFEST).read_text()).items()
    # A kernel that says something else of the processor.
    replace(build, cpu="another").write()
    done = run("--backend", "cpu", "--target", str(tmp_path), env=dict(os.environ))
    assert done.returncode == 0 and done.stderr == "llama.cpp is ready (0 s)\n"


def builder_of(root: Path) -> build_llama.Builder:
    return build_llama.Builder(build_llama.PinnedSource(build_llama.Pin.read()), Target("cpu"), root, 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"instructions": ("avx2048",)}, "was built for another processor, this one has no avx2048"),
        ({"instructions": (), "cpu": "another"}, "was built for another processor"),
        ({"instructions": build_llama.instructions()[1:]}, "was built for a processor without "),
    ],
)
def test_why_a_build_for_another_processor_is_made_anew_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], said: str
) -> None:
    build = Build.read(copy_of_the_build(tmp_path))
    assert build
    build = replace(build, compiler=build_llama._compiler_version(), **change)
    (build.directory / LIBRARY).unlink(missing_ok=True)
    build_llama.compile_processor(build.directory)
    build.write()
    assert builder_of(tmp_path).finished() is None
    line = capsys.readouterr().err
    assert line.startswith(f"llama.cpp in {build.directory} {said}")
    assert line.endswith(": building it again\n") and line.count("\n") == 1


def test_another_compiler_is_no_reason_to_build_again(tmp_path: Path) -> None:
    build = Build.read(copy_of_the_build(tmp_path))
    assert build
    (build.directory / LIBRARY).unlink(missing_ok=True)
    build_llama.compile_processor(build.directory)
    replace(build, compiler="cc 1.0", instructions=build_llama.instructions()[1:]).write()
    assert builder_of(tmp_path).finished()


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


def test_an_architecture_without_cuda_is_said_in_one_line(tmp_path: Path) -> None:
    done = run("--backend", "cpu", "--cuda-arch", "90", env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"})
    assert done.returncode == 1
    assert done.stderr == "build_llama: --cuda-arch 90 is for --backend cuda, not for cpu\n"


def test_a_toolkit_that_lacks_something_is_no_reason_to_go_without_a_build(tmp_path: Path) -> None:
    nvcc = fake_nvcc(tmp_path / "cuda", complaint="fatal error: cublas_v2.h: No such file or directory")
    fake_nvidia_smi(tmp_path, "9.0")
    env = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin", "CUDACXX": str(nvcc)}
    done = run(env=env)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("build_llama: cuBLAS is missing, ")
    assert done.stderr.endswith("; --backend cpu builds for the processor alone\n")


@pytest.mark.parametrize("number", ["0", "-1", "many", "1.5"])
def test_a_number_of_jobs_that_is_none_is_refused(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        build_llama.main(["--jobs", number])
    assert f"'{number}' is no number of files: give 1 or more" in capsys.readouterr().err


def options(backend: str, *architectures: str) -> list[str]:
    source = build_llama.PinnedSource(build_llama.Pin.read())
    return build_llama.cmake_options(Target(backend, architectures), source)


def test_what_a_cpu_build_is_known_by_names_no_gpu() -> None:
    assert {"-DGGML_CUDA=OFF", "-DGGML_METAL=OFF"} <= set(options("cpu"))
    assert not [option for option in options("cpu") if "ARCHITECTURES" in option]
    assert "-DGGML_METAL=ON" in options("metal")


def test_a_build_for_other_gpus_is_another_build() -> None:
    assert "-DCMAKE_CUDA_ARCHITECTURES=80;90" in options("cuda", "80", "90")
    assert options("cuda", "80") != options("cuda", "90")


@pytest.mark.parametrize(("compiler", "used"), [("c++", True), ("ccache c++", False), ("/usr/lib/ccache/c++", False)])
def test_ccache_is_used_where_it_is_there_and_not_at_work_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, used: bool
) -> None:
    (tmp_path / "ccache").write_text("#!/bin/sh\n")
    (tmp_path / "ccache").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", compiler)
    assert build_llama.ccache() == (str(tmp_path / "ccache") if used else "")


def test_without_ccache_cmake_is_told_to_forget_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build_llama.ccache() == ""
    assert "-DCMAKE_CUDA_COMPILER_LAUNCHER=" in build_llama.launcher_options("")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_build_that_is_stopped_leaves_nothing_half_built_and_no_compiler_running(
    tmp_path: Path, fresh_cache: dict[str, str], number: signal.Signals
) -> None:
    builds = tmp_path / "builds"
    command = [sys.executable, str(ROOT / "scripts" / "build_llama.py"), "--backend", "cpu", "--jobs", "1"]
    process = subprocess.Popen(
        [*command, "--target", str(builds)],
        stderr=subprocess.PIPE,
        text=True,
        env=fresh_cache,
        start_new_session=True,
    )
    assert process.stderr
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("compiling"):
            break
    cache = tmp_path / "cache" / "nrvna" / "llama"
    until(lambda: any(cache.glob("objects-*/ggml/**/*.o")), "a first file to be compiled", 60)
    # To it alone: a terminal would tell the compilers too.
    process.send_signal(number)
    said += process.stderr.readlines()
    assert process.wait(30) == 130, said
    assert re.search(r"^to compile: \d+ files; 1 at a time; .* minutes at a guess", "".join(said), re.MULTILINE)
    assert said[-1] == "build_llama: stopped; what was compiled is kept, the next run goes on from there\n"
    assert not builds.exists()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_cmake_takes_what_it_is_told_of_cuda(
    tmp_path: Path, fresh_cache: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if platform.system() == "Darwin" or not find_nvcc():
        pytest.skip("there is no nvcc here")
    target = Target("cuda", ("90",))
    try:
        cuda = Cuda.find(target)
    except ToolkitError as error:
        pytest.skip(f"CUDA is not whole here: {error}")
    monkeypatch.setenv("XDG_CACHE_HOME", fresh_cache["XDG_CACHE_HOME"])
    builder = build_llama.Builder(build_llama.PinnedSource(build_llama.Pin.read()), target, tmp_path / "builds", 1)
    builder.configure(peers=False)
    work = builder.work(["llama"])
    assert work.cuda > 100 and work.others > 50 and work.architectures == 1
    [objects] = build_llama.cache_root().glob("objects-*")
    cache = (objects / "CMakeCache.txt").read_text()
    assert re.search(r"^CMAKE_CUDA_ARCHITECTURES:\w+=90$", cache, re.MULTILINE)
    assert re.search(rf"^CMAKE_CUDA_COMPILER:\w+={re.escape(str(cuda.toolkit.nvcc))}$", cache, re.MULTILINE)
    assert "sm_90" in (objects / "build.ninja").read_text()
