"""A fault at every single file operation of every transition: death, a broken disk, a full one, a slow one."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from failpoints import KINDS, Fault
from oracle import Oracle, as_printed
from zygote import Zygote

from nrvna.workspace import Workspace

Rounds = Callable[..., int]
NO_FAULT = Fault("none", 0)
# Work, the prompts it finds in the queue or puts there, and whether a daemon has died at them before.
QUEUES_ITSELF = ("submit", "wrk_lines", "create_workspace")
WORK: dict[str, list[str]] = {
    "create_workspace": ["one"],
    "submit": ["one"],
    "submit_all": ["one", "two", "three"],
    "wrk_lines": ["one", "two", "three"],
    "cancel_first": ["one", "two"],
    "live_as_daemon": ["REFUSE one", "LONG 12 two", "three", "four", "five", "six"],
    "recover_dead": ["LONG 12 one", "two", "three", "four"],
    "serve": ["LONG 12 one", "two", "REFUSE three", "LONG 30 SLOW 20 cancel me", "five", "LONG 40 SLOW 20 stays"],
    "serve_a_crash": ["LONG 6 one", "CRASH two", "three"],
}
DIED_AT_BEFORE = ("recover_dead", "serve")


class Trial:
    """One workspace and one fault."""

    def __init__(self, zygote: Zygote, model: Path, folder: Path, work: str, fault: Fault) -> None:
        self._zygote, self._model, self._fault = zygote, str(model), fault
        self._work = {"submit_all": "submit", "serve_a_crash": "serve"}.get(work, work)
        self._prompts = WORK[work]
        self._dies_before = work in DIED_AT_BEFORE
        self._folder = folder
        self._folder.mkdir()
        self._workspace = Workspace(folder / "workspace")
        self._oracle = Oracle(self._workspace.path, folder / "oracle.jsonl")
        self._errors = folder / "errors"
        self.count = 0
        self.struck: str | None = None
        self.wrongs: list[str] = []

    def run(self) -> None:
        if self._work != "create_workspace":
            self._workspace.create()
        if self._work not in QUEUES_ITSELF:
            for prompt in self._prompts:
                self._oracle.acknowledge(self._workspace.submit(prompt), prompt)
        if self._dies_before:
            self._fork("die_as_daemon", [])
        code, said = self._fork(self._work, [list(self._fault), self._prompts])
        for fact in self._facts(said):
            self._hear(fact)
        has_died = code == -9 and self._fault.kind.startswith("kill")
        if has_died:
            self.struck = "some operation"
        else:
            self._judge_survivor(code)
        self._judge_workspace(has_died)
        shutil.rmtree(self._folder)

    def _fork(self, work: str, arguments: list[Any]) -> tuple[int, bytes]:
        listening, out = os.pipe()
        errors = os.open(self._errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        child = self._zygote.fork(
            f"failpoints:{work}", self._workspace.path, self._model, *arguments, out=out, err=errors
        )
        os.close(out)
        os.close(errors)
        with os.fdopen(listening, "rb") as stream:
            said = stream.read()
        return child.wait(), said

    def _facts(self, said: bytes) -> list[dict[str, Any]]:
        """What was said; ``wrk`` prints its ids plainly between."""
        lines = said.split(b"\n")[:-1]
        facts = [json.loads(line) for line in lines if line.startswith(b"{")]
        plain = b"".join(line + b"\n" for line in lines if not line.startswith(b"{"))
        if self._work == "wrk_lines":
            facts.append({"queued": [job_id for job_id, _ in as_printed(plain, self._prompts)]})
        return facts

    def _hear(self, fact: dict[str, Any]) -> None:
        self._promised = fact.get("queued", getattr(self, "_promised", []))
        for job_id, prompt in zip(fact.get("queued", []), self._prompts, strict=False):
            self._oracle.acknowledge(job_id, prompt)
        self._uncertain = len(fact.get("uncertain", [])) or getattr(self, "_uncertain", 0)
        if "asked" in fact:
            self._oracle.ask_cancel(fact["asked"])
        if "cancelled" in fact:
            self._oracle.confirm_cancel(fact["cancelled"])
        self.count = fact.get("count", self.count)
        self.struck = fact.get("struck", self.struck)
        self.wrongs += [f"{name}: {fact[name]}" for name in ("stuck", "gave_up", "lost_race") if name in fact]
        said = Counter(fact.get("errors", []))
        self.wrongs += [f"said {count} times: {text}" for text, count in said.items() if count > 2]
        if len(fact.get("errors", [])) > 8:
            self.wrongs.append(f"{len(fact['errors'])} errors were said: {fact['errors']}")

    def _judge_survivor(self, code: int) -> None:
        allowed = (0, 1) if self._work == "wrk_lines" and self.struck else (0,)
        log = self._errors.read_text() if self._errors.exists() else ""
        if code not in allowed or "Traceback" in log:
            self.wrongs.append(f"exit code {code}: {log}")
        if self._work == "wrk_lines" and code == 1 and not log.startswith("wrk: "):
            self.wrongs.append(f"no reason: {log}")

    def _judge_workspace(self, has_died: bool) -> None:
        if not Path(self._workspace.path).exists():
            self._workspace.create()
        before = {prompt for job in self._workspace.jobs() if (prompt := self._workspace.prompt(job))}
        code, _ = self._fork("finish_all", [])
        if code:
            self.wrongs.append(f"the last daemon ended with {code}: {self._errors.read_text()}")
        if "CRASH two" in self._prompts:
            # Who was at work beside it was hit as well, but never three times.
            crashed = next(
                job_id
                for job_id in self._oracle.ids
                if self._workspace.prompt(self._workspace.find(job_id)) == "CRASH two"
            )
            self._oracle.hit[crashed] = 3
        verdict = self._oracle.judge()
        self.wrongs += [f"{kind}: {found}" for kind, found in verdict.wrongs.items()]
        if self._work in QUEUES_ITSELF and not has_died:
            # Whoever was refused will try again: what was refused is not in the queue.
            told = self._prompts[: len(self._promised) + self._uncertain]
            self.wrongs += [f"refused, and queued: {prompt}" for prompt in before - set(told)]
            if self._work == "wrk_lines":
                self.wrongs = [wrong for wrong in self.wrongs if self._uncertain or "refused" not in wrong]


@pytest.mark.slow
@pytest.mark.parametrize("work", WORK)
def test_a_fault_at_any_operation_loses_doubles_and_tears_nothing(
    zygote: Zygote,
    toy_model: Path,
    tmp_path: Path,
    rounds: Rounds,
    capsys: pytest.CaptureFixture[str],
    work: str,
) -> None:
    def attempt(number: int, fault: Fault) -> Trial:
        trial = Trial(zygote, toy_model, tmp_path / str(number), work, fault)
        trial.run()
        return trial

    plain = attempt(0, NO_FAULT)
    assert not plain.wrongs
    faults = [Fault(kind, at, lasting) for at in range(1, plain.count + 1) for kind, lasting in KINDS]
    # Those with an engine take a third of a second each.
    most = rounds(quick=14, ci=100 if "serve" in work else 200, long=len(faults))
    if most < len(faults):
        faults = random.Random(most).sample(faults, most)
    struck, wrongs = 0, []
    for number, fault in enumerate(faults, 1):
        trial = attempt(number, fault)
        struck += trial.struck is not None
        wrongs += [f"{fault} {trial.struck}: {wrong}" for wrong in trial.wrongs]
    with capsys.disabled():
        print(
            f"\n{work}: {plain.count} operations, {len(faults)} faults of which {struck} struck, {len(wrongs)} wrongs"
        )
    assert not wrongs, "\n".join(wrongs)
