"""One request on the engine's side."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

_TOKEN_BYTES = 4


@dataclass(eq=False)
class Sequence:
    """The tokens of one request and how far they have come.

    ``n_past`` counts the tokens in the KV cache: those of the prompt first, then the generated ones but for the last,
    which is decoded in the next step. ``n_cached`` counts those of the prompt that were there already and were not
    computed again. ``slot`` is the sequence's number in the context, None while it waits. ``overtaken`` counts the
    later ones that started before it, ``key`` is the prompt as bytes. One that is not ``cleared`` takes its place
    among the running ones, but nothing of it is computed. ``adapter`` names what is added to the model's weights for
    it: only sequences with the same one are computed together. A higher ``priority`` stands further ahead in line.
    """

    id: str
    prompt: list[int]
    max_tokens: int
    generated: list[int] = field(default_factory=list)
    n_past: int = 0
    n_cached: int = 0
    slot: int | None = None
    overtaken: int = 0
    cleared: bool = True
    adapter: str | None = None
    priority: int = 0
    finish_reason: str | None = None
    key: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # So two prompts are compared at the speed of memcmp.
        self.key = array("i", self.prompt).tobytes()

    @property
    def n_tokens(self) -> int:
        """Tokens of prompt and answer so far."""
        return len(self.prompt) + len(self.generated)

    @property
    def n_pending(self) -> int:
        """Tokens still to be computed before the next one can be sampled."""
        return self.n_tokens - self.n_past

    @property
    def is_prefilling(self) -> bool:
        """Whether more is to be computed than the token sampled last."""
        return self.n_pending > 1 or not self.generated

    def most_tokens(self, context: int) -> int:
        """The most tokens that it may come to have, where no sequence has more than ``context``."""
        return min(len(self.prompt) + self.max_tokens, context)

    def pending(self, count: int) -> list[int]:
        """The next ``count`` tokens to compute."""
        end, prompt = self.n_past + count, len(self.prompt)
        head = self.prompt[self.n_past : end]
        return head + self.generated[max(0, self.n_past - prompt) : max(0, end - prompt)]

    def n_common(self, other: Sequence) -> int:
        """Tokens with which both prompts begin, of those that can be shared."""
        if self.adapter != other.adapter:
            return 0
        mine, theirs = self.key, other.key
        same, different = 0, min(len(mine), len(theirs)) // _TOKEN_BYTES + 1
        while different - same > 1:
            middle = (same + different) // 2
            if mine[: middle * _TOKEN_BYTES] == theirs[: middle * _TOKEN_BYTES]:
                same = middle
            else:
                different = middle
        return same

    def append(self, token: int, *, ends: bool, context: int) -> None:
        """Take in a sampled token and settle whether the sequence is finished, and why.

        ``ends`` says that the token ends the answer, of which it is then no part.
        """
        if ends:
            self.finish_reason = "stop"
            return
        self.generated.append(token)
        if len(self.generated) >= self.max_tokens:
            self.finish_reason = "length"
        elif self.n_tokens >= context:
            self.finish_reason = "context"
