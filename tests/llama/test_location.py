"""Which build is taken and why, and that half a build never is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from build_llama import compile_processor, instructions
from nvidia_driver import fake_cuda_library, fake_driver, without_driver

from nrvna.errors import LibraryError
from nrvna.llama.location import MANIFEST, Build, choose_build, cpu_fingerprint, find_build, module_name
from nrvna.llama.processor import LIBRARY, is_x86, missing, used_by


def make(
    root: Path,
    backend: str = "cpu",
    *,
    built: str = "2026-01-01",
    cpu: str = "",
    module: bool = True,
    architectures: tuple[str, ...] = (),
    instructions: tuple[str, ...] = (),
) -> Path:
    """A finished build, as far as the files tell."""
    folder = root / f"{built}-{backend}"
    folder.mkdir()
    toolkit = "13.0" if backend == "cuda" else ""
    build = Build(
        folder,
        "0c1e5709",
        backend,
        cpu or cpu_fingerprint(),
        built,
        "cc",
        ("-DX=ON",),
        toolkit,
        architectures,
        instructions=instructions,
    )
    if instructions:
        compile_processor(folder)
    if module:
        build.module.touch()
    build.write()
    return folder


def choose_in(environment: dict[str, str], root: Path, backend: str = "auto") -> dict[str, Any]:
    """What is chosen by a process of that environment: what is loaded into this one would stay here."""
    code = """
import json, sys
from pathlib import Path
from nrvna.errors import LibraryError
from nrvna.llama.location import choose_build
try:
    build, passed_over, is_loss = choose_build(Path(sys.argv[1]), sys.argv[2])
    print(json.dumps({"name": build.directory.name, "passed_over": passed_over, "is_loss": is_loss}))
except LibraryError as error:
    print(json.dumps({"error": str(error)}))
