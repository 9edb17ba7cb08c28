"""The control groups that this process is in: what they, and all above them, leave of the machine's time and memory.

Both versions are read, as both may be there, each with some of the controllers. How the files are called and meant:
the kernel's documentation, admin-guide/cgroup-v1 and cgroup-v2.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_ESCAPED = re.compile(r"\\([0-7]{3})")
# Version 1 says with the largest number of pages that there is no limit.
_UNLIMITED = 1 << 60
# Of what a group has in memory, what can be dropped at once: files that were read. In version 1 below it too.
_CACHE = ("active_file", "inactive_file")


class _Group(NamedTuple):
    """The folder of a group, in one version."""

    folder: Path
    version: int


def processor_time(root: Path = Path("/")) -> float | None:
    """The most processors that this process may keep busy; None where no group limits that."""
    quotas = [quota for group in _groups("cpu", root) if (quota := _quota(group))]
    return min(quotas, default=None)


def memory_left(root: Path = Path("/")) -> int | None:
    """The bytes that this process may take until a group is at its limit; None where none has one."""
    lefts = [left for group in _groups("memory", root) if (left := _left(group)) is not None]
    return max(0, min(lefts)) if lefts else None


def _quota(group: _Group) -> float | None:
    """Processors, as a part of each period."""
    if group.version == 2:
        quota, _, period = _read(group.folder / "cpu.max").partition(" ")
    else:
        quota, period = (_read(group.folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    # "max" and -1 are no limit.
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _left(group: _Group) -> int | None:
    folder = group.folder
    stat = dict(line.split(" ", 1) for line in _read(folder / "memory.stat").splitlines() if " " in line)
    if group.version == 2:
        limits = [_read(folder / "memory.max"), _read(folder / "memory.high")]
        used, prefix = _read(folder / "memory.current"), ""
    else:
        # The lowest of the groups above, also of those that are out of sight.
        limits = [_read(folder / "memory.limit_in_bytes"), stat.get("hierarchical_memory_limit", "")]
        used, prefix = _read(folder / "memory.usage_in_bytes"), "total_"
    bounds = [int(limit) for limit in limits if limit.isdecimal() and int(limit) < _UNLIMITED]
    if not bounds or not used.isdecimal():
        return None
    cache = [stat.get(f"{prefix}{name}", "0") for name in _CACHE]
    return min(bounds) - int(used) + sum(int(count) for count in cache if count.isdecimal())


def _groups(controller: str, root: Path) -> Iterator[_Group]:
    """The group of this process, and those above it as far as they are in sight, in each hierarchy that counts."""
    paths = _own_paths(root)
    for top, within, version, controllers in _mounts(root):
        if version == 2 or controller in controllers:
            path = paths.get("" if version == 2 else controller)
            if path is not None:
                for folder in _upwards(top, within, path):
                    yield _Group(folder, version)


def _own_paths(root: Path) -> dict[str, str]:
    """Where in each hierarchy this process is, by its controllers; version 2 is named ""."""
    found: dict[str, str] = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, names, path = [*line.split(":", 2), "", ""][:3]
        found |= dict.fromkeys(names.split(","), path)
    return found


def _mounts(root: Path) -> Iterator[tuple[Path, str, int, list[str]]]:
    """Where hierarchies are mounted, from which of their groups on, their version, and its options."""
    for line in _read(root / "proc/self/mountinfo").splitlines():
        fields, _, kind = line.partition(" - ")
        words, about = fields.split(" "), kind.split(" ")
        if len(words) > 4 and len(about) > 2 and about[0] in ("cgroup", "cgroup2"):
            within, top = (_ESCAPED.sub(lambda code: chr(int(code[1], 8)), word) for word in words[3:5])
            yield root / top.lstrip("/"), within, 2 if about[0] == "cgroup2" else 1, about[2].split(",")


def _upwards(top: Path, within: str, path: str) -> Iterator[Path]:
    """The folder of a group and those above it, up to where the hierarchy is mounted."""
    names = _names(top, within, path)
    for count in range(len(names), -1, -1):
        folder = top.joinpath(*names[:count])
        if folder.is_dir():
            yield folder


def _names(top: Path, within: str, path: str) -> list[str]:
    """The folders that lead to a group, as far as can be told.

    In a namespace of its own a process sees its groups by other names than those that they are mounted by.
    """
    is_below = f"{path}/".startswith(f"{within.rstrip('/')}/")
    names = [name for name in (path.removeprefix(within) if is_below else path).split("/") if name]
    if not is_below and ".." in within:
        # Mounted from above the namespace: which of the groups so far down it is, only they know.
        depth = within.split("/").count("..") + len(names)
        for folder in top.glob("/".join(["*"] * depth)):
            if str(os.getpid()) in _read(folder / "cgroup.procs").split():
                return list(folder.relative_to(top).parts)
        return []
    # Beside what is mounted, or above it: out of sight, and as likely as not under the same limits.
    return [] if ".." in names else names


def _read(path: Path) -> str:
    with suppress(OSError, ValueError):
        return path.read_text().strip()
    return ""
