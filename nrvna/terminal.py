"""The standard streams as the command line tools use them: any of them may be closed, and some are terminals.

What the environment says of the terminal, in variables that are all tools' alike, is read here.
"""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Mapping
from typing import NamedTuple

_tool = "nrvna"
# How the handler is called that writes what UTF-8 cannot hold.
_HALVES = "nrvna.halves"


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
        codecs.register_error(_HALVES, _write_half)
        sys.stdout.reconfigure(encoding="utf-8", errors=_HALVES)  # type: ignore[union-attr]


def _write_half(error: UnicodeError) -> tuple[bytes, int]:
    """What UTF-8 cannot hold: a byte of a name goes out as it came in, other halves of characters as escapes."""
    assert isinstance(error, UnicodeEncodeError)
    halves = error.object[error.start : error.end]
    written = (
        bytes([ord(half) - 0xDC00]) if "\udc80" <= half <= "\udcff" else half.encode(errors="backslashreplace")
        for half in halves
    )
    return b"".join(written), error.end


class Terminal(NamedTuple):
    """What the environment says of the terminal. ``is_dumb``: it can but print, line after line.

    ``is_ascii``: the locale knows no more than that. ``reflows``: it breaks lines anew when its window gets narrower.
    """

    is_dumb: bool
    has_colour: bool
    is_ascii: bool
    reflows: bool


def terminal(environ: Mapping[str, str] | None = None) -> Terminal:
    """The terminal that this process was started on."""
    found = os.environ if environ is None else environ
    name = found.get("TERM", "")
    is_dumb = name in ("", "dumb")
    locale = found.get("LC_ALL") or found.get("LC_CTYPE") or found.get("LANG", "")
    if locale == "C.UTF-8" and not found.get("LC_ALL"):
        # Python itself sets LC_CTYPE so where the user asked for C.
        locale = found.get("LANG") or locale
    # Most do; xterm, rxvt, the console and GNU screen cut lines off. Within tmux it is tmux that counts.
    cuts = "XTERM_VERSION" in found or "STY" in found or name.startswith(("rxvt", "linux", "vt"))
    return Terminal(
        is_dumb, not (is_dumb or found.get("NO_COLOR")), locale in ("C", "POSIX"), "TMUX" in found or not cuts
    )


def pager() -> str:
    """The command that the user reads long texts with; empty where that is none."""
    return os.environ.get("PAGER", "less -R").strip()


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
