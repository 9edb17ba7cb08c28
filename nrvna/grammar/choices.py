"""A closed list of answers, as it is written on a command line: ``yes, no, don't know``."""

from __future__ import annotations

from collections.abc import Sequence

from nrvna.errors import GrammarError

MAX_CHOICES = 1_000


def parse_choices(text: str) -> list[str]:
    """The choices of a list with commas between them, in its order and without the blanks around them.

    What stands in double quotes keeps its commas and blanks, and so does a character behind a backslash.
    Raises GrammarError for a quote without end, and what :func:`check_choices` raises.
    """
    choices: list[str] = []
    choice = ""
    # Up to here blanks at the end of the choice were meant.
    kept = 0
    quoted = False
    characters = iter(text)
    for character in characters:
        if character == "\\":
            choice += next(characters, "\\")
            kept = len(choice)
        elif character == '"':
            quoted = not quoted
            kept = len(choice)
        elif character == "," and not quoted:
            choices.append(_without_blanks(choice, kept))
            choice, kept = "", 0
        elif quoted or choice or not character.isspace():
            choice += character
    if quoted:
        raise GrammarError(f'choice {len(choices) + 1} has a " without another: write \\" for the character itself')
    choices.append(_without_blanks(choice, kept))
    check_choices(choices)
    return choices


def check_choices(choices: Sequence[str]) -> None:
    """Raises GrammarError for fewer than two choices, more than 1,000, an empty one and one that is there twice."""
    if len(choices) > MAX_CHOICES:
        raise GrammarError(f"{len(choices):,} choices are more than {MAX_CHOICES:,}: ask about fewer at a time")
    numbers: dict[str, int] = {}
    for number, choice in enumerate(choices, 1):
        if not choice:
            raise GrammarError(f"choice {number} is empty: write something between the commas")
        if "\0" in choice:
            raise GrammarError(f"choice {number} has a NUL character in it: remove it")
        if choice in numbers:
            raise GrammarError(f"choices {numbers[choice]} and {number} are both {choice!r}: name each once")
        numbers[choice] = number
    if len(choices) < 2:
        raise GrammarError("a single choice leaves nothing to choose: name two or more, with commas between them")


def _without_blanks(choice: str, kept: int) -> str:
    return choice[:kept] + choice[kept:].rstrip()
