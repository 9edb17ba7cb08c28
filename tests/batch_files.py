"""Batch files for the tests, and jobs answered by a lease that plays the daemon."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from nrvna.job import Receipt
from nrvna.lease import Claim, Lease
from nrvna.workspace import Workspace

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
MODEL = {"path": "/models/tiny.gguf", "size": 1, "mtime_ns": 1}


def chat(custom_id: str, prompt: str = "Say hi.", **body: Any) -> dict[str, Any]:
    """A request as OpenAI's documentation shows it."""
    asked = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": prompt}], **body}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": asked}


def embedding(custom_id: str, content: object, **body: Any) -> dict[str, Any]:
    asked = {"model": "text-embedding-3-small", "input": content, **body}
    return {"custom_id": custom_id, "method": "POST", "url": EMBEDDINGS, "body": asked}


def write_lines(path: Path, requests: Iterable[object]) -> Path:
    """A line each; text and bytes as they are."""
    lines = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in requests]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def answer_all(workspace: Workspace, answer: Callable[[str], str | Exception] = lambda prompt: f"<{prompt}>") -> int:
    """Answer all that is queued as a daemon would; an exception fails its job. Returns how many there were."""
    lease = Lease(workspace, MODEL)
    number = 0
    while claim := lease.claim():
        number += 1
        _answer(lease, claim, answer(lease.prompt(claim)))
    lease.close()
    return number


def _answer(lease: Lease, claim: Claim, answer: str | Exception) -> None:
    times = ("2026-01-01T00:00:00.000Z", "2026-01-01T00:00:01.000Z")
    receipt = Receipt(claim.id, "stop", *times, "0", prompt_tokens=5, generated_tokens=2, model=MODEL, llama_cpp="b1")
    if isinstance(answer, Exception):
        lease.fail(claim, str(answer), receipt._replace(finish_reason="error", error=str(answer)))
    else:
        lease.finish(claim, answer, receipt)
