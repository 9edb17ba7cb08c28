"""From a prompt to token ids: the model's own chat template, and user text that stays text."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from nrvna.errors import JobError, TemplateError
from nrvna.llama import Model

log = logging.getLogger("nrvna.engine")

Messages = Sequence[tuple[str, str]]

# Bytes for each token of the context from which on it is worth knowing whether a prompt can fit at all.
_LONG_PROMPT = 16


class PromptEncoder:
    """Renders messages with a model's chat template and tokenises them.

    ``source`` says which renderer was chosen: "model" (its own template, in Jinja), "llama.cpp" (the C function,
    where the template does not run) or "none" (no template: plain text, as for a base model).
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._template: jinja2.Template | None = None
        self._bos = model.piece(model.bos, special=True).decode("utf-8", "replace") if model.bos is not None else ""
        self._eos = model.piece(model.eos, special=True).decode("utf-8", "replace") if model.eos is not None else ""
        self.source = self._choose()
        self._folds_system = self._refuses_system()

    def encode(self, prompt: str, system: str | None = None, *, context: int) -> list[int]:
        """The tokens that ask the model for its answer, fewer than ``context``, which holds the answer too.

        Raises JobError if they are more, or if text that names control tokens cannot be told from the template's own,
        and TemplateError if the template refuses the messages.
        """
        messages = [("system", system)] if system else []
        if system and self._folds_system:
            prompt, messages = f"{system}\n\n{prompt}", []
        messages.append(("user", prompt))
        rendered = self._without_bos(self._render(messages))
        size = len(rendered.encode())
        if size >= _LONG_PROMPT * context:
            self._check_length(size // self._longest_piece, context, "at least ")
        tokens = self._model.tokenize(rendered, parse_special=True)
        self._check_length(len(tokens), context)
        if any(self._names_special(content) for _, content in messages):
            tokens = self._encode_apart(rendered, messages)
            self._check_length(len(tokens), context)
        if not tokens:
            raise JobError("the prompt makes no tokens")
        return tokens

    @staticmethod
    def _check_length(tokens: int, context: int, about: str = "") -> None:
        if tokens >= context:
            raise JobError(
                f"the prompt has {about}{tokens} tokens, but the context holds {context} with the answer: "
                "shorten it, or start nrvnad with a larger NRVNA_CTX"
            )

    @cached_property
    def _longest_piece(self) -> int:
        """Bytes of the longest token: so many megabytes are refused at once that would take minutes to tokenise."""
        return max(len(self._model.piece(token, special=True)) for token in range(self._model.n_vocab))

    def _choose(self) -> str:
        trial = (("user", "hello"),)
        source = self._model.chat_template
        if source is None:
            log.warning("the model carries no chat template: prompts go to it as plain text")
            return "none"
        try:
            self._template = _environment().from_string(source)
            self._render_jinja(trial)
            return "model"
        except (jinja2.TemplateError, TemplateError) as error:
            log.warning("the model's chat template does not run (%s): trying llama.cpp's", error)
        try:
            self._model.apply_chat_template(trial)
            return "llama.cpp"
        except TemplateError as error:
            log.warning("%s: prompts go to the model as plain text", error)
            return "none"

    def _refuses_system(self) -> bool:
        try:
            self._render((("system", "a"), ("user", "b")))
            return False
        except TemplateError as error:
            log.info("a context goes at the head of the prompt, as the template takes no system message: %s", error)
            return True

    def _render(self, messages: Messages) -> str:
        if self.source == "model":
            return self._render_jinja(messages)
        if self.source == "llama.cpp":
            return self._model.apply_chat_template(messages)
        return "\n\n".join(content for _, content in messages)

    def _render_jinja(self, messages: Messages) -> str:
        assert self._template is not None
        try:
            return self._template.render(
                messages=[{"role": role, "content": content} for role, content in messages],
                add_generation_prompt=True,
                bos_token=self._bos,
                eos_token=self._eos,
            )
        except Exception as error:
            # A template is a program of somebody else's: it may fail with anything.
            raise TemplateError(f"the model's chat template failed: {error}") from error

    def _without_bos(self, rendered: str) -> str:
        """Tokenising adds the beginning-of-sequence token where the model wants it; a template may write it too."""
        if self._bos and self._model.adds_bos:
            return rendered.removeprefix(self._bos)
        return rendered

    def _names_special(self, content: str) -> bool:
        plain = self._model.tokenize(content, add_special=False)
        return plain != self._model.tokenize(content, add_special=False, parse_special=True)

    def _encode_apart(self, rendered: str, messages: Messages) -> list[int]:
        """Scaffold with control tokens parsed, contents without. Used only where a content names such a token."""
        # Private-use characters mark where the contents go; templates pass them through.
        marks = [f"\ue0f0{index}\ue0f1" for index in range(len(messages))]
        marked = self._render([(role, mark) for (role, _), mark in zip(messages, marks, strict=True)])
        marked = self._without_bos(marked)
        tokens: list[int] = []
        rebuilt = ""
        for mark, (_, content) in zip(marks, messages, strict=True):
            scaffold, found, marked = marked.partition(mark)
            # Templates either leave a content as it is or trim it.
            shown = content if rendered.startswith(rebuilt + scaffold + content) else content.strip()
            rebuilt += scaffold + shown
            if not found or not rendered.startswith(rebuilt):
                raise JobError(
                    "the text holds control tokens, and the model's template does not let them be told apart"
                )
            tokens += self._model.tokenize(scaffold, add_special=not tokens, parse_special=True)
            tokens += self._model.tokenize(shown, add_special=False)
        if rebuilt + marked != rendered:
            raise JobError("the text holds control tokens, and the model's template does not let them be told apart")
        return tokens + self._model.tokenize(marked, add_special=False, parse_special=True)


def _environment() -> jinja2.Environment:
    """As the templates' authors expect it: what transformers' apply_chat_template offers."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks the assistant's words for training; here its body is passed through."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
