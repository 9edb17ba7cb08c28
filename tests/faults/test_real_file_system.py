"""A real file system that is shut down under load, as by a power cut, and mounted again."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import disk_load
import pytest
from power import in_memory
from processes import until

import nrvna
from nrvna.workspace import Workspace

Rounds = Callable[..., int]
# From the kernel's headers, for all three: go down now, and lose what is not in the journal on the disk.
_SHUTDOWN, _NO_LOG_FLUSH = 0x8004587D, 2
MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
}
_SIZE = 512 * 1024 * 1024
_CONTROL_TRIES = 3


class RealDisk:
    """A file system in a file."""

    def __init__(self, kind: str, folder: Path) -> None:
        self._image, self.mounted = folder / "image", folder / "mounted"
        self._folder = folder
        self.mounted.mkdir()
        if os.geteuid() != 0:
            pytest.skip("only root can mount")
        if not shutil.which(MAKE[kind][0]):
            pytest.skip(f"there is no {MAKE[kind][0]}")
        with self._image.open("wb") as file:
            file.truncate(_SIZE)
        subprocess.run([*MAKE[kind], str(self._image)], check=True, capture_output=True)
        try:
            self.mount()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"cannot mount {kind}: {error.stderr.decode().strip()}")

    def mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", self._image, self.mounted], check=True, capture_output=True)

    def unmount(self) -> None:
        # What was killed may take a moment to let go.
        for patience in range(50):
            if not subprocess.run(["umount", self.mounted], check=False, capture_output=True).returncode:
                return
            time.sleep(0.02 * patience)
        subprocess.run(["umount", self.mounted], check=True)

    def fail(self) -> None:
        descriptor = os.open(self.mounted, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        except OSError as error:
            pytest.skip(f"this kernel cannot shut it down: {error.strerror}")
        finally:
            os.close(descriptor)

    def fail_under_load(self, number: int, pause_s: float, *, careless: bool) -> list[str]:
        """What was promised before and does not hold afterwards."""
        workspace = Workspace(self.mounted / f"workspace-{number}")
        workspace.create()
        logs = [self._folder / f"log-{number}-{part}" for part in range(4)]
        works = ("submit", "submit", "serve", "look")
        processes = [self._start(work, workspace, log, careless) for work, log in zip(works, logs, strict=True)]
        try:
            # It is at its best once all four are at work.
            until(lambda: all(log.exists() and log.stat().st_size for log in logs), "promises of all four", 20)
            time.sleep(pause_s)
            ended = [process.communicate()[0] for process in processes if process.poll() is not None]
            assert ended == [], "they ended before the disk did"
            self.fail()
        finally:
            for process in processes:
                process.kill()
                process.wait()
        self.unmount()
        self.mount()
        promised = sum(log.read_text().count("\n") for log in logs)
        found = disk_load.wrongs(workspace, logs)
        print(f"{promised} lines of promises, {len(found)} broken")
        shutil.rmtree(workspace.path, ignore_errors=True)
        return found

    def _start(self, work: str, workspace: Workspace, log: Path, careless: bool) -> subprocess.Popen[bytes]:
        path = os.pathsep.join([str(Path(nrvna.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, disk_load.__file__, work, workspace.path, str(log), *(["careless"] * careless)]
        return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE)


@pytest.fixture(params=sorted(MAKE))
def real_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RealDisk]:
    with in_memory(tmp_path) as folder:
        disk = RealDisk(request.param, folder)
        try:
            yield disk
        finally:
            disk.unmount()


def test_what_was_promised_survives_a_file_system_that_goes_down(real_disk: RealDisk, rounds: Rounds) -> None:
    chance = random.Random()
    for number in range(rounds(quick=1, ci=3, long=25)):
        assert real_disk.fail_under_load(number, chance.uniform(0, 0.5), careless=False) == []


def test_without_waiting_for_the_disk_promises_are_broken(real_disk: RealDisk) -> None:
    for number in range(_CONTROL_TRIES):
        if real_disk.fail_under_load(number, 0.3, careless=True):
            return
    pytest.skip("this file system lost nothing in a few tries")