"""
    command = [sys.executable, "-c", code, str(root), backend]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    said = json.loads(done.stdout)
    assert isinstance(said, dict)
    return said


def test_the_newest_build_is_taken(tmp_path: Path) -> None:
    make(tmp_path, built="2026-01-01")
    newest = make(tmp_path, built="2026-03-01")
    make(tmp_path, built="2026-02-01")
    assert find_build(tmp_path).directory == newest


def test_a_gpu_build_is_preferred_to_a_newer_one_for_the_cpu(tmp_path: Path) -> None:
    gpu = make(tmp_path, "metal", built="2026-01-01")
    make(tmp_path, "cpu", built="2026-02-01")
    assert choose_build(tmp_path) == (Build.read(gpu), "", False)


def test_a_cuda_build_is_taken_where_a_fake_driver_has_a_gpu_that_it_was_made_for(tmp_path: Path) -> None:
    fake_cuda_library(make(tmp_path, "cuda", architectures=("80", "90")))
    make(tmp_path, "cpu", built="2026-02-01")
    environment = fake_driver(tmp_path / "driver")
    for backend in ("auto", "cuda"):
        assert choose_in(environment, tmp_path, backend) == {
            "name": "2026-01-01-cuda",
            "passed_over": "",
            "is_loss": False,
        }
    assert choose_in(environment, tmp_path, "cpu")["name"] == "2026-02-01-cpu"


@without_driver
def test_without_a_driver_the_cpu_build_is_taken_and_the_reason_kept(tmp_path: Path) -> None:
    gpu = make(tmp_path, "cuda")
    cpu = make(tmp_path, "cpu")
    build, passed_over, is_loss = choose_build(tmp_path)
    assert build.directory == cpu
    assert passed_over.startswith(f"the cuda build in {gpu}: there is no NVIDIA driver here (libcuda.so.1: ")
    assert is_loss


@without_driver
def test_a_backend_that_was_asked_for_is_not_replaced_by_another(tmp_path: Path) -> None:
    gpu = make(tmp_path, "cuda")
    make(tmp_path, "cpu")
    with pytest.raises(LibraryError) as raised:
        choose_build(tmp_path, "cuda")
    assert str(raised.value).startswith(
        f"cuda was asked for, but cannot be used: the cuda build in {gpu}: there is no NVIDIA driver here"
    )


@without_driver
def test_a_cuda_build_alone_is_no_use_without_a_driver(tmp_path: Path) -> None:
    make(tmp_path, "cuda")
    with pytest.raises(LibraryError, match=r"no NVIDIA driver here .*; for the CPU, build it with: .*--backend cpu$"):
        choose_build(tmp_path)


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        ({"code": 100}, "NVIDIA's driver sees no GPU (none is there, or CUDA_VISIBLE_DEVICES hides it)"),
        ({"capabilities": ()}, "NVIDIA's driver sees no GPU"),
        ({"code": 999}, "NVIDIA's driver does not start: CUDA_ERROR_UNKNOWN"),
        (
            {"cuda": 12080},
            "it was made with CUDA 13.0, and the driver here serves CUDA up to 12.8: update the driver",
        ),
        (
            {"capabilities": ((7, 5),)},
            "it was made for 80, 90, which does not run on Fake GPU (compute capability 7.5): build it for that one",
        ),
        (
            {"capabilities": ((9, 0), (7, 5))},
            "it was made for 80, 90, which does not run on Fake GPU (compute capability 7.5): build it for that one, "
            "or hide GPU 1 with CUDA_VISIBLE_DEVICES",
        ),
    ],
)
def test_what_a_fake_driver_lacks_is_the_reason_why_the_cpu_build_is_taken(
    tmp_path: Path, driver: dict[str, Any], reason: str
) -> None:
    gpu = make(tmp_path, "cuda", architectures=("80", "90"))
    fake_cuda_library(gpu)
    make(tmp_path, "cpu")
    chosen = choose_in(fake_driver(tmp_path / "driver", **driver), tmp_path)
    passed_over = f"the cuda build in {gpu}: {reason}"
    assert chosen == {"name": "2026-01-01-cpu", "passed_over": passed_over, "is_loss": True}


def test_a_library_of_cuda_that_is_missing_is_named(tmp_path: Path) -> None:
    gpu = make(tmp_path, "cuda", architectures=("90",))
    fake_cuda_library(gpu, needs="libcublas_of_nowhere.so.13")
    make(tmp_path, "cpu")
    chosen = choose_in(fake_driver(tmp_path / "driver"), tmp_path)
    assert chosen["name"] == "2026-01-01-cpu"
    assert "it does not load: libcublas_of_nowhere.so.13: cannot open shared object file" in chosen["passed_over"]


def test_a_second_cuda_build_is_taken_where_the_newer_one_was_made_for_other_gpus(tmp_path: Path) -> None:
    fake_cuda_library(make(tmp_path, "cuda", architectures=("80",)))
    fake_cuda_library(make(tmp_path, "cuda", built="2026-02-01", architectures=("100",)))
    assert choose_in(fake_driver(tmp_path / "driver"), tmp_path)["name"] == "2026-01-01-cuda"


def test_a_cuda_build_computes_on_the_cpu_where_it_is_alone_and_a_fake_driver_sees_no_gpu(tmp_path: Path) -> None:
    fake_cuda_library(make(tmp_path, "cuda"))
    chosen = choose_in(fake_driver(tmp_path / "driver", code=100), tmp_path)
    assert chosen["name"] == "2026-01-01-cuda" and "sees no GPU" in chosen["passed_over"]


def test_a_gpu_of_a_fake_driver_without_a_build_for_it_is_pointed_out(tmp_path: Path) -> None:
    make(tmp_path, "cpu")
    assert choose_in(fake_driver(tmp_path / "driver"), tmp_path) == {
        "name": "2026-01-01-cpu",
        "passed_over": "there is Fake GPU (compute capability 9.0), but no build of llama.cpp for it; "
        "build it with: python scripts/build_llama.py --backend cuda",
        "is_loss": True,
    }


@without_driver
def test_a_machine_without_gpu_and_gpu_build_misses_nothing(tmp_path: Path) -> None:
    cpu = make(tmp_path, "cpu")
    assert choose_build(tmp_path) == (Build.read(cpu), "llama.cpp is built for the CPU alone", False)


def test_a_backend_that_was_never_built_says_how_to(tmp_path: Path) -> None:
    make(tmp_path, "cpu")
    with pytest.raises(LibraryError) as raised:
        choose_build(tmp_path, "cuda")
    assert str(raised.value) == (
        f"llama.cpp in {tmp_path} is built for cpu, not for cuda; "
        "build it with: python scripts/build_llama.py --backend cuda"
    )


def test_a_gpu_build_of_another_version_of_nrvna_is_passed_over_with_that_reason(tmp_path: Path) -> None:
    make(tmp_path, "cuda", module=False, architectures=("80", "90a-real"))
    cpu = make(tmp_path, "cpu")
    build, passed_over, is_loss = choose_build(tmp_path)
    assert build.directory == cpu and is_loss
    assert passed_over.endswith(
        "bring it up to date with: python scripts/build_llama.py --backend cuda --cuda-arch 80,90a-real"
    )


def test_one_builds_own_folder_can_be_named(tmp_path: Path) -> None:
    make(tmp_path, "metal")
    own = make(tmp_path, "cpu")
    assert find_build(own).directory == own


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = make(tmp_path, "cuda", architectures=("80", "90"))
    assert Build.read(folder) == Build(
        folder, "0c1e5709", "cuda", cpu_fingerprint(), "2026-01-01", "cc", ("-DX=ON",), "13.0", ("80", "90")
    )


def test_a_manifest_from_before_there_was_cuda_is_read(tmp_path: Path) -> None:
    folder = make(tmp_path)
    content = json.loads((folder / MANIFEST).read_text())
    for name in ("toolkit", "architectures", "launcher", "instructions"):
        del content[name]
    (folder / MANIFEST).write_text(json.dumps(content))
    build = Build.read(folder)
    assert build and (build.toolkit, build.architectures, build.launcher) == ("", (), "")
    assert find_build(tmp_path) == build


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"commit": "x"}'])
def test_a_folder_without_a_whole_manifest_is_no_build(tmp_path: Path, content: str | None) -> None:
    manifest = make(tmp_path) / MANIFEST
    manifest.unlink()
    if content is not None:
        manifest.write_text(content)
    with pytest.raises(LibraryError, match=r"llama\.cpp is not built"):
        find_build(tmp_path)


def test_a_build_that_is_still_being_put_together_is_not_taken(tmp_path: Path) -> None:
    folder = make(tmp_path)
    folder.rename(tmp_path / f".{folder.name}.partial")
    with pytest.raises(LibraryError, match=r"llama\.cpp is not built"):
        find_build(tmp_path)


def test_a_build_for_another_processor_is_not_loaded(tmp_path: Path) -> None:
    make(tmp_path, cpu="another")
    with pytest.raises(LibraryError, match="built for another processor; build it again with"):
        find_build(tmp_path)


def test_a_build_whose_instructions_the_processor_has_is_taken_whatever_the_kernel_says_of_it(tmp_path: Path) -> None:
    build = make(tmp_path, cpu="as an older kernel told", instructions=instructions())
    assert instructions()
    assert find_build(tmp_path).directory == build


def with_another_cpuinfo(path: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command that reads this file in place of /proc/cpuinfo."""
    mount = 'mount --bind "$0" /proc/cpuinfo && exec "$@"'
    unshare = ["unshare", "--mount", "--map-root-user", "sh", "-c", mount, path]
    return subprocess.run([*unshare, *command], capture_output=True, text=True, check=False)


