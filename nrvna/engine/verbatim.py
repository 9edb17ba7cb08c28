"""Text stays text: finds where texts name tokens that are signs to the model, and where a template put them.

A tokeniser takes such names, as "<|im_end|>", out of a text before it does anything else, and some vocabularies come
to them by merging, as "</s>". Cut in two within the name, they are text like any other.

Not every such name is a sign. Vocabularies have runs of newlines and tabs, and tags of HTML, as whole tokens, only so
that text takes fewer of them: a text may become these, as it did when the model was trained.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable
from itertools import islice, pairwise

# How a SentencePiece vocabulary writes a space.
_SPACE = "▁"
_SPACES = re.compile(r"\s*")
# What HTML shapes text with. What it has for pictures, sounds and forms is left out: by such tags, models mark media.
_ELEMENTS = (
    "a abbr b big blockquote br caption center code col colgroup dd del div dl dt em font h1 h2 h3 h4 h5 h6 hr i ins "
    "kbd li ol p pre q s samp small span strike strong sub sup table tbody td tfoot th thead tr tt u ul var"
)
_TAG = re.compile(f"</?(?:{'|'.join(_ELEMENTS.split())})(?: ?/)?>")
# What llama.cpp's converter names the ids for which a vocabulary has no token.
_FILLER = re.compile(r"\[PAD[0-9]+\]")
# Private-use characters: templates pass them through.
_MARKS = range(0x100000, 0x10FFFE)


class Names:
    """The texts that name signs: control tokens, and of the ``others`` what is not just text, see :func:`is_text`.

    White space and single characters are left out: text has them, and they cannot be cut.
    """

    def __init__(self, others: Iterable[str], controls: Iterable[str] = ()) -> None:
        self._signs = {text for text in controls if len(text) > 1 and _spaced(text)}
        self._signs |= {text for text in others if not is_text(text)}
        names = {spelling for text in self._signs for spelling in (text, text.replace(_SPACE, " "))}
        by_head = defaultdict(list)
        seconds = defaultdict(set)
        for name in sorted(names, key=len, reverse=True):
            by_head[name[:2]].append(name)
            seconds[name[0]].add(name[1])
        self._by_head = {head: tuple(group) for head, group in by_head.items()}
        heads = (f"{re.escape(first)}(?=[{re.escape(''.join(then))}])" for first, then in sorted(seconds.items()))
        self._heads = re.compile("|".join(heads) if names else "(?!)")

    def __contains__(self, text: str) -> bool:
        return text in self._signs

    def find(self, text: str) -> list[tuple[int, int]]:
        """Start and end of each name in a text, in order, the longest of those that start together; with overlaps."""
        found = []
        for match in self._heads.finditer(text):
            start = match.start()
            group = self._by_head[text[start : start + 2]]
            if text.startswith(group, start):
                found.append((start, start + next(len(name) for name in group if text.startswith(name, start))))
        return found

    def cut(self, text: str, places: list[int]) -> list[str]:
        """A text in pieces: cut at the first of some places in order that lies within a name, for each name."""
        cuts = set()
        for start, end in self.find(text):
            index = bisect_right(places, start)
            if index < len(places) and places[index] < end:
                cuts.add(places[index])
        return [text[start:end] for start, end in pairwise([0, *sorted(cuts), len(text)])]


def is_sign(text: str) -> bool:
    """Whether a token of that text, if it is one that stands for itself, may be a sign: white space, one character
    and nothing but letters and digits are none."""
    text = _spaced(text)
    kinds = {unicodedata.category(character)[0] for character in text if not character.isspace()}
    return len(text) > 1 and not kinds.isdisjoint("PSC")


def is_text(text: str) -> bool:
    """Whether a token of that text, if its vocabulary does not call it a control token, is text like any other: what
    is no sign, a run of one character, a tag of HTML, or a filler of the vocabulary."""
    text = _spaced(text)
    return not is_sign(text) or len(set(text)) == 1 or bool(_TAG.fullmatch(text) or _FILLER.fullmatch(text))


def _spaced(text: str) -> str:
    """A token's text with spaces as texts have them, without those at its ends."""
    return text.replace(_SPACE, " ").strip()


def without_signs(text: str) -> str:
    """The words of a text, of which no letters' case and no trimming can make a sign."""
    return re.sub(r"[^\w\s]", " ", text)


class Marks:
    """Marks names in texts with characters that occur in none of them, so that they are found in what a template
    makes of the texts."""

    def __init__(self, texts: Iterable[str], names: Names) -> None:
        used = set().union(*texts)
        self._cut, self._before, self._after = islice((chr(c) for c in _MARKS if chr(c) not in used), 3)
        self._names = names
        self._any = re.compile(f"[{self._cut}{self._before}{self._after}]")
        self._around = re.compile(rf"{self._before}\s*([^{self._before}{self._after}]+?)\s*{self._after}")

    def within(self, text: str, *, edges: bool = False) -> str:
        """A mark within each name, which is none to the template then; with ``edges`` also at both ends of the text,
        inside the space that templates trim."""
        places = {start + 1 for start, _ in self._names.find(text)}
        core = text.strip()
        if edges and core:
            start = text.index(core)
            places |= {start, start + len(core)}
        return self._cut.join(text[start:end] for start, end in pairwise([0, *sorted(places), len(text)]))

    def around(self, text: str) -> str:
        """Marks before and after each name, for templates that look for some, to leave out a thought, say. The space
        around the name, which they trim then, is within the marks too."""
        parts, done = [], 0
        for start, end in self._names.find(text):
            if start < done:
                continue
            head = done + len(text[done:start].rstrip())
            tail = _past_spaces(text, end)
            parts += [text[done:head], self._before, text[head:tail], self._after]
            done = tail
        return "".join([*parts, text[done:]])

    def instead(self, text: str) -> str:
        """A mark in place of each name."""
        parts, done = [], 0
        for start, end in self._names.find(text):
            if start >= done:
                parts += [text[done:start], self._cut]
            done = max(done, end)
        return "".join([*parts, text[done:]])

    def read(self, rendered: str) -> tuple[str, list[int]]:
        """A rendering without the marks, and the places in it, in order, where names that were marked may be cut."""
        removed = [match.start() for match in self._any.finditer(rendered)]
        places = [match.start() for match in re.finditer(self._cut, rendered)]
        places += [match.start(1) + 1 for match in self._around.finditer(rendered)]
        return self._any.sub("", rendered), sorted(place - bisect_left(removed, place) for place in places)


def _past_spaces(text: str, place: int) -> int:
    found = _SPACES.match(text, place)
    assert found is not None
    return found.end()
