"""What is asked of a model: messages, and what its chat template takes besides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nrvna.errors import JobError
from nrvna.task import ROLES

Messages = Sequence[tuple[str, str]]

# What a template is given anyway.
_RESERVED = frozenset({"messages", "add_generation_prompt", "bos_token", "eos_token"})


@dataclass(frozen=True)
class Conversation:
    """Messages as (role, content), and the chat template's own variables, such as ``{"enable_thinking": False}``.

    With ``raw``, the texts go to the model as they are, without any template.
    """

    messages: tuple[tuple[str, str], ...]
    template_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    raw: bool = False

    @property
    def last_user(self) -> int | None:
        """The index of the last message of the user, if there is one."""
        return max((index for index, (role, _) in enumerate(self.messages) if role == "user"), default=None)

    @property
    def texts(self) -> list[str]:
        """Every text in it: the contents, and what the variables hold."""
        return [*(content for _, content in self.messages), *_strings(self.template_kwargs)]

    def with_content(self, index: int, content: str) -> Conversation:
        """The same with another text in one message."""
        messages = list(self.messages)
        messages[index] = (messages[index][0], content)
        return replace(self, messages=tuple(messages))

    def renamed(self, role: str, other: str) -> Conversation:
        """The same with another role for the messages of one."""
        return replace(self, messages=tuple((other if name == role else name, text) for name, text in self.messages))

    def folded(self) -> Conversation:
        """The same with each system message at the head of the user's next one."""
        messages: list[tuple[str, str]] = []
        waiting: list[str] = []
        for role, content in self.messages:
            if role == "system":
                waiting.append(content)
            elif role == "user":
                messages.append((role, "\n\n".join([*filter(None, waiting), content])))
                waiting = []
            else:
                messages.append((role, content))
        if waiting:
            messages.append(("user", "\n\n".join(filter(None, waiting))))
        return replace(self, messages=tuple(messages))

    def shaped(self, content: Callable[[str], str], variable: Callable[[str], str]) -> Conversation:
        """The same with every content changed by a function, and every text of the variables by another."""
        return replace(
            self,
            messages=tuple((role, content(text)) for role, text in self.messages),
            template_kwargs=_shaped(self.template_kwargs, variable),
        )

    def check(self) -> None:
        """Raises JobError if no template may be given it: what it makes of roles and variables, no text may make."""
        if not self.messages:
            raise JobError("the prompt has no messages")
        for role, _ in self.messages:
            if role not in ROLES:
                raise JobError(f"{role!r} is no role of a message: choose one of {', '.join(ROLES)}")
        if reserved := _RESERVED & self.template_kwargs.keys():
            raise JobError(f"chat_template_kwargs may not set {', '.join(sorted(reserved))}: nrvna does")
        for text in self.texts:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise JobError(f"the prompt is no Unicode text: {error}") from error


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from (*_strings(key), *_strings(inner))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _strings(inner)


def _shaped(value: Any, shape: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return shape(value)
    if isinstance(value, Mapping):
        return {_shaped(key, shape): _shaped(inner, shape) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shaped(inner, shape) for inner in value]
    return value
