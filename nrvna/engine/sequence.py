"""One request on the engine's side."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(eq=False)
class Sequence:
    """The tokens of one request and how far they have come.

    ``n_past`` counts the tokens in the KV cache: those of the prompt first, then the generated ones but for the last,
    which is decoded in the next step. ``slot`` is the sequence's number in the context, None while it waits.
    """

    id: str
    prompt: list[int]
    max_tokens: int
    generated: list[int] = field(default_factory=list)
    n_past: int = 0
    slot: int | None = None
    finish_reason: str | None = None

    @property
    def n_tokens(self) -> int:
        """Tokens of prompt and answer so far."""
        return len(self.prompt) + len(self.generated)

    @property
    def is_prefilling(self) -> bool:
        """Whether tokens of the prompt are still to be computed."""
        return self.n_past < len(self.prompt)

    def pending(self, count: int) -> list[int]:
        """The next ``count`` tokens to decode."""
        end = self.n_past + count
        if self.n_past < len(self.prompt):
            return self.prompt[self.n_past : end]
        return self.generated[self.n_past - len(self.prompt) : end - len(self.prompt)]

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
