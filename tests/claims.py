"""Claims and receipts, for tests that play a daemon."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nrvna.job import Receipt
from nrvna.lease import Claim, Lease
from nrvna.order import Order
from nrvna.workspace import Workspace

MODEL = {"path": "/models/a.gguf", "size": 1, "mtime_ns": 1}


def receipt(job_id: str) -> Receipt:
    return Receipt(job_id, "stop", "2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z", "0.1.0", generated_tokens=2)


def claimed(lease: Lease) -> Claim:
    """The next job of the queue, which must not be empty."""
    claim = lease.claim()
    assert claim is not None
    return claim


def file_away(
    workspace: Workspace, order: Order | str, answer: str, reason: str = "stop", *, failed: bool = False, **more: Any
) -> str:
    """A finished job, filed as a daemon does it; ``more`` are fields of its receipt. It must be the next in turn."""
    [job_id] = workspace.submit_all([order])
    lease = Lease(workspace, {"path": "m"})
    claim = lease.claim()
    assert claim is not None and claim.id == job_id
    fields = {"queued": claim.queued, "finished": claim.queued, "nrvna": "0.1.0", "generated_tokens": 7, **more}
    filed = Receipt(id=job_id, finish_reason=reason, **fields)
    (lease.fail if failed else lease.finish)(claim, answer, filed)
    lease.close()
    return job_id


def by_hand(workspace: Workspace, name: str, prompt: bytes | None, *, age_s: float = 60) -> Path:
    """A job folder as a user would make it, last touched some time ago."""
    folder = Path(workspace.path) / "input" / name
    folder.mkdir()
    if prompt is not None:
        (folder / "prompt.txt").write_bytes(prompt)
    for path in [*folder.iterdir(), folder]:
        about = path.lstat()
        os.utime(path, (about.st_atime - age_s, about.st_mtime - age_s), follow_symlinks=False)
    return folder
