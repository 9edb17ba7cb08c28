"""Which GPUs run what was compiled for which architectures."""

from __future__ import annotations

import pytest

from nrvna.llama.nvidia import runs_on


@pytest.mark.parametrize(
    ("architecture", "runs", "fails"),
    [
        # Machine code and PTX, which the driver compiles for what comes later.
        ("80", [(8, 0), (8, 6), (9, 0), (12, 0)], [(7, 5)]),
        ("80-virtual", [(8, 0), (9, 0)], [(7, 5)]),
        ("80-real", [(8, 0), (8, 6)], [(7, 5), (9, 0)]),
        ("86-real", [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
        ("90a", [(9, 0)], [(8, 9), (10, 0)]),
        ("120a-real", [(12, 0)], [(12, 1)]),
        ("120f", [(12, 0), (12, 1)], [(10, 0), (13, 0)]),
        ("103", [(10, 3), (11, 0)], [(10, 0)]),
        ("all-major", [(7, 5), (12, 1)], []),
    ],
)
def test_a_gpu_runs_what_its_capability_allows(
    architecture: str, runs: list[tuple[int, int]], fails: list[tuple[int, int]]
) -> None:
    assert [each for each in (*runs, *fails) if runs_on(each, [architecture])] == runs


def test_one_of_several_architectures_is_enough() -> None:
    assert runs_on((9, 0), ["80-real", "90-real"])
    assert not runs_on((9, 0), [])
