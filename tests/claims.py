"""Claims and receipts, for tests that play a daemon."""

from __future__ import annotations

import os
from pathlib import Path

from nrvna.job import Receipt
from nrvna.lease import Claim, Lease
from nrvna.workspace import Workspace

MODEL = {"path": "/models/a.gguf", "size": 1, "mtime_ns": 1}


def receipt(job_id: str) -> Receipt:
    return Receipt(job_id, "stop", "2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z", "0.1.0", generated_tokens=2)


def claimed(lease: Lease) -> Claim:
    """The next job of the queue, which must not be empty."""
    claim = lease.claim()
    assert claim is not None
    return claim


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