@pytest.mark.skipif(
    sys.platform != "linux" or with_another_cpuinfo("/dev/null", "true").returncode != 0,
    reason="nothing can be mounted over /proc/cpuinfo here",
)
@pytest.mark.parametrize("change", ["one more", "one less", "none"])
def test_another_list_of_flags_by_the_kernel_is_no_other_processor(tmp_path: Path, change: str) -> None:
    build = make(tmp_path, instructions=instructions())
    told = Path("/proc/cpuinfo").read_text()
    cpuinfo = tmp_path / "cpuinfo"
    changed = {
        "one more": told.replace(" fpu ", " fpu user_shstk "),
        "one less": told.replace(" fpu ", " "),
        "none": "",
    }
    assert changed[change] != told
    cpuinfo.write_text(changed[change])
    code = f"""
from pathlib import Path
from nrvna.llama.location import cpu_fingerprint, find_build
print(cpu_fingerprint(), find_build(Path({str(tmp_path)!r})).directory)"""
    done = with_another_cpuinfo(str(cpuinfo), sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    fingerprint, found = done.stdout.split()
    assert fingerprint != cpu_fingerprint() and found == str(build)


@pytest.mark.parametrize("lacking", ["avx2048", "dotprod" if is_x86() else "avx2"])
def test_a_build_with_instructions_that_the_processor_has_not_names_them(tmp_path: Path, lacking: str) -> None:
    make(tmp_path, instructions=(*instructions(), lacking))
    with pytest.raises(LibraryError, match=f"another processor, this one has no {lacking}; build it again with"):
        find_build(tmp_path)


@pytest.mark.skipif(not is_x86(), reason="elsewhere the system says it")
def test_a_processor_that_cannot_be_asked_is_another(tmp_path: Path) -> None:
    build = make(tmp_path, instructions=("sse3", "ssse3"))
    (build / LIBRARY).write_bytes(b"of another machine")
    with pytest.raises(LibraryError, match="this one has no sse3, ssse3; build it again with"):
        find_build(tmp_path)


@pytest.mark.skipif(not is_x86(), reason="these are of x86")
def test_the_processor_says_the_same_here_as_to_the_compiler(tmp_path: Path) -> None:
    compile_processor(tmp_path)
    assert missing(instructions(), tmp_path) == ()
    known_to_all = (
        "sse3",
        "sse4_2",
        "popcnt",
        "avx",
        "avx2",
        "fma",
        "f16c",
        "bmi2",
        "avx512f",
        "avx512vl",
        "xop",
        "fma4",
    )
    assert missing(known_to_all, tmp_path) == tuple(name for name in known_to_all if name not in instructions())


@pytest.mark.parametrize(
    ("machine", "macros", "expected"),
    [
        ("x86_64", "#define __AVX2__ 1\n#define __AVX512F__ 1\n#define __FMA__ 1\n", ("avx2", "avx512f", "fma")),
        ("x86_64", "#define __SSE4_1__ 1\n#define __FP_FAST_FMA 1\n#define __AMX_TILE__ 1\n", ("amx_tile", "sse4_1")),
        ("aarch64", "#define __ARM_FEATURE_DOTPROD 1\n#define __ARM_NEON 1\n", ("dotprod",)),
        ("riscv64", "#define __riscv_vector 1\n", ()),
    ],
)
def test_instruction_sets_are_named_as_by_the_compilers_macros(
    monkeypatch: pytest.MonkeyPatch, machine: str, macros: str, expected: tuple[str, ...]
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert used_by(macros) == expected


def test_a_build_of_another_version_of_nrvna_says_so(tmp_path: Path) -> None:
    folder = make(tmp_path, module=False)
    (folder / "_nrvna_llama_0123456789ab.abi3.so").touch()
    with pytest.raises(LibraryError, match="of another version of nrvna; bring it up to date with"):
        find_build(tmp_path)


def test_the_modules_name_changes_with_the_declarations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = module_name()
    other = tmp_path / "declarations.h"
    other.write_text("int x;")
    monkeypatch.setattr("nrvna.llama.location.DECLARATIONS", other)
    assert module_name() != before
