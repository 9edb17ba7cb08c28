"""Many jobs in one file: JSON lines for programs, a table for spreadsheets, or a text to read."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from os.path import splitext
from typing import Any

from nrvna.errors import WorkspaceError
from nrvna.facts import as_json, facts
from nrvna.files import whole_file
from nrvna.job import Job
from nrvna.selection import Glance
from nrvna.workspace import Workspace

# Of the facts, and of the receipt, what a table has.
_FACTS = (
    "id",
    "state",
    "cut",
    "tags",
    "priority",
    "key",
    "batch",
    "queued",
    "prompt",
    "answer",
    "reasoning",
    "error",
)
_RECEIPT = ("finish_reason", "started", "finished", "prompt_tokens", "generated_tokens", "tokens_per_second")
COLUMNS = (*_FACTS, *_RECEIPT, "seed", "model")
_FENCE = re.compile(r"^\s*(`{3,})", re.MULTILINE)

Facts = dict[str, Any]


def format_of(path: str | None) -> str:
    """How a file of that name is written."""
    return {".csv": "csv", ".md": "md", ".markdown": "md"}.get(splitext(path or "")[1].lower(), "jsonl")


def export(workspace: Workspace, jobs: Iterable[Job], path: str | None, kind: str) -> None:
    """Write jobs to a file, or to standard output, as "jsonl", "csv" or "md".

    Raises WorkspaceError if the file cannot be written; it is then as it was before.
    """
    glance = Glance(workspace)
    # What is taken away from here must be there for good.
    workspace.confirm()
    pieces = _FORMATS[kind](facts(glance, job) for job in jobs)
    if path in (None, "-"):
        for piece in pieces:
            sys.stdout.write(piece)
        return
    assert path is not None
    try:
        with whole_file(path) as write:
            for piece in pieces:
                write(piece.encode("utf-8", "backslashreplace"))
    except WorkspaceError:
        raise
    except OSError as error:
        raise WorkspaceError(f"cannot write {path}: {error.strerror}") from error


def _as_lines(all_facts: Iterable[Facts]) -> Iterator[str]:
    for known in all_facts:
        yield as_json(known) + "\n"


def _as_table(all_facts: Iterable[Facts]) -> Iterator[str]:
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")
    writer.writerow(COLUMNS)
    for known in all_facts:
        yield line.getvalue()
        line.seek(0)
        line.truncate()
        writer.writerow(_cells(known))
    yield line.getvalue()


def _cells(known: Facts) -> list[Any]:
    receipt = known["receipt"] or {}
    sampling, model = receipt.get("sampling") or {}, receipt.get("model") or {}
    row = {**{name: known[name] for name in _FACTS}, **{name: receipt.get(name) for name in _RECEIPT}}
    row |= {"tags": " ".join(known["tags"]), "cut": str(known["cut"]).lower()}
    row |= {"seed": sampling.get("seed"), "model": model.get("path") or known["model"]}
    return [row[name] for name in COLUMNS]


def _as_text(all_facts: Iterable[Facts]) -> Iterator[str]:
    """Markdown: the prompt as a quotation, the answer as it is, so that its own markup shows."""
    before = ""
    for known in all_facts:
        about = [known["queued"], "cut" if known["cut"] else known["state"], *known["tags"]]
        quoted = "\n".join(f"> {line}".rstrip() for line in known["prompt"].strip("\n").split("\n"))
        answer = known["answer"] if known["answer"] is not None else known["error"] or ""
        yield f"{before}## {known['id']}\n\n{', '.join(about)}\n\n{quoted}\n\n{_closed(answer).strip(chr(10))}\n"
        before = "\n"


def _closed(text: str) -> str:
    """With its last fence closed, if a limit cut it open: else all that follows would be code."""
    fences = _FENCE.findall(text)
    return f"{text}\n{fences[-1]}" if len(fences) % 2 else text


_FORMATS: dict[str, Callable[[Iterable[Facts]], Iterator[str]]] = {
    "jsonl": _as_lines,
    "csv": _as_table,
    "md": _as_text,
}
