"""CUDA's compiler: found, asked what it is, and tried before anything long begins."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_toolkit import Parts, Toolkit, ToolkitError, find_nvcc, gpus_here, parse_architectures
from nvidia_tools import fake_nvcc, fake_nvidia_smi


def test_a_variable_names_the_compiler_before_path_does(tmp_path: Path) -> None:
    on_path, home, named = (fake_nvcc(tmp_path / name) for name in ("path", "home", "named"))
    environ = {"PATH": str(on_path.parent), "CUDA_HOME": str(tmp_path / "home"), "CUDACXX": str(named)}
    found = []
    for variable in ("CUDACXX", "CUDA_HOME", "PATH"):
        found.append(find_nvcc(environ, prefixes=()))
        del environ[variable]
    assert found == [named, home, on_path]


def test_of_toolkits_that_are_not_on_path_the_newest_is_taken(tmp_path: Path) -> None:
    for version in ("9.2", "12.10", "12.4"):
        fake_nvcc(tmp_path / f"cuda-{version}")
    assert find_nvcc({"PATH": "/nonexistent"}, [tmp_path]) == tmp_path / "cuda-12.10" / "bin" / "nvcc"


def test_the_link_that_an_installer_made_is_taken_before_the_newest(tmp_path: Path) -> None:
    fake_nvcc(tmp_path / "cuda-13.0")
    (tmp_path / "cuda").symlink_to(fake_nvcc(tmp_path / "cuda-12.4").parents[1])
    assert find_nvcc({"PATH": "/nonexistent"}, [tmp_path]) == tmp_path / "cuda" / "bin" / "nvcc"


def test_no_compiler_is_none(tmp_path: Path) -> None:
    assert find_nvcc({"PATH": str(tmp_path), "CUDA_HOME": str(tmp_path)}, [tmp_path]) is None


def test_the_gpus_architectures_are_asked_of_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    fake_nvidia_smi(tmp_path, "9.0\n8.0\n9.0\n12.0")
    assert gpus_here() == ("80", "90", "120a")
    fake_nvidia_smi(tmp_path, "No devices were found", 6)
    assert gpus_here() == ()
    fake_nvidia_smi(tmp_path, 'Field "compute_cap" is not a valid field to query.', 2)
    with pytest.raises(ToolkitError, match=r"too old to tell .* name them, as in --cuda-arch 80,90"):
        gpus_here()


def test_a_machine_without_nvidia_smi_has_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus_here() == ()


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("90", ("90",)),
        (" 90, 80,90 ", ("80", "90")),
        ("100,90a-real,86-virtual", ("86-virtual", "90a-real", "100")),
        ("120,121-real", ("120a", "121a-real")),
        ("all-major", ("all-major",)),
    ],
)
def test_architectures_are_named_as_cmake_does(text: str, meant: tuple[str, ...]) -> None:
    assert parse_architectures(text) == meant


@pytest.mark.parametrize("text", ["", "sm_90", "90,all", "9", "hopper", "80;90"])
def test_what_names_no_architecture_is_refused(text: str) -> None:
    with pytest.raises(ToolkitError, match="must be numbers with commas between them"):
        parse_architectures(text)


def test_a_compute_capability_is_told_how_it_is_written() -> None:
    with pytest.raises(ToolkitError, match=r"\(compute capability 8\.6 is 86\)$"):
        parse_architectures("8.6")


def test_a_toolkit_says_its_version_its_folder_and_what_it_knows(tmp_path: Path) -> None:
    toolkit = Toolkit.of(fake_nvcc(tmp_path))
    assert (toolkit.version, toolkit.major, toolkit.root) == ("12.4.131", 12, tmp_path.resolve())
    assert toolkit.known == (50, 80, 86, 89, 90)


def test_a_toolkit_that_is_too_old_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match=r"is of CUDA 10\.2\.131, but llama\.cpp needs 11\.0 or newer"):
        Toolkit.of(fake_nvcc(tmp_path, release="10.2"))
    with pytest.raises(ToolkitError, match="does not say its version"):
        Toolkit.of(Path("/bin/true"))
    with pytest.raises(ToolkitError, match="nonexistent does not run"):
        Toolkit.of(Path("/nonexistent"))


def test_an_architecture_that_the_toolkit_does_not_know_is_refused_before_compiling(tmp_path: Path) -> None:
    toolkit = Toolkit.of(fake_nvcc(tmp_path))
    toolkit.check(("80", "90a-real"))
    toolkit.check(("all",))
    with pytest.raises(ToolkitError, match=r"does not compile for 120a, but for 50, .*: take a newer CUDA"):
        toolkit.check(("90", "120a"))
    with pytest.raises(ToolkitError, match=r"does not compile for 37, .*: take an older CUDA, or leave that GPU out"):
        toolkit.check(("37",))


def test_all_major_is_the_first_of_each_generation(tmp_path: Path) -> None:
    toolkit = Toolkit.of(fake_nvcc(tmp_path, known=(75, 80, 86, 87, 90, 100, 103, 120, 121)))
    assert toolkit.expand(["all-major"]) == ("75", "80", "90", "100", "120a")
    assert len(toolkit.expand(["all"])) == 9
    assert toolkit.expand(["86"]) == ("86",)


NO_PARTS = Parts((), (), ())


@pytest.mark.parametrize(
    ("complaint", "advice"),
    [
        (
            "trial.cu:1:10: fatal error: cublas_v2.h: No such file or directory",
            "cuBLAS is missing, of which llama.cpp needs version 12: install it .* pip install nvidia-cublas-cu12$",
        ),
        (
            "host_config.h:143:2: error: #error -- unsupported GNU version! gcc versions later than 13 are not",
            "does not compile here: .*unsupported GNU version.*; name an older C\\+\\+ compiler with CUDAHOSTCXX",
        ),
        ("nvcc fatal   : Failed to preprocess host compiler properties.", "does not compile here: nvcc fatal"),
    ],
)
def test_what_hinders_the_compiler_is_said_with_what_to_do(tmp_path: Path, complaint: str, advice: str) -> None:
    toolkit = Toolkit.of(fake_nvcc(tmp_path, complaint=complaint))
    with pytest.raises(ToolkitError, match=advice) as caught:
        toolkit.try_out(("90",), NO_PARTS)
    assert "\n" not in str(caught.value)


def package(folder: Path, name: str, major: int) -> Path:
    """cuBLAS as NVIDIA's Python packages have it, its files empty; what holds the packages."""
    root = folder / "nvidia" / name
    (root / "include").mkdir(parents=True)
    (root / "include" / "cublas_v2.h").touch()
    (root / "lib").mkdir()
    for library in ("libcublas", "libcublasLt"):
        (root / "lib" / f"{library}.so.{major}").touch()
    return folder / "nvidia"


