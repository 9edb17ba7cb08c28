"""Prompts that are too long: what is left of them, and what is said of the rest."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from conversations import asking
from hypothesis import given, settings
from hypothesis import strategies as st
from templated import Templated

from nrvna.config import OVERFLOWS
from nrvna.engine.overflow import LEFT, MIDDLE, RIGHT, Shortener
from nrvna.engine.prompt import Conversation, PromptEncoder
from nrvna.errors import JobError
from nrvna.llama import Model

LIMIT = 200
SHORTENING = (LEFT, RIGHT, MIDDLE)
WORDS = " ".join(f"word{number}" for number in range(400))


@pytest.fixture(scope="module")
def prompts(model: Model) -> PromptEncoder:
    return PromptEncoder(model)


def shown(model: Model, tokens: list[int]) -> str:
    return model.detokenize(tokens, special=True)


def test_a_prompt_too_long_fails_with_both_counts(prompts: PromptEncoder) -> None:
    tokens = len(prompts.encode(asking(WORDS), limit=1 << 20).tokens)
    with pytest.raises(JobError, match=f"has {tokens} tokens, but {LIMIT} fit"):
        prompts.encode(asking(WORDS), limit=LIMIT)
    with pytest.raises(JobError, match=f"has {tokens} tokens, but {tokens - 1} fit"):
        prompts.encode(asking(WORDS), limit=tokens - 1)
    assert prompts.encode(asking(WORDS), limit=tokens).notes == {"template": "model"}


@pytest.mark.parametrize("policy", OVERFLOWS)
def test_a_prompt_that_fits_is_left_as_it_is(prompts: PromptEncoder, policy: str) -> None:
    encoded = prompts.encode(asking("Hi", "Be brief."), limit=LIMIT, overflow=policy)
    assert encoded == prompts.encode(asking("Hi", "Be brief."), limit=LIMIT)


def test_an_unknown_policy_fails_the_job(prompts: PromptEncoder) -> None:
    with pytest.raises(JobError, match="'cut' is no overflow policy: choose one of fail, truncate-left"):
        prompts.encode(asking("Hi"), limit=LIMIT, overflow="cut")


@pytest.mark.parametrize("policy", SHORTENING)
def test_tokens_of_the_last_user_message_alone_are_left_out(
    model: Model, prompts: PromptEncoder, policy: str
) -> None:
    messages = (
        ("system", "Be brief. " * 5),
        ("user", "What is it? " * 5),
        ("assistant", "This. " * 5),
        ("user", WORDS),
    )
    encoded = prompts.encode(Conversation(messages), limit=LIMIT, overflow=policy)
    assert LIMIT - 3 <= len(encoded.tokens) <= LIMIT
    text = shown(model, encoded.tokens)
    for _, content in messages[:3]:
        assert content in text
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    kept = text.split("<|im_start|>user\n")[-1].removesuffix("<|im_end|>\n<|im_start|>assistant\n")
    assert {
        LEFT: WORDS.endswith(kept),
        RIGHT: WORDS.startswith(kept),
        MIDDLE: any(WORDS.startswith(kept[:at]) and WORDS.endswith(kept[at:]) for at in range(20, len(kept) - 20)),
    }[policy]
    of = len(model.tokenize(WORDS, add_special=False))
    removed = encoded.notes["truncated"]["removed"]
    assert encoded.notes["truncated"] == {"where": policy.removeprefix("truncate-"), "removed": removed, "of": of}
    assert abs(len(model.tokenize(kept, add_special=False)) - (of - removed)) <= 2
    again = prompts.encode(Conversation(messages), limit=LIMIT, overflow=policy)
    assert again == encoded


@pytest.mark.parametrize("policy", SHORTENING)
def test_nothing_is_left_out_in_vain(prompts: PromptEncoder, policy: str) -> None:
    tokens = len(prompts.encode(asking(WORDS), limit=1 << 20).tokens)
    encoded = prompts.encode(asking(WORDS), limit=tokens - 1, overflow=policy)
    assert tokens - 4 <= len(encoded.tokens) <= tokens - 1
    assert encoded.notes["truncated"]["removed"] <= 3


@pytest.mark.parametrize("policy", SHORTENING)
def test_where_the_rest_alone_is_too_long_the_job_fails_with_both_counts(prompts: PromptEncoder, policy: str) -> None:
    with pytest.raises(JobError, match=rf"about \d+ tokens beside the text that may be left out, but {LIMIT} fit"):
        prompts.encode(asking("Hi " * 50, WORDS), limit=LIMIT, overflow=policy)
    with pytest.raises(JobError, match=r"tokens beside the text .* but 0 fit"):
        prompts.encode(asking("Hi"), limit=0, overflow=policy)


def test_a_conversation_without_a_user_has_nothing_to_leave_out(prompts: PromptEncoder) -> None:
    with pytest.raises(JobError, match=f"but {LIMIT} fit"):
        prompts.encode(Conversation((("system", WORDS),)), limit=LIMIT, overflow=LEFT)


def test_a_context_at_the_head_of_the_prompt_is_not_left_out(templated: Templated) -> None:
    templated.template = (
        "{{ messages[0].content }}{% if messages[0].role == 'system' %}{{ raise_exception('') }}{% endif %}"
    )
    folding = PromptEncoder(templated)
    encoded = folding.encode(asking(WORDS, "Be brief."), limit=LIMIT, overflow=LEFT)
    text = shown(templated, encoded.tokens)
    assert text.startswith("Be brief.\n\n")
    assert text.endswith(WORDS[-100:])
    assert encoded.notes["system"] == "folded"


@pytest.mark.parametrize("policy", SHORTENING)
def test_control_tokens_in_what_is_left_stay_text(model: Model, prompts: PromptEncoder, policy: str) -> None:
    encoded = prompts.encode(asking("a<|im_end|>" * 300), limit=LIMIT, overflow=policy)
    plain = prompts.encode(asking("a"), limit=LIMIT)
    [end] = model.tokenize("<|im_end|>", add_special=False, parse_special=True)
    assert encoded.tokens.count(end) == plain.tokens.count(end)
    assert shown(model, encoded.tokens).count("<|im_end|>") > 20


@pytest.mark.parametrize("name", ["qwen2", "llama-spm", "gemma-4", "deepseek-llm"])
def test_what_is_left_is_made_of_whole_characters(vocabulary: Callable[[str], Templated], name: str) -> None:
    model = vocabulary(name)
    model.template = None
    pieces = PromptEncoder(model)._pieces
    characters = st.characters(blacklist_categories=["Cs"], blacklist_characters="\0\ufffd")

    @settings(max_examples=40, database=None)
    @given(st.text(characters, max_size=40), st.integers(1, 60))
    def check(text: str, many: int) -> None:
        whole = (text + "é漢🎉") * many
        for policy in SHORTENING:
            shortener = Shortener(whole, policy, most=20, pieces=pieces)
            for count in (0, 1, 7, shortener.most):
                kept = shortener.keep(count)
                assert {
                    LEFT: whole.endswith(kept),
                    RIGHT: whole.startswith(kept),
                    MIDDLE: any(
                        whole.startswith(kept[:at]) and whole.endswith(kept[at:]) for at in range(len(kept) + 1)
                    ),
                }[policy]
                # A character of several tokens that would be cut is left out.
                assert count <= len(pieces(kept)) + 8 or kept == whole

    check()


def test_a_prompt_of_many_megabytes_is_refused_at_once(prompts: PromptEncoder) -> None:
    started = time.process_time()
    with pytest.raises(JobError, match=r"has at least \d+ tokens, but 4095 fit"):
        prompts.encode(asking("a" * 8_000_000), limit=4095)
    assert time.process_time() - started < 2


@pytest.mark.parametrize("policy", SHORTENING)
def test_a_prompt_of_many_megabytes_is_shortened_at_once(model: Model, prompts: PromptEncoder, policy: str) -> None:
    text = "The harbour engineer repairs the garden. " * 200_000
    started = time.process_time()
    encoded = prompts.encode(asking(text), limit=4095, overflow=policy)
    assert time.process_time() - started < 3
    assert 4080 < len(encoded.tokens) <= 4095
    truncated = encoded.notes["truncated"]
    assert truncated["about"] is True
    each = len(model.tokenize(text[: len(text) // 1000], add_special=False))
    assert truncated["of"] == pytest.approx(1000 * each, rel=0.01)
    assert truncated["of"] - truncated["removed"] == pytest.approx(4095, abs=100)
