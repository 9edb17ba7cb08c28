"""From settings to a sampler chain: llama.cpp's order, and what is left out of it."""

from __future__ import annotations

import logging
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from nrvna.config import Config, Sampling
from nrvna.engine.chain import is_replayable, links_for, recommendation
from nrvna.engine.check import check_model
from nrvna.engine.runner import Runner
from nrvna.errors import GrammarError, JobError
from nrvna.llama import (
    AdaptiveP,
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
    Temperature,
    TopK,
    TopNSigma,
    TopP,
    Typical,
    Xtc,
    banning,
)

EVERYTHING = Sampling(
    temp=0.7,
    top_k=50,
    top_p=0.9,
    min_p=0.1,
    repeat_penalty=1.2,
    repeat_last_n=32,
    presence_penalty=0.3,
    frequency_penalty=0.4,
    dry_multiplier=0.8,
    dry_penalty_last_n=99,
    top_n_sigma=2.0,
    typical_p=0.95,
    xtc_probability=0.5,
    dynatemp_range=0.2,
    dynatemp_exponent=1.5,
    seed=3,
)


def test_without_settings_the_chain_is_llama_cpps_default(model: Model) -> None:
    assert links_for(model, Sampling(seed=3)) == [TopK(40), TopP(0.95), MinP(0.05), Temperature(0.8), Draw(3)]


def test_all_samplers_stand_in_llama_cpps_order(model: Model) -> None:
    assert links_for(model, EVERYTHING) == [
        Penalties(32, 1.2, 0.4, 0.3),
        Dry(0.8, 1.75, 2, 99),
        TopNSigma(2.0),
        TopK(50),
        Typical(0.95),
        TopP(0.9),
        MinP(0.1),
        Xtc(0.5, 0.1, 3),
        Temperature(0.7, 0.2, 1.5),
        Draw(3),
    ]


def test_the_order_can_be_set_and_what_it_leaves_out_is_not_used(model: Model) -> None:
    ordered = replace(EVERYTHING, samplers=("temperature", "min_p", "top_k"))
    assert links_for(model, ordered) == [Temperature(0.7, 0.2, 1.5), MinP(0.1), TopK(50), Draw(3)]


@pytest.mark.parametrize(
    ("sampling", "links"),
    [
        (Sampling(temp=0), [Greedy()]),
        (Sampling(temp=0, repeat_penalty=1.3), [Penalties(64, 1.3), Greedy()]),
        # These can drop the likeliest token, after what comes before them.
        (Sampling(temp=0, typical_p=0.5), [TopK(40), Typical(0.5), Greedy()]),
        (
            Sampling(temp=0, xtc_probability=1.0, seed=1),
            [TopK(40), TopP(0.95), MinP(0.05), Xtc(1.0, 0.1, 1), Greedy()],
        ),
        # What is behind has one candidate left.
        (Sampling(temp=0, repeat_penalty=2, samplers=("temperature", "penalties")), [Greedy()]),
        # No temperature, no greedy choice.
        (Sampling(temp=0, samplers=("top_k",), seed=1), [TopK(40), Draw(1)]),
        (Sampling(temp=0, dynatemp_range=1.0, samplers=("temperature",), seed=1), [Temperature(0, 1.0), Draw(1)]),
    ],
)
def test_at_temperature_zero_only_what_can_change_the_likeliest_is_left(
    model: Model, sampling: Sampling, links: list[Link]
) -> None:
    assert links_for(model, sampling) == links


@pytest.mark.parametrize(
    ("version", "last"), [(1, Mirostat(4.0, 0.2, 3)), (2, MirostatV2(4.0, 0.2, 3))], ids=["1", "2"]
)
def test_mirostat_replaces_all_but_temperature_and_biases(model: Model, version: int, last: Link) -> None:
    sampling = replace(EVERYTHING, mirostat=version, mirostat_ent=4.0, mirostat_lr=0.2, logit_bias=((5, 1.0),))
    assert links_for(model, sampling) == [LogitBias(((5, 1.0),)), Temperature(0.7), last]


@pytest.mark.parametrize("named", [True, False])
def test_adaptive_p_chooses_in_place_of_the_draw(model: Model, named: bool) -> None:
    samplers = ("adaptive_p", "top_k") if named else ("top_k",)
    sampling = Sampling(adaptive_target=0.4, adaptive_decay=0.8, samplers=samplers, seed=3)
    assert links_for(model, sampling) == [TopK(40), AdaptiveP(0.4, 0.8, 3)]


def test_biases_and_what_keeps_the_answer_from_ending_come_first(model: Model) -> None:
    [hello] = model.tokenize(" Hello", add_special=False)
    two = model.tokenize(" Hello there", add_special=False)
    sampling = Sampling(temp=0, min_tokens=4, logit_bias=((7, -1.0), (" Hello there", False)))
    never = float("-inf")
    assert links_for(model, sampling, grammar='root ::= "a"') == [
        LogitBias(((7, -1.0), *((token, never) for token in two))),
        MinTokens(4),
        Grammar('root ::= "a"'),
        Greedy(),
    ]
    assert hello in two and len(two) == 2
    assert links_for(model, Sampling(temp=0, ignore_eos=True, min_tokens=4)) == [banning(model.ends), Greedy()]


