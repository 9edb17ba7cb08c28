"""llama.cpp's own reading of a grammar, to compare nrvna's with: which texts follow it, and texts that do."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from nrvna.llama import Model, load_library

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Constraint:
    """A grammar in llama.cpp, at its beginning. Raises ValueError where llama.cpp refuses it."""

    def __init__(self, model: Model, grammar: str) -> None:
        library = load_library()
        self._ffi, self._lib, self._model = library.ffi, library.lib, model
        vocab = self._lib.llama_model_get_vocab(model.pointer)
        self._arguments = (vocab, grammar.encode(), b"root")
        self.restart()

    def restart(self) -> None:
        sampler = self._lib.llama_sampler_init_grammar(*self._arguments)
        if not sampler:
            raise ValueError("llama.cpp refuses the grammar")
        self._sampler = self._ffi.gc(sampler, self._lib.llama_sampler_free)

    def allowed(self, tokens: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which of these tokens may come next, shape (len(tokens),)."""
        candidates = np.zeros(len(tokens), _CANDIDATE)
        candidates["id"] = tokens
        array = self._ffi.new("llama_token_data_array *")
        array.data = self._ffi.cast("llama_token_data *", self._ffi.from_buffer(candidates))
        array.size = len(tokens)
        self._lib.llama_sampler_apply(self._sampler, array)
        return np.asarray(np.isfinite(candidates["logit"]))

    def take(self, tokens: Iterable[int]) -> bool:
        """Go on past these tokens; False, and no further, at one that does not follow the grammar."""
        for token in tokens:
            # Past one that is not allowed llama.cpp ends the process.
            if not self.allowed(np.array([token], np.int32))[0]:
                return False
            self._lib.llama_sampler_accept(self._sampler, token)
        return True

    def may_end(self) -> bool:
        return bool(self.allowed(np.array(self._model.ends[:1], np.int32))[0])

    def admits(self, text: str | list[int]) -> bool:
        """Whether the whole text, or these tokens, follow the grammar."""
        self.restart()
        tokens = self._model.tokenize(text, add_special=False) if isinstance(text, str) else text
        return self.take(tokens) and self.may_end()

    def walk(self, random: random.Random, *, most: int = 120) -> str | None:
        """A text that follows the grammar, by random choice among what it allows; None if none came of it in time.

        Short tokens, which close what is open, and the end grow likelier with the length.
        """
        tokens = self._walk(random, most)
        text = "" if tokens is None else self._model.detokenize(tokens)
        # Bytes at random need be no UTF-8, which llama.cpp does not look at closely.
        return None if tokens is None or "\ufffd" in text else text

    def _walk(self, random: random.Random, most: int) -> list[int] | None:
        self.restart()
        tokens, lengths = _plain_tokens(self._model)
        generated: list[int] = []
        noise = np.random.default_rng(random.getrandbits(32))
        while len(generated) < most:
            if self.may_end() and random.random() < 0.2 + len(generated) / most:
                return generated
            # Many tokens at once for some, few for most of the steps: they take their time.
            size = len(tokens) if random.random() < 0.05 else 600
            chosen = np.concatenate([np.flatnonzero(lengths == 1), noise.integers(len(tokens), size=size)])
            allowed = chosen[self.allowed(tokens[chosen])]
            if not len(allowed):
                if self.may_end():
                    return generated
                allowed = np.flatnonzero(self.allowed(tokens))
                assert len(allowed), "no token of the whole vocabulary may follow"
            short = lengths[allowed] == 1
            closers = np.isin(tokens[allowed], _closers(self._model))
            logits = noise.normal(size=len(allowed)) + short * 3 + closers * (2 + 16 * len(generated) / most)
            token = int(tokens[allowed[np.argmax(logits + noise.gumbel(size=len(allowed)))]])
            generated.append(token)
            assert self.take([token])
        return None


@cache
def _plain_tokens(model: Model) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The tokens that are text, if only a part of a character, and their lengths in bytes."""
    found = {token: len(model.piece(token)) for token in range(model.n_vocab) if not model.is_end(token)}
    found = {token: length for token, length in found.items() if length}
    return np.array(list(found), np.int32), np.array(list(found.values()))


@cache
def _closers(model: Model) -> NDArray[np.int32]:
    return np.array([model.tokenize(text, add_special=False)[0] for text in ('"', "]", "}")], np.int32)


class Verdicts:
    """Asks llama.cpp, in a process that may crash, hang or run out of memory, whether grammars are any good."""

    _CHILD = textwrap.dedent(
        """
        import resource, signal, sys
        from nrvna.config import llama_dir
        from nrvna.llama import Model, load_library
        load_library(llama_dir())
        model = Model(sys.argv[1], vocab_only=True)
        lib = load_library().lib
        vocab = lib.llama_model_get_vocab(model.pointer)
        used = 1024 * int(open("/proc/self/statm").read().split()[0]) * 4
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
        while size := sys.stdin.buffer.readline():
            text = sys.stdin.buffer.read(int(size))
            # Nothing that Python does would end a call of C.
            signal.alarm(int(sys.argv[2]))
            sampler = lib.llama_sampler_init_grammar(vocab, text, b"root")
            signal.alarm(0)
            if sampler:
                lib.llama_sampler_free(sampler)
            print(int(bool(sampler)), flush=True)
        """
    )

    def __init__(self, model_file: Path, *, patience_s: int = 5) -> None:
        self._command = [sys.executable, "-c", self._CHILD, str(model_file), str(patience_s)]
        self._child: subprocess.Popen[bytes] | None = None

    def of(self, grammar: str) -> str:
        """``good``, ``bad``, or ``fatal`` for one that llama.cpp did not survive or took too long for."""
        if self._child is None:
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # Or a debugger comes to look at the dead.
                env={**os.environ, "GGML_NO_BACKTRACE": "1"},
            )
        assert self._child.stdin and self._child.stdout
        data = grammar.encode()
        self._child.stdin.write(b"%d\n%s" % (len(data), data))
        self._child.stdin.flush()
        answer = self._child.stdout.readline()
        if not answer:
            self.close()
        return {b"1\n": "good", b"0\n": "bad", b"": "fatal"}[answer]

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
