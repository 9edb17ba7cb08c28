"""What docs/gpu.md names is what there is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from build_target import BACKENDS
from cuda_toolkit import OLDEST, parse_architectures

from nrvna.config import BACKENDS as CHOICES
from nrvna.config import SETTINGS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "gpu.md").read_text()
SOURCES = "".join(
    (ROOT / "nrvna" / "llama" / name).read_text() for name in ("location.py", "nvidia.py", "library.py")
)


def test_its_commands_build_for_what_there_is() -> None:
    commands = re.findall(r"^\$ python scripts/build_llama\.py (.*)$", PAGE, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        match shlex.split(command):
            case ["--backend", backend]:
                assert backend in BACKENDS
            case ["--backend", "cuda", "--cuda-arch", architectures]:
                assert parse_architectures(architectures)
            case other:
                pytest.fail(f"unknown: {other}")


def test_its_variables_and_their_values_are_settings() -> None:
    assert set(re.findall(r"\b(?:NRVNA|LLAMA)_[A-Z_]+", PAGE)) <= {setting.variable for setting in SETTINGS}
    rows = re.findall(r"^\| (`.*) \| .* \|$", PAGE.partition("## Choosing")[2].partition("##")[0], re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", "".join(rows))) == sorted(CHOICES)


def test_the_reasons_of_its_table_are_those_that_the_log_gives() -> None:
    reasons = re.findall(r"^\| `([^`]+)` \| .* \|$", PAGE.partition("The log says")[2], re.MULTILINE)
    assert len(reasons) == 8
    for reason in reasons:
        # What a message fills in is its own affair.
        assert reason.replace("a GPU, but", "{there}, but") in SOURCES


def test_the_oldest_toolkit_is_the_one_that_is_taken() -> None:
    assert f"CUDA toolkit {OLDEST[0]}.{OLDEST[1]} or newer" in PAGE
