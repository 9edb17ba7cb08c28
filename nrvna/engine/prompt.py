"""From a conversation to token ids: the model's own chat template, and text that stays text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from typing import Any, NamedTuple

from nrvna.config import OVERFLOWS
from nrvna.engine.conversation import Conversation
from nrvna.engine.overflow import FAIL, Shortener
from nrvna.engine.renderer import Renderer
from nrvna.engine.template import TemplateLimitError
from nrvna.engine.verbatim import Marks, Names, without_signs
from nrvna.errors import JobError, TemplateError
from nrvna.llama import Model

__all__ = ["Conversation", "Encoded", "PromptEncoder"]

# Bytes from which on it is worth knowing at once whether a text can fit at all.
_LONG_TEXT = 1 << 16
# A character that no SentencePiece vocabulary merges with others.
_ANCHOR = "\uf8ff"
_UNCLEAR = "the text names control tokens, and the model's template does not let them be told from its own"


@dataclass(frozen=True)
class Encoded:
    """The tokens that ask the model for its answer.

    ``thinking`` says that they leave a thought open, ``thought`` that they close one: the answer comes at once.

    ``notes`` is for the receipt: "template" says what made the prompt, as :attr:`PromptEncoder.source` or "raw", and
    the others what is out of the ordinary. "reason": why it is not the model's own template. "system": "folded" where
    a system message is at the head of the user's, as the template takes none. "truncated": {"where", "removed",
    "of"}, in tokens of the last user message, and "about": true where they were too many to count.
    """

    tokens: list[int]
    notes: dict[str, Any]
    thinking: bool
    thought: bool


class PromptEncoder:
    """Renders conversations with a model's chat template and tokenises them.

    ``chat_template`` overrides the model's own: the name of a family that llama.cpp knows, or a file in Jinja. Raises
    TemplateError if it is neither, or does not run.

    ``source`` says which renderer was chosen: "model" (its own template), "override", "llama.cpp" (the C function,
    where the model's own does not run) or "none" (plain text, as for a base model), and ``reason`` why it is one of
    the last two. ``folds_system`` says that the template takes no system message, ``reasoning`` how the model marks
    its thoughts, None where its template does not tell.
    """

    def __init__(self, model: Model, chat_template: str | None = None) -> None:
        self._model = model
        self._renderer = renderer = Renderer(model, chat_template)
        self.source = renderer.source
        self.reason = renderer.reason
        self.folds_system = renderer.folds_system
        self.reasoning = renderer.reasoning
        self._is_sentencepiece = model.metadata.get("tokenizer.ggml.model") == "llama"

    def close(self) -> None:
        """End the process that renders the template, if there is one. Encoding another prompt starts it again."""
        self._renderer.close()

    def encode(self, conversation: Conversation, *, limit: int, overflow: str = FAIL) -> Encoded:
        """The tokens that ask the model for its answer, at most ``limit``.

        Where they were more, ``overflow``, one of :data:`~nrvna.config.OVERFLOWS`, says where the last
        message of the user is shortened, or that the job fails.

        Raises JobError if they are too many, or if text that names tokens cannot be told from the template's own, and
        TemplateError if the template fails on these messages.
        """
        if overflow not in OVERFLOWS:
            raise JobError(f"{overflow!r} is no overflow policy: choose one of {', '.join(OVERFLOWS)}")
        conversation.check()
        index = conversation.last_user
        if overflow == FAIL or index is None:
            encoded = self._encode(conversation, limit)
            _check_length(len(encoded.tokens), limit)
            return encoded
        if self._least_tokens(conversation.messages[index][1]) <= limit:
            with suppress(_TooLongError):
                encoded = self._encode(conversation, limit)
                if len(encoded.tokens) <= limit:
                    return encoded
        return self._shorten(conversation, index, limit, overflow)

    def _shorten(self, conversation: Conversation, index: int, limit: int, policy: str) -> Encoded:
        """Leave out as many tokens of one message as makes the conversation fit."""
        text = Shortener(conversation.messages[index][1], policy, most=max(1, limit), pieces=self._pieces)
        count = text.most
        while True:
            encoded = self._encode(conversation.with_content(index, text.keep(count)), limit)
            excess = len(encoded.tokens) - limit
            if excess <= 0:
                break
            if excess >= count:
                others = len(encoded.tokens) - count
                raise JobError(
                    f"the prompt has about {others} tokens beside the text that may be left out, but {limit} fit "
                    "beside the answer: shorten the rest, or start nrvnad with a larger NRVNA_CTX"
                )
            count -= excess
        total, is_exact = text.count()
        removed = {"where": policy.removeprefix("truncate-"), "removed": max(0, total - count), "of": total}
        encoded.notes["truncated"] = removed if is_exact else {**removed, "about": True}
        return encoded

    def _encode(self, conversation: Conversation, limit: int) -> Encoded:
        notes: dict[str, Any] = {"template": "raw" if conversation.raw else self.source}
        if self.reason and not conversation.raw:
            notes["reason"] = self.reason
        if not self._renderer.knows_developer:
            # What most templates call it.
            conversation = conversation.renamed("developer", "system")
        if self.folds_system and not conversation.raw and any(role == "system" for role, _ in conversation.messages):
            conversation = conversation.folded()
            notes["system"] = "folded"
        written = self._write(conversation, limit)
        templated = not conversation.raw and self.source != "none"
        # All that is not the template's is text.
        tokens = self._tokenize(written.pieces, parse_special=templated)
        if written.neutral is not None:
            # Whatever happened on the way: no text has added a sign.
            expected = self._tokenize([written.neutral], parse_special=templated)
            if self._signs_of(tokens) != self._signs_of(expected):
                raise JobError(_UNCLEAR)
        if not tokens:
            raise JobError("the prompt makes no tokens")
        thinking = templated and self._is_thinking(written)
        return Encoded(tokens, notes, thinking, templated and not thinking and self._has_thought(written))

    def _write(self, conversation: Conversation, limit: int) -> _Written:
        """The text that the model is to read."""
        # Whatever of the date a template writes is the same every time.
        render = partial(self._renderer.render, now=datetime.now())
        text = render(conversation)
        _check_length(self._least_tokens(text), limit, "at least ")
        marks = Marks(conversation.texts, self._names)
        ways: list[Callable[[str], str]] = [partial(marks.within, edges=True)]
        has_names = any(map(self._names.find, conversation.texts))
        if has_names:
            # For templates that look closely at their texts: at how they begin and end, or for names in them.
            ways += [marks.within, marks.around]

        def neutral() -> str | None:
            if has_names:
                return render(conversation.shaped(marks.instead, marks.instead))
            if any(content.strip() not in text for content in conversation.texts):
                # The template has changed a text, and might have made a name of it.
                return render(conversation.shaped(without_signs, without_signs))
            return None

        for way in ways:
            try:
                read, places = marks.read(render(conversation.shaped(way, marks.within)))
                if read == text:
                    tail = text[places[-1] :] if places and way is ways[0] else None
                    return _Written(self._names.cut(text, places), tail, neutral())
            except TemplateLimitError:
                raise
            except TemplateError:
                # It takes these messages, and not these marks.
                continue
        if has_names:
            raise JobError(_UNCLEAR)
        return _Written([text], None, neutral())

    def _is_thinking(self, written: _Written) -> bool:
        if self.reasoning is None:
            return False
        if written.tail is None:
            return written.pieces[-1].rstrip().endswith(self.reasoning.start)
        return self.reasoning.is_open(written.tail)

    def _has_thought(self, written: _Written) -> bool:
        return self.reasoning is not None and self.reasoning.end in (written.tail or "")

    def tokens_of(self, text: str) -> list[int]:
        """The tokens of a piece of the template's own, such as a mark."""
        return self._model.tokenize(text, add_special=False, parse_special=True)

    @cached_property
    def marking_tokens(self) -> frozenset[int]:
        """The tokens with names of which the marks of reasoning are made."""
        special = self._model.special
        return frozenset(
            token for mark in self.reasoning or () for token in self.tokens_of(mark) if mark and token in special
        )

    @cached_property
    def _names(self) -> Names:
        special = self._model.special
        controls = {token for token in special if self._is_control(token)}
        return Names(
            (text for token, text in special.items() if token not in controls), (special[token] for token in controls)
        )

    def _is_control(self, token: int) -> bool:
        model = self._model
        return model.is_control(token) or model.is_unknown(token) or model.is_end(token) or token == model.bos

    @cached_property
    def _signs(self) -> frozenset[int]:
        special = self._model.special.items()
        return frozenset(
            token for token, text in special if text in self._names and not self._model.is_unknown(token)
        )

    def _signs_of(self, tokens: Sequence[int]) -> list[int]:
        return [token for token in tokens if token in self._signs]

    def _tokenize(self, pieces: Sequence[str], *, parse_special: bool) -> list[int]:
        """The tokens of a text in pieces, from the beginning of a sequence on; with ``parse_special`` every name of a
        control token in a piece becomes it."""
        tokens = self._model.tokenize(pieces[0], add_special=False, parse_special=parse_special)
        bos = self._model.bos
        # A template may have written it.
        if self._model.adds_bos and bos is not None and tokens[:1] != [bos]:
            tokens.insert(0, bos)
        # A piece of a SentencePiece text would begin with a space that is not there.
        anchor = _ANCHOR if self._is_sentencepiece else ""
        skipped = len(self._model.tokenize(anchor, add_special=False))
        for piece in pieces[1:]:
            tokens += self._model.tokenize(anchor + piece, add_special=False, parse_special=parse_special)[skipped:]
        return tokens

    def _pieces(self, text: str) -> list[bytes]:
        """The bytes of a text's tokens."""
        pieces = [self._model.piece(token, special=True) for token in self._model.tokenize(text, add_special=False)]
        if self._is_sentencepiece and pieces and not text.startswith(" "):
            pieces[0] = pieces[0].removeprefix(b" ")
        return pieces

    def _least_tokens(self, text: str) -> int:
        """How many tokens a text has at least, where that is worth knowing before it is tokenised."""
        size = len(text.encode())
        return size // self._longest_piece if size >= _LONG_TEXT else 0

    @cached_property
    def _longest_piece(self) -> int:
        """Bytes of the longest token: so many megabytes are refused at once that would take long to tokenise."""
        return max(len(self._model.piece(token, special=True)) for token in range(self._model.n_vocab))


class _Written(NamedTuple):
    """A prompt as text, in pieces of which every name is the template's own.

    ``tail`` is what follows the last message, None where that is not known. ``neutral`` is the same text with none of
    the names that the messages hold or may have become, None where they hold none and stand there unchanged.
    """

    pieces: list[str]
    tail: str | None
    neutral: str | None


class _TooLongError(JobError):
    """A prompt that does not fit as it is."""


def _check_length(tokens: int, limit: int, about: str = "") -> None:
    if tokens > limit:
        raise _TooLongError(
            f"the prompt has {about}{tokens} tokens, but {limit} fit beside the answer: shorten it, let it be "
            "truncated, or start nrvnad with a larger NRVNA_CTX"
        )