def test_a_bias_on_a_token_that_the_model_has_not_is_the_jobs_error(model: Model) -> None:
    with pytest.raises(JobError, match="logit_bias names token 49152, but this model's go from 0 to 49151"):
        links_for(model, Sampling(logit_bias=((49152, 1.0),)))


@pytest.mark.parametrize(
    ("sampling", "replayable"),
    [
        (replace(EVERYTHING, xtc_probability=0.0), True),
        (EVERYTHING, False),
        (Sampling(mirostat=1), False),
        (Sampling(mirostat=2), False),
        (Sampling(adaptive_target=0.5), False),
        (Sampling(temp=0), True),
    ],
)
def test_what_can_go_on_after_an_interruption_is_known_beforehand(sampling: Sampling, replayable: bool) -> None:
    assert is_replayable(sampling) == replayable


@pytest.fixture(scope="module")
def runner(model_file: Path) -> Runner:
    return Runner(model_file, Config(parallel=1, ctx=512))


def test_what_no_sampler_could_be_made_of_is_found_before_it_begins(runner: Runner) -> None:
    runner.check(EVERYTHING, 'root ::= "a"')
    with pytest.raises(GrammarError, match="line 1"):
        runner.check(Sampling(), "nonsense")
    with pytest.raises(JobError, match="logit_bias names token 99999"):
        runner.check(Sampling(logit_bias=((99999, 1.0),)))


# What a model's authors recommend.


def text(content: str) -> bytes:
    return struct.pack("<Q", len(content)) + content.encode()


def pair(key: str, value: float | str) -> bytes:
    """A key and its value, in the types that GGUF numbers so."""
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    return text(key) + (struct.pack("<Ii", 5, value) if isinstance(value, int) else struct.pack("<If", 6, value))


def advised(model_file: Path, target: Path, **sampling: float | str) -> Path:
    """A copy of the model whose metadata recommend this."""
    pairs = b"".join(pair(f"general.sampling.{key}", value) for key, value in sampling.items())
    # The weights begin at a multiple of 32 bytes.
    pairs += pair("general.filler", "x" * (-len(pairs + pair("general.filler", "")) % 32))
    content = model_file.read_bytes()
    magic, version, tensors, count = struct.unpack_from("<4sIQQ", content)
    header = struct.pack("<4sIQQ", magic, version, tensors, count + len(sampling) + 1)
    target.write_bytes(header + pairs + content[24:])
    return target


@pytest.fixture(scope="module")
def advising(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("models") / "advised.gguf"
    return advised(
        model_file,
        target,
        temp=0.6,
        top_p=0.95,
        top_k=20,
        penalty_last_n=128,
        sequence="top_k;temp",
        mirostat_tau="x",
    )


def test_what_the_authors_recommend_is_read_from_the_file(model: Model, advising: Path) -> None:
    assert model.recommended_sampling == {}
    assert recommendation(model, Sampling()) == ""
    with Model(advising, vocab_only=True) as own:
        assert own.recommended_sampling == {
            "temp": 0.6,
            "top_p": 0.95,
            "top_k": 20,
            "repeat_last_n": 128,
            "samplers": "top_k;temp",
        }


def test_only_what_is_not_in_force_is_recommended_with_what_to_export(advising: Path) -> None:
    with Model(advising, vocab_only=True) as own:
        assert recommendation(own, Sampling(repeat_last_n=128)) == (
            "samplers top_k;temp, temp 0.6, top_k 20: "
            "export 'NRVNA_SAMPLERS=top_k;temp' NRVNA_TEMP=0.6 NRVNA_TOP_K=20"
        )


def test_a_recommendation_that_cannot_be_is_passed_over(model_file: Path, tmp_path: Path) -> None:
    target = advised(model_file, tmp_path / "odd.gguf", temp=99.0, top_k=-5, sequence="best", min_p=0.1)
    with Model(target, vocab_only=True) as own:
        assert recommendation(own, Sampling()) == "min_p 0.1: export NRVNA_MIN_P=0.1"


def test_check_and_start_offer_the_recommendation_and_do_not_apply_it(
    advising: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert check_model(advising, Config()) == 0
    [row] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("sampling")]
    assert row.startswith("sampling      the authors recommend samplers top_k;temp, temp 0.6")
    with caplog.at_level(logging.INFO, "nrvna.engine"):
        runner = Runner(advising, Config(parallel=1, ctx=512))
    [line] = [record.getMessage() for record in caplog.records if "recommend" in record.getMessage()]
    assert line.startswith(
        "the model's authors recommend samplers top_k;temp, temp 0.6, top_k 20, repeat_last_n 128: "
    )
    assert links_for(runner.model, Sampling(seed=1))[0] == TopK(40)
    runner.model.close()
