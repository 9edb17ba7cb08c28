"""Times as people write them: 90, 90s, 15m, 12h, 7d, 4w."""

from __future__ import annotations

import re

from nrvna.errors import SettingError

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def parse_duration(text: str, given_as: str) -> float:
    """Seconds. Raises SettingError, naming ``given_as``, for what is no duration."""
    match = _DURATION.fullmatch(text.strip())
    if not match or not text.isascii():
        raise SettingError(f"{given_as} is {text!r}, but must be a time, such as 90s, 15m, 12h or 7d")
    return float(match[1]) * _SECONDS[match[2]]


def ago(seconds: float) -> str:
    """In the largest unit that there is one of, cut down: 12s, 5m, 3h, 2d."""
    for unit in ("d", "h", "m"):
        if seconds >= _SECONDS[unit]:
            return f"{int(seconds // _SECONDS[unit])}{unit}"
    return f"{max(0, int(seconds))}s"
