"""Answers brought to standard output: once they are there, as they grow, in a pager; and what stands beside them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from functools import partial

from nrvna.errors import WorkspaceError
from nrvna.job import Job, JobState
from nrvna.outlook import outlook
from nrvna.terminal import complain, pager, printable
from nrvna.waiting import POLL_S, WARN_AFTER_S, Waiting
from nrvna.workspace import Workspace

DONE, FAILED, USAGE, NOT_READY, INTERRUPTED = 0, 1, 2, 3, 130


def worst(codes: Iterable[int]) -> int:
    """The exit code of several jobs: what is not ready yet can still be either."""
    return max(codes, default=DONE)


def print_answers(workspace: Workspace, ids: Sequence[str], *, wait: bool, timeout: float | None = None) -> int:
    """Print jobs' answers, in this order, each as soon as it is there; returns the exit code.

    With more than one, each has a line ``==> ID <==`` above it. On standard error: why there is none. ``wait`` waits
    for those that are not finished, for ``timeout`` seconds together at most. Raises JobNotFoundError.
    """
    waiting = Waiting(workspace, timeout)
    confirmed: set[str] = set()
    codes: list[int] = []
    printed = False
    for number, job_id in enumerate(ids):
        if wait:
            waiting.until(partial(_is_finished, workspace, job_id), job_id)
        job = workspace.find(job_id)
        if job.is_finished and job_id not in confirmed:
            seen = {other for other in ids[number:] if _is_finished(workspace, other)}
            # Whoever is shown an answer may rely on it, also after a power cut in this very moment.
            workspace.confirm()
            confirmed |= seen
        if len(ids) > 1 and job.state is JobState.DONE:
            _write_heading(job_id, is_first=not printed)
        codes.append(show(workspace, job, waited=wait))
        printed = printed or job.state is JobState.DONE
        sys.stdout.flush()
    return worst(codes)


def _is_finished(workspace: Workspace, job_id: str) -> bool:
    return workspace.find(job_id).is_finished


def _write_heading(job_id: str, *, is_first: bool) -> None:
    write_answer(f"==> {job_id} <==\n" if is_first else f"\n==> {job_id} <==\n")
    sys.stdout.flush()


def show(workspace: Workspace, job: Job, *, waited: bool = False) -> int:
    """Print a finished job's answer on stdout, or on stderr why there is none; returns the exit code."""
    if job.state is JobState.FAILED:
        complain(f"{job.id} failed: {printable(workspace.answer(job).strip())}")
        return FAILED
    if job.state is not JobState.DONE:
        return not_ready(workspace, job, waited=waited)
    answer = workspace.answer(job)
    write_answer(answer)
    if not answer.endswith("\n"):
        write_answer("\n")
    return judge(workspace, job)


def not_ready(workspace: Workspace, job: Job, *, waited: bool = False) -> int:
    """Say on stderr how an unfinished job stands; returns the exit code."""
    still, advice = ("still ", "") if waited else ("", "; -w waits for it")
    complain(f"{job.id} is {still}{job.state}{outlook(workspace, job)}{advice}")
    return NOT_READY


def write_answer(text: str) -> None:
    """To standard output; a terminal is not steered by it."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)


def judge(workspace: Workspace, job: Job) -> int:
    """Say on stderr what there is to know of a done job's answer; returns the exit code."""
    receipt = workspace.receipt(job)
    if receipt and not workspace.is_intact(job, receipt):
        complain("this answer is damaged: it is not the one that its receipt was written for")
        return FAILED
    if receipt and receipt.was_cut:
        remedies = {"length": "wrk --predict, or NRVNA_PREDICT for nrvnad,", "context": "NRVNA_CTX for nrvnad"}
        tokens, remedy = receipt.generated_tokens, remedies[receipt.finish_reason]
        complain(f"this answer was cut after {tokens} tokens: a larger {remedy} allows more")
    return DONE


def follow(workspace: Workspace, job_id: str, timeout: float | None = None) -> int:
    """Print an answer as it grows; returns the exit code. Raises JobNotFoundError."""
    shown, warned, started = "", False, time.monotonic()
    while True:
        looked = time.monotonic()
        job = workspace.find(job_id)
        if job.is_finished:
            workspace.confirm()
        if job.state is JobState.FAILED:
            write_answer("\n" if shown else "")
            return show(workspace, job)
        text = workspace.answer(job)
        if not text.startswith(shown) and (text or job.is_finished):
            write_answer("\n")
            sys.stdout.flush()
            complain("it was interrupted, and is answered anew:")
            shown = ""
        if len(text) > len(shown):
            write_answer(text[len(shown) :])
            sys.stdout.flush()
            shown = text
        if job.state is JobState.DONE:
            write_answer("" if shown.endswith("\n") else "\n")
            return judge(workspace, job)
        if timeout is not None and time.monotonic() - started >= timeout:
            write_answer("\n" if shown and not shown.endswith("\n") else "")
            sys.stdout.flush()
            return not_ready(workspace, job, waited=True)
        if not warned and not shown and time.monotonic() - started > WARN_AFTER_S:
            warned = True
            if reason := outlook(workspace, job):
                complain(f"{job_id} is {job.state}{reason}")
        # A long answer takes a while to read: no more than a fifth of a core goes into it.
        time.sleep(max(POLL_S, 4 * (time.monotonic() - looked)))


def show_prompt(workspace: Workspace, job: Job) -> int:
    """What a job was asked, with the answers of others in it if it wanted some."""
    filled = "" if job.state is JobState.QUEUED else workspace.filled(job)
    return _show_text(job, filled or workspace.prompt(job), "prompt")


def show_reasoning(workspace: Workspace, job: Job) -> int:
    """The thought that led to a finished job's answer."""
    if not job.is_finished:
        return not_ready(workspace, job)
    return _show_text(job, workspace.reasoning(job), "reasoning")


def show_receipt(workspace: Workspace, job: Job) -> int:
    """How a finished job was answered, in JSON."""
    if not job.is_finished:
        return not_ready(workspace, job)
    receipt = workspace.receipt(job, whole=True)
    return _show_text(job, receipt.to_json() if receipt else "", "receipt")


def _show_text(job: Job, text: str, name: str) -> int:
    if not text:
        complain(f"{job.id} has no {name}")
        return FAILED
    write_answer(text if text.endswith("\n") else text + "\n")
    return DONE


def show_each(
    workspace: Workspace, jobs: Sequence[Job], shown: Callable[[Workspace, Job], int], *, headed: bool = True
) -> int:
    """Show something of each job, ``headed`` with its id if there are several; returns the exit code."""
    codes = []
    for number, job in enumerate(jobs):
        if headed and len(jobs) > 1:
            _write_heading(job.id, is_first=not number)
        codes.append(shown(workspace, job))
    return worst(codes)


def in_pager(print_it: Callable[[], int]) -> int:
    """Let what is printed be read in $PAGER, ``less -R`` by default; where no terminal is, it is just printed.

    Returns the exit code. Raises WorkspaceError if the pager cannot be run.
    """
    command = pager()
    if not sys.stdout.isatty() or command in ("", "cat"):
        return print_it()
    import io
    import signal
    import subprocess

    with redirect_stdout(io.StringIO()) as printed:
        code = print_it()
    if not (text := printable(printed.getvalue())):
        return code
    # Ctrl-C is for the pager.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        ended = subprocess.run(command, shell=True, input=text.encode("utf-8", "replace"), check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)
    # How a shell says that there is no such command, or that it may not be run.
    if ended in (126, 127):
        raise WorkspaceError(f"the pager {command!r} cannot be run: set PAGER to another")
    return code
