"""A prompt on its way through the engine: the sequences that compute it, and what becomes of their outputs."""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nrvna.config import Sampling
from nrvna.engine.answer import Answer
from nrvna.engine.choices import ChoiceTree
from nrvna.engine.sequence import Sequence
from nrvna.job import Receipt
from nrvna.task import Task


@dataclass(frozen=True)
class Request:
    """A prompt to answer, and all that is asked of the answer; ``queued`` goes into the receipt as it is.

    ``system`` is the workspace's context. A higher ``priority`` starts earlier. ``resume`` is what is on record of an
    attempt that was interrupted, ``{"key", "seed", "tokens", "draws"}`` with what the engine's starts and events
    told. It need not be right: what does not fit is not used.
    """

    id: str
    prompt: str
    queued: str
    system: str | None
    sampling: Sampling
    task: Task = field(default_factory=Task)
    resume: object = None
    priority: int = 0


class Work(ABC):
    """The requests that ask for the very same, the first of them leading, and the sequences that answer them.

    ``identity`` is what makes two requests the same, None where a repetition is meant to differ. ``key`` stands for
    all that its tokens depend on; ``kept`` of them were generated before an interruption. ``notes`` and ``sampling``
    go into the receipt.
    """

    def __init__(self, request: Request, sequences: list[Sequence], notes: dict[str, Any]) -> None:
        self.requests = [request]
        self.sequences = sequences
        self.sampling = request.sampling
        self.notes = notes
        self.identity: object = None
        self.key = ""
        self.kept = 0
        self.started = 0.0
        self.first_token: float | None = None

        # What rules the answer beside prompt and sampling.
        self.constraint: object = None

    @property
    def text_so_far(self) -> str:
        return ""

    @property
    def prompt_tokens(self) -> int:
        return len(self.sequences[0].prompt)

    @abstractmethod
    def complete(self, receipt: Receipt) -> tuple[str, Receipt, dict[str, bytes]]:
        """The answer, the receipt with what there is to say of it, and files to stand beside it."""


class AnswerWork(Work):
    """An answer that is sampled token by token.

    ``piece`` gives a token's bytes, ``end_of_thought`` are the tokens that close a thought which has used up its
    budget. ``grammar`` constrains the answer, but not the thought before it.
    """

    def __init__(
        self,
        request: Request,
        sequence: Sequence,
        notes: dict[str, Any],
        fresh_answer: Callable[[], Answer],
        piece: Callable[[int], bytes],
        *,
        grammar: str | None,
        end_of_thought: tuple[int, ...],
    ) -> None:
        super().__init__(request, [sequence], notes)
        self.sequence = sequence
        self._fresh_answer = fresh_answer
        self.answer = fresh_answer()
        self.grammar = self.constraint = grammar
        asked = request.sampling
        if asked.is_repeatable:
            same = replace(asked, seed=None) if asked.is_greedy else asked
            self.identity = (sequence.key, same, grammar, sequence.adapter)
        # Why there is no answer, and never will be.
        self.trouble: str | None = None
        self._end_of_thought = end_of_thought
        self._piece = piece
        # Characters may span tokens: bytes that end within one wait here for the rest.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        # How many tokens the thought has, and how many the grammar did not rule.
        self.n_thought = 0
        self.n_free = 0
        # Random numbers drawn for each token, where a grammar may refuse the first one.
        self.draws: list[int] = []

    @property
    def text_so_far(self) -> str:
        return self.answer.text

    @property
    def is_free(self) -> bool:
        """Whether a grammar does not apply yet."""
        return not self.answer.has_begun

    def forced(self) -> int | None:
        """The token that must come next: the thought has used up its budget."""
        budget = self.sampling.reasoning_budget
        if budget < 0 or not self.answer.is_thinking or self.n_thought < budget:
            return None
        place = self.n_thought - budget
        return self._end_of_thought[place] if place < len(self._end_of_thought) else None

    def take_over(self, tokens: list[int], draws: list[int]) -> None:
        """Go on with tokens that were generated before an interruption."""
        self.sequence.generated = tokens
        self.kept = len(tokens)
        self.draws = draws
        for token in tokens:
            self._read(token)

    def start_afresh(self) -> None:
        """Forget what was taken over."""
        self.take_over([], [])
        self.answer, self.n_thought, self.n_free = self._fresh_answer(), 0, 0
        self._decoder.reset()

    def take(self, token: int, draws: int, *, ends: bool, context: int) -> str:
        """Take in a sampled token; returns the text that is new with it. The sequence then says if it is finished."""
        sequence = self.sequence
        sequence.append(token, ends=ends, context=context)
        self.draws.append(draws)
        text = "" if ends else self._read(token)
        if self.answer.stopped_by is not None:
            sequence.finish_reason = "stop"
        if sequence.finish_reason is not None:
            text += self.answer.feed(self._decoder.decode(b"", True)) + self.answer.close()
        return text

    def _read(self, token: int) -> str:
        self.n_thought += self.answer.is_thinking
        self.n_free += self.is_free
        return self.answer.feed(self._decoder.decode(self._piece(token)))

    def complete(self, receipt: Receipt) -> tuple[str, Receipt, dict[str, bytes]]:
        answer, generated = self.answer, len(self.sequence.generated)
        beside = {"reasoning.txt": answer.reasoning.encode()} if answer.reasoning else {}
        receipt = receipt._replace(
            finish_reason=self.sequence.finish_reason or "",
            generated_tokens=generated,
            stopped_by=answer.stopped_by,
            reasoning_tokens=self.n_thought or None,
        )
        if self.trouble:
            receipt = receipt._replace(finish_reason="error", error=self.trouble)
        elif answer.is_thinking:
            reason = _never_answered(receipt.finish_reason, generated)
            receipt = receipt._replace(finish_reason="thinking", error=reason)
        return answer.text, receipt, beside


