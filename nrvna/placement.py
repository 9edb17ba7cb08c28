"""How many engines a daemon runs, and what each of them has to itself: GPUs, or a share of the processor."""

from __future__ import annotations

import json
import logging
import re
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from nrvna.config import ALL_GPUS, Config, gpu_groups
from nrvna.engine.process import run_engine
from nrvna.errors import EngineError, SettingError

log = logging.getLogger("nrvna")

# What a model takes on GPUs beside its weights: KV cache in proportion to them, and room to compute on each.
_BESIDE_WEIGHTS = 1.15
_BESIDE_EACH_BYTES = 512 * 1024 * 1024


class Place(NamedTuple):
    """Where one engine runs. ``name`` tells it from the others, and is empty where there are none.

    ``config`` is its own: with the GPUs that it alone sees, if any. ``share`` is which it is, of how many.
    """

    name: str
    config: Config
    share: tuple[int, int] = (0, 1)


def places(model: Path, config: Config) -> list[Place]:
    """One for each engine. Starts a process that looks for GPUs, where some are to be used one by one.

    Raises SettingError for GPUs that are not there, EngineError if llama.cpp cannot be asked.
    """
    if config.gpus:
        groups = _groups(model, config)
        names = [f"gpu {group}" for group in groups]
        configs = [replace(config, gpus=group) for group in groups]
    else:
        names = [f"replica {number}" for number in range(1, config.replicas + 1)]
        configs = [replace(config, gpu_layers=0) if config.replicas > 1 else config] * config.replicas
    if len(names) == 1:
        return [Place("", configs[0])]
    return [
        Place(name, own, (index, len(names))) for index, (name, own) in enumerate(zip(names, configs, strict=True))
    ]


def first_place(config: Config) -> Config:
    """The settings for a single engine that only tries things out."""
    if config.gpus in ("", ALL_GPUS):
        return replace(config, gpus="", replicas=1)
    return replace(config, gpus=config.gpus.partition(",")[0])


def _groups(model: Path, config: Config) -> list[str]:
    """Who computes with which GPUs, as in NRVNA_GPUS."""
    found = _visible_gpus(config)
    there = [gpu["free"] for gpu in found["gpus"]]
    wanted = gpu_groups(config.gpus) or tuple((number,) for number in range(len(there)))
    missing = [number for group in wanted for number in group if number >= len(there)]
    if missing or not there:
        raise SettingError(f"NRVNA_GPUS is {config.gpus}, but {_seen(len(there), found)}")
    if all(len(group) == 1 for group in wanted):
        numbers = [number for group in wanted for number in group]
        size = weights_of(model)
        wanted = tuple(fitting([(number, there[number]) for number in numbers], size))
        if len(wanted) < len(numbers):
            log.info(
                "the model's %.1f GB do not fit one GPU: split by layer, NRVNA_GPUS=%s", size / 1e9, _text(wanted)
            )
    return [_text([group]) for group in wanted]


def _visible_gpus(config: Config) -> dict[str, Any]:
    done = run_engine("--devices", replace(config, gpus=ALL_GPUS), subprocess.PIPE)
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        said = f"looking for GPUs ended with exit code {done.returncode}"
        raise EngineError(f"{said}; its log is {config.log_file or 'above'}") from None
    if "fatal" in found:
        raise EngineError(found["fatal"])
    return found


def _seen(count: int, found: dict[str, Any]) -> str:
    if count:
        last = f"GPU 0{' to ' + str(count - 1) if count > 1 else ''}"
        return f"llama.cpp sees {last} alone: name GPUs as `nvidia-smi` numbers them, or all"
    if found["why"]:
        return f"llama.cpp computes on the CPU here: {found['why']}"
    if found["backend"] == "cpu":
        return "llama.cpp was built for the CPU alone: build it for the GPU with scripts/build_llama.py, or unset it"
    return f"llama.cpp, built for {found['backend']}, sees no GPU here: see that its driver works, or unset it"


def fitting(gpus: Sequence[tuple[int, int]], weights: int) -> list[tuple[int, ...]]:
    """The most groups of neighbours of which each has room for a model. ``gpus`` are numbers and free bytes."""
    for count in range(len(gpus), 1, -1):
        bounds = [index * len(gpus) // count for index in range(count + 1)]
        groups = [gpus[low:high] for low, high in pairwise(bounds)]
        if all(_has_room(group, weights) for group in groups):
            return [tuple(number for number, _ in group) for group in groups]
    return [tuple(number for number, _ in gpus)]


def _has_room(group: Sequence[tuple[int, int]], weights: int) -> bool:
    free = sum(max(0, each - _BESIDE_EACH_BYTES) for _, each in group)
    return free >= weights * _BESIDE_WEIGHTS


def weights_of(model: Path) -> int:
    """Bytes of a model's file, or of all the files that it was split into."""
    parts = re.fullmatch(r"(.*-)00001(-of-\d{5}\.gguf)", model.name)
    files = model.parent.glob(f"{parts[1]}?????{parts[2]}") if parts else [model]
    return sum(file.stat().st_size for file in files)


def _text(groups: Sequence[Sequence[int]]) -> str:
    return ",".join("+".join(map(str, group)) for group in groups)
