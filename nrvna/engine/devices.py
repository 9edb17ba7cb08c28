"""What computes: the library that the settings ask for, its devices, and what of the model lies on which."""

from __future__ import annotations

import logging
from pathlib import Path

from nrvna.config import Config
from nrvna.engine.protocol import Share
from nrvna.llama import Library, Model, load_library

log = logging.getLogger("nrvna.engine")


def open_library(config: Config) -> Library:
    """llama.cpp as the settings ask for it. Raises LibraryError."""
    return load_library(Path(config.llama_dir) if config.llama_dir else None, config.backend)


def explain(library: Library) -> None:
    """Say in the log why no GPU computes, where nobody asked for the CPU."""
    if library.passed_over:
        log.log(logging.WARNING if library.is_loss else logging.INFO, "runs on the CPU: %s", library.passed_over)


def uses_gpu(library: Library, config: Config) -> bool:
    """Whether there is a GPU and it is to compute."""
    return config.gpu_layers > 0 and any(device.is_gpu for device in library.devices())


def device_of(library: Library, *, on_gpu: bool) -> str:
    """What computes, by the names that its makers gave it."""
    return " and ".join(device.description for device in library.devices() if device.is_gpu == on_gpu)


def shares(library: Library, model: Model) -> tuple[Share, ...]:
    """What each GPU holds of the model and has left now, and what the host holds; empty if no layer is on a GPU."""
    if not model.placement.offloaded:
        return ()
    gpus = [device for device in library.devices() if device.is_gpu]
    weights = model.placement.weights([gpu.name for gpu in gpus])
    on_gpus = [Share(gpu.name, weights.pop(gpu.name), gpu.memory_free, gpu.memory_total) for gpu in gpus]
    return (*on_gpus, *(Share(name, size) for name, size in weights.items()))
