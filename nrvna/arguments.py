"""How the tools read their arguments: a wrong call is answered with one line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

from nrvna.terminal import one_line


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and whose texts keep the lines that they were written in."""

    def __init__(self, **about: Any) -> None:
        # With a width given, argparse does not import shutil to ask the terminal for its own.
        about.setdefault("formatter_class", partial(argparse.RawDescriptionHelpFormatter, width=100))
        super().__init__(**about)

    def read(self, given: Sequence[str]) -> argparse.Namespace:
        """The arguments; words may stand between options, unless ``--`` says where the options end."""
        # What comes before the words is then known, and argparse loses the mark where they are mixed.
        return self.parse_args(given) if "--" in given else self.parse_intermixed_args(given)

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and a line that names the tool, what is wrong and where help is."""
        tool = self.prog.split()[0]
        self.exit(2, f"{tool}: {one_line(message)}; see {self.prog} --help\n")
