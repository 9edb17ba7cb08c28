"""What a job asks for beside its prompt and its settings: earlier messages, a constraint, another kind of answer.

It stands in the job's ``job.json`` under "task". ``wrk`` and the daemon check it by the same rules: a job made by
hand may hold anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from nrvna.errors import JsonError, SettingError, shown
from nrvna.jsontext import check_value, read_json

ANSWER, EMBED, RERANK = "answer", "embed", "rerank"
KINDS = (ANSWER, EMBED, RERANK)
ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Task:
    """``kind`` "answer" continues the conversation: the messages, as (role, content), then the prompt, which is the
    user's unless ``role`` says whose.

    ``system`` is the job's own system message, behind the workspace's context. ``template_kwargs`` are variables for
    the chat template, such as enable_thinking; ``raw`` does without a template: the prompt is continued as it is.
    One of ``grammar`` (GBNF), ``json_schema`` (a schema as JSON text) and ``choices`` may constrain the answer.
    ``lora`` is the name of an adapter that the daemon was started with.

    "embed" turns the prompt into a vector, "rerank" scores the ``documents`` by how well they answer it. In the
    answer each has its number of ``numbers``, or where there are none its place among them, from 1 on.
    """

    kind: str = ANSWER
    system: str | None = None
    messages: tuple[tuple[str, str], ...] = ()
    role: str = "user"
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    raw: bool = False
    grammar: str | None = None
    json_schema: str | None = None
    choices: tuple[str, ...] = ()
    lora: str | None = None
    documents: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()

    @property
    def document_numbers(self) -> Sequence[int]:
        """By which number each of the documents is called in the answer."""
        return self.numbers or range(1, len(self.documents) + 1)

    def to_dict(self) -> dict[str, Any]:
        """What differs from a plain question, as JSON can write it; :meth:`from_dict` makes an equal Task of it."""
        about = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if value != getattr(_PLAIN, each.name):
                about[each.name] = value
        return about

    @classmethod
    def from_dict(cls, content: object) -> Task:
        """Raises SettingError, naming what is wrong, for anything that is no task."""
        if not isinstance(content, Mapping):
            raise SettingError("the job's task is no JSON object")
        known = {each.name for each in fields(cls)}
        for name in content:
            if name not in known:
                raise SettingError(f"the job's task has no {shown(name)}: it can have {', '.join(sorted(known))}")
            try:
                check_value(content[name])
            except JsonError as error:
                raise SettingError(f"the task's {name} {error}") from None
        task = cls(
            kind=_one_of(content, "kind", KINDS, ANSWER),
            system=_text(content, "system"),
            messages=_messages(content.get("messages", ())),
            role=_one_of(content, "role", ROLES, "user"),
            template_kwargs=_object(content, "template_kwargs"),
            raw=_flag(content, "raw"),
            grammar=_text(content, "grammar"),
            json_schema=_schema(content),
            choices=_texts(content, "choices"),
            lora=_text(content, "lora"),
            documents=_texts(content, "documents"),
            numbers=_numbers(content),
        )
        task._check()
        return task

    def _check(self) -> None:
        constraints = [name for name in ("grammar", "json_schema", "choices") if getattr(self, name)]
        if len(constraints) > 1:
            raise SettingError(f"a job's answer follows one constraint, not {' and '.join(constraints)}")
        if self.kind != ANSWER:
            extra = [name for name in self.to_dict() if name not in ("kind", "documents", "numbers")]
            if extra:
                raise SettingError(f"a job that is to {self.kind} has no use for {', '.join(extra)}")
        if bool(self.documents) != (self.kind == RERANK):
            raise SettingError("documents and the kind rerank go together")
        if self.numbers and len(self.numbers) != len(self.documents):
            raise SettingError(
                f"the task has {len(self.documents)} documents, but {len(self.numbers)} numbers of them"
            )
        if self.raw and (self.system or self.messages or self.role != "user" or self.template_kwargs):
            raise SettingError("a raw prompt stands alone: no system message, no messages, no role, no variables")


_PLAIN = Task()


def _text(content: Mapping[str, Any], name: str) -> str | None:
    value = content.get(name)
    if value is None:
        return None
    if not _is_text(value):
        raise SettingError(f"the task's {name} must be text")
    return value or None


def _texts(content: Mapping[str, Any], name: str) -> tuple[str, ...]:
    values = content.get(name, ())
    if not isinstance(values, list | tuple) or not all(_is_text(value) for value in values):
        raise SettingError(f"the task's {name} must be a list of texts")
    return tuple(values)


def _numbers(content: Mapping[str, Any]) -> tuple[int, ...]:
    values = content.get("numbers", ())
    if not isinstance(values, list | tuple) or not all(type(value) is int and value > 0 for value in values):
        raise SettingError("the task's numbers must be a list of whole numbers above 0")
    if len(set(values)) < len(values):
        raise SettingError("the task's numbers name two documents alike")
    return tuple(values)


def _messages(content: object) -> tuple[tuple[str, str], ...]:
    """As pairs, or as objects with role and content."""
    if not isinstance(content, list | tuple):
        raise SettingError("the task's messages must be a list")
    messages = []
    for number, message in enumerate(content, 1):
        pair = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else message
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(_is_text(part) for part in pair):
            raise SettingError(f"message {number} of the task must have a role and a content, both text")
        role, text = pair
        if role not in ROLES:
            raise SettingError(f"message {number} of the task has the role {shown(role)}: it is {', '.join(ROLES)}")
        messages.append((role, text))
    return tuple(messages)


def _object(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = content.get(name, {})
    if not isinstance(value, Mapping) or not all(isinstance(key, str) and key.isidentifier() for key in value):
        raise SettingError(f"the task's {name} must be a JSON object with variables' names as keys")
    return dict(value)


def _schema(content: Mapping[str, Any]) -> str | None:
    """A schema stands there as JSON itself, or as text that is JSON; true and false are schemas too."""
    value = content.get("json_schema")
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = read_json(value)
            check_value(value)
        except JsonError as error:
            raise SettingError(f"the task's json_schema {error}") from None
        except ValueError as error:
            raise SettingError(f"the task's json_schema is no JSON: {error}") from None
    if not isinstance(value, Mapping | bool):
        raise SettingError("the task's json_schema must be a JSON object")
    return json.dumps(value, ensure_ascii=False)


def _flag(content: Mapping[str, Any], name: str) -> bool:
    value = content.get(name, False)
    if not isinstance(value, bool):
        raise SettingError(f"the task's {name} must be true or false")
    return value


def _one_of(content: Mapping[str, Any], name: str, allowed: tuple[str, ...], default: str) -> str:
    value = content.get(name, default)
    if value not in allowed:
        raise SettingError(f"the task's {name} is {shown(value)}, but must be {', '.join(allowed)}")
    return str(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value
