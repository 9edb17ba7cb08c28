"""Go on with a Python that is new enough. Kept to what an old Python can parse."""

import os
import shutil
import sys

OLDEST = (3, 11)


def require_python():  # type: () -> None
    """Return if this Python will do; else run the script again with one that does, or say what to install."""
    if sys.version_info >= OLDEST:
        return
    for minor in range(15, OLDEST[1] - 1, -1):
        newer = shutil.which(f"python3.{minor}")
        if newer:
            os.execv(newer, [newer, *sys.argv])
    sys.exit(
        f"nrvna needs Python {OLDEST[0]}.{OLDEST[1]} or newer; this is {sys.version.split()[0]}. "
        "Install one (Debian, Ubuntu: apt install python3 python3-venv; macOS: brew install python)."
    )
