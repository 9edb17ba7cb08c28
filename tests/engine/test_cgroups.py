"""What control groups leave to a process: from files as the kernel lays them out, and in groups of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nrvna.config import Config
from nrvna.engine import machine
from nrvna.engine.cgroups import memory_left, processor_time
from nrvna.engine.machine import available_memory, physical_cores, processors, take_share

GB = 1_000_000_000
MOUNT_V2 = "31 23 0:28 {within} {top} rw,relatime - cgroup2 cgroup2 rw"
MOUNT_V1 = "32 31 0:29 {within} {top} rw,relatime shared:9 - cgroup cgroup rw,{controllers}"


class Tree:
    """A root folder with what a process sees of its control groups."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "proc/self").mkdir(parents=True)

    def mount(self, top: str = "/sys/fs/cgroup", within: str = "/", controllers: str = "") -> None:
        form = MOUNT_V1 if controllers else MOUNT_V2
        with (self.root / "proc/self/mountinfo").open("a") as file:
            file.write(form.format(top=top, within=within, controllers=controllers) + "\n")

    def be_in(self, *lines: str) -> None:
        (self.root / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in lines))

    def group(self, folder: str, **files: object) -> None:
        """A group with these files, ``cpu_max`` for cpu.max."""
        where = self.root / folder.lstrip("/")
        where.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (where / name.replace("_", ".", 1)).write_text(f"{content}\n")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_without_groups_there_is_no_limit(tree: Tree) -> None:
    assert (processor_time(tree.root), memory_left(tree.root)) == (None, None)
    tree.mount()
    tree.be_in("0::/user.slice")
    tree.group("/sys/fs/cgroup/user.slice", cpu_max="max 100000", memory_max="max", memory_high="max")
    assert (processor_time(tree.root), memory_left(tree.root)) == (None, None)


def test_the_lowest_limit_of_a_group_and_those_above_it_counts_in_version_2(tree: Tree) -> None:
    tree.mount()
    tree.be_in("0::/system.slice/nrvnad.service/engine")
    top = "/sys/fs/cgroup/system.slice"
    tree.group(top, cpu_max="150000 100000", memory_max=8 * GB, memory_current=7 * GB)
    tree.group(f"{top}/nrvnad.service", cpu_max="40000 10000", memory_max=4 * GB, memory_current=1 * GB)
    tree.group(f"{top}/nrvnad.service/engine", cpu_max="max 100000", memory_max="max", memory_current=1 * GB)
    # A neighbour's are its own.
    tree.group(f"{top}/other.service", cpu_max="1000 100000", memory_max=1000, memory_current=900)
    assert processor_time(tree.root) == 1.5
    assert memory_left(tree.root) == 1 * GB


def test_the_lowest_limit_of_a_group_and_those_above_it_counts_in_version_1(tree: Tree) -> None:
    tree.mount("/sys/fs/cgroup/cpu,cpuacct", controllers="cpu,cpuacct")
    tree.mount("/sys/fs/cgroup/memory", controllers="memory")
    tree.be_in("4:memory:/docker/abc", "3:cpu,cpuacct:/docker/abc/x:y", "1:name=systemd:/elsewhere")
    tree.group("/sys/fs/cgroup/cpu,cpuacct", cpu_cfs_quota_us=-1, cpu_cfs_period_us=100000)
    tree.group("/sys/fs/cgroup/cpu,cpuacct/docker/abc", cpu_cfs_quota_us=100000, cpu_cfs_period_us=50000)
    tree.group("/sys/fs/cgroup/cpu,cpuacct/docker/abc/x:y", cpu_cfs_quota_us=-1, cpu_cfs_period_us=100000)
    unlimited = 9223372036854771712
    tree.group("/sys/fs/cgroup/memory", memory_limit_in_bytes=unlimited, memory_usage_in_bytes=6 * GB)
    tree.group("/sys/fs/cgroup/memory/docker", memory_limit_in_bytes=3 * GB, memory_usage_in_bytes=2 * GB)
    tree.group("/sys/fs/cgroup/memory/docker/abc", memory_limit_in_bytes=unlimited, memory_usage_in_bytes=1 * GB)
    assert processor_time(tree.root) == 2
    assert memory_left(tree.root) == 1 * GB


