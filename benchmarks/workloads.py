"""What the contenders are given to do: texts made up from a word list, the same ones for the same seed."""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from nrvna.config import llama_dir, wanted_backend
from nrvna.engine.prompt import Conversation, PromptEncoder
from nrvna.llama import Model, load_library


def _list(text: str) -> list[str]:
    return text.split()


ADJECTIVES = _list("""
quiet patient broken careful distant early fragile generous hollow narrow ordinary polished restless shallow silver
sudden tender uneven vivid weathered ancient bitter clever dusty eager faithful gentle humble idle jealous keen lively
modest nervous orderly proud reckless solemn thirsty useful wooden yellow
""")
NOUNS = _list("""
harbour engineer garden letter mountain orchard painter quarry river sailor teacher umbrella valley window baker
castle doctor engine farmer glacier hammer island journey kitchen lantern market needle ocean pilot railway school
tailor village winter archive bridge compass desert evening factory
""")
VERBS = _list("""
repairs describes follows measures remembers crosses protects counts paints visits carries studies ignores finds
answers surrounds teaches admires sells changes
""")
PREPOSITIONS = _list("near behind beyond beside without before inside against")
# Tokens of each answer, where a workload says nothing else.
ANSWER = 64
HUGE_PROMPT = 3500
_NO_LIMIT = 1 << 30


@dataclass(frozen=True)
class Job:
    """A prompt, and how many tokens are generated for it: exactly that many, the end of the answer is ignored."""

    prompt: str
    predict: int


@dataclass(frozen=True)
class Workload:
    """Jobs to be submitted in this order, all at once. ``context`` is the system message of every one of them.

    ``sizes`` says how far one job stands for another. ``reference`` is a smaller workload that nrvna does as well,
    to compare what one job costs in each. ``for_nrvna_alone`` leaves the other contenders out.
    """

    name: str
    context: str | None
    jobs: tuple[Job, ...]
    sizes: Literal["alike", "spread", "one huge"] = "alike"
    reference: Workload | None = None
    for_nrvna_alone: bool = False

    @property
    def generated_tokens(self) -> int:
        return sum(job.predict for job in self.jobs)


class Tokenizer:
    """Counts tokens with the model's vocabulary, and renders jobs as nrvna does. Loads no weights."""

    def __init__(self, model_file: Path) -> None:
        load_library(llama_dir(), wanted_backend())
        self._model = Model(model_file, vocab_only=True)
        self._encoder = PromptEncoder(self._model)

    def count(self, text: str) -> int:
        """Tokens of a bare text, without the chat template."""
        return len(self.tokens(text))

    def tokens(self, text: str) -> list[int]:
        """Those of a bare text, without the chat template."""
        return self._model.tokenize(text, add_special=False)

    def prompts(self, workload: Workload) -> list[list[int]]:
        """The prompt tokens of each job, chat template and context included."""
        system = (("system", workload.context),) if workload.context else ()
        conversations = [Conversation((*system, ("user", job.prompt))) for job in workload.jobs]
        return [self._encoder.encode(conversation, limit=_NO_LIMIT).tokens for conversation in conversations]

    def longest(self, workload: Workload) -> int:
        """Tokens of the longest job, prompt and answer."""
        pairs = zip(self.prompts(workload), workload.jobs, strict=True)
        return max(len(prompt) + job.predict for prompt, job in pairs)


class Writer:
    """Writes texts; the same ones for the same seed. ``count`` gives the number of tokens of a text."""

    def __init__(self, seed: str, count: Callable[[str], int]) -> None:
        self.random = random.Random(seed)
        self._count = count
        self._adjectives = self.random.sample(ADJECTIVES, len(ADJECTIVES))
        self._nouns = self.random.sample(NOUNS, len(NOUNS))

    def _opening(self, index: int) -> list[str]:
        """Two words to begin a text with: each index has its own pair, the first ones their own first word too."""
        again, adjective = divmod(index, len(self._adjectives))
        return [self._adjectives[adjective].capitalize(), self._nouns[(adjective + again) % len(self._nouns)]]

    def _words(self) -> Iterator[str]:
        choice = self.random.choice
        yield from (choice(VERBS), "the", choice(ADJECTIVES), f"{choice(NOUNS)}.")
        while True:
            yield from ("The", choice(ADJECTIVES), choice(NOUNS), choice(VERBS), "the", choice(ADJECTIVES))
            yield from (choice(NOUNS), choice(PREPOSITIONS), "the", f"{choice(NOUNS)}.")

    def of_words(self, index: int, words: int) -> str:
        """A text of so many words."""
        return _ended([*self._opening(index), *islice(self._words(), words - 2)])

    def of_tokens(self, index: int, tokens: int) -> str:
        """A text of about so many tokens, seldom more."""
        # A word has one token at least.
        words = [*self._opening(index), *islice(self._words(), tokens)]
        lengths = range(1, len(words) + 1)
        return _ended(words[: bisect_right(lengths, tokens, key=lambda length: self._count(_ended(words[:length])))])

    def question(self, index: int) -> str:
        """A question of about a dozen words on a text."""
        opening, choice = self._opening(index), self.random.choice
        return f"{' '.join(opening)}: what does the text say of a {choice(NOUNS)} that {choice(VERBS)} it?"

    def spread(self, low: int, high: int, count: int, *, logarithmic: bool = False) -> list[int]:
        """Numbers that fill a range evenly, in random order: for every seed the same sum, so that rounds compare."""
        parts = [(index + 0.5) / count for index in range(count)]
        if logarithmic:
            numbers = [round(math.exp(math.log(low) + part * math.log(high / low))) for part in parts]
        else:
            numbers = [round(low + part * (high - low)) for part in parts]
        return self.random.sample(numbers, count)


