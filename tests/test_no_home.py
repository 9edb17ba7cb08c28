"""A user whom the system does not know, as in a container that is run with another number: nobody knows his home."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import platformdirs
import pytest

from nrvna.errors import LibraryError, NoHomeError
from nrvna.llama.location import builds_root, user_folder

ROOT = Path(__file__).parents[1]
_AS_NOBODY = ("unshare", "--user", "--map-user=12345", "--map-group=12345")
_FOLDERS = ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "NRVNA_LLAMA_DIR")
UNKNOWN = "no home folder is known for user 12345: set HOME, or "
IN_HOME = "no home folder is known, where ~/work would be: set HOME, or name it in full"
LIBRARY = f"llama.cpp is not found: {UNKNOWN}XDG_DATA_HOME, or NRVNA_LLAMA_DIR"


def as_nobody(*command: str | Path, **folders: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python as a user without a name and without any of these ``folders``, other than those given."""
    known = {name: value for name, value in os.environ.items() if name not in _FOLDERS}
    environment = {**known, **{name: str(path) for name, path in folders.items()}}
    words = [*_AS_NOBODY, sys.executable, *map(str, command)]
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


needs_nobody = pytest.mark.skipif(
    not shutil.which("unshare") or as_nobody("-c", "").returncode != 0, reason="nobody can be made nobody here"
)


@needs_nobody
@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("-m nrvna.daemon --check MODEL", 1, f"verdict       will not work: {LIBRARY}"),
        ("-m nrvna.daemon --tune MODEL", 1, f"nrvnad: {LIBRARY}"),
        ("-m nrvna.daemon --log-level error MODEL WORKSPACE", 1, f"nrvnad: {LIBRARY}"),
        ("-m nrvna.daemon --daemonize MODEL WORKSPACE", 1, f"nrvnad: {LIBRARY}"),
        ("-m nrvna.daemon MODEL ~/work", 2, f"nrvnad: {IN_HOME}"),
        ("-m nrvna.daemon --status ~/work", 2, f"nrvnad: {IN_HOME}"),
        ("-m nrvna.wrk --init ~/work", 2, f"wrk: {IN_HOME}"),
        ("-m nrvna.wrk ~/work Hi.", 2, f"wrk: {IN_HOME}"),
        ("-m nrvna.flw ~/work", 2, f"flw: {IN_HOME}"),
        ("scripts/build_llama.py --backend cpu", 1, f"build_llama: {UNKNOWN}XDG_CACHE_HOME"),
        ("scripts/fetch_model.py", 1, f"fetch_model: {UNKNOWN}XDG_DATA_HOME"),
        ("scripts/fetch_embedder.py", 1, f"fetch_embedder: {UNKNOWN}XDG_DATA_HOME"),
    ],
)
def test_without_a_home_it_is_said_which_variable_to_set(
    command: str, code: int, said: str, model_file: Path, tmp_path: Path
) -> None:
    places = {"MODEL": str(model_file), "WORKSPACE": str(tmp_path / "work")}
    done = as_nobody(*(places.get(word, word) for word in command.split()))
    told = (done.stdout + done.stderr).splitlines()
    assert done.returncode == code, told
    assert [line for line in told if not line.startswith("trying settings")] == [said]
    assert not (ROOT / "~").exists()


@needs_nobody
def test_without_a_home_all_works_that_needs_none(model_file: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "nrvna").symlink_to(Path(platformdirs.user_data_path("nrvna")))
    assert as_nobody("-m", "nrvna.wrk", "--init", tmp_path / "work").returncode == 0
    assert as_nobody("-m", "nrvna.wrk", tmp_path / "work", "Hi.").returncode == 0
    assert "Hi." in as_nobody("-m", "nrvna.flw", tmp_path / "work").stdout
    code = "import sys, nrvna; print(len(nrvna.Workspace(sys.argv[1]).jobs()))"
    assert as_nobody("-c", code, tmp_path / "work").stdout == "1\n"
    if "NRVNA_LLAMA_DIR" not in os.environ:
        done = as_nobody("-m", "nrvna.daemon", "--check", model_file, XDG_DATA_HOME=data)
        assert done.stdout.endswith("verdict       will work\n"), done.stderr


def test_a_home_that_older_libraries_do_not_find_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platformdirs.user_data_path", lambda _: Path("~/.local/share/nrvna"))
    with pytest.raises(NoHomeError, match=r"set HOME, or XDG_DATA_HOME$"):
        user_folder("data")
    with pytest.raises(LibraryError, match=r"set HOME, or XDG_DATA_HOME, or NRVNA_LLAMA_DIR$"):
        builds_root()
