"""Completion of the tools' command lines in bash, zsh and fish, made from their arguments.

``source <(python -m nrvna.completion bash)`` teaches a shell all three tools.
"""

from __future__ import annotations

from collections.abc import Mapping

from nrvna.completion import bash, fish, zsh
from nrvna.tools import Tool

_SHELLS = {"bash": bash.script, "zsh": zsh.script, "fish": fish.script}
SHELLS = tuple(_SHELLS)


def script(shell: str, tools: Mapping[str, Tool]) -> str:
    """What one of SHELLS must read to complete these tools, by their names. Raises KeyError for another shell."""
    return _SHELLS[shell](tools)
