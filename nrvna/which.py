"""The arguments by which a tool is told which jobs are meant, and lengths of time."""

from __future__ import annotations

import argparse

from nrvna.arguments import Parser
from nrvna.durations import parse_duration
from nrvna.errors import SettingError
from nrvna.selection import STATES, Selection


def add_filters(parser: Parser) -> None:
    """``--tag`` and ``--state``."""
    parser.add_argument(
        "--tag", action="append", default=[], metavar="TAG", help="jobs with this tag, or all of several"
    )
    parser.add_argument(
        "--state",
        action="append",
        type=_states,
        default=[],
        metavar="STATE",
        help=f"jobs in this state, or one of several with commas: {', '.join(STATES)}",
    )


def add_jobs(parser: Parser) -> None:
    """The workspace, and jobs of it by their ids or by what they have."""
    parser.add_argument("workspace", metavar="WORKSPACE", help="the workspace's folder")
    parser.add_argument("ids", nargs="*", default=[], metavar="ID", help="a job: its id, a part of that, or @1")
    add_filters(parser)


def selection_of(parser: Parser, options: argparse.Namespace, *, needed: str = "") -> Selection:
    """What was asked for. Ends the program where that is nothing, though it is ``needed``, or contradicts itself."""
    states = tuple(state for some in options.state for state in some)
    selection = Selection(tuple(getattr(options, "ids", ())), tuple(options.tag), states)
    if selection.names and selection.filters:
        parser.error("name jobs by ID, or by --tag and --state, but not both")
    if needed and not selection.names and not selection.filters:
        parser.error(f"which jobs? Name {needed}")
    return selection


def duration(text: str, *, plain: bool = False) -> float:
    """Seconds; a number alone only if ``plain``. For an argument's type."""
    if not plain and text.strip()[-1:].isdigit():
        raise argparse.ArgumentTypeError(f"it is {text!r}, but must have a unit: {text.strip()}d, or h, m, s")
    try:
        return parse_duration(text, "it")
    except SettingError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def natural(text: str) -> int:
    """A whole number above 0. For an argument's type."""
    if not text.isascii() or not text.isdigit() or not 0 < len(text) < 10 or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _states(text: str) -> list[str]:
    states = [state.strip() for state in text.split(",")]
    for state in states:
        if state not in STATES:
            raise argparse.ArgumentTypeError(f"{state!r} is no state: {', '.join(STATES)} are")
    return states