@pytest.mark.parametrize(("release", "name"), [("12.4", "cublas"), ("13.0", "cu13")])
def test_cublas_is_taken_from_nvidias_python_package_where_the_toolkit_has_none(
    tmp_path: Path, release: str, name: str
) -> None:
    toolkit = Toolkit.of(fake_nvcc(tmp_path / "cuda", release=release))
    packages = package(tmp_path, name, toolkit.major)
    own = tmp_path / "cuda" / "lib64"
    own.mkdir()
    (own / "libcudart.so").touch()
    parts = Parts.of(toolkit, [packages])
    assert parts.flags == ("-isystem", str(packages / name / "include"))
    assert [library.name for library in parts.cublas] == [
        f"libcublas.so.{toolkit.major}",
        f"libcublasLt.so.{toolkit.major}",
    ]
    assert parts.folders == (own.resolve(), packages / name / "lib")


def test_the_toolkits_own_cublas_is_enough(tmp_path: Path) -> None:
    toolkit = Toolkit.of(fake_nvcc(tmp_path / "cuda"))
    own = tmp_path / "cuda" / "lib64"
    own.mkdir()
    for library in ("libcudart.so", "libcublas.so"):
        (own / library).touch()
    assert Parts.of(toolkit, [package(tmp_path, "cublas", 12)]) == Parts((), (), (own.resolve(),))


def test_the_cublas_of_another_cuda_is_not_taken(tmp_path: Path) -> None:
    toolkit = Toolkit.of(fake_nvcc(tmp_path / "cuda", release="13.0"))
    assert Parts.of(toolkit, [package(tmp_path, "cublas", 12)]).cublas == ()


def test_cmake_is_told_of_cublas_by_links_without_a_version_and_of_a_driver_to_link_against(tmp_path: Path) -> None:
    toolkit = Toolkit.of(fake_nvcc(tmp_path / "cuda"))
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "pool.cu").write_text("CU_CHECK(cuMemCreate(&handle, size)); cudaMalloc(&other); cuMemMap(pool);")
    scratch = tmp_path / "scratch"
    options = Parts.of(toolkit, [package(tmp_path, "cublas", 12)]).options(toolkit, scratch, sources)
    for name in ("cublas", "cublasLt"):
        assert f"-DCUDA_{name}_LIBRARY={scratch}/lib{name}.so" in options
        assert (scratch / f"lib{name}.so").resolve().name == f"lib{name}.so.12"
    driver = scratch / "stubs" / "libcuda.so"
    assert f"-DCUDA_cuda_driver_LIBRARY={driver}" in options
    # In a process of its own: from then on it is the driver wherever one is looked for by name.
    look = (
        "import ctypes, sys; library = ctypes.CDLL(sys.argv[1]); "
        "print(library.cuMemCreate(), library.cuMemMap(), hasattr(library, 'cudaMalloc'))"
    )
    done = subprocess.run([sys.executable, "-c", look, driver], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.split() == ["999", "999", "False"]


def test_a_real_nvcc_compiles_or_says_what_it_lacks() -> None:
    nvcc = find_nvcc()
    if not nvcc:
        pytest.skip("there is no nvcc here")
    toolkit = Toolkit.of(nvcc)
    assert toolkit.known and (toolkit.root / "bin").is_dir()
    newest = str(toolkit.known[-1])
    parts = Parts.of(toolkit)
    if parts.flags or any(toolkit.root.rglob("cublas_v2.h")):
        toolkit.try_out((newest,), parts)
    else:
        with pytest.raises(ToolkitError, match="cuBLAS is missing"):
            toolkit.try_out((newest,), parts)
