"""The body of a request to /v1/chat/completions: a job for each choice that it wants."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from nrvna.batch.fields import Fields, RefusedError
from nrvna.config import DRAWN_SEED, MAX_SEED, SETTINGS, of_copy
from nrvna.errors import GrammarError, JsonError, SettingError, shown
from nrvna.grammar.choices import check_choices
from nrvna.grammar.gbnf import check_gbnf
from nrvna.grammar.schema import schema_to_gbnf
from nrvna.jsontext import check_value, read_json
from nrvna.order import Order
from nrvna.task import ROLES, Task

# As OpenAI has it.
MAX_CHOICES = 128

_OF_JOB = {setting.field: setting for setting in SETTINGS if setting.of_job}
# How OpenAI, vLLM and llama-server call them; the last one that a body has counts.
_CALLED = {
    "temperature": "temp",
    "repetition_penalty": "repeat_penalty",
    "n_predict": "predict",
    "max_tokens": "predict",
    "max_completion_tokens": "predict",
    **{name: name for name in _OF_JOB if name not in ("temp", "predict")},
}
# Whose business they are is not the model's: accounts, caches, the way that answers are delivered.
_PASSED_OVER = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "stream_options", "parallel_tool_calls"),
    *("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "prediction", "verbosity"),
    *("cache_prompt", "id_slot", "return_progress", "timings_per_token", "request_id", "cache_salt"),
)
# What is supported with these values alone, and why.
_ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "stream": ((False,), "a batch's answers come in a file"),
    "logprobs": ((False,), "nrvna reports no probabilities of tokens"),
    "top_logprobs": ((0,), "nrvna reports no probabilities of tokens"),
    "modalities": ((["text"],), "the answer is text"),
    "audio": ((), "the answer is text"),
    "moderation": ((), "nothing is moderated"),
    "web_search_options": ((), "nothing leaves this machine"),
    "functions": (([],), "the model is given no tools"),
    "function_call": (("none", "auto"), "the model is given no tools"),
    "echo": ((False,), "the answer comes without its prompt"),
    "include_stop_str_in_output": ((False,), "the answer comes without what stopped it"),
    "use_beam_search": ((False,), "answers are sampled"),
    "add_generation_prompt": ((True,), "the model answers"),
    "continue_final_message": ((False,), "the model answers with a message of its own"),
    "skip_special_tokens": ((True,), "the answer is text"),
    "spaces_between_special_tokens": ((True,), "the answer is text"),
}
_OF_MESSAGE = ("name", "tool_call_id", "refusal", "annotations", "reasoning_content", "reasoning", "weight")


def read_chat(body: Fields, base: Order) -> list[Order]:
    """A job for each choice. Raises RefusedError, JobError or SettingError for what cannot be asked."""
    about = _conversation(body.need("messages"))
    prompt = about.pop("prompt")
    role = about.get("role", "user")
    about |= _constraint(body)
    if variables := _variables(body):
        about["template_kwargs"] = variables
    settings = {**base.settings, **_settings(body)}
    _refuse_tools(body)
    for name, (harmless, reason) in _ONLY.items():
        body.expect(name, harmless, reason)
    body.pass_over(_PASSED_OVER)
    count = body.take("n")
    if count is not None and (type(count) is not int or not 1 <= count <= MAX_CHOICES):
        body.refuse("n", count, f"a whole number from 1 to {MAX_CHOICES}")
    body.finish()
    task = Task.from_dict(about).to_dict()
    if not prompt.strip():
        # Of a message, which may be empty.
        task["role"] = role
    order = base._replace(prompt=prompt, settings=settings, task=task)
    return [order._replace(settings=of_copy(settings, number)) for number in range(count or 1)]


def _settings(body: Fields) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, field in _CALLED.items():
        value = body.take(name)
        if value is None:
            continue
        setting = _OF_JOB[field]
        if field == "seed":
            value = _seed(body, value)
        elif field == "top_k" and value == -1:
            # How vLLM writes what is 0 here.
            value = 0
        try:
            check_value(value)
        except JsonError as error:
            raise RefusedError(f"{body.path(name)} {error}", param=body.path(name)) from None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # A single text may look like a list of them.
        text = value if isinstance(value, str) and field != "stop" else json.dumps(_listed(field, value))
        try:
            if setting.kind in (int, float) and not is_number:
                raise SettingError(name)
            found[field] = setting.parse(text, name)
        except SettingError:
            body.refuse(name, value, setting.range)
    return found


def _listed(field: str, value: Any) -> Any:
    return [value] if field == "stop" and isinstance(value, str) else value


def _seed(body: Fields, value: Any) -> int:
    """OpenAI's seeds have 64 bits and a sign; each is always the same one here, but for the one that is drawn."""
    if type(value) is not int:
        body.refuse("seed", value, "a whole number")
    return DRAWN_SEED if value == DRAWN_SEED else int(value) % (MAX_SEED + 1)


def _conversation(content: object) -> dict[str, Any]:
    """The fields of a task that hold the messages, and the last of these as the prompt."""
    if not isinstance(content, list) or not content:
        raise RefusedError("body.messages must be a list of messages", "invalid_type", "body.messages")
    messages = [_message(message, f"body.messages[{index}]") for index, message in enumerate(content)]
    role, prompt = messages.pop()
    about: dict[str, Any] = {"prompt": prompt}
    if role != "user":
        about["role"] = role
    if messages and messages[0][0] == "system" and messages[0][1]:
        # There it goes well with the workspace's own.
        about["system"] = messages.pop(0)[1]
    if messages:
        about["messages"] = messages
    return about


