"""What the tests share: the real model, daemons as real processes, and workspaces."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import fetch_embedder
import pytest
from fetch_model import model_path
from hypothesis import settings
from make_models import LAST, RANK, make_bert, make_decoder
from processes import DaemonProcess

from nrvna.config import llama_dir
from nrvna.errors import LibraryError
from nrvna.llama import Model, load_library
from nrvna.llama.location import find_build
from nrvna.workspace import Workspace

Rounds = Callable[..., int]

# Machines that are shared have slow moments; what must be quick is measured in benchmarks.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
# What the daemon sets for its engine, for the engines in this process: it is read when llama.cpp is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# Reproducible mode does without some of ggml's tiles.
os.environ.setdefault("GGML_CPU_TILED_MM", "0")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also the tests that take seconds each, as in CI")
    parser.addoption("--long", action="store_true", help="break things for minutes instead of seconds")


def pytest_configure(config: pytest.Config) -> None:
    # Whatever asks for the end of the tests is not to leave their daemons behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    config.addinivalue_line("markers", "slow: takes seconds; left out of a run of everything unless it is asked for")
    # What is named is wanted, however long it takes. Workers of xdist are told what was decided.
    names_some = config.option.keyword or config.args_source is not pytest.Config.ArgsSource.TESTPATHS
    if names_some or config.option.long or os.environ.get("CI") == "true":
        config.option.slow = True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.slow:
        return
    config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("slow")])
    items[:] = [item for item in items if not item.get_closest_marker("slow")]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not config.option.slow:
        terminalreporter.write_line("Tests that take seconds each were left out: ./scripts/test --slow")


@pytest.fixture(scope="session")
def rounds(request: pytest.FixtureRequest) -> Rounds:
    """How often a test repeats what only repetition finds: a few times by default, more in CI, most with --long."""

    def choose(*, quick: int, ci: int, long: int) -> int:
        if request.config.getoption("--long"):
            return long
        return ci if os.environ.get("CI") == "true" else quick

    return choose


@pytest.fixture(scope="session")
def model_file() -> Path:
    """SmolLM2-135M-Instruct, with llama.cpp loaded to use it. ``./scripts/test`` provides both."""
    path = model_path()
    assert path.exists(), "run ./scripts/test once: it fetches the model"
    load_library(llama_dir())
    return path


@pytest.fixture(scope="session")
def model(model_file: Path) -> Model:
    return Model(model_file)


@pytest.fixture(scope="session")
def embedder_file(model_file: Path) -> Path:
    """all-MiniLM-L6-v2, a real embedding model. ``./scripts/test`` provides it."""
    assert model_file
    path = fetch_embedder.model_path()
    assert path.exists(), "run ./scripts/test once: it fetches the embedding model"
    return path


@pytest.fixture(scope="session")
def embedding_model(embedder_file: Path) -> Model:
    return Model(embedder_file)


@pytest.fixture(scope="session")
def tiny_models(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models with random weights: rerankers of both kinds, an embedder that began as a decoder, and a decoder."""
    assert model_file
    folder = tmp_path_factory.mktemp("models")
    return {
        "reranker": make_bert(folder / "reranker.gguf", pooling=RANK),
        "decoding reranker": make_decoder(folder / "decoding-reranker.gguf", pooling=RANK),
        "decoding embedder": make_decoder(folder / "decoding-embedder.gguf", pooling=LAST),
        "decoder": make_decoder(folder / "decoder.gguf", pooling=None),
    }


@pytest.fixture(scope="session")
def peers() -> Path:
    """The folder of llama.cpp's own programs, for golden tests."""
    try:
        folder = find_build(llama_dir()).directory / "bin"
    except LibraryError:
        folder = Path("/nonexistent")
    if not folder.exists():
        pytest.skip("llama.cpp's programs are not built: python scripts/build_llama.py --peers")
    return folder


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """An empty workspace that no daemon serves."""
    made = Workspace(tmp_path / "workspace")
    made.create()
    return made


@pytest.fixture
def start_daemon(model_file: Path, tmp_path: Path) -> Iterator[Callable[..., DaemonProcess]]:
    """Starts real daemons, and ends those that still run when the test is over."""
    started: list[DaemonProcess] = []

    def start(
        workspace: Path | str,
        *options: str,
        model: Path = model_file,
        wait: bool = True,
        address_space: int | None = None,
    ) -> DaemonProcess:
        log = tmp_path / f"daemon-{len(started)}.log"
        daemon = DaemonProcess(model, workspace, options, log, address_space)
        started.append(daemon)
        if wait:
            daemon.wait_ready()
        return daemon

    yield start
    for daemon in started:
        daemon.kill()


@pytest.fixture(scope="session")
def served(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A workspace with a daemon that all tests may share: short greedy answers."""
    folder = tmp_path_factory.mktemp("served")
    options = ("--predict", "24", "--temp", "0", "--parallel", "4", "--ctx", "1024")
    daemon = DaemonProcess(model_file, folder / "workspace", options, folder / "daemon.log")
    daemon.wait_ready()
    yield Workspace(folder / "workspace")
    daemon.kill()


@pytest.fixture(autouse=True, scope="session")
def _plain_environment() -> None:
    """Settings of whoever runs the tests stay out of them, and so does a shell or nohup that has signals ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for name in [
        name for name in os.environ if name.startswith(("NRVNA_", "LLAMA_LOG")) and name != "NRVNA_LLAMA_DIR"
    ]:
        del os.environ[name]
