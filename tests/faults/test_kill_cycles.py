"""Daemons, engines and submitters killed at random moments, thousands of times over one workspace."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from oracle import Oracle, as_printed
from processes import until
from zygote import Child, Zygote, jobs_claimed_by

from nrvna.workspace import Workspace

# The daemons live for tens of ms here, and not for days: what they do every so often comes as much sooner.
# Nor is it the jobs' fault that they die so young.
UNBLAMED = {"max_unended": 1e6}
PACE = {"KEEP_EVERY_S": 0.004, "TEND_EVERY_S": 0.02, "LOOK_EVERY_S": 0.05, **UNBLAMED}
LONGEST_LIFE_S = 0.06
PATIENCE_S = 0.4


class Submitter(NamedTuple):
    child: Child
    prompts: list[str]
    printed: int


class Canceller(NamedTuple):
    child: Child
    job_id: str


class Havoc:
    """One workspace, and those who come and go in it."""

    def __init__(self, zygote: Zygote, workspace: Workspace, model: Path, folder: Path, *options: str) -> None:
        self.options = options
        self.zygote, self.workspace, self.model, self.folder = zygote, workspace, model, folder
        self.chance = random.Random(1)
        self.oracle = Oracle(workspace.path, folder / "oracle.jsonl")
        self.daemons: list[Child] = []
        self.submitters: list[Submitter] = []
        self.cancellers: list[Canceller] = []
        self.kills = 0
        self.number = 0

    def start_daemon(self, pace: dict[str, float]) -> Child:
        log = self.folder / "daemons.log"
        options = ("--parallel", str(self.chance.choice((1, 4, 8))), *self.options)
        return self.zygote.daemon(self.workspace.path, self.model, log, *options, pace=pace)

    def cycle(self, breathe: bool) -> None:
        wanted = self.chance.choices((1, 2, 3), (70, 25, 5))[0]
        while len(self.daemons) < wanted:
            self.daemons.append(self.start_daemon(PACE))
        for _ in range(self.chance.choices((0, 1, 2), (30, 50, 20))[0]):
            self.submit()
        if self.oracle.ids and self.chance.random() < 0.1:
            self.cancel()
        deeds = self.deeds()
        began = time.monotonic()
        if breathe:
            self.wait_for_a_result()
        for moment, deed in sorted(deeds, key=lambda pair: pair[0]):
            time.sleep(max(0.0, began + moment - time.monotonic()))
            deed()
        self.collect()

    def deeds(self) -> list[tuple[float, Callable[[], None]]]:
        deeds: list[tuple[float, Callable[[], None]]] = []
        for daemon in self.daemons:
            moment = self.chance.uniform(0, LONGEST_LIFE_S)
            kind = self.chance.random()
            if kind < 0.8:
                deeds.append((moment, lambda daemon=daemon: self.strike(daemon)))  # type: ignore[misc]
            elif kind < 0.85:
                deeds.append((moment, lambda daemon=daemon: daemon.signal(signal.SIGTERM)))  # type: ignore[misc]
                deeds.append((moment + 0.005, lambda daemon=daemon: self.strike(daemon)))  # type: ignore[misc]
            if self.chance.random() < 0.1:
                # Alone, or a moment before its daemon.
                sooner = max(0.0, moment - self.chance.choice((0.0, 0.002, 0.01)))
                deeds.append((sooner, lambda daemon=daemon: self.strike_engine(daemon)))  # type: ignore[misc]
        for child, *_ in [*self.submitters, *self.cancellers]:
            if self.chance.random() < 0.3:
                deeds.append((self.chance.uniform(0, 0.012), lambda child=child: self.strike(child)))  # type: ignore[misc]
        return deeds

    def strike(self, child: Child) -> None:
        if child.poll() is None:
            child.kill()
            self.kills += 1

    def strike_engine(self, daemon: Child) -> None:
        if daemon.poll() is not None:
            return
        at_hand = self.claimed_by(daemon)
        engines = daemon.children()
        # One of several: the others go on.
        for pid in self.chance.sample(engines, min(1, len(engines))):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.kills += 1
        self.oracle.hit.update(at_hand | self.claimed_by(daemon))

    def claimed_by(self, daemon: Child) -> set[str]:
        return jobs_claimed_by(self.workspace, daemon)

    def submit(self) -> None:
        prompts = []
        for _ in range(self.chance.choice((1, 1, 1, 4))):
            self.number += 1
            command = self.chance.choices(("", "LONG 40 ", "REFUSE "), (85, 13, 2))[0]
            prompts.append(f"{command}job {self.number}")
        printed, out = os.pipe()
        if len(prompts) > 1:
            lines = self.folder / f"lines-{self.number}"
            lines.write_text("\n".join(prompts))
            arguments = [self.workspace.path, "--lines", str(lines)]
        else:
            arguments = [self.workspace.path, prompts[0]]
        child = self.zygote.fork("zygote:run_tool", "wrk", arguments, out=out)
        os.close(out)
        self.submitters.append(Submitter(child, prompts, printed))

    def cancel(self) -> None:
        job_id = self.chance.choice(self.oracle.ids[-6:])
        self.oracle.ask_cancel(job_id)
        child = self.zygote.fork("zygote:run_tool", "flw", ["--cancel", self.workspace.path, job_id])
        self.cancellers.append(Canceller(child, job_id))

    def collect(self) -> None:
        """Hear what was promised. Who waits for a daemon to cancel something may wait for long."""
        for child, prompts, printed in self.submitters:
            child.wait()
            with os.fdopen(printed, "rb") as stream:
                for job_id, prompt in as_printed(stream.read(), prompts):
                    self.oracle.acknowledge(job_id, prompt)
        self.submitters = []
        waiting = []
        for canceller in self.cancellers:
            if canceller.child.poll() is None and self.chance.random() < 0.7:
                waiting.append(canceller)
                continue
            self.strike(canceller.child)
            if canceller.child.wait() == 0:
                self.oracle.confirm_cancel(canceller.job_id)
        self.cancellers = waiting
        self.daemons = [daemon for daemon in self.daemons if daemon.poll() is None]

    def wait_for_a_result(self) -> None:
        """Let somebody get something done, so that no job is killed again and again before its first token."""
        before = os.stat(self.workspace.output).st_mtime_ns  # noqa: PTH116 - in a hurry
        deadline = time.monotonic() + PATIENCE_S
        while os.stat(self.workspace.output).st_mtime_ns == before and time.monotonic() < deadline:  # noqa: PTH116
            time.sleep(0.002)

    def settle(self) -> None:
        """A last run that nobody disturbs."""
        for child in [*self.daemons, *(canceller.child for canceller in self.cancellers)]:
            child.kill()
        self.collect()
        daemons = [self.start_daemon(UNBLAMED) for _ in range(2)]
        counts = self.workspace.counts
        until(lambda: sum(peer.ready for peer in self.workspace.peers()) == 2, "both daemons", 10)
        until(lambda: counts().queued + counts().running == 0, "the end of the queue", 120)
        for daemon in daemons:
            daemon.signal(signal.SIGTERM)
        assert [daemon.wait(10) for daemon in daemons] == [0, 0]


def wreak_havoc(havoc: Havoc, cycles: int, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    for cycle in range(cycles):
        havoc.cycle(breathe=cycle % 4 == 3)
        if cycle % 50 == 49:
            havoc.oracle.look()
    per_cycle = (time.monotonic() - began) / cycles
    havoc.settle()
    verdict = havoc.oracle.judge()
    promised = len(havoc.oracle.ids)
    with capsys.disabled():
        print(f"\n{cycles} cycles of {1000 * per_cycle:.0f} ms, {havoc.kills} kills, {promised} jobs acknowledged")
        print(verdict)
    log = (havoc.folder / "daemons.log").read_text()
    assert "Traceback" not in log
    assert not verdict.wrongs
    assert verdict.done + verdict.refused + verdict.cancelled + verdict.set_aside >= promised
    until(lambda: not havoc.zygote.engines(), "the end of all engines", 5)
    assert list(Path(havoc.workspace.processing).glob("[!.]*")) == []


def test_nothing_acknowledged_is_lost_doubled_or_torn_however_often_all_are_killed(
    zygote: Zygote,
    workspace: Workspace,
    toy_model: Path,
    tmp_path: Path,
    rounds: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    wreak_havoc(Havoc(zygote, workspace, toy_model, tmp_path), rounds(quick=80, ci=1000, long=10_000), capsys)


@pytest.mark.slow
def test_nor_where_each_daemon_has_two_engines(
    zygote: Zygote,
    workspace: Workspace,
    toy_model: Path,
    tmp_path: Path,
    rounds: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    havoc = Havoc(zygote, workspace, toy_model, tmp_path, "--replicas", "2")
    wreak_havoc(havoc, rounds(quick=60, ci=500, long=5000), capsys)