def _never_answered(end: str, generated: int) -> str:
    if end == "stop":
        return f"the model ended within its thought, after {generated} tokens, and gave no answer"
    limit = "NRVNA_PREDICT" if end == "length" else "NRVNA_CTX"
    return (
        f"the model was still thinking when it was cut at its {generated}th token: "
        f"raise {limit}, or limit the thought with NRVNA_REASONING_BUDGET"
    )


class ChoiceWork(Work):
    """An answer that is one of several: nothing is sampled, but the logits are read wherever the choices part.

    There is a sequence for each such place, of the prompt and the tokens that lead there; all but the first few of
    its tokens are in the cache once the first of them was computed.
    """

    def __init__(
        self,
        request: Request,
        sequences: dict[tuple[int, ...], Sequence],
        notes: dict[str, Any],
        tree: ChoiceTree,
        ends: Collection[int],
    ) -> None:
        super().__init__(request, list(sequences.values()), notes)
        self._paths = {sequence: path for path, sequence in sequences.items()}
        self._tree = tree
        self._ends = ends
        self._logits: dict[tuple[int, ...], NDArray[np.float32]] = {}
        self._choices = request.task.choices
        self.constraint = self._choices
        self.identity = (self.sequences[0].key, self._choices, self.sequences[0].adapter)

    @property
    def prompt_tokens(self) -> int:
        return min(len(sequence.prompt) for sequence in self.sequences)

    def take_logits(self, sequence: Sequence, logits: NDArray[np.float32]) -> bool:
        """The logits behind one of the sequences, which is finished by that; whether all of them are there now."""
        self._logits[self._paths[sequence]] = logits.copy()
        sequence.finish_reason = "stop"
        return len(self._logits) == len(self.sequences)

    def complete(self, receipt: Receipt) -> tuple[str, Receipt, dict[str, bytes]]:
        found = self._tree.probabilities(self._logits, ends=self._ends)
        by_choice = dict(zip(self._choices, found, strict=True))
        best = max(by_choice, key=by_choice.__getitem__)
        rounded = {choice: round(probability, 6) for choice, probability in by_choice.items()}
        return best, receipt._replace(finish_reason="stop", generated_tokens=0, probabilities=rounded), {}
