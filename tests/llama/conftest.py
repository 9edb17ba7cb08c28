from __future__ import annotations

import platform
from pathlib import Path

import pytest
from build_llama import Pin, PinnedSource, compile_kernels

from nrvna.config import llama_dir
from nrvna.llama import load_library
from nrvna.llama.location import KERNELS


@pytest.fixture(scope="session", params=["as built", "AVX2"])
def kernels_file(request: pytest.FixtureRequest, model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nrvna's kernels as they were built for this processor, and as they would be for one without AVX-512."""
    assert model_file
    folder = load_library(llama_dir()).build.directory
    if not (folder / KERNELS).exists():
        pytest.skip("this platform lets no kernels in")
    if request.param == "as built":
        return folder / KERNELS
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("no x86 processor")
    target = tmp_path_factory.mktemp("kernels") / KERNELS
    tree = PinnedSource(Pin.read()).tree()
    compile_kernels(tree, folder, target, "-mno-avx512f", f"-Wl,-rpath,{folder}")
    return target
