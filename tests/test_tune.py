"""Settings that suit the machine: measured with the real engine, judged with care."""

from __future__ import annotations

import random
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from processes import command

from nrvna.config import Config
from nrvna.engine.protocol import Ready
from nrvna.errors import EngineError
from nrvna.tune import Bench, Load, OutOfTimeError, Screen, Trial, Tuning, exports, table

SMALL = ("--ctx", "512", "--parallel", "2")


@pytest.mark.slow
def test_it_measures_and_prints_nothing_but_lines_for_a_shell_within_its_time(model_file: Path) -> None:
    started = time.monotonic()
    done = command("daemon", "--tune", "--within", "12", *SMALL, model_file)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 25
    assert re.fullmatch(r"(export NRVNA_(PARALLEL|THREADS|BATCH_TOKENS)=\d+\n)*", done.stdout)
    first, second, *_ = done.stderr.splitlines()
    assert first == f"trying settings for {model_file.name}: this takes up to 12 s; --within SECONDS changes that"
    assert second.endswith("threads") and "2 jobs at a time" in second
    measured = re.findall(r"^  2 jobs at a time +(\d+) +(\d+) +(\d+)$", done.stderr, re.MULTILINE)
    assert measured and all(int(low) <= int(middle) <= int(high) for middle, low, high in measured)
    assert "4 jobs at a time" in done.stderr
    if done.stdout:
        subprocess.run(["sh", "-c", f'eval "{done.stdout}"'], check=True)


def test_a_model_that_cannot_be_loaded_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "page.gguf").write_text("<html>")
    done = command("daemon", "--tune", tmp_path / "page.gguf")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[1].startswith(f"nrvnad: {tmp_path / 'page.gguf'} is no GGUF model")
    assert done.stderr.count("\n") == 2


@pytest.mark.slow
def test_an_engine_does_each_kind_of_pile_again_and_again(model_file: Path) -> None:
    bench = Bench(model_file, Config(ctx=512, parallel=3, log_level="error"), time.monotonic() + 60)
    try:
        loads = (Load(4), Load(4), Load(1, words=150), Load(1, words=150, jobs=2))
        speeds = [bench.speed(load) for load in loads]
    finally:
        bench.close()
    assert all(speed > 1 for speed in speeds)


def test_a_model_that_makes_vectors_is_tried_with_those(embedder_file: Path) -> None:
    tuning = Tuning(embedder_file, Config(threads=2), 6, Screen())
    tuning.run()
    assert {what.removesuffix(", again") for what, _, _ in tuning.rows} <= {"threads"}
    assert tuning.rows and tuning.rows[0][2][0] > 1


def test_settings_that_no_engine_starts_with_are_told_by_their_reason(model_file: Path) -> None:
    with pytest.raises(EngineError, match="256 jobs of 16777216 tokens are more than"):
        Bench(model_file, Config(ctx=16_777_216, parallel=256, log_level="error"), time.monotonic() + 60)


@pytest.mark.slow
def test_a_pile_that_takes_too_long_is_left(model_file: Path) -> None:
    end = time.monotonic() + 4
    bench = Bench(model_file, Config(ctx=8192, parallel=1, log_level="error"), end)
    with pytest.raises(OutOfTimeError):
        bench.speed(Load(7000))
    bench.close()
    assert time.monotonic() < end + 4


class Machine(Tuning):
    """A machine that is as fast as it is told, up to some noise, without an engine."""

    def __init__(self, speeds: dict[str, dict[int, float]], noise: float, seed: int) -> None:
        super().__init__(Path("model.gguf"), Config(), 1000, Quiet())
        self._speeds = speeds
        self._noise = noise
        self._random = random.Random(seed)
        self.fails: set[Trial] = set()

    def _bench(self, trial: Trial) -> Any:
        if trial in self.fails:
            raise EngineError("no memory")
        return Simulated(self, trial)

    def speed_of(self, trial: Trial) -> float:
        speed = 100.0
        for field, value in trial._asdict().items():
            speed *= self._speeds.get(field, {}).get(value, 1.0)
        return speed * self._random.gauss(1, self._noise)


class Simulated:
    about = Ready("toy", "cpu", parallel=8, context=4096, threads=4, device="chip")

    def __init__(self, machine: Machine, trial: Trial) -> None:
        self._machine = machine
        self._trial = trial

    def speed(self, _: Load) -> float:
        return self._machine.speed_of(self._trial)

    def close(self) -> None:
        pass


class Quiet(Screen):
    def say(self, text: str) -> None:
        pass


def test_noise_alone_is_hardly_ever_taken_for_a_gain() -> None:
    found = [Machine({}, 0.1, seed).run() for seed in range(200)]
    assert sum(best != Trial(0, 0, 0) for best in found) < 200 * 0.1


def test_gains_in_each_setting_are_found_through_some_noise() -> None:
    speeds = {"parallel": {16: 1.2}, "threads": {2: 1.15}, "batch_tokens": {1024: 1.25}}
    found = [Machine(speeds, 0.02, seed).run() for seed in range(50)]
    assert found.count(Trial(16, 2, 1024)) >= 45


def test_a_gain_that_is_too_small_to_care_for_is_not_recommended() -> None:
    found = [Machine({"parallel": {16: 1.01}}, 0.001, seed).run() for seed in range(20)]
    assert set(found) == {Trial(0, 0, 0)}


def test_what_cannot_run_is_said_and_the_others_are_compared() -> None:
    machine = Machine({"parallel": {4: 1.3}}, 0.01, 1)
    machine.fails = {Trial(16, 0, 0)}
    assert machine.run() == Trial(4, 0, 0)
    assert any("16 jobs at a time" in line and line.endswith("no memory") for line in table(machine))


def test_only_what_differs_is_exported() -> None:
    assert exports(Trial(16, 0, 1024), Trial(0, 0, 0)) == [
        "export NRVNA_PARALLEL=16",
        "export NRVNA_BATCH_TOKENS=1024",
    ]
    assert exports(Trial(8, 2, 0), Trial(8, 2, 0)) == []
