"""Conversations as most tests need them."""

from __future__ import annotations

from nrvna.engine.prompt import Conversation, PromptEncoder


def asking(prompt: str, system: str | None = None) -> Conversation:
    """A prompt, with a system message where there is one."""
    return Conversation((*((("system", system),) if system else ()), ("user", prompt)))


def tokens_of(prompts: PromptEncoder, prompt: str, system: str | None = None, *, limit: int = 1 << 20) -> list[int]:
    """The tokens of such a conversation."""
    return prompts.encode(asking(prompt, system), limit=limit).tokens