def _message(content: object, place: str) -> tuple[str, str]:
    fields = Fields(content, place)
    fields.need("role")
    role = fields.text("role", ROLES) or ""
    fields.expect("tool_calls", ([],), "the model is given no tools")
    fields.expect("function_call", (), "the model is given no tools")
    fields.expect("audio", (), "the model reads text")
    content = fields.take("content")
    if content is None and role == "assistant":
        # What the model said in its place.
        content = fields.text("refusal")
    if content is None:
        place = fields.path("content")
        raise RefusedError(
            f"{place} is missing: it must be text, which may be empty", "missing_required_parameter", place
        )
    text = _text(content, fields.path("content"))
    fields.pass_over(_OF_MESSAGE)
    fields.finish()
    return role, text


def _text(content: object, place: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RefusedError(f"{place} must be text, or a list of parts that are", "invalid_type", place)
    texts = []
    for index, each in enumerate(content):
        part = Fields(each, f"{place}[{index}]")
        kind = part.need("type")
        if kind != "text":
            raise RefusedError(
                f"{part.path('type')} is {shown(kind)}, but the model reads text alone",
                "unsupported_value",
                part.path("type"),
            )
        part.need("text")
        texts.append(part.text("text") or "")
        part.pass_over(("prompt_cache_breakpoint",))
        part.finish()
    # As vLLM and llama-server join them.
    return "\n".join(texts)


def _variables(body: Fields) -> dict[str, Any]:
    """What the chat template is told besides."""
    given = body.take("chat_template_kwargs")
    if given is not None and not isinstance(given, dict):
        body.refuse("chat_template_kwargs", given, "a JSON object")
    variables = dict(given or {})
    if (effort := body.text("reasoning_effort")) is not None:
        # The name by which templates know it, those of models that do.
        variables.setdefault("reasoning_effort", effort)
    return variables


def _refuse_tools(body: Fields) -> None:
    tools, choice = body.take("tools"), body.take("tool_choice")
    refused = "tools" if tools and choice != "none" else "tool_choice" if choice not in (None, "none", "auto") else ""
    if refused:
        place, reason = body.path(refused), "the model is given no tools"
        raise RefusedError(f"{place} is not supported: {reason}", "unsupported_parameter", place)


def _constraint(body: Fields) -> dict[str, Any]:
    """The field of a task that holds the answer to a form, if there is one."""
    found: dict[str, dict[str, Any]] = {}

    def take(fields: Fields, name: str, field: str) -> None:
        if (value := fields.take(name)) is not None:
            found[fields.path(name)] = {field: value}

    take(body, "guided_json", "json_schema")
    take(body, "guided_choice", "choices")
    take(body, "guided_grammar", "grammar")
    take(body, "json_schema", "json_schema")
    take(body, "grammar", "grammar")
    if (outputs := body.take("structured_outputs")) is not None:
        inner = Fields(outputs, "body.structured_outputs")
        take(inner, "json", "json_schema")
        take(inner, "choice", "choices")
        take(inner, "grammar", "grammar")
        inner.finish()
    if (content := body.take("response_format")) is not None:
        found |= _response_format(content)
    if len(found) > 1:
        raise RefusedError(f"an answer follows one form, not {' and '.join(found)}", param=next(iter(found)))
    for place, about in found.items():
        _check_constraint(place, about)
        return about
    return {}


def _response_format(content: object) -> dict[str, dict[str, Any]]:
    fields = Fields(content, "body.response_format")
    fields.need("type")
    kind = fields.text("type", ("text", "json_object", "json_schema"))
    if kind == "text":
        fields.finish()
        return {}
    holder = fields
    if kind == "json_schema" and ("json_schema" in fields or "schema" not in fields):
        holder = Fields(fields.need("json_schema"), fields.path("json_schema"))
        fields.finish()
        holder.need("schema")
    # As llama-server, Together and others have it, the schema may stand beside the type.
    schema, place = holder.take("schema"), holder.path("schema")
    if kind == "json_object" and schema in (None, {}):
        schema, place = {"type": "object"}, "body.response_format"
    # An answer follows its schema in any case.
    holder.pass_over(("name", "description", "strict"))
    holder.finish()
    return {place: {"json_schema": schema}}


def _check_constraint(place: str, about: dict[str, Any]) -> None:
    """Raises RefusedError if answers cannot be held to it, or if it is none."""
    [(field, value)] = about.items()
    try:
        task = Task.from_dict(about)
        if field == "json_schema":
            _check_schema(task.json_schema or "")
        elif field == "grammar":
            _check_grammar(task.grammar or "")
        else:
            check_choices(task.choices)
    except (GrammarError, SettingError) as error:
        raise RefusedError(f"{place}: {error}", param=place) from None
    if not getattr(task, field):
        raise RefusedError(f"{place} is empty: {shown(value)}", param=place)


@lru_cache(maxsize=64)
def _check_schema(text: str) -> None:
    schema_to_gbnf(read_json(text))


@lru_cache(maxsize=64)
def _check_grammar(text: str) -> None:
    check_gbnf(text)
