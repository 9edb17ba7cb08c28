"""Another user's hands on a workspace: it is said that they may not, and never that there is nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from claims import file_away

from nrvna import control, verbs
from nrvna.batch import output, queueing
from nrvna.client import Workspace as Client
from nrvna.config import Config
from nrvna.daemon import main as nrvnad
from nrvna.errors import WorkspaceError
from nrvna.flw import main as flw
from nrvna.live import watch
from nrvna.serving import Daemon
from nrvna.workspace import Workspace
from nrvna.wrk import main as wrk

# Loaded before the user changes: another may not be able to read this Python.
LOADED = (control, verbs, output, queueing, watch)
NOBODY = 65534
PLACES = ("the workspace", "the folder above", "the workspace's own folder", "all but its name")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def as_nobody(action: Callable[[], int]) -> tuple[int, str]:
    """The exit code, and what was said on either stream."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = os.fdopen(write, "w")
        code = 99
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            code = action()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 98
        except WorkspaceError as error:
            print(f"WorkspaceError: {error}", file=sys.stderr)
            code = 97
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(code)
    os.close(write)
    with os.fdopen(read) as said:
        text = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Workspace]:
    """A workspace with a finished job, in folders that anybody may enter as far as the workspace itself."""
    above = [folder for folder in tmp_path.parents if folder.name.startswith(("pytest-", "popen-"))]
    modes = {folder: folder.stat().st_mode for folder in above}
    for folder in (*above, tmp_path):
        folder.chmod(0o755)
    (tmp_path / "above").mkdir(mode=0o755)
    workspace = Workspace(tmp_path / "above" / "work")
    workspace.create()
    file_away(workspace, "q", "an answer")
    yield workspace
    for folder, mode in modes.items():
        folder.chmod(mode)


def close(workspace: Workspace, place: str) -> None:
    """Let others come as far as that place."""
    path = Path(workspace.path)
    if place == "the folder above":
        path.chmod(0o755)
        path.parent.chmod(0o700)
    elif place == "the workspace's own folder":
        for folder in (path, *map(Path, (workspace.input, workspace.processing, workspace.output, workspace.failed))):
            folder.chmod(0o755)
    elif place == "all but its name":
        # What is in it can be reached, but not be listed.
        path.chmod(0o711)


CALLS = [
    *(
        "WORK",
        "WORK ID",
        "WORK ID --receipt",
        "WORK ID --prompt",
        "WORK --json",
        "-w WORK",
        "-w WORK ID",
        "-f WORK ID",
    ),
    *("stats WORK", "export WORK", "cancel WORK ID", "retry WORK ID --again", "rm WORK ID", "purge WORK --older 1d"),
    *("--batches WORK", "--batch x WORK", "--watch WORK"),
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("call", CALLS)
def test_flw_says_that_another_users_workspace_may_not_be_read(shared: Workspace, call: str, place: str) -> None:
    [job] = shared.jobs()
    close(shared, place)
    words = call.replace("WORK", shared.path).replace("ID", job.id).split()
    assert as_nobody(lambda: flw(words)) == (2, f"flw: cannot read {shared.path}: Permission denied\n")


@pytest.mark.parametrize("place", PLACES)
def test_wrk_says_that_another_users_workspace_may_not_be_read(shared: Workspace, place: str, tmp_path: Path) -> None:
    file = tmp_path / "lines.txt"
    file.write_text("a\n")
    close(shared, place)
    for more in (["Hi."], ["--lines", str(file)], ["--batch", str(file)], ["--after", "@1", "Hi."]):
        assert as_nobody(lambda more=more: wrk([shared.path, *more])) == (  # type: ignore[misc]
            2,
            f"wrk: cannot read {shared.path}: Permission denied\n",
        )


@pytest.mark.parametrize("place", PLACES[:2])
def test_a_workspace_of_another_user_is_not_made_either(shared: Workspace, place: str) -> None:
    close(shared, place)
    assert as_nobody(lambda: wrk(["--init", shared.path])) == (
        1,
        f"wrk: cannot make {shared.path}: Permission denied\n",
    )


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", ["--status", "--stop"])
def test_nrvnad_says_that_another_users_workspace_may_not_be_read(shared: Workspace, way: str, place: str) -> None:
    close(shared, place)
    assert as_nobody(lambda: nrvnad([way, shared.path])) == (
        2,
        f"nrvnad: cannot read {shared.path}: Permission denied\n",
    )


@pytest.mark.parametrize("place", PLACES[:2])
def test_a_daemon_does_not_start_on_another_users_workspace(shared: Workspace, place: str, tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF")
    close(shared, place)

    def start() -> int:
        Daemon(shared, model, Config()).start()
        return 0

    assert as_nobody(start) == (97, f"WorkspaceError: cannot make {shared.path}: Permission denied\n")


@pytest.mark.parametrize("place", PLACES)
def test_python_is_told_by_a_workspace_error(shared: Workspace, place: str) -> None:
    close(shared, place)

    def use() -> int:
        Client(shared.path)
        return 0

    assert as_nobody(use) == (97, f"WorkspaceError: cannot read {shared.path}: Permission denied\n")


def test_a_job_that_is_another_users_alone_is_not_shown_as_empty(shared: Workspace) -> None:
    [job] = shared.jobs()
    close(shared, "the workspace's own folder")
    Path(shared.private).chmod(0o755)
    for folder in (shared.keys, shared.priority, shared.batches):
        if Path(folder).is_dir():
            Path(folder).chmod(0o755)
    refusal = f"cannot read {job.directory}: Permission denied\n"
    for more in ([], ["--receipt"], ["--prompt"], ["--reasoning"], ["--json"], ["-f"], ["-w"]):
        assert as_nobody(lambda more=more: flw([shared.path, job.id, *more])) == (2, f"flw: {refusal}")  # type: ignore[misc]

    def ask(what: Callable[[], object]) -> tuple[int, str]:
        return as_nobody(lambda: bool(what()))

    found = Client(shared.path).job(job.id)
    assert found.result() == "an answer"
    for what in (found.result, found.receipt, found.reasoning, lambda: found.prompt):
        assert ask(what) == (97, f"WorkspaceError: {refusal}")
    # In a list it stands among those that may be read.
    code, said = as_nobody(lambda: flw([shared.path]))
    assert code == 0 and said.startswith(f"{job.id}  done")


def test_files_that_may_not_be_read_are_not_said_to_be_missing(shared: Workspace, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    os.chown(mine, NOBODY, NOBODY)
    secret = tmp_path / "secret"
    secret.mkdir(mode=0o700)
    (secret / "a.txt").write_text("a")
    for pattern in (f"{secret}/*.txt", f"{secret}/a.txt", f"{secret}/**/*.txt"):

        def queue(pattern: str = pattern) -> int:
            Workspace(mine / "work").create()
            return wrk([str(mine / "work"), "Review:", "--each", pattern])

        assert as_nobody(queue) == (2, f"wrk: cannot read {secret}: Permission denied\n")
    assert shared.jobs()
