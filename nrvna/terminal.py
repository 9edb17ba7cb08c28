"""The standard streams as the command line tools use them: any of them may be closed, and some are terminals."""

from __future__ import annotations

import os
import sys

_tool = "nrvna"


def open_streams(tool: str) -> None:
    """Give a tool that was started without some of its standard streams the null device for them.

    Also: :func:`complain` knows the tool's name from here on, text that the terminal's encoding lacks is shown
    escaped, and what goes to a file or a pipe is UTF-8.
    """
    global _tool
    _tool = tool
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    if sys.stdout.isatty():
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    else:
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]


def has_colour() -> bool:
    """Whether a terminal may be shown colours: its user has not asked for none, and it knows some."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def complain(message: str) -> None:
    """A line on standard error, with the tool's name before it."""
    print(f"{_tool}: {message}", file=sys.stderr)


def abandon_stdout() -> None:
    """After a write to it failed: Python would try again at exit, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def printable(text: str) -> str:
    """Text that cannot steer a terminal: control characters but newline and tab become their pictures."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else _picture(ord(char)) for char in text)


def one_line(text: str) -> str:
    """Printable text on one line, for a message: newlines and tabs become their pictures too."""
    return "".join(char if char.isprintable() else _picture(ord(char)) for char in text)


def _picture(code: int) -> str:
    if code < 32:
        return chr(0x2400 + code)
    # The rest of what isprintable() refuses: harmless spaces and joiners stay, controls and surrogates do not.
    return "\ufffd" if 127 <= code < 160 or 0xD800 <= code < 0xE000 else chr(code)
