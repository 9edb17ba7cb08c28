"""What holds of any text and any token, for every vocabulary: see the promises in vocabularies.py."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from vocabularies import VOCABULARIES, Promise, Vocabulary, vocabulary_file

from nrvna.errors import TemplateError, TokenizeError
from nrvna.llama import Model

Rounds = Callable[..., int]

# What tokenizers treat in ways of their own.
AWKWARD = (
    *(" ", "  ", "   ", "\n", "\r\n", "\n\n", "\t", "\0", "\x7f", "\ufeff", "\u200b", "\u2028", "\u00a0", "\u3000"),
    *("▁", "Ġ", "Ċ", "##", "<0x41>", "<0xF0>", "[UNK]", "<unk>", "</s>", "<|im_end|>", "<|endoftext|>"),
    *(" .", " ?", " !", " ,", " ' ", " 's", " 've", "'ll", "...", "1234567", "3.14", "_/", "e\u0301", "é", "ﬁ", "İ"),
    *("ß", "漢字", "مرحبا", "นี่", "🦙", "👨‍👩‍👧", "🏴\U000e0067\U000e007f", "\U0010ffff", "\ufffd", "Hello", " world"),
)
TEXTS = st.lists(st.text(max_size=12) | st.sampled_from(AWKWARD), max_size=12).map("".join)


def check(rounds: Rounds, texts: st.SearchStrategy[str], holds: Callable[[str], None]) -> None:
    settings(max_examples=rounds(quick=20, ci=200, long=10_000))(given(texts)(holds))()


def join(model: Model, tokens: list[int]) -> bytes:
    return b"".join(model.piece(token) for token in tokens)


@pytest.fixture(scope="module")
def controls(vocabulary: Model) -> dict[int, str]:
    """The control tokens of a vocabulary and how they are spelled."""
    ids = filter(vocabulary.is_control, range(vocabulary.n_vocab))
    found = {token: vocabulary.piece(token, special=True).decode() for token in ids}
    assert found
    return found


LOSSLESS = [name for name, known in VOCABULARIES.items() if known.is_lossless]


@pytest.mark.parametrize("vocabulary_name", LOSSLESS, indirect=True)
def test_the_pieces_of_a_text_are_the_text(vocabulary: Model, promised: Vocabulary, rounds: Rounds) -> None:
    def holds(text: str) -> None:
        assert join(vocabulary, vocabulary.tokenize(text, add_special=False)) == promised.spelled(text)

    check(rounds, TEXTS, holds)


def test_what_detokenize_gives_back_is_what_the_vocabulary_promises(
    vocabulary: Model, promised: Vocabulary, rounds: Rounds
) -> None:
    def holds(text: str) -> None:
        tokens = vocabulary.tokenize(text, add_special=False)
        shown = vocabulary.detokenize(tokens)
        spelled = promised.spelled(text).decode("utf-8", "replace")
        match promised.promise:
            case Promise.EXACT:
                assert shown == spelled
            case Promise.SPACED:
                assert shown == spelled[1:]
            case Promise.TIDIED:
                assert shown.replace(" ", "") == spelled.replace(" ", "")
                if not re.search(r" [?!.,']", spelled):
                    assert shown == spelled
            case Promise.WORDS | Promise.NORMALISED:
                # The form that it gives back is one that it keeps.
                known = [token for token in tokens if vocabulary.piece(token)]
                assume(known == tokens)
                assert vocabulary.tokenize(shown, add_special=False) == tokens

    check(rounds, TEXTS, holds)


def test_a_text_that_spells_control_tokens_does_not_become_them(
    vocabulary: Model, promised: Vocabulary, controls: dict[int, str], rounds: Rounds
) -> None:
    # What cannot be spelled is BERT's only control token that a text may become.
    allowed = {token for token, text in controls.items() if text == "[UNK]" and promised.promise is Promise.WORDS}
    names = sorted(controls.values())
    parts = sorted({part for name in names[:20] for at in range(len(name) + 1) for part in (name[:at], name[at:])})
    texts = st.lists(st.sampled_from(names) | st.sampled_from(parts) | TEXTS, max_size=8).map("".join)

    def holds(text: str) -> None:
        tokens = set(vocabulary.tokenize(text, add_special=False))
        assert tokens.isdisjoint(controls.keys() - allowed)

    check(rounds, texts, holds)


def test_each_control_token_is_parsed_where_that_is_asked_for(vocabulary: Model, controls: dict[int, str]) -> None:
    for token, text in controls.items():
        assert vocabulary.tokenize(text, add_special=False, parse_special=True) == [token]


def test_a_control_token_is_shown_only_where_that_is_asked_for(vocabulary: Model, controls: dict[int, str]) -> None:
    for token, text in controls.items():
        assert vocabulary.piece(token) == b""
        assert vocabulary.detokenize([token]) == ""
        assert vocabulary.detokenize([token], special=True).strip() == text


# They are no control tokens for their makers, who had every text that spells them become them.
@pytest.mark.parametrize(
    ("vocabulary_name", "text"),
    [("command-r", "<|START_OF_TURN_TOKEN|>"), ("gemma-4", "<|tool_call>"), ("mpt", " " * 24)],
    indirect=["vocabulary_name"],
)
def test_a_text_that_spells_a_user_defined_token_becomes_it(vocabulary: Model, text: str) -> None:
    [token] = vocabulary.tokenize(text, add_special=False)
    assert not vocabulary.is_control(token)


def test_the_pieces_of_all_tokens_are_what_detokenize_makes_of_them(
    vocabulary: Model, promised: Vocabulary, rounds: Rounds
) -> None:
    tokens = list(range(0, vocabulary.n_vocab, rounds(quick=7, ci=1, long=1)))
    spelled = join(vocabulary, tokens).decode("utf-8", "replace")
    shown = vocabulary.detokenize(tokens)
    if promised.promise in (Promise.TIDIED, Promise.WORDS):
        assert shown.replace(" ", "") == spelled.replace(" ", "")
    else:
        assert shown == spelled


def test_an_empty_text_is_no_tokens_but_those_at_the_ends(vocabulary: Model) -> None:
    assert vocabulary.tokenize("", add_special=False) == []
    assert all(map(vocabulary.is_control, vocabulary.tokenize("")))
    assert vocabulary.detokenize([]) == ""


def test_a_long_text_is_tokenised_whole(vocabulary: Model, promised: Vocabulary, rounds: Rounds) -> None:
    line = "It's 1,234 o'clock: naïve Zoë left\tat 5 p.m., \"why?\" — 漢字, 🦙!\n\n"
    text = line * (rounds(quick=50_000, ci=500_000, long=2_000_000) // len(line))
    tokens = vocabulary.tokenize(text, add_special=False)
    if promised.is_lossless:
        assert join(vocabulary, tokens) == promised.spelled(text)
    else:
        assert tokens == vocabulary.tokenize(line, add_special=False) * text.count(line)


RUN = """
import sys
from pathlib import Path
from nrvna.llama import Model, load_library
load_library(Path(sys.argv[1]))
model = Model(sys.argv[2], vocab_only=True)
text = sys.argv[3] * 300_000
assert b"".join(map(model.piece, model.tokenize(text, add_special=False))) == text.encode()
"""


# Pre-tokenizers that llama.cpp runs as std::regex.
@pytest.mark.parametrize(("name", "character"), [("deepseek-llm", "a"), ("deepseek-coder", "漢"), ("falcon", "!")])
def test_a_run_of_one_kind_of_character_does_not_overflow_the_stack(
    source: Path, library_folder: Path, name: str, character: str
) -> None:
    command = [sys.executable, "-c", RUN, str(library_folder), str(vocabulary_file(source, name)), character]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_text_whose_stack_the_system_does_not_grant_is_an_error(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nrvna.llama.model._STACK_A_CHARACTER", 1 << 40)
    with pytest.raises(TokenizeError, match="no memory to tokenise a text of 5000 characters"):
        model.tokenize("a" * 5000)
    assert threading.stack_size() == 0


def test_threads_may_tokenise_at_once(model: Model) -> None:
    texts = [f"{number} bottles of beer on the wall. " * 40 * (number % 5 + 1) for number in range(40)]
    alone = [model.tokenize(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(model.tokenize, texts)) == alone


@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "x" * 5000 + "\udc80"])
def test_a_lone_surrogate_is_an_error(model: Model, text: str) -> None:
    with pytest.raises(TokenizeError, match=rf"no UTF-8: '\\u[\da-f]+' at {len(text) - 1} is a lone surrogate"):
        model.tokenize(text)


def test_a_message_with_a_nul_is_refused_and_not_cut(model: Model) -> None:
    with pytest.raises(TemplateError, match="a message holds a NUL"):
        model.apply_chat_template([("user", "one\0two")])


@pytest.mark.parametrize("distance", [-1, 0, 1 << 20])
def test_an_id_beyond_the_vocabulary_is_an_error(model: Model, distance: int) -> None:
    token = model.n_vocab + distance if distance >= 0 else distance
    for refuses in (model.piece, model.is_control, lambda token: model.detokenize([token])):
        with pytest.raises(TokenizeError, match=f"{token} is no token of .*: ids go from 0 to {model.n_vocab - 1}"):
            refuses(token)
