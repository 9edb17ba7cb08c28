"""Sampler chains on the real model: what the links do, and that a chain can be brought back to where it was."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrvna.errors import ContextError, GrammarError
from nrvna.llama import (
    AdaptiveP,
    Batch,
    Context,
    Draw,
    Dry,
    Grammar,
    Greedy,
    Link,
    LogitBias,
    MinP,
    MinTokens,
    Mirostat,
    MirostatV2,
    Model,
    Penalties,
    Sampler,
    Temperature,
    TopK,
    TopNSigma,
    TopP,
    Typical,
    Xtc,
    banning,
)

NEVER = float("-inf")
WORDS = r'root ::= word (" " word){0,5} "."' + "\n" + 'word ::= "a" | "the" | [b-f]+ | "café"'
DIGITS = "root ::= [0-9]{3}"


class Decoded(NamedTuple):
    """A context that holds a prompt, and the row of its logits."""

    context: Context
    row: int
    prompt: list[int]

    def sample(self, sampler: Sampler, count: int = 1) -> list[int]:
        """Tokens sampled one after another, always from the same logits."""
        return [sampler.sample(self.context, self.row) for _ in range(count)]


def decoded(model: Model, text: str) -> Iterator[Decoded]:
    prompt = model.tokenize(text, parse_special=True)
    with Context(model, n_ctx=256, flash_attention=False) as context:
        batch = Batch(256)
        index = batch.add(prompt, position=0)
        context.decode(batch)
        yield Decoded(context, index, prompt)


@pytest.fixture(scope="module")
def counting(model: Model) -> Iterator[Decoded]:
    yield from decoded(model, "One, two, three, one, two, three, one, two")


@pytest.fixture(scope="module")
def ending(model: Model) -> Iterator[Decoded]:
    """Where the end of the answer is the likeliest token."""
    yield from decoded(
        model, "<|im_start|>user\nRepeat: The cat sleeps.<|im_end|>\n<|im_start|>assistant\nThe cat sleeps."
    )


def test_greedy_sampling_takes_the_likeliest_token(model: Model, counting: Decoded) -> None:
    logits = counting.context.logits(counting.row)
    assert logits.shape == (model.n_vocab,)
    with Sampler(model, [Greedy()]) as sampler:
        assert counting.sample(sampler) == [int(np.argmax(logits))]


def test_the_largest_logit_is_what_llama_cpps_greedy_sampler_takes(model: Model, counting: Decoded) -> None:
    with Sampler(model, [Greedy()]) as ours, Sampler(model, [Penalties(repeat=1.0001), Greedy()]) as theirs:
        assert counting.sample(ours) == counting.sample(theirs)


def test_the_same_seed_draws_the_same_tokens_and_another_seed_others(model: Model, counting: Decoded) -> None:
    def draw(seed: int) -> list[int]:
        with Sampler(model, [Temperature(2.0), Draw(seed)]) as sampler:
            return counting.sample(sampler, 20)

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_without_a_seed_every_sampler_draws_its_own(model: Model, counting: Decoded) -> None:
    with Sampler(model, [Temperature(2.0), Draw()]) as one, Sampler(model, [Temperature(2.0), Draw()]) as other:
        assert counting.sample(one, 20) != counting.sample(other, 20)


@pytest.mark.parametrize(
    "penalty", [Penalties(repeat=10.0), Penalties(frequency=50.0), Penalties(presence=50.0)], ids=str
)
def test_a_penalty_lowers_what_was_accepted(model: Model, counting: Decoded, penalty: Link) -> None:
    with Sampler(model, [Greedy()]) as plain, Sampler(model, [penalty, Greedy()]) as penalised:
        likeliest = counting.sample(plain)
        assert counting.sample(penalised) == likeliest
        assert counting.sample(penalised) != likeliest


def test_a_penalty_forgets_what_is_further_back_than_its_window(model: Model, counting: Decoded) -> None:
    with Sampler(model, [Greedy()]) as plain, Sampler(model, [Penalties(3, presence=50.0), Greedy()]) as penalised:
        likeliest = counting.sample(plain)
        penalised.accept([*likeliest, 5, 6])
        assert counting.sample(penalised) != likeliest
        assert counting.sample(penalised) == likeliest


def test_dry_keeps_a_sequence_from_being_repeated(model: Model, counting: Decoded) -> None:
    with Sampler(model, [Greedy()]) as plain, Sampler(model, [Dry(10.0), Greedy()]) as dry:
        dry.accept(counting.prompt)
        assert counting.sample(plain) == model.tokenize(",", add_special=False)
        assert counting.sample(dry) != counting.sample(plain)


def test_dry_does_not_look_across_a_breaker(model: Model, counting: Decoded) -> None:
    broken = Dry(10.0, breakers=(" two",))
    with Sampler(model, [Greedy()]) as plain, Sampler(model, [broken, Greedy()]) as dry:
        dry.accept(counting.prompt)
        assert counting.sample(dry) == counting.sample(plain)


def test_samplers_with_the_same_dry_do_not_know_of_each_other(model: Model, counting: Decoded) -> None:
    links = [Dry(10.0), Greedy()]
    with Sampler(model, links) as knowing, Sampler(model, links) as fresh:
        knowing.accept(counting.prompt)
        knowing_next = counting.sample(knowing)
        assert counting.sample(fresh) != knowing_next
        with Sampler(model, links) as third:
            third.accept(counting.prompt)
            assert counting.sample(third) == knowing_next


def test_a_bias_makes_a_token_certain_or_impossible(model: Model, counting: Decoded) -> None:
    with Sampler(model, [Greedy()]) as plain:
        [likeliest] = counting.sample(plain)
    for wanted, links in {
        123: [LogitBias(((123, 1000.0),)), Draw(1)],
        likeliest: [LogitBias(((likeliest, 0.5),)), Greedy()],
    }.items():
        with Sampler(model, links) as sampler:
            assert counting.sample(sampler) == [wanted]
    for last in (Greedy(), Draw(1)):
        with Sampler(model, [LogitBias(((likeliest, NEVER),)), last]) as sampler:
            assert likeliest not in counting.sample(sampler, 50)


def test_a_bias_on_a_token_that_is_none_is_refused(model: Model) -> None:
    with pytest.raises(ValueError, match=f"{model.n_vocab} is no token to put a bias on: ids go from 0 to"):
        Sampler(model, [LogitBias(((model.n_vocab, 1.0),)), Draw()])


@pytest.mark.parametrize("last", [Greedy(), Draw(3)], ids=str)
def test_banned_ends_never_end_the_answer(model: Model, ending: Decoded, last: Link) -> None:
    with Sampler(model, [TopK(1), last]) as plain, Sampler(model, [banning(model.ends), TopK(5), last]) as banned:
        assert model.is_end(*ending.sample(plain))
        assert not any(model.is_end(token) for token in ending.sample(banned, 50))


@pytest.mark.parametrize("last", [Greedy(), Draw(3)], ids=str)
def test_an_answer_may_end_once_it_has_the_fewest_tokens_asked_for(model: Model, ending: Decoded, last: Link) -> None:
    with Sampler(model, [MinTokens(3), TopK(1), last]) as sampler:
        assert [model.is_end(token) for token in ending.sample(sampler, 5)] == [False, False, False, True, True]
    with Sampler(model, [MinTokens(3), TopK(1), last]) as resumed:
        resumed.replay([5, 6])
        assert [model.is_end(token) for token in ending.sample(resumed, 2)] == [False, True]


def test_the_fewest_tokens_are_counted_where_the_largest_logit_is_all(model: Model, ending: Decoded) -> None:
    with Sampler(model, [MinTokens(2), Greedy()]) as sampler:
        assert [model.is_end(token) for token in ending.sample(sampler, 3)] == [False, False, True]


@pytest.mark.parametrize(
    "links",
    [[], [TopK(1)], [Greedy(), TopK(1)], [Draw(), Greedy()], [Grammar(WORDS)], [*[Grammar(WORDS)] * 2, Draw()]],
    ids=str,
)
def test_links_that_do_not_end_in_the_one_that_chooses_are_no_chain(model: Model, links: list[Link]) -> None:
    with pytest.raises(ValueError, match="a chain ends in the one link that chooses, and has one grammar at most"):
        Sampler(model, links)


# Grammars.


@pytest.mark.parametrize("last", [Greedy(), Draw(1), Mirostat(seed=1), AdaptiveP(0.3, seed=1)], ids=str)
def test_an_answer_follows_the_grammar_and_ends_where_it_ends(model: Model, counting: Decoded, last: Link) -> None:
    with Sampler(model, [Grammar(DIGITS), last]) as sampler:
        answer: list[int] = []
        while not (answer and model.is_end(answer[-1])):
            answer += counting.sample(sampler)
        text = model.detokenize(answer[:-1])
        assert len(text) == 3 and text.isdecimal()


def test_a_refused_first_choice_takes_a_second_draw(model: Model, counting: Decoded) -> None:
    likely = Grammar("root ::= ([a-z] | [, ])*")
    with Sampler(model, [likely, TopK(1), Draw(1)]) as sampler:
        counting.sample(sampler, 4)
        assert sampler.draws == 4
    with Sampler(model, [Grammar(DIGITS), Draw(1)]) as sampler:
        [digit] = counting.sample(sampler)
        assert model.detokenize([digit]).strip().isdecimal()
        assert sampler.draws == 2
    with Sampler(model, [Grammar(DIGITS), Greedy()]) as sampler:
        counting.sample(sampler)
        assert sampler.draws == 0


def test_a_choice_that_the_grammar_allows_is_the_one_made_without_it(model: Model, counting: Decoded) -> None:
    anything = Grammar(r"root ::= [^\x00]*")
    with (
        Sampler(model, [Temperature(1.5), Draw(1)]) as free,
        Sampler(model, [Temperature(1.5), anything, Draw(1)]) as bound,
    ):
        assert counting.sample(bound, 30) == counting.sample(free, 30)


@pytest.mark.parametrize("last", [Greedy(), Draw(1)], ids=str)
def test_a_finished_grammar_ends_the_answer_even_where_it_was_not_to_end(
    model: Model, counting: Decoded, last: Link
) -> None:
    for held in (MinTokens(50), banning(model.ends)):
        with Sampler(model, [held, Grammar(DIGITS), last]) as sampler:
            tokens = counting.sample(sampler, 4)
            assert [model.is_end(token) for token in tokens] == [False, False, False, True]


@pytest.mark.parametrize("last", [Greedy(), Draw(1)], ids=str)
def test_where_no_token_goes_on_with_the_grammar_the_answer_fails(
    model: Model, counting: Decoded, last: Link
) -> None:
    with Sampler(model, [Grammar(r'root ::= "7" [^\x00-\U0010FFFF]'), last]) as sampler:
        assert counting.sample(sampler) == model.tokenize("7", add_special=False)
        with pytest.raises(GrammarError, match="the grammar allows no token of this model here"):
            counting.sample(sampler)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('root := "a"', r'expecting ::= at := "a"'),
        ('root ::= "a" [b', "unexpected end of input"),
        ('root ::= "a" nothing', "Undefined rule identifier 'nothing'"),
        ('other ::= "a"', "grammar does not contain a 'root' symbol"),
        ('root ::= root "a"', "left recursion detected"),
        (" \n", "the grammar is empty or holds a NUL character"),
        ('root ::= "a"\0', "the grammar is empty or holds a NUL character"),
    ],
)
def test_a_grammar_that_cannot_be_read_says_why(model: Model, text: str, reason: str) -> None:
    with pytest.raises(GrammarError) as caught:
        Sampler(model, [Grammar(text), Draw()])
    message = str(caught.value)
    assert reason in message
    assert "\n" not in message


def test_what_others_write_to_standard_error_meanwhile_is_not_lost(model_file: Path) -> None:
    code = f"""
