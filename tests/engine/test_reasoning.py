"""How models mark their thoughts, as their templates tell it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conversations import asking
from templated import Templated

from nrvna.engine.prompt import Conversation, PromptEncoder
from nrvna.engine.reasoning import Reasoning, find_reasoning

THINK = Reasoning("<think>", "</think>")
MARKS = {
    "ByteDance-Seed-OSS": Reasoning("<seed:think>", "</seed:think>"),
    "Cohere2MoE": Reasoning("<|START_THINKING|>", "<|END_THINKING|>"),
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": Reasoning("<|START_THINKING|>", "<|END_THINKING|>"),
    "openai-gpt-oss-120b": Reasoning(
        "<|channel|>analysis<|message|>",
        "<|start|>assistant<|channel|>final<|message|>",
        "<|channel|>final<|message|>",
    ),
    "mistralai-Ministral-3-14B-Reasoning-2512": Reasoning("[THINK]", "[/THINK]"),
    "google-gemma-4-31B-it": Reasoning("<|channel>thought", "<channel|>"),
    "google-gemma-4-31B-it-interleaved": Reasoning("<|channel>thought", "<channel|>"),
    "Apertus-8B-Instruct": Reasoning("<|inner_prefix|>", "<|inner_suffix|>"),
    "Apriel-1.6-15b-Thinker-fixed": Reasoning("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
    "unsloth-Apriel-1.5": Reasoning("<thinking>", "</thinking>"),
    "MiniMax-M3": Reasoning("<mm:think>", "</mm:think>"),
    "Kimi-K3": Reasoning("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    "tencent-Hy3": Reasoning("<think:opensource>", "</think:opensource>"),
    "muse-glimmer": Reasoning("to=self<|message|>", "<|eom|>"),
    "upstage-Solar-Open-100B": Reasoning("<|think|>", "<|end|>"),
}
# Their templates say nothing of thoughts, whether the models have any or not.
SILENT = {
    "CohereForAI-c4ai-command-r-plus-tool_use",
    "GigaChat3-10B-A1.8B",
    "GigaChat3.1-10B-A1.8B",
    "Kimi-K2-Instruct",
    "LFM2-8B-A1B",
    "MiMo-VL",
    "MiniMax-M1",
    "Mistral-Small-3.2-24B-Instruct-2506",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "Qwen-Qwen2.5-7B-Instruct",
    "Qwen3-Coder",
    "fireworks-ai-llama-3-firefunction-v2",
    "google-gemma-2-2b-it",
    "ibm-granite-granite-4.0",
    "ibm-granite-granite-4.1",
    "meetkai-functionary-medium-v3.1",
    "meetkai-functionary-medium-v3.2",
    "meta-llama-Llama-3.1-8B-Instruct",
    "meta-llama-Llama-3.2-3B-Instruct",
    "meta-llama-Llama-3.3-70B-Instruct",
    "microsoft-Phi-3.5-mini-instruct",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "moonshotai-Kimi-K2",
    "unsloth-mistral-Devstral-Small-2507",
}
# Those that build their marks from pieces are seen only where they are rendered.
BUILT = {"Kimi-K3", "tencent-Hy3"}


def test_the_marks_of_every_template_are_known(templates: dict[str, str]) -> None:
    found = {name: find_reasoning(source) for name, source in templates.items() if name not in BUILT}
    expected = {name: None if name in SILENT else MARKS.get(name, THINK) for name in templates if name not in BUILT}
    assert found == expected


@pytest.mark.parametrize("name", sorted(BUILT))
def test_marks_that_a_template_builds_are_found_in_what_it_renders(name: str, encoder: Encoders) -> None:
    assert encoder(name).reasoning == MARKS[name]


def test_the_marks_of_the_models_own_template_hold_with_another_one_too(
    templates: dict[str, str], vocabulary: Callable[[str], Templated]
) -> None:
    model = vocabulary("qwen2")
    model.template = templates["Qwen-Qwen3-0.6B"]
    assert PromptEncoder(model, "chatml").reasoning == THINK


Encoders = Callable[[str], PromptEncoder]


@pytest.fixture
def encoder(templates: dict[str, str], vocabulary: Callable[[str], Templated]) -> Encoders:
    def make(name: str) -> PromptEncoder:
        model = vocabulary("qwen2")
        model.template = templates[name]
        return PromptEncoder(model)

    return make


@pytest.mark.parametrize(
    ("name", "variables", "open_thought"),
    [
        ("Qwen3.5-4B", {"enable_thinking": True}, True),
        ("Qwen3.5-4B", {"enable_thinking": False}, False),
        ("Qwen-Qwen3-0.6B", {"enable_thinking": False}, False),
        ("Qwen-Qwen3-0.6B", {}, False),
        ("llama-cpp-deepseek-r1", {}, True),
        ("deepseek-ai-DeepSeek-V3.1", {"thinking": True}, True),
        ("deepseek-ai-DeepSeek-V3.1", {"thinking": False}, False),
        ("deepseek-ai-DeepSeek-V4", {"thinking": False}, False),
        ("Kimi-K3", {}, True),
        ("Kimi-K3", {"thinking": False}, False),
        ("Cohere2MoE", {}, True),
        ("Apriel-1.6-15b-Thinker-fixed", {}, True),
        ("google-gemma-4-31B-it", {}, False),
        ("openai-gpt-oss-120b", {"reasoning_effort": "low"}, False),
        ("upstage-Solar-Open-100B", {"reasoning_effort": "low"}, False),
    ],
)
def test_it_is_told_whether_the_prompt_leaves_a_thought_open(
    name: str, variables: dict[str, object], open_thought: bool, encoder: Encoders
) -> None:
    prompts = encoder(name)
    assert prompts.source == "model"
    for text in ("Hi", "What is <think>?", "<think>", "[THINK] </think>", "<|START_THINKING|>"):
        asked = Conversation((("user", text),), variables)
        assert prompts.encode(asked, limit=1 << 20).thinking is open_thought


def test_text_that_goes_to_the_model_as_it_is_opens_no_thought(encoder: Encoders) -> None:
    prompts = encoder("llama-cpp-deepseek-r1")
    assert prompts.encode(asking("a"), limit=99).thinking
    assert not prompts.encode(Conversation((("user", "<think>\n"),), raw=True), limit=99).thinking
