"""From a request to the work that answers it: its prompt as tokens, its constraint compiled, its sampler made.

All that takes long before anything is decoded is done here, on whatever thread: nothing that is read changes an
engine at work.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from functools import partial
from typing import Any

from nrvna.config import MAX_SEED
from nrvna.engine.answer import Answer
from nrvna.engine.choices import ChoiceTree
from nrvna.engine.conversation import Conversation
from nrvna.engine.prompt import Encoded
from nrvna.engine.resume import Attempt, key_of, read_attempt, usable_head
from nrvna.engine.runner import Runner
from nrvna.engine.sequence import Sequence
from nrvna.engine.work import AnswerWork, ChoiceWork, Request, Work
from nrvna.errors import JobError
from nrvna.grammar.choices import check_choices
from nrvna.grammar.schema import schema_to_gbnf
from nrvna.jsontext import read_json


class Reader:
    """Reads requests for one runner, several at once if need be.

    ``origin`` stands for all that an answer depends on besides prompt and sampling. Sequences of a ``gated`` engine
    wait for their go.
    """

    def __init__(self, runner: Runner, origin: dict[str, Any], *, gated: bool) -> None:
        self._runner = runner
        self._origin = origin
        self._gated = gated
        self._context = runner.shape.context

    def read(self, request: Request) -> Work:
        """The work that answers a request by itself. Raises JobError or TemplateError if nothing ever can."""
        name = request.task.lora
        if name and name not in self._runner.adapters:
            offered = ", ".join(self._runner.adapters) or "none"
            raise JobError(f"no adapter {name!r}: nrvnad was started with {offered}, see NRVNA_LORA")
        work: Work = self._choice(request) if request.task.choices else self._answer(request)
        self._resume(work, request.resume)
        if isinstance(work, AnswerWork):
            self._runner.begin(work)
        return work

    def _answer(self, request: Request) -> AnswerWork:
        task, asked = request.task, request.sampling
        grammar = schema_to_gbnf(read_json(task.json_schema)) if task.json_schema else task.grammar
        self._runner.check(asked, grammar)
        marks = None if task.raw else self._runner.prompts.reasoning
        opening = self._runner.prompts.tokens_of(marks.start) if grammar and marks else []
        encoded = self._encode(request, answer_tokens=asked.predict, added=len(opening))
        thinking = encoded.thinking
        if opening and not encoded.thinking and not encoded.thought:
            # Whether it would think is seen in its first token, which the grammar would rule out.
            encoded.tokens.extend(opening)
            thinking = True
        return AnswerWork(
            request,
            self._sequence(request, encoded.tokens, asked.predict),
            encoded.notes,
            partial(Answer, stops=asked.stop, marks=None if encoded.thought else marks, thinking=thinking),
            self._piece,
            grammar=grammar,
            end_of_thought=tuple(self._runner.prompts.tokens_of(marks.end)) if marks else (),
        )

    def _choice(self, request: Request) -> ChoiceWork:
        choices, model = request.task.choices, self._runner.model
        check_choices(choices)
        tree = ChoiceTree([model.tokenize(choice, add_special=False) for choice in choices])
        marks = self._runner.prompts.reasoning
        closing = self._runner.prompts.tokens_of(marks.end) if marks else []
        encoded = self._encode(request, answer_tokens=1, added=len(closing) + max(map(len, tree.branches)))
        if encoded.thinking:
            # The choice is read off at once: a thought before it would have to be sampled.
            encoded.tokens.extend(closing)
        sequences = {path: self._sequence(request, [*encoded.tokens, *path], 1) for path in tree.branches}
        return ChoiceWork(request, sequences, encoded.notes, tree, model.ends)

    def _encode(self, request: Request, *, answer_tokens: int, added: int) -> Encoded:
        """The prompt's tokens, to which so many may be ``added``.

        Raises JobError if they leave no room for an answer, which may be short.
        """
        context, task = self._context, request.task
        system = "\n\n".join(part for part in (request.system, task.system) if part and not task.raw)
        messages = [*task.messages, (task.role, request.prompt)]
        if system:
            # An empty one at the head says nothing beside it.
            messages = [("system", system), *messages[messages[0] == ("system", "") :]]
        conversation = Conversation(tuple(messages), task.template_kwargs, task.raw)
        overflow = request.sampling.overflow
        # Whoever has a prompt cut wants an answer; whoever does not is told only where there can be none.
        room = 1 if overflow == "fail" else min(answer_tokens, context // 2)
        return self._runner.prompts.encode(conversation, limit=context - room - added, overflow=overflow)

    def _sequence(self, request: Request, tokens: list[int], most: int) -> Sequence:
        gated, adapter = self._gated, request.task.lora
        return Sequence(request.id, tokens, most, cleared=not gated, adapter=adapter, priority=request.priority)

    def _piece(self, token: int) -> bytes:
        """A token's bytes; control tokens have some only where they mark reasoning."""
        return self._runner.model.piece(token, special=token in self._runner.prompts.marking_tokens)

    def _resume(self, work: Work, record: object) -> None:
        """Settle seed and key, and take over the tokens on record if they were generated for the very same."""
        asked, attempt = work.sampling, read_attempt(record)
        prompt, about = work.sequences[0].key, [self._origin, work.constraint, work.sequences[0].adapter]
        if attempt:
            work.sampling = replace(asked, seed=attempt.seed) if asked.seed is None else asked
            work.key = key_of(prompt, work.sampling, about)
            if attempt.key == work.key:
                if isinstance(work, AnswerWork) and self._runner.can_resume(work.sampling, work.grammar):
                    self._take_over(work, attempt)
                return
        work.sampling = replace(asked, seed=secrets.randbelow(MAX_SEED + 1)) if asked.seed is None else asked
        work.key = key_of(prompt, work.sampling, about)

    def _take_over(self, work: AnswerWork, attempt: Attempt) -> None:
        model, sequence = self._runner.model, work.sequence
        # One token at least is left to sample, else it would not have been unfinished.
        most = sequence.most_tokens(self._context) - len(sequence.prompt) - 1
        tokens = usable_head(attempt.tokens, most=most, n_vocab=model.n_vocab, is_end=model.is_end)
        work.take_over(tokens, attempt.draws[: len(tokens)])
