"""A batch file queued by a ``wrk`` that dies, or whose disk fails, at any moment: the next one doubles nothing."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from batch_files import answer_all, chat, embedding, write_lines
from failpoints import KINDS, Fault
from processes import until
from zygote import StartToy, Zygote

from nrvna.batch.ledger import Ledger, batch_ids
from nrvna.workspace import Workspace

Rounds = Callable[..., int]
NO_FAULT = Fault("none", 0)
REQUESTS: list[Any] = [
    chat("a", "one"),
    b"nonsense",
    chat("b", "two", n=2),
    embedding("c", ["three", "four"]),
    b"",
    chat("d", "five", tools=[{}]),
]
PROMPTS = {"one": 1, "two": 2, "three": 1, "four": 1}


def queue(zygote: Zygote, workspace: Workspace, path: Path, fault: Fault, *options: str) -> tuple[int, str]:
    """``wrk --batch`` with a fault; its exit code and what it said on standard error."""
    errors = path.with_suffix(".err")
    with errors.open("wb") as said:
        arguments = [workspace.path, "--batch", str(path), *options]
        work = zygote.fork(
            "failpoints:wrk", workspace.path, list(fault), arguments, out=said.fileno(), err=said.fileno()
        )
        return work.wait(), errors.read_text()


def operations(said: str) -> int:
    return int(said.rpartition('"count": ')[2].partition(",")[0])


def wrongs_of(workspace: Workspace) -> list[str]:
    """What is not as it must be once the file is queued."""
    wrongs = []
    prompts = Counter(workspace.prompt(job) for job in workspace.jobs())
    if prompts != PROMPTS:
        wrongs.append(f"the jobs are {prompts}")
    [batch] = batch_ids(workspace)
    ledger = Ledger(workspace, batch)
    ledger.refresh()
    entries = {entry.line: entry for entry in ledger.entries()}
    if {line: len(entry.jobs) for line, entry in entries.items()} != {1: 1, 2: 0, 3: 2, 4: 2, 6: 0}:
        wrongs.append(f"the ledger holds {entries}")
    known = [job for entry in entries.values() for job in entry.jobs]
    if sorted(known) != sorted(job.id for job in workspace.jobs()):
        wrongs.append(f"the ledger's jobs are {known}")
    if not ledger.is_complete:
        wrongs.append("it is not complete")
    return wrongs


@pytest.mark.slow
@pytest.mark.parametrize("answered", [False, True], ids=["all queued", "some answered"])
def test_a_fault_at_any_operation_doubles_and_loses_nothing(
    zygote: Zygote, tmp_path: Path, rounds: Rounds, capsys: pytest.CaptureFixture[str], answered: bool
) -> None:
    def attempt(number: int, fault: Fault) -> tuple[int, list[str]]:
        folder = tmp_path / str(number)
        folder.mkdir()
        workspace = Workspace(folder / "workspace")
        workspace.create()
        path = write_lines(folder / "in.jsonl", REQUESTS)
        code, said = queue(zygote, workspace, path, fault)
        wrongs = [] if code in (-9, 1, 2) and "Traceback" not in said else [f"exit code {code}: {said}"]
        if code == 1 and "wrk: " not in said:
            wrongs.append(f"no reason: {said}")
        if answered:
            answer_all(workspace)
        again, said_again = queue(zygote, workspace, path, NO_FAULT)
        if again != 2:
            wrongs.append(f"exit code {again} of the next: {said_again}")
        return operations(said) if code != -9 else 0, [*wrongs, *wrongs_of(workspace)]

    count, wrongs = attempt(0, NO_FAULT)
    assert not wrongs and count > 30
    faults = [Fault(kind, at, lasting) for at in range(1, count + 1) for kind, lasting in KINDS]
    # Death first: after it nobody is there to clean up.
    chance = random.Random(count)
    faults.sort(key=lambda fault: (not fault.kind.startswith("kill"), chance.random()))
    faults = faults[: rounds(quick=40, ci=200, long=len(faults))]
    for number, fault in enumerate(faults, 1):
        wrongs += [f"{fault}: {wrong}" for wrong in attempt(number, fault)[1]]
    with capsys.disabled():
        print(f"\nwrk --batch: {count} operations, {len(faults)} faults, {len(wrongs)} wrongs")
    assert not wrongs, "\n".join(wrongs)


@pytest.mark.slow
def test_killed_at_random_moments_it_makes_each_job_once(
    zygote: Zygote, start_toy: StartToy, tmp_path: Path, rounds: Rounds, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(4)
    workspace = Workspace(tmp_path / "workspace")
    workspace.create()
    kills = 0
    start_toy(workspace.path, "--parallel", "64")
    for number in range(rounds(quick=1, ci=3, long=20)):
        names = [f"{number}.{line}" for line in range(1000)]
        path = write_lines(tmp_path / f"{number}.jsonl", [chat(name, name) for name in names])
        while True:
            child = zygote.fork("zygote:run_tool", "wrk", [workspace.path, "--batch", str(path)])
            time.sleep(chance.uniform(0, 0.5))
            child.signal(9)
            if (code := child.wait()) == 0:
                break
            assert code == -9
            kills += 1
        # What moves meanwhile would be read too late.
        until(lambda: sum(workspace.counts()[:2]) == 0, "all answers")
        prompts = Counter(workspace.prompt(job) for job in workspace.jobs())
        assert {name: prompts[name] for name in names} == dict.fromkeys(names, 1)
    with capsys.disabled():
        print(f"\nwrk --batch: killed {kills} times")
    assert kills > 2
