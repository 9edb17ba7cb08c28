"""Archives from PyPI by name and version, through pip, checked against a checksum."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from progress import Step, run_logged


class ChecksumError(Exception):
    """What arrived is not what was pinned."""


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str) -> None:
    """Raises ChecksumError if the file's content is not the expected one."""
    found = sha256_of(path)
    if found != expected:
        raise ChecksumError(
            f"{path.name} has sha256 {found}, expected {expected}: it was damaged on the way or replaced upstream; "
            "nothing of it was used. Run this again, and do not go on if it repeats."
        )


def download(package: str, version: str, folder: Path, step: Step, *, source: bool) -> Path:
    """The package's archive (its source distribution, or its wheel), put into ``folder`` by pip."""
    kind = "--no-binary" if source else "--only-binary"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    run_logged(
        [*pip, "download", "--no-deps", kind, package, "--dest", str(folder), f"{package}=={version}"],
        folder / "pip.log",
        step,
        describe=lambda line: line.strip()[:60] or None,
    )
    [archive] = [file for file in folder.iterdir() if file.name != "pip.log"]
    return archive
