"""How the jobs of a workspace fared, from their receipts: how many, how fast, what went wrong."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from math import ceil
from os.path import basename
from typing import Any

from nrvna.job import JobState, Receipt, seconds_of, timestamp
from nrvna.lines import head_line
from nrvna.selection import Glance, Selection
from nrvna.terminal import printable

_REASONS_SHOWN = 10
_ID = re.compile(r"\d{8}-\d{6}-\d{6}-[0-9a-f]{6}")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def stats(glance: Glance, selection: Selection, since_s: float | None = None) -> dict[str, Any]:
    """Of the jobs meant, and of those of them that were finished within ``since_s`` seconds; times in seconds.

    ``busy_s`` is the time in which at least one was being answered; rates are over that. An answer that several jobs
    share counts once. A value that nothing is known of is null.
    """
    workspace = glance.workspace
    begin = None if since_s is None else glance.now - since_s
    numbers = dict.fromkeys(("queued", "waiting", "running", "done", "cut", "failed"), 0)
    receipts: list[Receipt] = []
    reasons: Counter[str] = Counter()
    for job in glance.select(selection):
        if not job.is_finished:
            numbers[job.state] += 1
            numbers["waiting"] += glance.word(job) == "waiting"
            continue
        receipt = workspace.receipt(job)
        finished = seconds_of(receipt.finished) if receipt else None
        if begin is not None and (finished is None or finished < begin):
            continue
        numbers[job.state] += 1
        if job.state is JobState.FAILED:
            reasons[_kind_of(workspace.answer(job))] += 1
        if receipt:
            numbers["cut"] += job.state is JobState.DONE and receipt.was_cut
            receipts.append(receipt)
    return {
        "since": None if begin is None else timestamp(begin),
        "jobs": numbers,
        **_figures(receipts),
        "failures": [{"reason": reason, "jobs": number} for reason, number in reasons.most_common()],
        "models": _by_model(receipts),
    }


def _figures(receipts: Sequence[Receipt]) -> dict[str, Any]:
    own = [receipt for receipt in receipts if receipt.same_as is None]
    spans = [span for receipt in receipts if (span := _span(receipt))]
    busy = _covered(spans)
    generated = sum(receipt.generated_tokens or 0 for receipt in own)
    waits = [
        max(0.0, span[0] - queued)
        for receipt in receipts
        if (span := _span(receipt)) and (queued := seconds_of(receipt.queued)) is not None
    ]
    return {
        "tokens": {
            "prompt": sum(receipt.prompt_tokens or 0 for receipt in own),
            "cached": sum(receipt.cached_tokens or 0 for receipt in own),
            "generated": generated,
        },
        "busy_s": round(busy, 3),
        "tokens_per_second": round(generated / busy, 2) if busy else None,
        "jobs_per_hour": round(3600 * len(spans) / busy, 1) if busy else None,
        "wait_s": _spread(waits),
        "answer_s": _spread([end - start for start, end in spans]),
    }


def _by_model(receipts: Iterable[Receipt]) -> list[dict[str, Any]]:
    groups: dict[str, list[Receipt]] = {}
    for receipt in receipts:
        path = (receipt.model or {}).get("path")
        if isinstance(path, str):
            groups.setdefault(basename(path), []).append(receipt)
    found = []
    for name, group in sorted(groups.items(), key=lambda item: -len(item[1])):
        figures = _figures(group)
        tokens, speed = figures["tokens"]["generated"], figures["tokens_per_second"]
        found.append({"model": name, "jobs": len(group), "generated": tokens, "tokens_per_second": speed})
    return found


def _span(receipt: Receipt) -> tuple[float, float] | None:
    """When it was started and when finished."""
    start, end = seconds_of(receipt.started), seconds_of(receipt.finished)
    return (start, max(start, end)) if start is not None and end is not None else None


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """How long at least one of them lasted."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    """The value that half of them, and 95 of 100, do not exceed."""
    ordered = sorted(values)

    def rank(part: float) -> float | None:
        return round(ordered[max(0, ceil(part * len(ordered)) - 1)], 3) if ordered else None

    return {"median": rank(0.5), "p95": rank(0.95)}


def _kind_of(reason: str) -> str:
    """A reason without what is one job's alone: its numbers, and ids."""
    return _NUMBER.sub("N", _ID.sub("ID", head_line(reason) or "no reason is known"))


def print_stats(found: dict[str, Any], *, as_json: bool) -> None:
    """On standard output, as a JSON object or for people."""
    print(json.dumps(found, indent=2) if as_json else "\n".join(_lines(found)))


def _lines(found: dict[str, Any]) -> Iterable[str]:
    jobs, tokens = found["jobs"], found["tokens"]
    total = sum(number for state, number in jobs.items() if state not in ("waiting", "cut"))
    details = {"queued": "waiting", "done": "cut"}
    parts = []
    for state in ("queued", "running", "done", "failed"):
        finer = details.get(state, "")
        some = f" ({jobs[finer]} {finer})" if finer and jobs[finer] else ""
        parts += [f"{jobs[state]} {state}{some}"] if jobs[state] else []
    yield f"jobs      {total}" + (f": {', '.join(parts)}" if parts else "")
    if found["since"]:
        yield f"          finished since {found['since']}, or not yet"
    cached = f" ({tokens['cached']:,} of them computed for others before)" if tokens["cached"] else ""
    yield f"tokens    {tokens['prompt']:,} in prompts{cached}, {tokens['generated']:,} generated"
    if found["busy_s"]:
        speed, hourly = found["tokens_per_second"], found["jobs_per_hour"]
        yield f"busy      {_length(found['busy_s'])}: {speed:,} tokens a second, {hourly:,} jobs an hour"
    for name, key in (("wait", "wait_s"), ("answer", "answer_s")):
        if found[key]["median"] is not None:
            yield f"{name:<10}half within {_length(found[key]['median'])}, 95 % within {_length(found[key]['p95'])}"
    for number, model in enumerate(found["models"]):
        label = "" if number else "models"
        speed = f", {model['tokens_per_second']:,} a second" if model["tokens_per_second"] else ""
        count = f"{model['jobs']} job{'s' if model['jobs'] != 1 else ''}"
        yield f"{label:<10}{printable(model['model'])}: {count}, {model['generated']:,} tokens{speed}"
    failures = found["failures"]
    for number, failure in enumerate(failures[:_REASONS_SHOWN]):
        label = "" if number else "failures"
        yield f"{label:<10}{failure['jobs']} × {printable(failure['reason'])}"
    if len(failures) > _REASONS_SHOWN:
        others = len(failures) - _REASONS_SHOWN
        yield f"{'':<10}and {others} other reason{'s' if others != 1 else ''}: --json has them all"


def _length(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds >= 0.1 else f"{1000 * seconds:.0f} ms"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
