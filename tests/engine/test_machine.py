"""What an engine takes of the machine, alone and beside others."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nrvna.config import Config
from nrvna.engine.machine import physical_cores, share_of, take_share


@pytest.mark.parametrize(
    ("cores", "count", "shares"),
    [
        (8, 2, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (5, 2, [[0, 1], [2, 3, 4]]),
        (2, 2, [[0], [1]]),
        (2, 3, [[0], [1], [0]]),
        (1, 2, [[0], [0]]),
    ],
)
def test_cores_are_shared_out_evenly_and_side_by_side(cores: int, count: int, shares: list[list[int]]) -> None:
    # Two hyperthreads each.
    there = [(2 * core, 2 * core + 1) for core in range(cores)]
    found = [share_of(there, index, count) for index in range(count)]
    assert found == [[there[core] for core in share] for share in shares]


def test_an_engine_alone_is_left_as_it_is() -> None:
    config = Config(threads=3)
    assert take_share(config, 0, 1) is config


@pytest.mark.parametrize(("threads", "expected"), [(8, 4), (1, 1), (0, max(1, physical_cores() // 2))])
def test_engines_beside_gpus_share_the_threads_and_keep_to_no_cores(threads: int, expected: int) -> None:
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    assert take_share(Config(gpus="1", threads=threads), 1, 2).threads == expected
    if before is not None:
        assert os.sched_getaffinity(0) == before


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system keeps nobody to some cores")
@pytest.mark.parametrize("threads", [0, 6])
def test_engines_on_the_processor_keep_to_their_cores(threads: int) -> None:
    code = (
        "import os; from nrvna.config import Config; from nrvna.engine.machine import *; "
        f"config = take_share(Config(replicas=2, threads={threads}), 1, 2); "
        "print(config.threads, physical_cores(), *os.sched_getaffinity(0))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    count, cores, *cpus = map(int, said.split())
    assert cores == max(1, physical_cores() - physical_cores() // 2)
    assert count == (3 if threads else cores)
    assert set(cpus) <= os.sched_getaffinity(0)
