"""What processes tell each other in their environment: a starter and its daemon, a daemon and its engines."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from nrvna.config import ALL_GPUS, Config, gpu_groups

# How nrvnad hands a descriptor to the daemon that it starts.
_STARTER = "NRVNA_STARTER_FD"


def notify_socket() -> str:
    """Where systemd listens for how the service is doing; empty where it did not start it."""
    return os.environ.get("NOTIFY_SOCKET", "")


def starter_descriptor() -> int | None:
    """The pipe of a ``nrvnad --daemonize`` that waits for this process to be ready, if one started it."""
    text = os.environ.get(_STARTER, "")
    return int(text) if text.isascii() and text.isdecimal() else None


def daemon_environment(starter: int) -> dict[str, str]:
    """The environment of a daemon that tells a descriptor how its start goes."""
    return {**_with_this_package(), _STARTER: str(starter)}


def engine_environment(config: Config) -> dict[str, str]:
    """The environment of the engine's process."""
    environment = _with_this_package()
    # What the service has to say is the daemon's to say.
    environment.pop("NOTIFY_SOCKET", None)
    environment.pop(_STARTER, None)
    if "OMP_WAIT_POLICY" not in environment:
        # libgomp's threads spin 300 times as long before they sleep. That gains little on idle cores, and where
        # something else runs on them speed collapses (benchmarks/RESULTS.md).
        environment.setdefault("GOMP_SPINCOUNT", "1000")
    if config.reproducible:
        # The tiled K-quant kernels are used from 8 rows on: a row's result would depend on its neighbours.
        environment["GGML_CPU_TILED_MM"] = "0"
    environment |= _visible_gpus(config, environment)
    if config.llama_log_level != "debug":
        # Else ggml attaches a debugger to itself when it aborts, which takes seconds and fills the log.
        environment.setdefault("GGML_NO_BACKTRACE", "1")
    return environment


def _visible_gpus(config: Config, environment: Mapping[str, str]) -> dict[str, str]:
    """What makes CUDA show an engine its own GPUs alone; numbers are among those that are visible already."""
    if config.replicas > 1:
        return {"CUDA_VISIBLE_DEVICES": ""}
    if not config.gpus:
        return {}
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    # As nvidia-smi numbers them, unless somebody chose already.
    order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if visible is None and "CUDA_DEVICE_ORDER" not in environment else {}
    if config.gpus == ALL_GPUS:
        return order
    names = dict(enumerate((visible or "").split(","))) if visible is not None else {}
    numbers = [number for group in gpu_groups(config.gpus) for number in group]
    return {**order, "CUDA_VISIBLE_DEVICES": ",".join(names.get(number, str(number)).strip() for number in numbers)}


def _with_this_package() -> dict[str, str]:
    """This process's environment, in which Python finds this very package, installed or not."""
    environment = dict(os.environ)
    paths = [str(Path(__file__).parents[1]), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return environment
