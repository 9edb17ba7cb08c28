"""An answer as it grows: what of the model's text is thought, what is answer, and where a stop string ends it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

from nrvna.engine.reasoning import Reasoning


class _Part(Enum):
    # It may still begin with a thought.
    OPENING = auto()
    THOUGHT = auto()
    ANSWER = auto()
    # A stop string was met.
    ENDED = auto()


class Answer:
    """Takes the text of an answer piece by piece and keeps ``reasoning`` and ``text`` apart.

    ``marks`` are those of a model that thinks; with ``thinking`` the prompt has opened the thought already. A thought
    is looked for at the beginning alone. ``stops`` end the answer, of which they are then no part, wherever its
    pieces are cut; a thought does not end by them. ``stopped_by`` is the one that was met.
    """

    def __init__(self, *, stops: Sequence[str] = (), marks: Reasoning | None = None, thinking: bool = False) -> None:
        self._stops = tuple(stops)
        self._marks = marks
        self._part = _Part.ANSWER
        if marks:
            self._part = _Part.THOUGHT if thinking else _Part.OPENING
        # Text that cannot be told yet: it may be the head of a mark, or of a stop string.
        self._held = ""
        self._after_thought = False
        self._reasoning: list[str] = []
        self._text: list[str] = []
        self.stopped_by: str | None = None

    @property
    def text(self) -> str:
        return "".join(self._text)

    @property
    def reasoning(self) -> str:
        """The thought without its marks and the space around it."""
        return "".join(self._reasoning).strip()

    @property
    def is_thinking(self) -> bool:
        return self._part is _Part.THOUGHT

    @property
    def has_begun(self) -> bool:
        """Whether what comes now belongs to the answer."""
        return self._part in (_Part.ANSWER, _Part.ENDED)

    def feed(self, piece: str) -> str:
        """Take in more text; returns what is certain to be answer and was not returned yet."""
        self._held += piece
        if self._part is _Part.OPENING:
            self._open()
        if self._part is _Part.THOUGHT:
            self._think()
        return self._answer() if self._part is _Part.ANSWER else ""

    def close(self) -> str:
        """No more text comes; returns the rest of the answer."""
        rest, self._held = self._held, ""
        if self._part is _Part.THOUGHT:
            self._reasoning.append(rest)
            return ""
        if self._part is _Part.ENDED:
            return ""
        return self._add(rest)

    def _open(self) -> None:
        assert self._marks
        head, start, answer = self._held.lstrip(), self._marks.start, self._marks.answer
        if head.startswith(start):
            self._part, self._held = _Part.THOUGHT, head[len(start) :]
        elif answer and head.startswith(answer):
            self._part, self._held = _Part.ANSWER, head[len(answer) :]
        elif not start.startswith(head) and not answer.startswith(head):
            self._part = _Part.ANSWER

    def _think(self) -> None:
        assert self._marks
        thought, found, rest = self._held.partition(self._marks.end)
        if found:
            self._reasoning.append(thought)
            self._part, self._held, self._after_thought = _Part.ANSWER, rest, True
            return
        kept = _head_at_end(self._held, self._marks.end)
        self._reasoning.append(self._held[: len(self._held) - kept])
        self._held = self._held[len(self._held) - kept :]

    def _answer(self) -> str:
        if self._after_thought:
            # The blank lines between thought and answer belong to neither.
            self._held = self._held.lstrip()
            self._after_thought = not self._held
        met = [(self._held.find(stop), stop) for stop in self._stops if stop in self._held]
        if met:
            at, self.stopped_by = min(met)
            text, self._held, self._part = self._held[:at], "", _Part.ENDED
            return self._add(text)
        kept = max((_head_at_end(self._held, stop) for stop in self._stops), default=0)
        text, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return self._add(text)

    def _add(self, text: str) -> str:
        self._text.append(text)
        return text


def _head_at_end(text: str, word: str) -> int:
    """How many of a word's first characters, but not all, stand at the end of a text."""
    return next((count for count in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:count])), 0)
