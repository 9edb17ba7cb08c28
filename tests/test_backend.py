"""Which build a daemon computes with, and what it says of that."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from nvidia_driver import fake_cuda_library, fake_driver, without_driver
from processes import DaemonProcess, command

from nrvna.config import llama_dir
from nrvna.llama.location import GPU_BACKENDS, choose_build, find_build
from nrvna.workspace import Workspace

StartDaemon = Callable[..., DaemonProcess]

SHORT = ("--predict", "8", "--temp", "0", "--parallel", "1", "--ctx", "512")


@pytest.fixture
def builds(tmp_path: Path, model_file: Path) -> Path:
    """A folder with the real CPU build and one for CUDA that has the same files, a library for CUDA beside them."""
    assert model_file
    own = find_build(llama_dir(), "cpu")
    root = tmp_path / "builds"
    root.mkdir()
    (root / "real-cpu").symlink_to(own.directory)
    cuda = root / "made-cuda"
    cuda.mkdir()
    for file in own.directory.iterdir():
        if file.is_file() and file.name != "build.json":
            (cuda / file.name).symlink_to(file)
    fake_cuda_library(cuda)
    replace(own, directory=cuda, backend="cuda", toolkit="13.0", architectures=("90",)).write()
    return root


@without_driver
def test_a_daemon_with_a_cuda_build_and_no_driver_answers_on_the_cpu_and_says_why(
    start_daemon: StartDaemon, workspace: Workspace, builds: Path
) -> None:
    daemon = start_daemon(workspace.path, "--llama-dir", str(builds), *SHORT)
    [said] = [line for line in daemon.log.splitlines() if "runs on the CPU" in line]
    assert f"runs on the CPU: the cuda build in {builds / 'made-cuda'}: there is no NVIDIA driver here (" in said
    assert re.search(r"ready: .* on cpu, ", daemon.log)
    assert "offloaded" not in daemon.log
    queued = command("wrk", workspace.path, "Name a river.")
    assert command("flw", "-w", workspace.path, queued.stdout.strip()).returncode == 0


@without_driver
def test_a_daemon_that_was_told_to_use_cuda_does_not_start_without_a_driver(
    workspace: Workspace, builds: Path, model_file: Path
) -> None:
    environment = {"NRVNA_BACKEND": "cuda", "NRVNA_LLAMA_DIR": str(builds)}
    done = command("daemon", str(model_file), workspace.path, env=environment)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("nrvnad: cuda was asked for, but cannot be used: the cuda build in ")
    assert "there is no NVIDIA driver here" in last


def test_a_daemon_that_was_told_to_use_the_cpu_looks_for_no_gpu(
    start_daemon: StartDaemon, workspace: Workspace, builds: Path
) -> None:
    daemon = start_daemon(workspace.path, "--llama-dir", str(builds), "--backend", "cpu", *SHORT)
    assert "runs on the CPU" not in daemon.log
    assert re.search(r"ready: .* on cpu, ", daemon.log)


@without_driver
def test_gpus_that_were_named_are_missed_with_the_reason(
    workspace: Workspace, builds: Path, model_file: Path
) -> None:
    environment = {"NRVNA_LLAMA_DIR": str(builds)}
    for gpus in ("0", "0,1"):
        done = command("daemon", "--gpus", gpus, str(model_file), workspace.path, env=environment)
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert last.startswith(
            f"nrvnad: NRVNA_GPUS is {gpus}, but llama.cpp computes on the CPU here: the cuda build "
        )
        assert "there is no NVIDIA driver here" in last
    checked = command("daemon", "--check", "--gpus", "0", str(model_file), env=environment)
    assert "there is no NVIDIA driver here" in checked.stdout


@without_driver
def test_engines_that_were_told_to_share_the_processor_miss_no_gpu(
    start_daemon: StartDaemon, workspace: Workspace, builds: Path
) -> None:
    daemon = start_daemon(workspace.path, "--llama-dir", str(builds), "--replicas", "2", *SHORT)
    assert "runs on the CPU" not in daemon.log


def load(root: Path, backend: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    code = """
import sys
from pathlib import Path
from nrvna.errors import LibraryError
from nrvna.llama import load_library
try:
    library = load_library(Path(sys.argv[1]), sys.argv[2])
    print(library.build.directory.name, library.is_loss, library.passed_over)
except LibraryError as error:
    sys.exit(str(error))
"""
    return subprocess.run(
        [sys.executable, "-c", code, str(root), backend], capture_output=True, text=True, env=environment, check=False
    )


def test_a_gpu_that_a_fake_driver_promised_and_the_library_does_not_find_is_an_error_if_it_was_asked_for(
    builds: Path, tmp_path: Path
) -> None:
    environment = fake_driver(tmp_path / "driver")
    said = f"the cuda build in {builds / 'made-cuda'} finds no GPU"
    assert load(builds, "auto", environment).stdout == f"made-cuda True {said}\n"
    done = load(builds, "cuda", environment)
    assert done.returncode == 1
    assert done.stderr == f"cuda was asked for, but cannot be used: {said}\n"


def test_check_says_why_no_gpu_would_compute(builds: Path, model_file: Path, tmp_path: Path) -> None:
    environment = fake_driver(tmp_path / "driver", code=999) | {"NRVNA_LLAMA_DIR": str(builds)}
    done = command("daemon", "--check", str(model_file), env=environment)
    assert done.returncode == 0
    assert re.search(
        r"^runs on +CPU, \d+ threads; the cuda build in .* does not start: CUDA_ERROR", done.stdout, re.M
    )


def test_a_gpu_holds_all_layers_and_the_daemon_says_what_it_has_left(
    start_daemon: StartDaemon, workspace: Workspace, model_file: Path
) -> None:
    assert model_file
    if choose_build(llama_dir()).build.backend not in GPU_BACKENDS:
        pytest.skip(f"no GPU: {choose_build(llama_dir()).passed_over}")
    daemon = start_daemon(workspace.path, *SHORT)
    row = re.search(
        r"offloaded +(\d+) of (\d+) layers; (\w+) (\d+) MiB of weights, (\d+) of (\d+) MiB free", daemon.log
    )
    assert row, daemon.log
    assert row[1] == row[2] == "31"
    assert 60 < int(row[4]) < 120
    assert 0 < int(row[5]) < int(row[6])
