"""What a Python program asks of a job, as keyword arguments: their types, and the checks before it is queued."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Required, TypedDict

from nrvna.config import SETTINGS
from nrvna.errors import GrammarError, JobError, JsonError, SettingError, shown
from nrvna.grammar.choices import check_choices
from nrvna.grammar.gbnf import check_gbnf
from nrvna.grammar.schema import read_schema, schema_to_gbnf
from nrvna.jsontext import check_value
from nrvna.order import Order, check_prompt, encode_prompt
from nrvna.results import with_places
from nrvna.task import EMBED, RERANK, Task

if TYPE_CHECKING:
    from nrvna.handle import Job


class Options(TypedDict, total=False):
    """All that can be asked of a job beside its prompt; None is the same as not asked.

    The first part are the settings of docs/settings.md, which it then has otherwise than its daemon; ``max_tokens``
    is another name for ``predict``. ``messages`` are earlier ones, as objects with role and content or as pairs;
    ``schema`` is a JSON schema, as Python has it or as JSON text. ``embed`` asks for a vector, ``rerank`` names
    documents to be ordered by how well they answer the prompt. ``model`` leaves it to a daemon whose model file has
    that name. Of all jobs with one ``key`` a workspace makes one. ``after`` are jobs, or their ids, that must be done
    before it starts; the prompt may hold their answers as ``{result}``, or that of one as ``{result:ID}``, while
    ``{{result}}`` is text. A higher ``priority``, from -100 to 100, starts earlier. ``timeout`` is how many seconds
    it may be at work.
    """

    temp: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repeat_penalty: float | None
    predict: int | None
    max_tokens: int | None
    seed: int | None
    ignore_eos: bool | None
    min_tokens: int | None
    repeat_last_n: int | None
    presence_penalty: float | None
    frequency_penalty: float | None
    dry_multiplier: float | None
    dry_base: float | None
    dry_allowed_length: int | None
    dry_penalty_last_n: int | None
    dry_sequence_breakers: Sequence[str] | None
    top_n_sigma: float | None
    typical_p: float | None
    xtc_probability: float | None
    xtc_threshold: float | None
    dynatemp_range: float | None
    dynatemp_exponent: float | None
    mirostat: int | None
    mirostat_lr: float | None
    mirostat_ent: float | None
    adaptive_target: float | None
    adaptive_decay: float | None
    samplers: Sequence[str] | None
    logit_bias: Mapping[int, float] | Mapping[str, float] | Sequence[tuple[int | str, float]] | None
    stop: str | Sequence[str] | None
    reasoning_budget: int | None
    overflow: str | None

    system: str | None
    messages: Sequence[Mapping[str, str] | tuple[str, str]] | None
    template_kwargs: Mapping[str, Any] | None
    raw: bool | None
    lora: str | None
    choices: Sequence[str] | None
    schema: Mapping[str, Any] | str | bool | None
    grammar: str | None
    embed: bool | None
    rerank: Sequence[str] | None

    model: str | None
    tags: Iterable[str] | None
    priority: int | None
    after: Job | str | Iterable[Job | str] | None
    key: str | None
    timeout: float | None


class Request(Options, total=False):
    """A prompt and all that is asked of it beside."""

    prompt: Required[str]


_SETTINGS = {setting.field: setting for setting in SETTINGS if setting.of_job}
_OF_A_TASK = ("system", "messages", "template_kwargs", "raw", "lora", "grammar")


def order_of(options: Mapping[str, Any], after: Sequence[str]) -> Order:
    """What is asked of a job but for its prompt; ``after`` are the ids of those that it comes after.

    Raises SettingError naming an option that is unknown or cannot be, GrammarError for a constraint that answers
    cannot be held to.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in Options.__annotations__:
            raise SettingError(f"{name} is nothing that can be asked of a job{_nearest(name)}")
    for name in ("model", "key", "system", "lora", "grammar"):
        if name in given and not (isinstance(given[name], str) and given[name]):
            raise _wrong(name, given[name], "text")
    order = Order(
        "",
        _settings_of(given),
        given.get("model"),
        _task_of(given),
        _listed("tags", given.get("tags", ())),
        given.get("priority", 0),
        tuple(after),
        given.get("key"),
        given.get("timeout"),
    )
    try:
        order.check()
    except JobError as error:
        raise SettingError(str(error)) from None
    return order


