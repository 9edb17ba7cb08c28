"""Damaged model files: refused in one line or loaded, soon, and never the end of a daemon that runs."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
from processes import DaemonProcess, until

from nrvna.config import Config, Sampling, llama_dir
from nrvna.engine.engine import Engine
from nrvna.engine.runner import Runner
from nrvna.engine.work import Request
from nrvna.environment import engine_environment
from nrvna.errors import JobError, NrvnaError, TemplateError, TokenizeError
from nrvna.job import JobState
from nrvna.llama import load_library
from nrvna.workspace import Workspace

StartDaemon = Callable[..., DaemonProcess]
SMALL = ("--ctx", "512", "--parallel", "1", "--temp", "0", "--predict", "4")

PATIENCE_S = 10
_MEMORY_BYTES = 4 << 30
_PAGE = 4096
_EXTREMES = (0, 1, 3, 7, 33, 255, 1 << 16, 1 << 31, 1 << 32, (1 << 40) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


class Anatomy:
    """Where in a GGUF file what lies."""

    def __init__(self, content: bytes) -> None:
        head = content[: content.rindex(b"output_norm.weight") + 64]
        self.end = len(content)
        self.data = len(head)
        vocabulary, tail = head.index(b"tokenizer.ggml.tokens"), head.index(b"tokenizer.ggml.bos_token_id")
        # Most of a header is the vocabulary, and most of a file its weights: neither can be much misunderstood.
        self._regions = {
            "numbers": (0, vocabulary),
            "vocabulary": (vocabulary, tail),
            "tensors": (tail, self.data),
            "weights": (self.data, self.end),
        }
        # A name is followed by numbers of 4 bytes, or of 4 and 8: the type of a value, its length or itself, the
        # dimensions of a tensor, its format and offset.
        names = re.finditer(rb"(general|llama|tokenizer)\.[a-z_.]+|[a-z0-9_.]+\.weight", head)
        self._fields = [name.end() for name in names if name.end() + 64 < self.data]

    def place(self, chance: random.Random) -> tuple[str, int]:
        """A region's name, and a place in it."""
        name, (start, end) = chance.choices(list(self._regions.items()), (3, 2, 3, 2))[0]
        return name, chance.randrange(start, end)

    def field(self, chance: random.Random) -> int:
        """The place of a number."""
        numbers = [at for at in self._fields if at < self._regions["vocabulary"][1]]
        tail = [at for at in self._fields if at >= self._regions["vocabulary"][1]]
        return chance.choice(chance.choice((numbers, tail))) + chance.choice((0, 4, 12, 20, 24))


@dataclass(frozen=True)
class Damage:
    """``size`` bytes are left of the file, and some of them are others."""

    name: str
    size: int
    edits: tuple[tuple[int, bytes], ...] = ()

    def __str__(self) -> str:
        places = ", ".join(f"{new[:8].hex()} at {at}" for at, new in self.edits[:2])
        return f"{self.name}, {self.size} bytes {places}"


def draw(chance: random.Random, anatomy: Anatomy, original: bytes) -> Damage:
    """Some damage as downloads, disks and memory do it."""
    kind = chance.choice(("cut", "bit", "bits", "number", "number", "hole", "noise", "misplaced"))
    region, at = anatomy.place(chance)
    end = anatomy.end

    def flipped(place: int) -> tuple[int, bytes]:
        return place, bytes([original[place] ^ 1 << chance.randrange(8)])

    match kind:
        case "cut":
            # Also within the first numbers, and in the padding at the very end.
            return Damage(f"{kind} in {region}", chance.choice((at, at, chance.randrange(64), end - 1 - at % _PAGE)))
        case "bit":
            place = chance.choice((at, anatomy.field(chance) + chance.randrange(4)))
            return Damage(f"{kind} in {region}", end, (flipped(place),))
        case "bits":
            places = sorted({min(end - 1, at + chance.randrange(_PAGE)) for _ in range(32)})
            return Damage(f"{kind} in {region}", end, tuple(map(flipped, places)))
        case "number":
            width = chance.choice((4, 8))
            value = chance.choice(_EXTREMES) & ((1 << 8 * width) - 1)
            return Damage("another number", end, ((anatomy.field(chance), value.to_bytes(width, "little")),))
    length = min(chance.choice((16, 512, _PAGE)), end - at)
    source = chance.randrange(end - length)
    new = {"hole": bytes(length), "noise": chance.randbytes(length), "misplaced": original[source : source + length]}
    return Damage(f"{kind} in {region}", end, ((at, new[kind]),))


