"""Times as people write them: 90, 90s, 15m, 12h, 7d, 4w."""

from __future__ import annotations

import re

from nrvna.errors import SettingError, shown

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
# A hundred years: what lies as far back as that still has a date.
MAX_DURATION_S = 36_525 * 86_400


def parse_duration(text: str, given_as: str, most_s: int = MAX_DURATION_S) -> float:
    """Seconds, ``most_s`` of them at most. Raises SettingError, naming ``given_as``, for what is no such duration."""
    match = _DURATION.fullmatch(text.strip())
    seconds = float(match[1]) * _SECONDS[match[2]] if match and text.isascii() else None
    if seconds is None or seconds > most_s:
        longest = f"{most_s // _SECONDS['d']}d"
        raise SettingError(
            f"{given_as} is {shown(text)}, but must be a time, such as 90s, 15m, 12h or 7d, and {longest} at most"
        )
    return seconds


def ago(seconds: float) -> str:
    """In the largest unit that there is one of, cut down: 12s, 5m, 3h, 2d."""
    for unit in ("d", "h", "m"):
        if seconds >= _SECONDS[unit]:
            return f"{int(seconds // _SECONDS[unit])}{unit}"
    return f"{max(0, int(seconds))}s"
