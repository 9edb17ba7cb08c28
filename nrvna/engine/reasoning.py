"""How a model marks what it thinks before it answers, as far as its chat template tells."""

from __future__ import annotations

from typing import NamedTuple


class Reasoning(NamedTuple):
    """What begins and what ends a thought in a model's text, and what begins an answer without one, if anything."""

    start: str
    end: str
    answer: str = ""

    def is_open(self, text: str) -> bool:
        """Whether a thought begins in a text and does not end there."""
        return text.rfind(self.start) > text.rfind(self.end)


# The first whose words are all in the template: those that could be part of another's come later.
_KNOWN = (
    Reasoning(
        "<|channel|>analysis<|message|>",
        "<|start|>assistant<|channel|>final<|message|>",
        "<|channel|>final<|message|>",
    ),
    Reasoning("<|channel>thought", "<channel|>"),
    Reasoning("<|START_THINKING|>", "<|END_THINKING|>"),
    Reasoning("<|inner_prefix|>", "<|inner_suffix|>"),
    Reasoning("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    Reasoning("to=self<|message|>", "<|eom|>"),
    Reasoning("<|think|>", "<|end|>"),
    Reasoning("<seed:think>", "</seed:think>"),
    Reasoning("<mm:think>", "</mm:think>"),
    Reasoning("<think:opensource>", "</think:opensource>"),
    Reasoning("[THINK]", "[/THINK]"),
    Reasoning("<think>", "</think>"),
    Reasoning("<thinking>", "</thinking>"),
    Reasoning("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
)
# Where a template only takes finished thoughts away, it may name their end alone.
_ENDS_ALONE = Reasoning("<think>", "</think>")


def find_reasoning(template: str) -> Reasoning | None:
    """The marks that a template, or what it renders, tells of; None where it tells of none."""
    for known in _KNOWN:
        if known.start in template and known.end in template:
            return known
    return _ENDS_ALONE if _ENDS_ALONE.end in template else None