class Patient:
    """A copy of the model that is damaged and healed again and again, without writing all of it each time."""

    def __init__(self, original: Path, folder: Path) -> None:
        self.original = original.read_bytes()
        self.anatomy = Anatomy(self.original)
        self.path = folder / "damaged.gguf"
        self.path.write_bytes(self.original)
        self._cut = folder / "cut.gguf"

    @contextmanager
    def suffering(self, damage: Damage) -> Iterator[Path]:
        """The damaged file."""
        if damage.size < self.anatomy.end:
            # What is left of the weights is a hole: that some are missing can be told by the size alone.
            self._cut.write_bytes(self.original[: min(damage.size, self.anatomy.data)])
            os.truncate(self._cut, damage.size)
            yield self._cut
            return
        with self.path.open("r+b", buffering=0) as file:
            try:
                for at, new in damage.edits:
                    os.pwrite(file.fileno(), new, at)
                yield self.path
            finally:
                for at, new in damage.edits:
                    os.pwrite(file.fileno(), self.original[at : at + len(new)], at)

    def rewritten(self, name: bytes, skip: int, new: bytes) -> Damage:
        """Other bytes, so many after a name."""
        return Damage("rewritten", self.anatomy.end, ((self.original.index(name) + len(name) + skip, new),))


class Nursery:
    """A process with llama.cpp loaded and no threads yet. It forks an engine for each file: that is quick."""

    def __init__(self, log: Path) -> None:
        self._log = log
        environment = engine_environment(Config())
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        # A GPU's driver cannot be used on both sides of a fork.
        environment["CUDA_VISIBLE_DEVICES"] = ""
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=environment,
                text=True,
            )

    def load(self, path: Path) -> tuple[str, str]:
        """What became of an engine that was to answer with that file, and why."""
        assert self._process.stdin is not None and self._process.stdout is not None
        os.truncate(self._log, 0)
        print(path, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, f"the nursery died: {self._log.read_text(errors='replace')}"
        end, reason = json.loads(line)
        log = self._log.read_text(errors="replace").splitlines()
        return end, reason or " | ".join(log[-3:] if end.startswith("died") else ())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)


def nurse() -> None:
    """The nursery's side: a path a line in, a JSON line about it out."""
    load_library(llama_dir())
    for line in sys.stdin:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            live(Path(line.removesuffix("\n")), writer)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            told = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if not told:
            died = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            told = json.dumps(["too slow" if died == "SIGALRM" else f"died of {died}", ""])
        print(told, flush=True)


def live(path: Path, pipe: int) -> NoReturn:
    """Answer a prompt, tell how that went, and end."""
    # It ends the process even where llama.cpp never returns.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(PATIENCE_S)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(2, 1)
    try:
        answer(path)
        told = ["loaded", ""]
    except NrvnaError as error:
        told = ["refused", f"{type(error).__name__}: {error}"]
    except MemoryError:
        told = ["died of MemoryError", ""]
    except BaseException as error:
        told = ["raised", repr(error)]
    os.write(pipe, json.dumps(told).encode())
    os._exit(0)


def answer(path: Path) -> None:
    """What an engine does from its start to its first answer."""
    sampling = Sampling(seed=1, predict=2)
    runner = Runner(path, Config(sampling, ctx=256, parallel=1, threads=1, gpu_layers=0))
    # As the daemon's log and --check tell it.
    print(runner.model.metadata.get("general.name"), runner.model.quantization)
    engine = Engine(runner, {})
    with suppress(JobError, TemplateError, TokenizeError):
        engine.add(Request("job", "Say yes.", "", None, sampling))
    while not engine.is_idle:
        engine.step()