def test_each_controller_counts_in_the_version_that_has_it(tree: Tree) -> None:
    tree.mount("/sys/fs/cgroup/unified")
    tree.mount("/sys/fs/cgroup/memory", controllers="memory")
    tree.be_in("4:memory:/job", "0::/job")
    tree.group("/sys/fs/cgroup/unified/job", cpu_max="100000 100000")
    tree.group("/sys/fs/cgroup/memory/job", memory_limit_in_bytes=2 * GB, memory_usage_in_bytes=GB)
    assert (processor_time(tree.root), memory_left(tree.root)) == (1, GB)


def test_a_limit_of_a_group_out_of_sight_counts_where_version_1_tells_of_it(tree: Tree) -> None:
    tree.mount("/sys/fs/cgroup/memory", within="/docker/abc", controllers="memory")
    tree.be_in("4:memory:/docker/abc")
    stat = f"cache 5\nhierarchical_memory_limit {2 * GB}"
    tree.group("/sys/fs/cgroup/memory", memory_limit_in_bytes=9 * GB, memory_usage_in_bytes=GB, memory_stat=stat)
    assert memory_left(tree.root) == GB


@pytest.mark.parametrize(("most", "high"), [(4 * GB, "max"), ("max", 4 * GB), (4 * GB, 5 * GB), (5 * GB, 4 * GB)])
def test_where_a_group_is_slowed_down_is_a_limit_too(tree: Tree, most: object, high: object) -> None:
    tree.mount()
    tree.be_in("0::/")
    tree.group("/sys/fs/cgroup", memory_max=most, memory_high=high, memory_current=3 * GB)
    assert memory_left(tree.root) == GB


def test_files_that_were_read_are_not_counted_as_taken(tree: Tree) -> None:
    tree.mount()
    tree.be_in("0::/")
    stat = f"anon {GB}\nfile {2 * GB}\nactive_file {GB}\ninactive_file {GB // 2}\nshmem {GB // 2}"
    tree.group("/sys/fs/cgroup", memory_max=4 * GB, memory_current=3 * GB, memory_stat=stat)
    assert memory_left(tree.root) == 2.5 * GB


def test_a_group_over_its_limit_has_nothing_left(tree: Tree) -> None:
    tree.mount()
    tree.be_in("0::/")
    tree.group("/sys/fs/cgroup", memory_max=GB, memory_current=GB + 1)
    assert memory_left(tree.root) == 0


@pytest.mark.parametrize(
    ("within", "path", "own"),
    [
        # In a container's namespace, as Docker and Podman start it.
        ("/", "/", ""),
        ("/", "/init.scope", "init.scope"),
        # In the host's, its own group alone mounted.
        ("/docker/abc", "/docker/abc", ""),
        ("/docker/abc", "/docker/abc/engine", "engine"),
        # As the host says, in a namespace: not to be found below what is mounted.
        ("/", "/docker/abc", ""),
        ("/", "/kept/gone", "kept"),
        # Moved out of its namespace.
        ("/", "/../..", ""),
        ("/", "/../beside", ""),
        # All of the host's mounted, in a namespace further down.
        ("/..", "/", "mine"),
        ("/../..", "/", "slice/mine"),
        ("/../..", "/engine", "slice/mine/engine"),
        ("/../..", "/../../mine", "mine"),
        ("/../..", "/elsewhere/engine", ""),
    ],
)
def test_the_group_is_found_by_what_namespaces_let_be_seen_of_it(
    tree: Tree, within: str, path: str, own: str
) -> None:
    tree.mount("/sys/fs/cgroup\\040here", within=within)
    tree.be_in(f"0::{path}")
    top = "/sys/fs/cgroup here"
    tree.group(top, cpu_max="300000 100000")
    tree.group(f"{top}/slice/other", cpu_max="1000 100000", cgroup_procs="1")
    if own:
        tree.group(f"{top}/{own}", cpu_max="200000 100000", cgroup_procs=f"1\n{os.getpid()}")
    assert processor_time(tree.root) == (2 if own else 3)


