"""What the environment says of the terminal."""

from __future__ import annotations

import pytest

from nrvna.terminal import Terminal, terminal


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"TERM": "xterm-256color", "LANG": "de_DE.UTF-8"}, Terminal(False, True, False, True)),
        ({"TERM": "xterm", "NO_COLOR": "1"}, Terminal(False, False, False, True)),
        ({"TERM": "xterm", "NO_COLOR": ""}, Terminal(False, True, False, True)),
        ({"TERM": "dumb"}, Terminal(True, False, False, True)),
        ({}, Terminal(True, False, False, True)),
        ({"TERM": "xterm", "LANG": "C"}, Terminal(False, True, True, True)),
        ({"TERM": "xterm", "LANG": "C", "LC_CTYPE": "C.UTF-8"}, Terminal(False, True, True, True)),
        ({"TERM": "xterm", "LC_CTYPE": "C.UTF-8"}, Terminal(False, True, False, True)),
        ({"TERM": "xterm", "LANG": "en_US.UTF-8", "LC_ALL": "POSIX"}, Terminal(False, True, True, True)),
        ({"TERM": "linux"}, Terminal(False, True, False, False)),
        ({"TERM": "xterm", "XTERM_VERSION": "XTerm(390)"}, Terminal(False, True, False, False)),
        ({"TERM": "screen", "STY": "1.x"}, Terminal(False, True, False, False)),
        ({"TERM": "screen", "XTERM_VERSION": "XTerm(390)", "TMUX": "/tmp/x"}, Terminal(False, True, False, True)),
    ],
)
def test_the_environment_tells_what_the_terminal_can_do(environ: dict[str, str], expected: Terminal) -> None:
    assert terminal(environ) == expected
