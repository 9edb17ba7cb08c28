"""Every sampler against llama-server: the tokens that it was recorded to sample, and those that it samples now."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conversations import tokens_of
from llama_server import serving_alike
from record_golden import RECORDING, fingerprint
from sampler_cases import CASES, PROMPTS, Case, of_server

from nrvna.config import SETTINGS
from nrvna.engine.chain import links_for
from nrvna.engine.prompt import PromptEncoder
from nrvna.llama import Batch, Context, Model, Sampler, load_library

_CELLS = 256

Rounds = Callable[..., int]


def answers(model: Model, prompt: list[int], cases: dict[str, Case]) -> dict[str, list[int]]:
    """The tokens of each case, all decoded together behind one prompt; with the one that ends an answer."""
    flash = None if load_library().can_compute_rows_alone else False
    size = len(cases)
    context = Context(model, n_ctx=_CELLS * size, n_seq_max=size, flash_attention=flash, rows_alone=True, threads=2)
    limits = {slot: case.sampling.predict for slot, case in enumerate(cases.values())}
    chains = [links_for(model, case.sampling, grammar=case.grammar) for case in cases.values()]
    samplers = [Sampler(model, chain) for chain in chains]
    found: list[list[int]] = [[] for _ in cases]
    with context:
        batch = Batch(512)
        first = batch.add(prompt, position=0)
        context.decode(batch)
        for slot in range(size):
            samplers[slot].accept(prompt)
            if slot:
                context.copy(0, slot, len(prompt))
        rows = dict.fromkeys(range(size), first)
        while rows:
            tokens = {slot: samplers[slot].sample(context, row) for slot, row in rows.items()}
            batch.clear()
            rows = {}
            for slot, token in tokens.items():
                found[slot].append(token)
                if len(found[slot]) < limits[slot] and not model.is_end(token):
                    position = len(prompt) + len(found[slot]) - 1
                    rows[slot] = batch.add([token], position=position, sequence=slot)
            if rows:
                context.decode(batch)
    for sampler in samplers:
        sampler.close()
    return dict(zip(cases, found, strict=True))


@pytest.fixture(scope="module")
def recording() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(RECORDING.read_text())
    return content


def test_the_recording_is_of_these_prompts_and_cases(recording: dict[str, Any]) -> None:
    assert len(PROMPTS) >= 20
    assert list(recording["prompts"]) == PROMPTS
    assert list(recording["answers"]) == list(CASES)
    assert all(len(answers) == len(PROMPTS) for answers in recording["answers"].values())


@pytest.mark.parametrize("name", CASES)
def test_each_setting_leads_away_from_the_answers_without_it(recording: dict[str, Any], name: str) -> None:
    own, without = recording["answers"][name], recording["answers"][CASES[name].without]
    differing = sum(one != other for one, other in zip(own, without, strict=True))
    assert differing >= len(PROMPTS) // 4


def test_every_setting_of_the_sampling_is_in_a_case() -> None:
    tried = set()
    for case in CASES.values():
        without = vars(CASES[case.without].sampling)
        tried |= {field for field, value in vars(case.sampling).items() if value != without[field]}
    # llama.cpp knows no fewest tokens, the most of them are the same for all, and the others are about text.
    elsewhere = {"predict", "min_tokens", "stop", "reasoning_budget", "overflow"}
    assert tried | elsewhere == {setting.field for setting in SETTINGS if setting.of_job}


def test_the_recorded_tokens_are_sampled(recording: dict[str, Any], model: Model, rounds: Rounds) -> None:
    here, there = fingerprint(), recording["fingerprint"]
    if differing := [key for key, value in here.items() if value != there[key]]:
        pytest.skip(
            f"recorded with another {', '.join(differing)}: with other bits a token may differ here and there"
        )
    count = rounds(quick=1, ci=5, long=len(PROMPTS))
    for number, prompt in list(enumerate(recording["prompts"].values()))[:count]:
        expected = {name: recorded[number] for name, recorded in recording["answers"].items()}
        assert answers(model, prompt, CASES) == expected


@pytest.fixture(scope="module")
def server(peers: Path, model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving_alike(peers, model_file, tmp_path_factory.mktemp("server") / "log") as address:
        yield address


@pytest.mark.slow
def test_the_tokens_sampled_are_those_that_the_server_samples_now(server: str, model: Model, rounds: Rounds) -> None:
    encoder = PromptEncoder(model)
    step = rounds(quick=9, ci=3, long=1)
    names = list(CASES)[3::step]
    for place, name in enumerate(names):
        prompt = tokens_of(encoder, PROMPTS[place % len(PROMPTS)], limit=_CELLS)
        case = CASES[name]
        expected = of_server(server, prompt, case.sampling, case.grammar)
        assert answers(model, prompt, {name: case}) == {name: expected}
