"""Stand-ins for nvcc and nvidia-smi, as shell scripts: what they print was taken from the real ones.

They compile nothing. What a real nvcc makes of llama.cpp is tried where there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_NVCC = """#!/bin/sh
case "$*" in
--version) echo "Cuda compilation tools, release {release}, V{release}.131" ;;
--list-gpu-arch) printf 'compute_%s\\n' {known} ;;
*--dryrun*) echo "#$ TOP={top}" >&2 ;;
*) [ -z '{complaint}' ] || {{ echo '{complaint}' >&2; exit 2; }} ;;
esac
"""


def _script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def fake_nvcc(
    root: Path, *, release: str = "12.4", known: Sequence[int] = (50, 80, 86, 89, 90), complaint: str = ""
) -> Path:
    """The compiler of a toolkit in ``root``; with a ``complaint``, it says that of whatever it should compile."""
    words = " ".join(map(str, known))
    text = _NVCC.format(release=release, known=words, top=root / "bin" / "..", complaint=complaint)
    return _script(root / "bin" / "nvcc", text)


def fake_nvidia_smi(folder: Path, said: str, code: int = 0) -> Path:
    """One that answers every question with ``said``."""
    return _script(folder / "nvidia-smi", f"#!/bin/sh\ncat <<'END'\n{said}\nEND\nexit {code}\n")
