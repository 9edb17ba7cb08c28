"""What this machine has: cores and memory, and an engine's share of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from nrvna.config import Config
from nrvna.engine.cgroups import memory_left, processor_time

_CPUS = Path("/sys/devices/system/cpu")


def physical_cores() -> int:
    """Cores this process may keep busy, hyperthreads counted once; at least 1."""
    return _within_quota(len(_cores()))


def processors() -> int:
    """Processors this process may keep busy, each hyperthread one; at least 1."""
    return _within_quota(sum(map(len, _cores())))


def _within_quota(count: int) -> int:
    """Threads beyond the quota would use it up sooner, and then all wait together for the next period."""
    time = processor_time()
    return max(1, count if time is None else min(count, int(time)))


def take_share(config: Config, index: int, count: int) -> Config:
    """Leave the cores to the ``count - 1`` other engines of this machine that are theirs; the settings of this one.

    Engines on the processor alone keep to cores of their own, side by side, so that each stays within a NUMA node
    where there are as many. Beside GPUs they only start so many threads.
    """
    if count == 1:
        return config
    if config.gpus or not hasattr(os, "sched_setaffinity"):
        return replace(config, threads=max(1, (config.threads or physical_cores()) // count))
    own = share_of(_cores(), index, count)
    threads = config.threads // count if config.threads else min(len(own), physical_cores() // count)
    os.sched_setaffinity(0, {cpu for core in own for cpu in core})
    return replace(config, threads=max(1, threads))


def share_of(cores: Sequence[Sequence[int]], index: int, count: int) -> list[Sequence[int]]:
    """The cores of one out of ``count``, which differ by one at most; some share a core where there are too few."""
    if len(cores) < count:
        return [cores[index % len(cores)]]
    return list(cores[index * len(cores) // count : (index + 1) * len(cores) // count])


def _cores() -> list[tuple[int, ...]]:
    """The processors of each core that this process may use, neighbours next to each other."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores: dict[tuple[int, str], list[int]] = {}
    for cpu in sorted(usable):
        folder = _CPUS / f"cpu{cpu}"
        try:
            siblings = (folder / "topology" / "thread_siblings_list").read_text()
        except OSError:
            return [(cpu,) for cpu in sorted(usable)]
        node = min((int(path.name[4:]) for path in folder.glob("node[0-9]*")), default=0)
        cores.setdefault((node, siblings), []).append(cpu)
    ordered = sorted(cores.items(), key=lambda item: (item[0][0], item[1]))
    return [tuple(cpus) for _, cpus in ordered]


def available_memory() -> int:
    """Bytes that can be taken without swapping and within the limits of a container."""
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found = int(line.split()[1]) * 1024
    left = memory_left()
    return found if left is None else min(found, left)
