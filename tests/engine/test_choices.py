"""Probabilities of a closed list, read from logits."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from constraint import Constraint
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nrvna.engine.choices import ChoiceTree, Path
from nrvna.errors import GrammarError
from nrvna.grammar.rules import literal
from nrvna.llama import Batch, Context, Model

N_VOCAB = 16
ENDS = (14, 15)

CHOICES = st.lists(
    st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple), min_size=1, max_size=8, unique=True
)


def logits_of(path: Path) -> NDArray[np.float32]:
    """Some logits that belong to a path alone."""
    return np.random.default_rng(path).normal(0, 3, N_VOCAB).astype(np.float32)


def softmax(row: NDArray[np.float32]) -> NDArray[np.float64]:
    exponentials = np.exp(row.astype(np.float64))
    return np.asarray(exponentials / exponentials.sum())


def by_brute_force(choices: list[Path]) -> list[float]:
    """Token by token, all that leads to no choice struck out and the rest made one again."""
    found = []
    for choice in choices:
        probability = 1.0
        for length in range(len(choice) + 1):
            head, row = choice[:length], softmax(logits_of(choice[:length]))
            allowed = {other[length] for other in choices if len(other) > length and other[:length] == head}
            allowed |= set(ENDS) if head in choices else set()
            taken = {choice[length]} if length < len(choice) else set(ENDS)
            probability *= sum(row[token] for token in taken) / sum(row[token] for token in allowed)
        found.append(probability)
    return found


@given(CHOICES)
def test_the_probabilities_are_those_of_sampling_under_the_list(choices: list[Path]) -> None:
    tree = ChoiceTree(choices)
    found = tree.probabilities({path: logits_of(path) for path in tree.branches}, ends=ENDS)
    assert found == pytest.approx(by_brute_force(choices), rel=1e-9)
    assert sum(found) == pytest.approx(1, abs=1e-12)


@given(CHOICES)
def test_logits_are_needed_just_where_choices_part(choices: list[Path]) -> None:
    branches = ChoiceTree(choices).branches
    assert len(set(branches)) == len(branches)
    for path in {choice[:length] for choice in choices for length in range(len(choice) + 1)}:
        following = {choice[len(path) : len(path) + 1] for choice in choices if choice[: len(path)] == path}
        assert (path in branches) == (len(following) > 1)


def test_choices_that_differ_at_once_need_the_prompts_logits_alone() -> None:
    assert ChoiceTree([[1, 2, 3], [4], [5, 2]]).branches == [()]


def test_one_choice_that_begins_another_may_end_there() -> None:
    tree = ChoiceTree([[1], [1, 2]])
    assert tree.branches == [(1,)]
    row = np.full(N_VOCAB, -30, np.float32)
    row[2], row[14], row[15] = 1.0, 0.0, 0.5
    found = tree.probabilities({(1,): row}, ends=ENDS)
    ends = math.exp(0.0) + math.exp(0.5)
    assert found == pytest.approx([ends / (ends + math.e), math.e / (ends + math.e)])


def test_huge_logits_overflow_nothing() -> None:
    row = np.zeros(N_VOCAB, np.float32)
    row[1], row[2], row[3] = 3e38, 3e38, -3e38
    assert ChoiceTree([[1], [2], [3]]).probabilities({(): row}, ends=ENDS) == [0.5, 0.5, 0.0]


def test_a_token_that_is_ruled_out_has_no_chance() -> None:
    row = np.zeros(N_VOCAB, np.float32)
    row[1] = -np.inf
    assert ChoiceTree([[1], [2]]).probabilities({(): row}, ends=ENDS) == [0.0, 1.0]


@pytest.mark.parametrize("value", [-np.inf, np.nan])
def test_logits_that_say_nothing_are_an_error(value: float) -> None:
    with pytest.raises(ValueError, match="leave no choice possible"):
        ChoiceTree([[1], [2]]).probabilities({(): np.full(N_VOCAB, value, np.float32)}, ends=ENDS)


@pytest.mark.parametrize(
    ("choices", "message"),
    [([[1], []], "choice 2 is empty"), ([[1, 2], [3], [1, 2]], "choices 1 and 3 are the same to the model")],
)
def test_choices_that_are_none_are_refused(choices: list[list[int]], message: str) -> None:
    with pytest.raises(GrammarError, match=message):
        ChoiceTree(choices)


# With the model.

TEXTS = ["yes", "no", "yes, of course", "yes, of late", "nobody", "日本"]


@pytest.fixture(scope="module")
def prompt(model: Model) -> list[int]:
    return model.tokenize("Is the sky blue? Answer with one word:")


@pytest.fixture(scope="module")
def context(model: Model) -> Iterator[Context]:
    with Context(model, n_ctx=256, flash_attention=False) as made:
        yield made


def logits_behind(context: Context, tokens: list[int]) -> NDArray[np.float32]:
    context.forget(0)
    batch = Batch(256)
    last = batch.add(tokens, position=0)
    context.decode(batch)
    return context.logits(last).copy()


@pytest.mark.slow
def test_the_models_choice_is_that_of_sampling_under_a_grammar(
    model: Model, prompt: list[int], context: Context
) -> None:
    choices = [model.tokenize(text, add_special=False) for text in TEXTS]
    tree = ChoiceTree(choices)
    rows = {path: logits_behind(context, [*prompt, *path]) for path in tree.branches}
    found = tree.probabilities(rows, ends=model.ends)

    # Each choice decoded whole; what llama.cpp's grammar rules out is struck out, and so are other spellings.
    grammar = Constraint(model, "root ::= " + " | ".join(map(literal, TEXTS)))
    spellings = {tuple(choice[:length]) for choice in choices for length in range(1, len(choice) + 1)}
    vocabulary = np.arange(model.n_vocab, dtype=np.int32)
    for choice, probability in zip(choices, found, strict=True):
        expected = 1.0
        grammar.restart()
        for length in range(len(choice) + 1):
            head = tuple(choice[:length])
            row = logits_behind(context, [*prompt, *head]).astype(np.float64)
            allowed = [
                token
                for token in vocabulary[grammar.allowed(vocabulary)].tolist()
                if model.is_end(token) or (*head, token) in spellings
            ]
            taken = choice[length : length + 1] or list(model.ends)
            expected *= np.exp(row[taken]).sum() / np.exp(row[allowed]).sum()
            assert grammar.take(choice[length : length + 1])
        assert probability == pytest.approx(expected, rel=1e-4)
    assert sum(found) == pytest.approx(1)
    assert max(found) > 0.3
