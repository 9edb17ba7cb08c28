"""What is built for, from what was asked and what is there."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import cuda_toolkit
import pytest
from build_target import Cuda, Target, TargetError, choose_targets
from cuda_toolkit import ToolkitError
from nvidia_tools import fake_nvcc, fake_nvidia_smi

without_metal = pytest.mark.skipif(platform.system() == "Darwin", reason="macOS builds for Metal")


@pytest.fixture(autouse=True)
def no_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of NVIDIA's is found but what a test puts into its folder."""
    for variable in ("CUDACXX", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(cuda_toolkit, "PREFIXES", ())
    fake_nvidia_smi(tmp_path, "No devices were found", 6)


def test_one_backend_or_several_each_once() -> None:
    assert choose_targets("cpu", None) == [Target("cpu")]
    assert choose_targets("cuda, cpu,cuda", "90,80") == [Target("cuda", ("80", "90")), Target("cpu")]


def test_builds_for_different_gpus_have_different_names() -> None:
    assert [Target("cpu").label, Target("cuda", ("80", "120a")).label] == ["cpu", "cuda-80.120a"]


def test_a_backend_that_there_is_not_is_refused() -> None:
    with pytest.raises(TargetError, match=r"--backend is 'cpu,vulkan', but must be auto, cpu, .*: 'vulkan' is none"):
        choose_targets("cpu,vulkan", None)


@without_metal
def test_metal_is_refused_where_there_is_none() -> None:
    with pytest.raises(TargetError, match="--backend metal is for macOS"):
        choose_targets("metal", None)


@without_metal
def test_auto_is_the_cpu_where_no_gpu_is_found(tmp_path: Path) -> None:
    fake_nvcc(tmp_path)
    assert choose_targets("auto", None) == [Target("cpu")]


@without_metal
def test_auto_is_cuda_where_a_gpu_and_a_compiler_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi(tmp_path, "8.9")
    monkeypatch.setenv("CUDACXX", str(fake_nvcc(tmp_path)))
    assert choose_targets("auto", None) == [Target("cuda", ("89",))]


@without_metal
def test_auto_says_that_a_gpu_goes_unused_for_want_of_a_compiler(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_nvidia_smi(tmp_path, "8.9")
    assert choose_targets("auto", None) == [Target("cpu")]
    assert "there is an NVIDIA GPU, but no nvcc: building for the CPU alone" in capsys.readouterr().err


@without_metal
def test_auto_is_cuda_where_gpus_are_named() -> None:
    assert choose_targets("auto", "all-major") == [Target("cuda", ("all-major",))]


def test_cuda_is_built_for_the_gpus_that_are_there(tmp_path: Path) -> None:
    fake_nvidia_smi(tmp_path, "9.0\n8.0")
    both = [Target("cuda", ("80", "90"))]
    assert choose_targets("cuda", None) == choose_targets("cuda", "native") == both


def test_cuda_without_a_gpu_asks_what_to_build_for() -> None:
    with pytest.raises(TargetError, match=r"no NVIDIA GPU is to be seen here .*: name what to build for"):
        choose_targets("cuda", None)


def test_without_nvcc_it_is_said_where_it_was_looked_for() -> None:
    with pytest.raises(TargetError, match=r"no nvcc: it is not on PATH, nor where CUDACXX, .*set CUDA_HOME"):
        Cuda.find(Target("cuda", ("90",)))


def test_an_architecture_that_nvcc_does_not_know_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDACXX", str(fake_nvcc(tmp_path)))
    with pytest.raises(ToolkitError, match="does not compile for 100"):
        Cuda.find(Target("cuda", ("100",)))


def test_a_toolkit_that_compiles_is_taken_with_all_that_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDACXX", str(fake_nvcc(tmp_path)))
    found = Cuda.find(Target("cuda", ("all-major",)))
    assert found.architectures == ("50", "80", "90")
    assert f"CUDA 12.4.131 ({os.environ['CUDACXX']}), for 50, 80, 90" in capsys.readouterr().err
