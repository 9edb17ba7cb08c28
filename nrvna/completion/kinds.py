"""What may stand in each place of a command line, as every shell needs to know it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from nrvna.config import SETTINGS
from nrvna.tools import Tool, value_of

FILE, FOLDER, MODEL, JOB, WORD, TEXT = "file", "folder", "model", "job", "word", "text"

# By what help calls the value. Any other is text, with which a shell cannot help.
_KINDS = {"FILE": FILE, "FOLDER": FOLDER, "DIR": FOLDER, "WORKSPACE": FOLDER, "MODEL": MODEL, "ID": JOB}
_SETTINGS = {setting.field: setting for setting in SETTINGS}
_MANY = ("*", "+", argparse.REMAINDER)


class Kind(NamedTuple):
    """``name`` is one of the constants above; of WORD, these are the ``words``."""

    name: str
    words: tuple[str, ...] = ()


def kind_of(action: argparse.Action) -> Kind:
    """What an argument takes. It must take something."""
    if action.choices:
        return Kind(WORD, tuple(map(str, action.choices)))
    if action.metavar == "X" and (setting := _SETTINGS.get(action.dest)):
        if setting.choices:
            return Kind(WORD, setting.choices)
        paths = FOLDER if setting.field.endswith("_dir") else FILE
        return Kind(paths if setting.range.startswith("a path") else TEXT)
    named = [_KINDS[word] for word in re.findall(r"[A-Z]+", value_of(action)) if word in _KINDS]
    return Kind(named[0] if named else TEXT)


def takes_many(action: argparse.Action) -> bool:
    """Whether it goes on for as many words as there are."""
    return action.nargs in _MANY


def parsers_of(tools: Mapping[str, Tool]) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """Each tool with the verb "" and with those that it has: tool, verb, arguments."""
    for name, tool in tools.items():
        yield name, "", tool.parser
        for verb, parser in tool.verbs.items():
            yield name, verb, parser