@pytest.fixture(scope="module")
def patient(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Patient]:
    folder = tmp_path_factory.mktemp("damaged")
    yield Patient(model_file, folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    made = Nursery(tmp_path_factory.mktemp("nursery") / "log")
    yield made
    made.close()


@pytest.mark.slow
def test_a_damaged_model_is_refused_or_loaded_within_seconds(
    patient: Patient, nursery: Nursery, rounds: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert nursery.load(patient.path) == ("loaded", "")
    ends: Counter[str] = Counter()
    told = []
    bad = []
    slowest = 0.0
    for number in range(rounds(quick=60, ci=200, long=1500)):
        damage = draw(random.Random(number), patient.anatomy, patient.original)
        with patient.suffering(damage) as path:
            started = time.monotonic()
            end, reason = nursery.load(path)
            slowest = max(slowest, time.monotonic() - started)
        ends[end] += 1
        case = f"{number} ({damage}): {end}, {reason}"
        if end.startswith("died"):
            told.append(case)
        elif end not in ("loaded", "refused") or (end == "refused" and path.name not in reason):
            bad.append(case)
    with capsys.disabled():
        counts = ", ".join(f"{count} {end}" for end, count in ends.most_common())
        print(f"\n{ends.total()} damaged models: {counts}; the slowest took {slowest:.1f} s", *told, sep="\n  ")
    assert not bad, "\n".join(bad)
    assert ends["loaded"] and ends["refused"]


def _token(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


MISTAKEN: dict[str, Callable[[Patient], Damage]] = {
    # llama.cpp refuses these.
    "tensors": lambda patient: patient.rewritten(b"GGUF", 4, (1 << 40).to_bytes(8, "little")),
    "tensor's place": lambda patient: patient.rewritten(b"blk.7.attn_q.weight", 24, bytes(8)),
    # At these it aborts.
    "no layers": lambda patient: patient.rewritten(b"llama.block_count", 4, bytes(4)),
    "two tokens alike": lambda patient: patient.rewritten(_token(b"!") + _token(b'"')[:-1], 0, b"!"),
}


@pytest.mark.parametrize("damage", ["cut", *MISTAKEN])
def test_a_damaged_model_ends_the_daemon_at_its_start_in_one_line_and_costs_no_job(
    start_daemon: StartDaemon, workspace: Workspace, patient: Patient, damage: str
) -> None:
    cut = Damage(damage, patient.anatomy.end - 100_000)
    job_id = workspace.submit("Say yes.")
    with patient.suffering(MISTAKEN[damage](patient) if damage in MISTAKEN else cut) as path:
        daemon = start_daemon(workspace.path, *SMALL, model=path, wait=False)
        assert daemon.process.wait(PATIENCE_S) == 1
    last = daemon.log.splitlines()[-1]
    assert last.startswith("nrvnad: ") and str(path) in last
    assert "Traceback" not in daemon.log
    assert workspace.find(job_id).state is JobState.QUEUED


def test_a_special_token_that_is_no_text_does_not_stop_the_engine(patient: Patient, nursery: Nursery) -> None:
    # The first byte of a character, as a token of its own.
    with patient.suffering(patient.rewritten(b"tokenizer.ggml.bos_token_id", 4, b"\x6f")) as path:
        assert nursery.load(path) == ("loaded", "")


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["tensors", "two tokens alike"])
def test_a_daemon_whose_model_is_damaged_when_its_engine_dies_goes_on_when_it_is_mended(
    start_daemon: StartDaemon, workspace: Workspace, patient: Patient, damage: str
) -> None:
    daemon = start_daemon(workspace.path, *SMALL, model=patient.path)
    children = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children")
    engines: set[str] = set()

    def tried_twice() -> bool:
        engines.update(children.read_text().split())
        return len(engines) == 3

    with patient.suffering(MISTAKEN[damage](patient)):
        tried_twice()
        os.kill(daemon.engine_pid(), signal.SIGKILL)
        job_id = workspace.submit("Say yes.")
        until(tried_twice, "two more engines")
        until(lambda: not children.read_text(), "the end of the last")
        assert workspace.find(job_id).state is JobState.QUEUED
    until(lambda: workspace.find(job_id).state is JobState.DONE, "the answer")
    # The kill, and then why no other engine starts.
    assert daemon.log.count("ERROR") == 2, daemon.log
    assert "Traceback" not in daemon.log
    assert daemon.stop() == 0


@pytest.mark.slow
def test_a_model_that_is_cut_short_while_it_is_used_costs_no_job(
    start_daemon: StartDaemon, workspace: Workspace, patient: Patient, tmp_path: Path
) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(patient.original)
    daemon = start_daemon(workspace.path, *SMALL, model=model)
    # The engine reads it where it lies.
    os.truncate(model, patient.anatomy.data)
    job_id = workspace.submit("Say yes.")
    daemon.wait_log("the engine cannot start: the model")
    assert "the engine ended with signal SIGBUS" in daemon.log
    assert workspace.find(job_id).state is JobState.QUEUED
    model.write_bytes(patient.original)
    until(lambda: workspace.find(job_id).state is JobState.DONE, "the answer")
    model.unlink()
    assert daemon.stop() == 0


if __name__ == "__main__":
    nurse()
