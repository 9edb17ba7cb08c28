"""Which build is taken, and that half a build never is."""

from __future__ import annotations

from pathlib import Path

import pytest

from nrvna.errors import LibraryError
from nrvna.llama.location import MANIFEST, Build, cpu_fingerprint, find_build, module_name


def make(root: Path, backend: str = "cpu", *, built: str = "2026-01-01", cpu: str = "", module: bool = True) -> Path:
    """A finished build, as far as the files tell."""
    folder = root / f"{built}-{backend}"
    folder.mkdir()
    build = Build(folder, "0c1e5709", backend, cpu or cpu_fingerprint(), built, "cc", ("-DX=ON",))
    if module:
        build.module.touch()
    build.write()
    return folder


def test_the_newest_build_is_taken(tmp_path: Path) -> None:
    make(tmp_path, built="2026-01-01")
    newest = make(tmp_path, built="2026-03-01")
    make(tmp_path, built="2026-02-01")
    assert find_build(tmp_path).directory == newest


def test_a_gpu_build_is_preferred_to_a_newer_one_for_the_cpu(tmp_path: Path) -> None:
    gpu = make(tmp_path, "cuda", built="2026-01-01")
    make(tmp_path, "cpu", built="2026-02-01")
    assert find_build(tmp_path).directory == gpu


def test_one_builds_own_folder_can_be_named(tmp_path: Path) -> None:
    make(tmp_path, "cuda")
    own = make(tmp_path, "cpu")
    assert find_build(own).directory == own


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = make(tmp_path)
    build = Build.read(folder)
    assert build == Build(folder, "0c1e5709", "cpu", cpu_fingerprint(), "2026-01-01", "cc", ("-DX=ON",))


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
