"""Grammars in llama.cpp's GBNF: a link that allows only what goes on with a text of the language."""

from __future__ import annotations

import os
import re
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nrvna.errors import GrammarError, TokenizeError
from nrvna.llama.handle import Handle
from nrvna.llama.library import load_library
from nrvna.llama.links import Link
from nrvna.llama.model import Model, as_utf8

_ROOT = "root"
_STDERR = 2
_LONGEST_REASON = 120
_IMPOSSIBLE = float("-inf")
# Of a grammar, what is no name of a token however it looks: texts, classes of characters, comments.
_TEXTS = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|#[^\n]*')
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Grammar(Link):
    """A grammar in GBNF whose rule ``root`` the answer follows. It may end only where a text of that rule does.

    Its place among the links does not matter: see :class:`Sampler`. Raises GrammarError in a chain if llama.cpp
    cannot read it.
    """

    text: str

    def make(self, model: Model, /) -> Any:
        if "\0" in self.text or not self.text.strip():
            # C would read up to the NUL, and takes nothing for no grammar at all.
            raise GrammarError("the grammar is empty or holds a NUL character")
        try:
            text, root = as_utf8(self.text), _ROOT.encode()
        except TokenizeError as error:
            raise GrammarError(f"the grammar cannot be read: {error}") from None
        library = load_library()
        vocabulary = library.lib.llama_model_get_vocab(model.pointer)

        def make() -> Any:
            return library.lib.llama_sampler_init_grammar(vocabulary, text, root)

        with library.complaints() as complaints:
            pointer = make()
        if not pointer:
            reason = _said_on_stderr(make) or " | ".join(complaints) or "it gave no reason"
            raise GrammarError(f"llama.cpp cannot read the grammar: {reason}")
        return pointer


class Matcher(Handle):
    """How far an answer has come in a grammar. One that is finished allows the tokens that end a generation.

    llama.cpp takes a control token for the text of its name, which would fit in a string and print as nothing:
    ``masked`` are those that end nothing, and unless the grammar names tokens itself none of them is allowed.
    """

    def __init__(self, grammar: Grammar, model: Model) -> None:
        library = load_library()
        super().__init__(library, grammar.make(model), library.lib.llama_sampler_free)
        names_tokens = "<" in _TEXTS.sub("", grammar.text)
        controls = [token for token in model.special if model.is_control(token) and not model.is_end(token)]
        self.masked: list[int] = [] if names_tokens else controls
        self._one = self._ffi.new("llama_token_data[1]")
        self._alone = self._ffi.new("llama_token_data_array *")

    def allows(self, token: int) -> bool:
        """Whether the answer may go on with this token; ids outside the vocabulary must not be asked for."""
        if token in self.masked:
            return False
        self._one[0] = (token, 1.0, 0.0)
        self._alone[0] = (self._one, 1, -1, False)
        self.restrict(self._alone)
        return bool(self._one[0].logit != _IMPOSSIBLE)

    def restrict(self, candidates: Any) -> None:
        """Set the logits of all candidates that are not allowed to minus infinity. Takes a llama_token_data_array."""
        self._lib.llama_sampler_apply(self.pointer, candidates)

    def accept(self, token: int) -> None:
        """Go on with a token. Raises GrammarError for one that is not allowed: llama.cpp would end the process."""
        if not self.allows(token):
            raise GrammarError(f"the grammar does not allow token {token} here")
        self._lib.llama_sampler_accept(self.pointer, token)


def _said_on_stderr(fail: Callable[[], Any]) -> str:
    """Where the parser stumbled: it prints that to standard error and logs only that it did.

    ``fail`` is called again with standard error going to a file; what lands there is passed on.
    """
    with _one_at_a_time:
        try:
            kept = os.dup(_STDERR)
        except OSError:
            # There is none.
            return ""
        with tempfile.TemporaryFile() as file:
            try:
                os.dup2(file.fileno(), _STDERR)
                fail()
            finally:
                os.dup2(kept, _STDERR)
                os.close(kept)
            file.seek(0)
            said = file.read()
        os.write(_STDERR, said)
    found = re.search(r"error parsing grammar: (.*)", said.decode("utf-8", "replace"))
    return found[1][:_LONGEST_REASON] if found else ""
