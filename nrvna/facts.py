"""What programs are told of a job: one flat object with names that stay, for ``--json``, ``--jsonl`` and export."""

from __future__ import annotations

import json
from typing import Any

from nrvna.job import Job, JobState, timestamp
from nrvna.selection import Glance, queued_at, read_order, resettled

# By name, what each holds; what a job does not have is null, or empty where it is a list or an object.
FIELDS = {
    "id": "the job's id",
    "state": "queued, running, done or failed",
    "cut": "whether the answer ends at a limit and not where the model ended it",
    "waits_for": "ids of the unfinished jobs that it comes after",
    "tags": "its tags",
    "priority": "its priority",
    "after": "ids of all jobs that it comes after",
    "key": "its key",
    "model": "the name of the model that it asks for",
    "timeout": "how many seconds it may be at work",
    "batch": "the batch that it is a line of",
    "settings": "its own settings",
    "task": "what it asks for beside prompt and settings",
    "queued": "when it was queued, in UTC",
    "age_s": "seconds since then",
    "prompt": "its prompt, as it was queued",
    "filled": "its prompt with other jobs' answers in it, if it wanted some",
    "answer": "the answer, once it is done",
    "partial": "the answer so far, while it is running",
    "reasoning": "the thought that led to the answer",
    "error": "the reason why it failed",
    "receipt": "its receipt, once it is finished",
}


def facts(glance: Glance, job: Job) -> dict[str, Any]:
    """The FIELDS of a job, in their order."""
    workspace = glance.workspace
    about, prompt = workspace.about(job), workspace.prompt(job)
    if not prompt and (moved := resettled(workspace, job)):
        job, about, prompt = moved, workspace.about(moved), workspace.prompt(moved)
    order = read_order(about)
    queued = queued_at(job, about)
    is_done, has_failed = job.state is JobState.DONE, job.state is JobState.FAILED
    receipt = workspace.receipt(job, whole=True) if job.is_finished else None
    text = "" if job.state is JobState.QUEUED else workspace.answer(job)
    return {
        "id": job.id,
        "state": job.state.value,
        "cut": bool(is_done and receipt and receipt.was_cut),
        "waits_for": glance.unfinished(order.after) if job.state is JobState.QUEUED else [],
        "tags": list(order.tags),
        "priority": order.priority,
        "after": list(order.after),
        "key": order.key,
        "model": order.model,
        "timeout": order.timeout,
        "batch": order.batch,
        "settings": _object(about.get("settings")),
        "task": _object(about.get("task")),
        "queued": timestamp(queued),
        "age_s": max(0.0, round(glance.now - queued, 3)),
        "prompt": prompt,
        "filled": (workspace.filled(job) or None) if order.after and job.state is not JobState.QUEUED else None,
        "answer": text if is_done else None,
        "partial": text if job.state is JobState.RUNNING else None,
        "reasoning": (workspace.reasoning(job) or None) if job.is_finished else None,
        "error": text.strip() if has_failed else None,
        "receipt": receipt._asdict() if receipt else None,
    }


def as_json(content: dict[str, Any], *, plain: bool = False) -> str:
    """On one line. ``plain``: ASCII alone, so that nothing of it steers a terminal."""
    text = json.dumps(content, ensure_ascii=plain)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(content)
    return text


def _object(content: object) -> dict[str, Any]:
    return content if isinstance(content, dict) else {}
