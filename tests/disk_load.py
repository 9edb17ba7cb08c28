"""Processes that keep a workspace busy until its disk fails, and write down elsewhere what they were promised."""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

from nrvna import files
from nrvna.errors import NrvnaError, WorkspaceError
from nrvna.job import JobState, Receipt
from nrvna.lease import Lease, recover
from nrvna.order import Order
from nrvna.progress import first_line, token_line
from nrvna.workspace import Workspace

MODEL = {"path": "/models/a.gguf", "size": 1, "mtime_ns": 1}


class Log:
    """One fact on each line, of which the last may be cut: what was promised while the disk was there."""

    def __init__(self, path: Path, workspace: Workspace) -> None:
        self._file = path.open("a", buffering=1)
        self._probe = os.open(workspace.private + "/clock", os.O_RDONLY)

    def note(self, **fact: Any) -> None:
        # Raises OSError once the disk is gone. Where power is really cut, nobody hears from the kernel after that;
        # one that only shuts the file system down may still say that a folder was synced, XFS does.
        os.pread(self._probe, 1, 0)
        self._file.write(json.dumps(fact) + "\n")


def answer_of(prompt: str) -> str:
    return f"the answer to {prompt}\n" * 20


def submit(workspace: Workspace, log: Log) -> None:
    for number in count():
        prompts = [f"{os.getpid()}-{number}-{part} " + "x" * 500 for part in range(1 + 3 * (number % 2))]
        ids = workspace.submit_all([Order(prompt, {"seed": number}) for prompt in prompts])
        log.note(queued=dict(zip(ids, prompts, strict=True)))


def serve(workspace: Workspace, log: Log) -> None:
    lease = Lease(workspace, MODEL)
    for number in count():
        claim = lease.claim()
        if claim is None:
            time.sleep(0.005)
            continue
        lease.record_starts([claim])
        lease.append_progress(claim, first_line("key", 7) + token_line(1, "the "))
        prompt = lease.prompt(claim)
        if number % 5 == 3:
            crashed = lease.record_crash(claim)
            log.note(crashed=claim.id, crashes=crashed.crashes)
            lease.requeue([crashed])
            continue
        log.note(filing=claim.id)
        if number % 5 == 4:
            lease.fail(claim, "too long", Receipt.of_failure(claim.id, claim.queued, "too long"))
            log.note(failed=claim.id)
        else:
            lease.finish(claim, answer_of(prompt), Receipt(claim.id, "stop", claim.queued, claim.queued, "0"))
            log.note(done=claim.id)


def look(workspace: Workspace, log: Log) -> None:
    shown: set[str] = set()
    while True:
        for job in workspace.jobs():
            if job.state is JobState.DONE and job.id not in shown:
                workspace.confirm()
                log.note(shown=job.id, answer=workspace.answer(job))
                shown.add(job.id)
        time.sleep(0.002)


def wrongs(workspace: Workspace, logs: list[Path]) -> list[str]:
    """What was promised by then and does not hold."""
    facts: list[dict[str, Any]] = []
    for path in logs:
        facts += [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    try:
        workspace.check()
        recover(workspace)
        jobs = {job.id: job for job in workspace.jobs()}
    except WorkspaceError as error:
        return [str(error)]
    found = []
    prompts = {job_id: prompt for fact in facts for job_id, prompt in fact.get("queued", {}).items()}
    for job_id, prompt in prompts.items():
        if job_id not in jobs:
            found.append(f"{job_id} is lost")
        elif workspace.prompt(jobs[job_id]) != prompt:
            found.append(f"{job_id} has lost its prompt")
    crashes: dict[str, int] = {}
    for fact in facts:
        state = {"done": JobState.DONE, "failed": JobState.FAILED, "shown": JobState.DONE}.get(next(iter(fact)))
        job_id = next(iter(fact.values()))
        if state and (job_id not in jobs or jobs[job_id].state is not state):
            found.append(f"{job_id} is not {state} any more")
        if "shown" in fact and job_id in jobs and workspace.answer(jobs[job_id]) != fact["answer"]:
            found.append(f"{job_id} has another answer than was shown")
        if "crashed" in fact:
            crashes[job_id] = fact["crashes"]
        elif "filing" in fact:
            # What became of it so far is of no interest any more.
            crashes.pop(job_id, None)
    for job in jobs.values():
        receipt = workspace.receipt(job)
        if job.state is JobState.DONE:
            whole = receipt is not None and workspace.is_intact(job, receipt) and receipt.sha256
            if not whole or workspace.answer(job) != answer_of(workspace.prompt(job)):
                found.append(f"{job.id} has a torn result")
        elif job.state is JobState.FAILED and (receipt is None or not workspace.answer(job).strip()):
            found.append(f"{job.id} has a torn reason")
    lease = Lease(workspace, MODEL)
    while claim := lease.claim():
        if claim.crashes < crashes.get(claim.id, 0):
            found.append(f"{claim.id} forgot a crash")
    os.close(lease._lock)
    return found


def main(argv: list[str]) -> int:
    work, workspace, log, *careless = argv
    if careless:
        for module, name, pretence in ((os, "fsync", None), (files, "_sync_file_system", True)):
            setattr(module, name, lambda _, pretence=pretence: pretence)
    try:
        served = Workspace(workspace)
        {"submit": submit, "serve": serve, "look": look}[work](served, Log(Path(log), served))
    except (OSError, NrvnaError) as error:
        # The disk is gone.
        print(f"{work}: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
