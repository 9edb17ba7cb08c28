"""Greedy answers against llama.cpp's own server, where that is built."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conversations import tokens_of
from llama_server import ask, serving_alike

from nrvna.config import Config, Sampling
from nrvna.engine.engine import Engine
from nrvna.engine.runner import Runner
from nrvna.engine.work import Request

pytestmark = pytest.mark.slow

PROMPTS = [
    "Name three primes.",
    "Write a haiku about rivers.",
    "Was ist ein Baum? Antworte kurz.",
    "def fibonacci(n):",
    "Translate to French: the cat sleeps 🐈",
    "List the days of the week, one a line.",
]
TOKENS = 48
SAMPLED = Sampling(temp=0.8, top_k=40, top_p=0.95, min_p=0.05, repeat_penalty=1.1, predict=TOKENS, seed=42)


@pytest.fixture(scope="module")
def server(peers: Path, model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving_alike(peers, model_file, tmp_path_factory.mktemp("server") / "log") as address:
        yield address


Answers = dict[str, tuple[list[int], str, str]]


def answers(model_file: Path, sampling: Sampling) -> Answers:
    """Prompt tokens, answer and finish reason of every prompt, all answered together."""
    runner = Runner(model_file, Config(parallel=4, ctx=1024, reproducible=1))
    engine = Engine(runner, {})
    for prompt in PROMPTS:
        engine.add(Request(prompt, prompt, "", None, sampling))
    found = {}
    while not engine.is_idle:
        for event in engine.step():
            if event.receipt:
                tokens = tokens_of(runner.prompts, event.id, limit=1024)
                found[event.id] = (tokens, event.answer, event.receipt.finish_reason)
    runner.model.close()
    return found


@pytest.fixture(scope="module")
def greedy(model_file: Path) -> Answers:
    return answers(model_file, Sampling(temp=0.0, predict=TOKENS))


@pytest.fixture(scope="module")
def sampled(model_file: Path) -> Answers:
    return answers(model_file, SAMPLED)


def answer_of(address: str, prompt: str, **settings: float) -> tuple[str, str]:
    """The server's answer and finish reason."""
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": TOKENS, "cache_prompt": False}
    choice = ask(address, "/v1/chat/completions", {**body, **settings})["choices"][0]
    return choice["message"]["content"], choice["finish_reason"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_becomes_the_tokens_that_the_server_makes_of_it(server: str, greedy: Answers, prompt: str) -> None:
    rendered = ask(server, "/apply-template", {"messages": [{"role": "user", "content": prompt}]})["prompt"]
    body = {"content": rendered, "add_special": True, "parse_special": True}
    assert greedy[prompt][0] == ask(server, "/tokenize", body)["tokens"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_greedy_answer_is_the_one_that_the_server_gives(server: str, greedy: Answers, prompt: str) -> None:
    assert greedy[prompt][1:] == answer_of(server, prompt, temperature=0)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_seed_draws_the_answer_that_the_server_draws(server: str, sampled: Answers, prompt: str) -> None:
    settings = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repeat_penalty": 1.1, "seed": 42}
    assert sampled[prompt][1:] == answer_of(server, prompt, **settings)
