"""The GPUs that llama.cpp sees, for a daemon that gives each engine its own."""

from __future__ import annotations

import json
import os
from pathlib import Path

from nrvna.config import Config, gpu_groups
from nrvna.errors import LibraryError, SettingError
from nrvna.llama import Library, load_library


def list_devices(config: Config) -> int:
    """Print them as a JSON object, or why there is no saying; returns the exit code."""
    # What libraries print is no part of it.
    output = os.dup(1)
    os.dup2(2, 1)
    try:
        library = _load(config)
        gpus = [
            {"description": device.description, "free": device.memory_free, "total": device.memory_total}
            for device in library.devices()
            if device.is_gpu
        ]
        said: dict[str, object] = {"backend": library.build.backend, "gpus": gpus}
    except LibraryError as error:
        said = {"fatal": str(error)}
    os.write(output, json.dumps(said).encode())
    return 1 if "fatal" in said else 0


def require_gpus(config: Config) -> None:
    """Raises SettingError where an engine that is to have some GPUs for itself does not see as many."""
    wanted = sum(len(group) for group in gpu_groups(config.gpus))
    if not wanted:
        return
    library = _load(config)
    seen = sum(device.is_gpu for device in library.devices())
    if seen != wanted:
        raise SettingError(
            f"NRVNA_GPUS gives this engine {config.gpus}, but llama.cpp, built for {library.build.backend}, sees "
            f"{seen} of {wanted} GPUs: see that they work, or name others"
        )


def _load(config: Config) -> Library:
    return load_library(Path(config.llama_dir) if config.llama_dir else None)