def _ended(words: list[str]) -> str:
    return " ".join(words).removesuffix(".") + "."


def independent(writer: Writer, jobs: int = 32) -> Workload:
    """Prompts of 10 to 40 words that have nothing in common."""
    lengths = enumerate(writer.spread(10, 40, jobs))
    return Workload(
        "independent", None, tuple(Job(writer.of_words(index, words), ANSWER) for index, words in lengths)
    )


def _shared(name: str, writer: Writer, jobs: int, context_tokens: int, answer: int) -> Workload:
    context = writer.of_tokens(jobs, context_tokens)
    return Workload(name, context, tuple(Job(writer.question(index), answer) for index in range(jobs)))


def shared540(writer: Writer, jobs: int = 32) -> Workload:
    """Short questions on one text of 540 tokens."""
    return _shared("shared540", writer, jobs, context_tokens=540, answer=ANSWER)


def shared2000(writer: Writer, jobs: int = 64) -> Workload:
    """Short questions on one text of 2,000 tokens, with short answers."""
    return _shared("shared2000", writer, jobs, context_tokens=2000, answer=16)


def mixed(writer: Writer, jobs: int = 48) -> Workload:
    """Prompts of 20 to 2,000 tokens and answers of 8 to 256, each log-uniform."""
    prompts = writer.spread(20, 2000, jobs, logarithmic=True)
    answers = writer.spread(8, 256, jobs, logarithmic=True)
    made = (
        Job(writer.of_tokens(index, prompt), answer)
        for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    )
    return Workload("mixed", None, tuple(made), sizes="spread")


def duplicates(writer: Writer, jobs: int = 32) -> Workload:
    """One prompt many times; the reference is another one of the same length, once."""
    repeated, single = (Job(writer.of_tokens(index, 40), ANSWER) for index in range(2))
    return Workload("duplicates", None, (repeated,) * jobs, reference=Workload("one job", None, (single,)))


def huge(writer: Writer, jobs: int = 16) -> Workload:
    """Short jobs with one prompt of 3,500 tokens in their middle."""
    short = [Job(writer.of_words(index, 20), ANSWER) for index in range(jobs)]
    long = Job(writer.of_tokens(jobs, HUGE_PROMPT), ANSWER)
    return Workload("huge", None, (*short[: jobs // 2], long, *short[jobs // 2 :]), sizes="one huge")


def brief(writer: Writer, jobs: int = 64) -> Workload:
    """Short prompts with answers of 8 tokens, as classifications have."""
    return Workload("brief", None, tuple(Job(writer.of_words(index, 10), 8) for index in range(jobs)))


def scale(writer: Writer, jobs: int = 1000) -> Workload:
    """Many short jobs with answers of 8 tokens; the reference is a twentieth as many."""
    few = max(1, jobs // 20)
    made = [Job(writer.of_words(index, 10), 8) for index in range(jobs + few)]
    reference = Workload(f"{few} jobs", None, tuple(made[jobs:]))
    return Workload("scale", None, tuple(made[:jobs]), reference=reference, for_nrvna_alone=True)


WORKLOADS: dict[str, Callable[..., Workload]] = {
    made.__name__: made for made in (independent, brief, shared540, shared2000, mixed, duplicates, huge, scale)
}
DEFAULT_WORKLOADS = ("independent", "shared540", "shared2000", "mixed", "duplicates")


def make(name: str, tokenizer: Tokenizer, number: int, jobs: int | None) -> Workload:
    """The workload of a round; no two rounds share a text, or what one left in a cache would help the next."""
    writer = Writer(f"{name} {number}", tokenizer.count)
    return WORKLOADS[name](writer) if jobs is None else WORKLOADS[name](writer, jobs)
