"""What ``wrk``'s options ask of a job beside its prompt: settings of its own, and its task.

Loaded only where such an option is given, or help is asked for: most prompts are queued without.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nrvna.config import SETTINGS, of_copy
from nrvna.errors import GrammarError, JobError, JsonError, SettingError, shown
from nrvna.grammar.choices import parse_choices
from nrvna.grammar.gbnf import check_gbnf
from nrvna.grammar.schema import schema_to_gbnf
from nrvna.jsontext import read_json
from nrvna.lines import lines_of, read_given
from nrvna.task import EMBED, RERANK, Task

MAX_COPIES = 1000
# What others call them.
_ALSO_CALLED = {"predict": ("--max-tokens",)}
# More does not fit a job.
_MAX_BYTES = 16 * 1024 * 1024


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all that a job may ask for."""
    asks = parser.add_argument_group("what is asked")
    asks.add_argument("--system", metavar="TEXT", help="a system message of this job's own")
    asks.add_argument("--messages", metavar="FILE", help="earlier messages: a JSON list of {role, content}")
    asks.add_argument("--template-kwargs", metavar="JSON", help='template variables, as {"enable_thinking": false}')
    asks.add_argument("--raw", action="store_true", help="no chat template: the model goes on with the prompt itself")
    asks.add_argument("--lora", metavar="NAME", help="with this adapter, of those that nrvnad was started with")
    asks.add_argument("-n", "--copies", metavar="N", help="N answers from one prompt, each a job; seeds count up")
    form = asks.add_mutually_exclusive_group()
    form.add_argument("--choices", metavar="A,B", help="answer with one of these, and their probabilities")
    form.add_argument("--schema", metavar="FILE", help="answer with JSON that follows this JSON schema; or itself")
    form.add_argument("--grammar", metavar="FILE", help="answer in the language of this grammar (GBNF)")
    form.add_argument("--embed", action="store_true", help="turn the prompt into a vector")
    form.add_argument("--rerank", metavar="FILE", help="order FILE's lines by how well they answer the prompt")
    settings = parser.add_argument_group("settings", "What nrvnad was told, otherwise for this job.")
    for setting in SETTINGS:
        if setting.of_job:
            names = (setting.option, *_ALSO_CALLED.get(setting.field, ()))
            settings.add_argument(*names, dest=setting.field, metavar="X", help=setting.help)


def settings_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The settings of each job that is to be made of a prompt. Raises SettingError for a value that cannot be."""
    settings = {
        setting.field: setting.parse(text, setting.option)
        for setting in SETTINGS
        if setting.of_job and (text := getattr(options, setting.field)) is not None
    }
    return [of_copy(settings, number) for number in range(_copies(options.copies or "1"))]


def _copies(text: str) -> int:
    # Python reads no number of thousands of digits.
    if not text.isascii() or not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= MAX_COPIES:
        raise SettingError(f"-n is {shown(text)}, but must be a whole number from 1 to {MAX_COPIES}")
    return int(text)


def task_of(options: argparse.Namespace) -> dict[str, Any]:
    """The task that was asked for, checked as far as that needs no model.

    Raises SettingError or JobError, GrammarError among them, and OSError for a file that cannot be read.
    """
    about: dict[str, Any] = {"system": options.system, "raw": options.raw, "lora": options.lora}
    if options.messages is not None:
        about["messages"] = _json(_contents(options.messages), f"--messages {options.messages}")
    if options.template_kwargs is not None:
        about["template_kwargs"] = _json(options.template_kwargs, "--template-kwargs")
    if options.choices is not None:
        about["choices"] = _explained("--choices", parse_choices, options.choices)
    if options.grammar is not None:
        about["grammar"] = _contents(options.grammar)
        _explained(f"--grammar {options.grammar}", check_gbnf, about["grammar"])
    if options.schema is not None:
        inline = options.schema.lstrip().startswith("{")
        text = options.schema if inline else _contents(options.schema)
        given_as = "--schema" if inline else f"--schema {options.schema}"
        about["json_schema"] = _json(text, given_as)
        _explained(given_as, schema_to_gbnf, about["json_schema"])
    if options.embed:
        about["kind"] = EMBED
    if options.rerank is not None:
        about["kind"] = RERANK
        found = lines_of(_contents(options.rerank))
        if not found:
            raise JobError(f"--rerank {options.rerank} is empty, but must have a text to order on each line")
        numbers, about["documents"] = zip(*found, strict=True)
        if numbers[-1] != len(numbers):
            about["numbers"] = numbers
    for name in ("lora", "system"):
        if about[name] == "":
            raise SettingError(f"--{name} is '', but must be {'a name' if name == 'lora' else 'a text'}")
    if "messages" in about:
        _explained(f"--messages {options.messages}", Task.from_dict, {"messages": about["messages"]})
    if "template_kwargs" in about:
        _explained("--template-kwargs", Task.from_dict, {"template_kwargs": about["template_kwargs"]})
    return Task.from_dict(about).to_dict()


def _explained(given_as: str, check: Callable[[Any], Any], content: object) -> Any:
    """What a check makes of something that was given; it names what it was given as if it raises."""
    try:
        return check(content)
    except SettingError as error:
        raise SettingError(f"{given_as}: {error}") from None
    except GrammarError as error:
        raise GrammarError(f"{given_as}: {error}") from None


def _contents(path: str) -> str:
    with Path(path).open("rb") as file:
        data = read_given(file, _MAX_BYTES)
    if len(data) > _MAX_BYTES:
        raise JobError(f"{path} has more than the {_MAX_BYTES} bytes allowed")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise JobError(f"{path} is not UTF-8: byte {data[error.start]:#04x} at position {error.start}") from None


def _json(text: str, given_as: str) -> Any:
    try:
        return read_json(text)
    except JsonError as error:
        raise SettingError(f"{given_as} {error}") from None
    except ValueError as error:
        raise SettingError(f"{given_as} is no JSON: {error}") from None
