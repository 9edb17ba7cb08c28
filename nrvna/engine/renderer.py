"""Which chat template a model's prompts are made with, and what that template is like."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from nrvna.engine.conversation import Conversation, Messages
from nrvna.engine.reasoning import Reasoning, find_reasoning
from nrvna.engine.template import ChatTemplate, TemplateLimitError
from nrvna.errors import TemplateError
from nrvna.lines import read_given
from nrvna.llama import Model, chat_template_families
from nrvna.llama.gguf import open_file

log = logging.getLogger("nrvna.engine")

_LONGEST_TEMPLATE = 1 << 20
# Looked for in what a template makes of it.
_PROBE = "nrvna-probe"
_HELLO = (("user", _PROBE),)


class Renderer:
    """Renders conversations as text: see :class:`~nrvna.engine.prompt.PromptEncoder` for its attributes.

    Raises TemplateError if ``chat_template`` is neither a family of llama.cpp nor a file that runs.
    """

    def __init__(self, model: Model, chat_template: str | None = None) -> None:
        self._model = model
        self._template: ChatTemplate | None = None
        self._in_parts = False
        # A family's name, or a template that llama.cpp recognises.
        self._family: str | None = None
        self.reason = ""
        self.source = self._override(chat_template) if chat_template else self._choose()
        self.folds_system = self._refuses_system()
        self.knows_developer = self._template is not None and "developer" in self._template.source
        self.reasoning = self._find_reasoning()

    def close(self) -> None:
        """End the template's process. Another rendering starts it again."""
        if self._template:
            self._template.close()

    def render(self, conversation: Conversation, now: datetime | None = None) -> str:
        """The text that the model is to read, on that day. Raises TemplateError."""
        if conversation.raw:
            return _join(conversation.messages)
        return self._render(conversation.messages, conversation.template_kwargs, now)

    def _render(
        self, messages: Messages, variables: Mapping[str, Any] | None = None, now: datetime | None = None
    ) -> str:
        if self._template:
            dicts = _as_dicts(messages, in_parts=self._in_parts)
            return self._template.render(dicts, variables=variables, now=now)
        if self._family:
            return self._model.apply_chat_template(messages, template=self._family)
        return _join(messages)

    def _override(self, chat_template: str) -> str:
        families = chat_template_families()
        if chat_template in families:
            self._family = chat_template
            return "override"
        path = Path(chat_template)
        try:
            with open_file(path) as file:
                data = read_given(file, _LONGEST_TEMPLATE)
        except FileNotFoundError:
            raise TemplateError(
                f"no chat template {chat_template}: name a file, or one of llama.cpp's: {', '.join(families)}"
            ) from None
        except OSError as error:
            raise TemplateError(f"cannot read the chat template {path}: {error.strerror}") from error
        if len(data) > _LONGEST_TEMPLATE:
            raise TemplateError(f"{path} is no chat template: it has more than {_LONGEST_TEMPLATE} bytes")
        try:
            self._use(data.decode().replace("\r\n", "\n"))
        except UnicodeDecodeError as error:
            raise TemplateError(f"cannot read the chat template {path}: {error}") from error
        except TemplateError as error:
            raise TemplateError(f"{path}: {error}") from error
        return "override"

    def _choose(self) -> str:
        source = self._model.chat_template
        if source is None:
            self.reason = "the model carries no chat template"
            log.warning("%s: prompts go to it as plain text", self.reason)
            return "none"
        try:
            self._use(source)
            return "model"
        except TemplateError as error:
            self.reason = str(error)
            log.warning("%s: trying llama.cpp's", error)
        try:
            self._model.apply_chat_template(_HELLO, template=source)
        except TemplateError as error:
            log.warning("%s: prompts go to the model as plain text", error)
            return "none"
        self._family = source
        return "llama.cpp"

    def _use(self, source: str) -> None:
        """Take a template in Jinja. Raises TemplateError if it does not run."""
        template = ChatTemplate(source, bos=self._text(self._model.bos), eos=self._text(self._model.eos))
        self._in_parts = _wants_parts(template)
        self._template = template

    def _text(self, token: int | None) -> str:
        return "" if token is None else self._model.piece(token, special=True).decode("utf-8", "replace")

    def _refuses_system(self) -> bool:
        """Whether a system message makes the template fail, or goes nowhere."""
        try:
            refused = _PROBE not in self._render((("system", _PROBE), ("user", "b")))
        except TemplateError:
            refused = True
        if refused:
            log.info("the template takes no system message: a context goes at the head of the prompt")
        return refused

    def _find_reasoning(self) -> Reasoning | None:
        if self._template:
            if found := find_reasoning(self._template.source):
                return found
            # In what it writes for an answer with a thought, by any name, there may be more to see.
            thought = dict.fromkeys(("content", "reasoning_content", "reasoning", "thinking"), _PROBE)
            with suppress(TemplateError):
                messages = [{"role": "user", "content": _PROBE}, {"role": "assistant", **thought}]
                if found := find_reasoning(self._template.render(messages, add_generation_prompt=False)):
                    return found
        # Whatever renders its prompts: the model thinks as it was trained to.
        return find_reasoning(self._model.chat_template or "")


def _wants_parts(template: ChatTemplate) -> bool:
    """Whether a template shows messages only if their contents are lists of parts. Raises TemplateError if it runs
    neither with these nor with plain texts."""
    problem = None
    try:
        if _PROBE in template.render(_as_dicts(_HELLO)):
            return False
    except TemplateLimitError:
        raise
    except TemplateError as error:
        problem = error
    with suppress(TemplateError):
        if _PROBE in template.render(_as_dicts(_HELLO, in_parts=True)):
            return True
    if problem:
        raise problem
    return False


def _as_dicts(messages: Messages, *, in_parts: bool = False) -> list[dict[str, Any]]:
    return [
        {"role": role, "content": [{"type": "text", "text": text}] if in_parts else text} for role, text in messages
    ]


def _join(messages: Messages) -> str:
    return "\n\n".join(content for _, content in messages)