import logging, os
from nrvna.config import llama_dir
from nrvna.errors import GrammarError
from nrvna.llama import Draw, Grammar, Model, Sampler, load_library
load_library(llama_dir())
logging.disable()
model = Model({str(model_file)!r}, vocab_only=True)
try:
    Sampler(model, [Grammar("nonsense"), Draw()])
except GrammarError:
    os.write(2, b"still here")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "error parsing grammar: expecting ::= at" in done.stderr
    assert done.stderr.endswith("still here")


def test_where_there_is_no_standard_error_a_bad_grammar_is_still_an_error(model_file: Path) -> None:
    code = f"""
import logging, os
from nrvna.config import llama_dir
from nrvna.errors import GrammarError
from nrvna.llama import Draw, Grammar, Model, Sampler, load_library
load_library(llama_dir())
logging.disable()
model = Model({str(model_file)!r}, vocab_only=True)
os.close(2)
try:
    Sampler(model, [Grammar("nonsense"), Draw()])
except GrammarError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "llama.cpp cannot read the grammar: failed to parse grammar\n"


# Going on after an interruption.


def test_a_replay_of_tokens_that_the_grammar_does_not_allow_is_an_error_and_no_abort(model: Model) -> None:
    [letter] = model.tokenize("x", add_special=False)
    for token in (letter, model.ends[0]):
        with (
            Sampler(model, [Grammar(DIGITS), Draw(1)]) as sampler,
            pytest.raises(GrammarError, match=f"does not allow token {token} here"),
        ):
            sampler.replay([token], draws=1)


def test_with_a_grammar_a_replay_wants_to_know_the_draws(model: Model) -> None:
    with (
        Sampler(model, [Grammar(DIGITS), Draw(1)]) as sampler,
        pytest.raises(ValueError, match="how many there were"),
    ):
        sampler.replay(model.tokenize("12", add_special=False))


@pytest.mark.parametrize(
    "link", [Mirostat(seed=1), MirostatV2(seed=1), AdaptiveP(0.3, seed=1), Xtc(0.5, seed=1)], ids=str
)
def test_a_chain_whose_state_comes_from_logits_cannot_be_replayed(model: Model, link: Link) -> None:
    links = [link] if link.chooses else [link, Draw(1)]
    with Sampler(model, links) as sampler:
        assert not sampler.is_replayable
        sampler.replay([])
        with pytest.raises(ValueError, match="the answer can only start afresh"):
            sampler.replay([5])


numbers = st.floats(0.0625, 3.0)
before_a_draw = st.one_of(
    st.builds(Penalties, st.integers(1, 100), numbers, numbers, numbers),
    st.builds(Dry, numbers, st.just(1.75), st.integers(0, 3), st.integers(1, 100), st.just(("\n", " one"))),
    st.builds(TopNSigma, numbers),
    st.builds(TopK, st.integers(1, 200)),
    st.builds(Typical, st.floats(0.1, 0.99)),
    st.builds(TopP, st.floats(0.1, 0.99)),
    st.builds(MinP, st.floats(0.001, 0.5)),
    st.builds(Temperature, numbers, st.sampled_from([0.0, 0.5]), numbers),
    st.builds(MinTokens, st.integers(1, 30)),
    st.builds(lambda token, bias: LogitBias(((token, bias),)), st.integers(0, 49151), st.sampled_from([NEVER, 8.0])),
)
grammars = st.sampled_from([None, Grammar(WORDS), Grammar(r"root ::= ([a-z]+ [ ,.]*)*")])
lasts = st.one_of(st.just(Greedy()), st.builds(Draw, st.integers(0, 2**32 - 2)))


@pytest.mark.slow
@settings(max_examples=25)
@given(st.lists(before_a_draw, max_size=5), grammars, lasts, st.integers(0, 40))
def test_a_replayed_chain_goes_on_as_the_one_that_sampled(
    model: Model,
    counting: Decoded,
    before: Sequence[Link],
    grammar: Grammar | None,
    last: Link,
    cut: int,
) -> None:
    links = [*before, *([grammar] if grammar else []), last]
    with Sampler(model, links) as sampler:
        assert sampler.is_replayable
        sampler.accept(counting.prompt)
        head, draws = counting.sample(sampler, cut), sampler.draws
        tail, total = counting.sample(sampler, 12), sampler.draws
    with Sampler(model, links) as resumed:
        resumed.accept(counting.prompt)
        resumed.replay(head, draws)
        assert resumed.draws == draws
        assert counting.sample(resumed, 12) == tail
        assert resumed.draws == total


def test_closing_a_model_closes_its_samplers_first(model_file: Path) -> None:
    own = Model(model_file, vocab_only=True)
    sampler = Sampler(own, [Penalties(repeat=1.5), Grammar(DIGITS), Greedy()])
    own.close()
    with pytest.raises(ContextError, match="this Sampler was closed already"):
        sampler.accept([5])


@pytest.mark.parametrize(
    ("grammar", "comes"), [(r'root ::= "<" [^"]*', False), ("root ::= <|im_start|>", True)], ids=["text", "token"]
)
def test_a_control_token_is_no_text_to_a_grammar_that_does_not_name_it(
    model: Model, counting: Decoded, grammar: str, comes: bool
) -> None:
    [start] = model.tokenize("<|im_start|>", add_special=False, parse_special=True)
    with Sampler(model, [LogitBias(((start, 1000.0),)), Grammar(grammar), Greedy()]) as sampler:
        assert (counting.sample(sampler) == [start]) == comes
