"""What computes: the library that the settings ask for, the GPUs it sees, and what of the model lies on which."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from nrvna.config import Config, gpu_groups
from nrvna.engine.protocol import Share
from nrvna.errors import LibraryError, SettingError
from nrvna.llama import Library, Model, load_library

log = logging.getLogger("nrvna.engine")


def open_library(config: Config) -> Library:
    """llama.cpp as the settings ask for it. Raises LibraryError."""
    return load_library(Path(config.llama_dir) if config.llama_dir else None, config.backend)


def explain(library: Library, config: Config) -> None:
    """Say in the log why no GPU computes, where nobody asked for the CPU."""
    if library.passed_over and config.gpu_layers:
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


def list_devices(config: Config) -> int:
    """Print the GPUs as a JSON object, or why there is no saying; returns the exit code."""
    # What libraries print is no part of it.
    output = os.dup(1)
    os.dup2(2, 1)
    try:
        library = open_library(config)
        gpus = [
            {"description": device.description, "free": device.memory_free, "total": device.memory_total}
            for device in library.devices()
            if device.is_gpu
        ]
        said: dict[str, object] = {"backend": library.build.backend, "gpus": gpus}
        said["why"] = library.passed_over if library.is_loss else ""
    except LibraryError as error:
        said = {"fatal": str(error)}
    os.write(output, json.dumps(said).encode())
    return 1 if "fatal" in said else 0


def require_gpus(config: Config) -> None:
    """Raises SettingError where an engine that is to have some GPUs for itself does not see as many."""
    wanted = sum(len(group) for group in gpu_groups(config.gpus))
    if not wanted:
        return
    library = open_library(config)
    seen = sum(device.is_gpu for device in library.devices())
    if seen != wanted:
        why = f" ({library.passed_over})" if library.passed_over else ""
        raise SettingError(
            f"NRVNA_GPUS gives this engine {config.gpus}, but llama.cpp, built for {library.build.backend}, sees "
            f"{seen} of {wanted} GPUs{why}: see that they work, or name others"
        )
