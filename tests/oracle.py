"""What was promised to whom, kept apart from the workspace, and what became of it.

The oracle is told of an id only after the tool printed it, and writes that to a file of its own. In the end it
compares: it knows each prompt's answer, and takes nothing of the workspace's word but what lies in its folders.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toy_engine import answer_of, commands_in

SET_ASIDE = ("the engine died 3 times while it was at this job", "the daemon went down each of the ")


@dataclass
class Verdict:
    """What was wrong, by kind; nothing should be."""

    lost: list[str] = field(default_factory=list)
    duplicate: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    blamed: list[str] = field(default_factory=list)
    answered_after_cancel: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    # What became of the rest.
    done: int = 0
    unacknowledged: int = 0
    refused: int = 0
    cancelled: int = 0
    set_aside: int = 0
    resumed_tokens: int = 0

    @property
    def wrongs(self) -> dict[str, list[str]]:
        kinds = ("lost", "duplicate", "torn", "changed", "blamed", "answered_after_cancel", "unfinished")
        return {kind: found for kind in kinds if (found := getattr(self, kind))}

    def __str__(self) -> str:
        wrongs = ", ".join(
            f"{len(found)} {kind.replace('_', ' ')}" for kind, found in vars(self).items() if isinstance(found, list)
        )
        rest = {kind: count for kind, count in vars(self).items() if isinstance(count, int)}
        return f"{wrongs}; {', '.join(f'{count} {kind}' for kind, count in rest.items())}"


class Oracle:
    """Keeps the promises of one workspace."""

    def __init__(self, workspace: str, log: Path) -> None:
        self._workspace = Path(workspace)
        self._path = log
        self._log = log.open("a")
        self.ids: list[str] = []
        # How often the engine was killed under a job.
        self.hit: Counter[str] = Counter()
        self._seen: dict[str, bytes] = {}
        self._changed: set[str] = set()

    def acknowledge(self, job_id: str, prompt: str) -> None:
        self.ids.append(job_id)
        self._note({"queued": job_id, "prompt": prompt})

    def ask_cancel(self, job_id: str) -> None:
        self._note({"asked": job_id})

    def confirm_cancel(self, job_id: str) -> None:
        self._note({"cancelled": job_id})

    def _note(self, fact: dict[str, str]) -> None:
        self._log.write(json.dumps(fact) + "\n")
        self._log.flush()

    def look(self) -> None:
        """Remember the results that can be seen now: they may never be others, and never be gone."""
        for folder in (self._workspace / "output").iterdir():
            if folder.name in self._seen:
                continue
            self._seen[folder.name] = _content(folder)
        for name, content in self._seen.items():
            if _content(self._workspace / "output" / name) != content:
                self._changed.add(name)

    def judge(self) -> Verdict:
        """Once nothing is at work any more."""
        verdict = Verdict()
        self.look()
        verdict.changed = sorted(self._changed)
        facts = [json.loads(line) for line in self._path.read_text().splitlines()]
        promised = {fact["queued"]: fact["prompt"] for fact in facts if "queued" in fact}
        asked = {fact["asked"] for fact in facts if "asked" in fact}
        confirmed = {fact["cancelled"] for fact in facts if "cancelled" in fact}
        places: Counter[str] = Counter()
        found: set[str] = set()
        for state in ("input", "processing/*", "output", "failed"):
            for folder in self._workspace.glob(f"{state}/[!.]*"):
                if not folder.is_dir():
                    continue
                found.add(folder.name)
                prompt = _text(folder / "prompt.txt")
                places[prompt] += 1
                wrong = promised.get(folder.name, prompt) != prompt
                if state == "output":
                    wrong |= not self._is_whole(folder, "result.txt", answer_of(prompt), verdict)
                    verdict.done += 1
                    verdict.unacknowledged += folder.name not in promised
                    if folder.name in confirmed:
                        verdict.answered_after_cancel.append(folder.name)
                elif state == "failed":
                    reason = _text(folder / "error.txt").removesuffix("\n")
                    wrong |= not self._is_whole(folder, "error.txt", None, verdict)
                    self._judge_failure(folder, prompt, reason, folder.name in asked, verdict)
                else:
                    verdict.unfinished.append(folder.name)
                if wrong:
                    verdict.torn.append(folder.name)
        verdict.lost = sorted(set(promised) - found)
        verdict.duplicate = [prompt for prompt, count in places.items() if count > 1]
        return verdict

    def _is_whole(self, folder: Path, name: str, expected: str | None, verdict: Verdict) -> bool:
        try:
            receipt = json.loads((folder / "receipt.json").read_text())
            content = (folder / name).read_bytes()
        except (OSError, ValueError):
            return False
        if {path.name for path in folder.iterdir()} != {"prompt.txt", "job.json", "receipt.json", name}:
            return False
        if expected is None:
            return bool(receipt["id"] == folder.name and receipt["error"])
        verdict.resumed_tokens += receipt["resumed_tokens"]
        right = content.decode() == expected and receipt["sha256"] == hashlib.sha256(content).hexdigest()
        return bool(right and receipt["id"] == folder.name and receipt["finish_reason"] == "stop")

    def _judge_failure(self, folder: Path, prompt: str, reason: str, was_asked: bool, verdict: Verdict) -> None:
        if "REFUSE" in commands_in(prompt) and reason == "it said so itself":
            verdict.refused += 1
        elif was_asked and reason.startswith("cancelled"):
            verdict.cancelled += 1
        elif reason.startswith(SET_ASIDE) and self.hit[folder.name] >= 3:
            verdict.set_aside += 1
        else:
            verdict.blamed.append(f"{folder.name}: {reason[:200]}")


def _content(folder: Path) -> bytes:
    try:
        return (folder / "result.txt").read_bytes() + (folder / "receipt.json").read_bytes()
    except OSError as error:
        return str(error).encode()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        return str(error)


def as_printed(data: bytes, prompts: list[Any]) -> list[tuple[str, Any]]:
    """The ids that a tool got to print, each with its prompt; half a line is no promise."""
    return list(zip(data.decode().split("\n")[:-1], prompts, strict=False))