def for_prompt(order: Order, prompt: str) -> Order:
    """The same for a prompt. Raises JobError if that can never run."""
    if not isinstance(prompt, str):
        raise JobError(f"the prompt is {shown(prompt)}, but must be text")
    check_prompt(encode_prompt(prompt))
    return with_places(order._replace(prompt=prompt))


def _settings_of(given: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: _setting(name, name, value) for name, value in given.items() if name in _SETTINGS}
    if "max_tokens" in given:
        if "predict" in given:
            raise SettingError("max_tokens and predict are two names of one setting: give one of them")
        values["predict"] = _setting("predict", "max_tokens", given["max_tokens"])
    return values


def _setting(name: str, given_as: str, value: object) -> Any:
    """Checked as the text of an option is, so that both take and refuse the same."""
    if name == "stop" and isinstance(value, str):
        # One that looks like a list in JSON is a text all the same.
        value = [value]
    elif isinstance(value, tuple | set | frozenset):
        value = list(value)
    try:
        check_value(value)
    except JsonError as error:
        raise SettingError(f"{given_as} {error}") from None
    try:
        return _SETTINGS[name].parse(value if isinstance(value, str) else json.dumps(value), given_as)
    except (TypeError, ValueError):
        raise _wrong(given_as, value, _SETTINGS[name].range) from None


def _task_of(given: Mapping[str, Any]) -> dict[str, Any]:
    about = {name: given[name] for name in _OF_A_TASK if name in given}
    if "choices" in given:
        about["choices"] = _listed("choices", given["choices"])
        _explained("choices", check_choices, about["choices"])
    if "schema" in given:
        about["json_schema"] = _schema(given["schema"])
        _explained("schema", _check_schema, about["json_schema"])
    if "grammar" in given:
        _explained("grammar", check_gbnf, given["grammar"])
    if not isinstance(given.get("embed", False), bool):
        raise _wrong("embed", given["embed"], "True or False")
    if given.get("embed"):
        if "rerank" in given:
            raise SettingError("a job makes a vector or orders documents: give embed or rerank")
        about["kind"] = EMBED
    if "rerank" in given:
        about["kind"], about["documents"] = RERANK, _listed("rerank", given["rerank"])
    return Task.from_dict(about).to_dict()


def _schema(value: object) -> str:
    allowed = "a JSON schema: a dict, or JSON text"
    if not isinstance(value, str | dict | bool):
        raise _wrong("schema", value, allowed)
    try:
        check_value(value)
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except JsonError as error:
        raise SettingError(f"schema {error}") from None
    except (TypeError, ValueError) as error:
        raise SettingError(f"schema cannot be written as JSON ({error}), but must be {allowed}") from None


@lru_cache(maxsize=16)
def _check_schema(text: str) -> None:
    """Thousands of jobs may have the same."""
    schema_to_gbnf(read_schema(text))


def _explained(given_as: str, check: Any, content: object) -> None:
    try:
        check(content)
    except GrammarError as error:
        raise GrammarError(f"{given_as}: {error}") from None


def _listed(name: str, value: object) -> tuple[str, ...]:
    """A list of texts. A text is none, though Python takes it for a list of its characters."""
    listed = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else (None,)
    if not all(isinstance(each, str) for each in listed):
        raise _wrong(name, value, "a list of texts")
    return listed


def _wrong(name: str, value: object, allowed: str) -> SettingError:
    return SettingError(f"{name} is {shown(value)}, but must be {allowed}")


def _nearest(name: str) -> str:
    # Imported here: it is for those who mistyped something.
    from difflib import get_close_matches

    known = Options.__annotations__
    near = get_close_matches(name, known, 1, 0.7) or [each for each in known if name.startswith(each)]
    return f": did you mean {near[0]}?" if near else ": docs/python.md names what can"
