"""The three tools side by side, for what is made of all their arguments: manual pages and completion."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import NamedTuple


class Tool(NamedTuple):
    """A tool's arguments. ``verbs`` are those of the words that it may be given first, where it has such."""

    parser: argparse.ArgumentParser
    verbs: Mapping[str, argparse.ArgumentParser] = {}


def all_tools() -> dict[str, Tool]:
    """By their names."""
    # Imported here: whoever wants to know what a tool is needs none of them.
    from nrvna import daemon, flw, wrk

    return {
        "wrk": Tool(wrk.make_parser(everything=True)),
        "flw": Tool(flw.make_parser(), {verb: flw.make_parser(verb) for verb in flw.VERBS}),
        "nrvnad": Tool(daemon.make_parser()),
    }


def options_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """What begins with a dash, as far as help shows it."""
    return [action for action in _shown(parser) if action.option_strings]


def places_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """What is told by its place, in order."""
    return [action for action in _shown(parser) if not action.option_strings and action.nargs != argparse.PARSER]


def help_of(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """An argument's help, with the values that it names filled in."""
    return parser._get_formatter()._expand_help(action) if action.help else ""


def summary_of(parser: argparse.ArgumentParser) -> str:
    """The first sentence of the description, as the end of another: without capital and full stop."""
    sentence = (parser.description or "").strip().split(". ")[0].removesuffix(".")
    return sentence[:1].lower() + sentence[1:]


def value_of(action: argparse.Action) -> str:
    """How help calls the value that an argument takes; empty if it takes none."""
    if action.nargs == 0:
        return ""
    if isinstance(action.metavar, str):
        return action.metavar
    return "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()


def _shown(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.help != argparse.SUPPRESS]
