"""How much is compiled at a time, and what is said of how long it takes."""

from __future__ import annotations

import os

import compile_plan
import pytest
from compile_plan import CUDA_JOB_BYTES, Work, jobs_for

# Of the real one: "ninja -n" for llama.cpp.
DRY_RUN = """ninja: Entering directory `objects'
[1/5] Building C object ggml/src/CMakeFiles/ggml-base.dir/ggml.c.o
[2/5] Building CXX object ggml/src/CMakeFiles/ggml-base.dir/ggml.cpp.o
[3/5] Building CUDA object ggml/src/ggml-cuda/CMakeFiles/ggml-cuda.dir/acc.cu.o
[4/5] Building CUDA object ggml/src/ggml-cuda/CMakeFiles/ggml-cuda.dir/add-id.cu.o
[5/5] Linking CUDA shared library bin/libggml-cuda.so
"""


def test_as_many_jobs_as_were_asked_for() -> None:
    assert jobs_for("cuda", 7) == jobs_for("cpu", 7) == 7


def test_one_job_a_core_that_this_process_may_use() -> None:
    assert jobs_for("cpu", None) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("memory", "jobs"), [(0, 1), (3.9 * CUDA_JOB_BYTES, 3), (1e15, 64)])
def test_cuda_takes_as_many_as_memory_allows(monkeypatch: pytest.MonkeyPatch, memory: float, jobs: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(compile_plan, "available_memory", lambda: int(memory))
    assert jobs_for("cuda", None) == jobs
    assert jobs_for("cpu", None) == 64


def test_files_are_counted_by_who_compiles_them() -> None:
    assert Work.read(DRY_RUN, 2) == Work(cuda=2, others=2, architectures=2)
    assert Work.read("ninja: no work to do.\n", 0) == Work(0, 0, 0)


def test_the_guess_grows_with_architectures_and_falls_with_jobs() -> None:
    one = Work(140, 70, 1)
    assert Work(140, 70, 3).seconds(1) > 2 * one.seconds(1)
    assert one.seconds(4) == one.seconds(1) / 4


@pytest.mark.parametrize(
    ("work", "jobs", "said"),
    [
        (Work(0, 70, 0), 2, "to compile: 70 files; 2 at a time; 3 to 6 minutes at a guess"),
        (Work(9, 2, 1), 1, "to compile: 9 CUDA files for 1 architecture, 2 others; 1 at a time; 3 to 5 minutes"),
        (
            Work(144, 1, 6),
            2,
            "to compile: 144 CUDA files for 6 architectures, 1 other; 2 at a time; 1.5 to 3.0 hours",
        ),
        (Work(0, 1, 0), 2, "to compile: 1 file; 2 at a time; a minute at a guess"),
    ],
)
def test_it_is_said_what_there_is_to_do_and_how_long_it_may_take(work: Work, jobs: int, said: str) -> None:
    assert work.announcement(jobs, "").startswith(said)
    assert work.announcement(jobs, "ccache").endswith("; less where ccache knows them")


def test_nothing_is_said_where_nothing_is_left_to_do() -> None:
    assert Work(0, 0, 1).announcement(2, "ccache") == ""
