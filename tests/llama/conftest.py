from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
from build_llama import Pin, PinnedSource, compile_kernels
from vocabularies import SMOLLM2, VOCABULARIES, Vocabulary, vocabulary_file

from nrvna.config import llama_dir
from nrvna.llama import Model, load_library
from nrvna.llama.location import KERNELS


@pytest.fixture(scope="session")
def source() -> Path:
    """The pinned source of llama.cpp, fetched if it is not there."""
    return PinnedSource(Pin.read()).tree()


@pytest.fixture(scope="session")
def library_folder(model_file: Path) -> Path:
    """llama.cpp's build, for processes that load it themselves."""
    assert model_file
    return load_library().build.directory


@pytest.fixture(scope="session", params=VOCABULARIES)
def vocabulary_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def vocabulary(vocabulary_name: str, source: Path, model_file: Path) -> Iterator[Model]:
    """Each vocabulary that llama.cpp's source ships, and SmolLM2's."""
    file = model_file if vocabulary_name == SMOLLM2 else vocabulary_file(source, vocabulary_name)
    with Model(file, vocab_only=True) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def promised(vocabulary_name: str) -> Vocabulary:
    return VOCABULARIES[vocabulary_name]


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
