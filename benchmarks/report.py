"""What was measured, as a table, as JSON and as a picture."""

from __future__ import annotations

import importlib
import json
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.contenders import BenchmarkError, Nrvna, Sample
from benchmarks.workloads import Workload
from nrvna.engine.machine import physical_cores

SERVER = "llama-server"


@dataclass
class Results:
    """The samples of one workload by contender, one a round; None where a contender cannot express the workload.

    ``reference`` are nrvna's of the workload's reference, of the same rounds.
    """

    workload: Workload
    samples: dict[str, list[Sample | None]] = field(default_factory=dict)
    reference: list[Sample] = field(default_factory=list)

    def seconds(self, name: str) -> list[float]:
        """Seconds of each round; empty where there are none."""
        return [sample.seconds for sample in self.samples.get(name, []) if sample]

    def ratios(self, name: str) -> list[float]:
        """How many times as long as nrvna a contender took, round by round."""
        own = self.seconds(Nrvna.name)
        return [theirs / ours for theirs, ours in zip(self.seconds(name), own, strict=True)] if own else []

    def best_server(self) -> str | None:
        """The llama-server with the lowest median."""
        servers = [name for name in self.samples if name.startswith(SERVER)]
        return min(servers, key=lambda name: statistics.median(self.seconds(name)), default=None)

    def to_dict(self) -> dict[str, Any]:
        workload = self.workload
        return {
            "jobs": len(workload.jobs),
            "generated_tokens": workload.generated_tokens,
            "samples": {name: [sample and asdict(sample) for sample in of] for name, of in self.samples.items()},
            "reference_jobs": len(workload.reference.jobs) if workload.reference else 0,
            "reference": [asdict(sample) for sample in self.reference],
        }


def machine() -> dict[str, str | int]:
    """Processor and cores."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    return {"processor": model, "physical_cores": physical_cores(), "logical_cores": os.cpu_count() or 1}


def about(model: Path, commit: str, command: str) -> dict[str, Any]:
    """What a reader needs to judge the figures and to measure them again."""
    return {
        "command": command,
        "date": date.today().isoformat(),
        "model": model.name,
        "llama.cpp": commit,
        "python": platform.python_version(),
        **machine(),
    }


def heading(facts: Mapping[str, Any]) -> str:
    cores = f"{facts['physical_cores']} physical cores ({facts['logical_cores']} logical)"
    return (
        f"`{facts['command']}`\n\n"
        f"{facts['processor']}, {cores}, {facts['date']}; {facts['model']}, llama.cpp {facts['llama.cpp'][:12]}, "
        f"Python {facts['python']}. Seconds: median (least to most) of the rounds. Ratio: the contender's seconds "
        "over nrvna's of the same round, the median of the rounds; above 1, nrvna is faster.\n"
    )


def table(results: Results) -> str:
    """A workload's results in Markdown."""
    workload = results.workload
    rows = [
        f"### {workload.name}: {len(workload.jobs)} jobs, {workload.generated_tokens} tokens generated\n",
        "| contender | seconds | generated tokens/s | ratio | prompt tokens, cached | note |",
        "|---|---|---|---|---|---|",
        *(f"| {' | '.join(_cells(results, name))} |" for name in results.samples),
    ]
    best = results.best_server()
    if best:
        ratios = results.ratios(best)
        over = f", {statistics.median(ratios):.2f} times nrvna's" if ratios else ""
        rows.append(f"\nllama-server's best: `{best}`, {statistics.median(results.seconds(best)):.2f} s{over}.")
    if results.reference:
        rows.append(f"\n{_comparison(results)}")
    return "\n".join([*rows, ""])


def _cells(results: Results, name: str) -> list[str]:
    seconds, ratios = results.seconds(name), results.ratios(name)
    if not seconds:
        return [name, "cannot express", "", "", "", ""]
    samples = [sample for sample in results.samples[name] if sample]
    # The notes of the rounds differ where another batch size was the best.
    notes = "; ".join(dict.fromkeys(sample.note for sample in samples if sample.note))
    return [
        name,
        f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})",
        f"{results.workload.generated_tokens / statistics.median(seconds):.1f}",
        f"{statistics.median(ratios):.2f}" if ratios else "",
        ", ".join(
            _median(getattr(sample, which) for sample in samples) for which in ("prompt_tokens", "cached_tokens")
        ),
        notes,
    ]


def _median(numbers: Iterable[int | None]) -> str:
    known = [number for number in numbers if number is not None]
    return f"{statistics.median(known):.0f}" if known else "?"


def _comparison(results: Results) -> str:
    """What nrvna took for the workload and for its reference, whole and for one job."""
    workload, reference = results.workload, results.workload.reference
    assert reference is not None
    whole, part = results.seconds(Nrvna.name), [sample.seconds for sample in results.reference]
    many, few = len(workload.jobs), len(reference.jobs)
    ratio = statistics.median(a / b for a, b in zip(whole, part, strict=True))
    return (
        f"nrvna: {many} jobs took {ratio:.2f} times as long as {few}; for each job "
        f"{statistics.median(whole) / many:.4f} s against {statistics.median(part) / few:.4f} s, "
        f"{ratio * few / many:.2f} times as long."
    )


def write_json(path: Path, facts: Mapping[str, Any], all_results: Sequence[Results]) -> None:
    content = {**facts, "workloads": {results.workload.name: results.to_dict() for results in all_results}}
    path.write_text(json.dumps(content, indent=2) + "\n")


def pyplot() -> Any:
    """matplotlib's module for plots. Raises BenchmarkError where it is not installed."""
    try:
        importlib.import_module("matplotlib").use("Agg")
        return importlib.import_module("matplotlib.pyplot")
    except ImportError:
        raise BenchmarkError("--plot needs matplotlib: `pip install matplotlib`") from None


def plot(path: Path, all_results: Sequence[Results]) -> None:
    """Bars of the median seconds of each contender, a chart a workload, from the least to the most as a line."""
    figure, charts = pyplot().subplots(len(all_results), 1, squeeze=False, layout="constrained")
    figure.set_size_inches(8, sum(1 + 0.3 * len(results.samples) for results in all_results))
    for chart, results in zip(charts[:, 0], all_results, strict=True):
        shown = [name for name in reversed(results.samples) if results.seconds(name)]
        middles = [statistics.median(results.seconds(name)) for name in shown]
        below = [middle - min(results.seconds(name)) for middle, name in zip(middles, shown, strict=True)]
        above = [max(results.seconds(name)) - middle for middle, name in zip(middles, shown, strict=True)]
        colours = ["tab:orange" if name == Nrvna.name else "tab:blue" for name in shown]
        chart.barh(shown, middles, xerr=[below, above], color=colours)
        chart.set_title(f"{results.workload.name}: {len(results.workload.jobs)} jobs")
        chart.set_xlabel("seconds")
    figure.savefig(path, dpi=120)
