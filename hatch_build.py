"""Puts the manual pages and the shells' completion into the share folder of wherever nrvna is installed.

They are made from the tools' arguments, which the standard library alone can load.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# Where each shell looks for the completion of a command. Bash and fish look by the command's name; zsh reads in the
# first line which commands a file completes.
PLACES = {
    "bash": "share/bash-completion/completions/{}",
    "fish": "share/fish/vendor_completions.d/{}.fish",
    "zsh": "share/zsh/site-functions/_nrvna",
}


class ManualHook(BuildHookInterface[Any]):
    """What [tool.hatch.build.targets.wheel.hooks.custom] runs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        sys.path.insert(0, self.root)
        from nrvna.completion import script
        from nrvna.manual import page_of
        from nrvna.tools import all_tools

        tools = all_tools()
        contents = {f"share/man/man1/{name}.1": page_of(name) for name in tools}
        for shell, place in PLACES.items():
            # All tools in each: the files' functions have the same names.
            contents |= {place.format(name): script(shell, tools) for name in tools}
        for place, text in contents.items():
            file = Path(self.root, "build", place)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            build_data["shared_data"][str(file)] = place