@pytest.mark.parametrize(
    "content", ["", "max", "many 100000", "100000", "100000 0", "-1 100000", "\udcff", "100000 100000 1"]
)
def test_a_file_that_says_nothing_sensible_is_no_limit(tree: Tree, content: str) -> None:
    tree.mount()
    tree.be_in("0::/")
    tree.group("/sys/fs/cgroup", memory_max="x", memory_current=5)
    (tree.root / "sys/fs/cgroup/cpu.max").write_bytes(content.encode(errors="surrogateescape"))
    mounts = tree.root / "proc/self/mountinfo"
    mounts.write_text(f"nonsense\n1 2 - cgroup2\n{mounts.read_text()}")
    assert (processor_time(tree.root), memory_left(tree.root)) == (None, None)


@pytest.mark.parametrize(
    ("quota", "count"), [(None, 8), (0.5, 1), (1.0, 1), (1.9, 1), (2.0, 2), (7.5, 7), (8.0, 8), (100.0, 8)]
)
def test_no_more_threads_than_whole_processors_of_a_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, count: int
) -> None:
    monkeypatch.setattr(machine, "_cores", lambda: [(2 * core, 2 * core + 1) for core in range(8)])
    monkeypatch.setattr(machine, "processor_time", lambda: quota)
    assert physical_cores() == count
    assert processors() == (16 if quota in (None, 100.0) else count)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system keeps nobody to some cores")
@pytest.mark.parametrize(("quota", "threads"), [(None, [2, 2]), (3.0, [1, 1]), (1.0, [1, 1])])
def test_engines_share_a_quota(monkeypatch: pytest.MonkeyPatch, quota: float | None, threads: list[int]) -> None:
    monkeypatch.setattr(machine, "_cores", lambda: [(0,), (1,), (2,), (3,)])
    monkeypatch.setattr(machine, "processor_time", lambda: quota)
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None)
    assert [take_share(Config(replicas=2), index, 2).threads for index in range(2)] == threads


def test_memory_is_the_least_of_the_machines_and_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_left", lambda: None)
    all_of_it = available_memory()
    assert all_of_it > 0
    for left, expected in ((12345, 12345), (0, 0), (1 << 60, all_of_it)):
        monkeypatch.setattr(machine, "memory_left", lambda left=left: left)
        assert available_memory() == pytest.approx(expected, rel=0.2)


@pytest.fixture
def own_group() -> Iterator[Path]:
    """The folder of a real group for processor time, with a limit of one processor, and one below it without."""
    tops = [Path("/sys/fs/cgroup", name) for name in ("", "cpu", "cpu,cpuacct")]
    for top in (top for top in tops if (top / "cgroup.procs").exists()):
        group = top / f"nrvna-test-{os.getpid()}"
        try:
            (group / "below").mkdir(parents=True)
            if (group / "cpu.max").exists():
                (group / "cpu.max").write_text("100000 100000")
            else:
                (group / "cpu.cfs_quota_us").write_text("100000")
            break
        except OSError:
            for folder in (group / "below", group):
                with suppress(OSError):
                    folder.rmdir()
    else:
        pytest.skip("no control group can be made here")
    yield group
    (group / "below").rmdir()
    group.rmdir()


@pytest.mark.parametrize("namespace", [(), ("unshare", "--cgroup")], ids=["of the machine", "of its own"])
def test_a_real_quota_above_a_real_process_is_found(own_group: Path, namespace: tuple[str, ...]) -> None:
    code = "import json; from nrvna.engine.machine import *; print(json.dumps([physical_cores(), processors()]))"
    join = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
    done = subprocess.run(
        ["sh", "-c", join, own_group / "below", *namespace, sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [1, 1]
