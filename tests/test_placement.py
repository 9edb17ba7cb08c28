"""How many engines there are, and what each has to itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nrvna.config import Config, from_environment, gpu_groups
from nrvna.engine import process
from nrvna.engine.process import EngineProcess
from nrvna.engine.protocol import pack
from nrvna.environment import engine_environment
from nrvna.errors import SettingError
from nrvna.placement import Place, first_place, fitting, places, weights_of

GB = 1_000_000_000
MODEL = Path("model.gguf")


def test_one_engine_is_the_rule_and_has_no_name() -> None:
    config = Config(threads=6)
    assert places(MODEL, config) == [Place("", config, (0, 1))]


def test_engines_on_the_processor_leave_the_gpu_alone_and_know_which_they_are() -> None:
    found = places(MODEL, Config(replicas=3, threads=6))
    assert [place.name for place in found] == ["replica 1", "replica 2", "replica 3"]
    assert [place.share for place in found] == [(0, 3), (1, 3), (2, 3)]
    assert {(place.config.gpu_layers, place.config.threads) for place in found} == {(0, 6)}
    assert engine_environment(found[1].config)["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("text", "kept", "groups"),
    [
        ("0", "0", ((0,),)),
        ("0,1", "0,1", ((0,), (1,))),
        (" 3 , 1 ", "3,1", ((3,), (1,))),
        ("0+1,2+3", "0+1,2+3", ((0, 1), (2, 3))),
        ("00+1", "0+1", ((0, 1),)),
        ("ALL", "all", ()),
    ],
)
def test_gpus_are_named_by_numbers(text: str, kept: str, groups: tuple[tuple[int, ...], ...]) -> None:
    config = from_environment({"gpus": text}, {})
    assert config.gpus == kept
    assert gpu_groups(config.gpus) == groups


@pytest.mark.parametrize("text", ["", ",", "0,", "0,0", "0+1,1", "-1", "1.5", "cuda0", "0++1", "1024", "١", "all,0"])
def test_what_names_no_gpus_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match=r"^--gpus is .*, but must be numbers with , or"):
        from_environment({"gpus": text}, {})


@pytest.mark.parametrize("environ", [{"NRVNA_REPLICAS": "2"}, {"NRVNA_GPU_LAYERS": "0"}, {"NRVNA_BACKEND": "cpu"}])
def test_settings_that_contradict_gpus_are_refused_by_name(environ: dict[str, str]) -> None:
    [(name, value)] = environ.items()
    with pytest.raises(SettingError, match=rf"^NRVNA_GPUS is 0,1\b.* {name} is {value}\b"):
        from_environment({}, {"NRVNA_GPUS": "0,1", **environ})


@pytest.mark.parametrize(
    ("visible", "gpus", "expected"),
    [
        (None, "1", {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}),
        (None, "2+3", {"CUDA_VISIBLE_DEVICES": "2,3", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}),
        (None, "all", {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}),
        (None, "", {}),
        # Of those that a batch system lent.
        ("4,6", "1", {"CUDA_VISIBLE_DEVICES": "6"}),
        ("GPU-a, GPU-b", "1+0", {"CUDA_VISIBLE_DEVICES": "GPU-b,GPU-a"}),
        ("4,6", "all", {"CUDA_VISIBLE_DEVICES": "4,6"}),
        ("4,6", "", {"CUDA_VISIBLE_DEVICES": "4,6"}),
    ],
)
def test_an_engine_sees_its_own_gpus_alone(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, gpus: str, expected: dict[str, str]
) -> None:
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    environment = engine_environment(Config(gpus=gpus))
    assert {name: value for name, value in environment.items() if name.startswith("CUDA_")} == expected


def test_it_is_the_engines_process_that_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    toy = Path(__file__).with_name("toy_engine.py")
    monkeypatch.setattr(process, "COMMAND", (sys.executable, "-I", "-S", str(toy)))
    engine = EngineProcess(MODEL, {}, Config(gpus="2+3"), (1, 2), "gpu 2+3")
    try:
        environ = Path(f"/proc/{engine.pid}/environ").read_bytes().split(b"\0")
        assert b"CUDA_VISIBLE_DEVICES=2,3" in environ
    finally:
        engine.stop(5)


@pytest.mark.parametrize(
    ("free", "weights", "groups"),
    [
        ([24, 24, 24, 24], 4, [(0,), (1,), (2,), (3,)]),
        ([24, 24, 24, 24], 30, [(0, 1), (2, 3)]),
        ([24, 24, 24, 24], 45, [(0, 1, 2, 3)]),
        # What fits nowhere is tried with all there is.
        ([24, 24], 200, [(0, 1)]),
        ([24], 200, [(0,)]),
        # Neighbours make up for one with less.
        ([8, 24, 24], 15, [(0, 1, 2)]),
        ([24, 24, 24], 30, [(0, 1, 2)]),
        ([24, 24, 24, 24, 24], 30, [(0, 1), (2, 3, 4)]),
    ],
)
def test_a_model_larger_than_a_gpu_is_split_over_as_few_as_hold_it(
    free: list[int], weights: int, groups: list[tuple[int, ...]]
) -> None:
    assert fitting([(number, each * GB) for number, each in enumerate(free)], weights * GB) == groups


def test_room_is_needed_beside_the_weights() -> None:
    assert fitting([(0, 10 * GB), (1, 10 * GB)], 8 * GB) == [(0,), (1,)]
    assert fitting([(0, 10 * GB), (1, 10 * GB)], 9 * GB) == [(0, 1)]


def test_the_weights_of_a_model_in_parts_are_those_of_all_its_files(tmp_path: Path) -> None:
    for number, size in enumerate((100, 200, 50), 1):
        (tmp_path / f"big-0000{number}-of-00003.gguf").write_bytes(bytes(size))
    (tmp_path / "big-00001-of-00002.gguf").write_bytes(bytes(7))
    assert weights_of(tmp_path / "big-00001-of-00003.gguf") == 350
    assert weights_of(tmp_path / "big-00002-of-00003.gguf") == 200


@pytest.mark.parametrize(("gpus", "first"), [("", ""), ("all", ""), ("2,3", "2"), ("0+1,2", "0+1")])
def test_what_is_only_tried_out_is_tried_out_on_the_first(gpus: str, first: str) -> None:
    assert first_place(Config(gpus=gpus)) == Config(gpus=first)


def test_the_devices_are_told_by_a_process_that_loads_the_library(model_file: Path) -> None:
    assert model_file.exists()
    done = subprocess.run(
        [sys.executable, "-m", "nrvna.engine", "--devices"],
        input=pack({"config": Config(llama_dir=os.environ.get("NRVNA_LLAMA_DIR")).to_dict()}),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b'"backend": ' in done.stdout and b'"gpus": [' in done.stdout
