"""What a wheel of nrvna puts where, beside the package itself."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from nrvna.completion import script
from nrvna.manual import page_of
from nrvna.tools import all_tools

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of a freshly built wheel that go into the environment's share folder."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {
            name.partition("/data/share/")[2]: archive.read(name).decode()
            for name in archive.namelist()
            if "/data/share/" in name
        }


def test_manual_pages_lie_where_man_looks(shared: dict[str, str]) -> None:
    pages = {name: text for name, text in shared.items() if name.startswith("man/")}
    assert pages == {f"man/man1/{name}.1": page_of(name) for name in all_tools()}


def test_completion_lies_where_the_shells_look(shared: dict[str, str]) -> None:
    for name in all_tools():
        assert shared[f"bash-completion/completions/{name}"] == script("bash", all_tools())
        assert shared[f"fish/vendor_completions.d/{name}.fish"] == script("fish", all_tools())
    assert shared["zsh/site-functions/_nrvna"] == script("zsh", all_tools())
