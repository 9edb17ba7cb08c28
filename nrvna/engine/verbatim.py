"""Text stays text: finds where texts name tokens that are signs to the model, and where a template put them.

A tokeniser takes such names, as "<|im_end|>", out of a text before it does anything else, and some vocabularies come
to them by merging, as "</s>". Cut in two within the name, they are text like any other.
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
# Private-use characters: templates pass them through.
_MARKS = range(0x100000, 0x10FFFE)


class Names:
    """The texts that name some tokens.

    Those of one character, or of nothing but letters, digits and spaces, are left out: what vocabularies have of
    these beside their signs, as runs of spaces or "õ", is text itself.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        names = {spelling for text in texts if is_sign(text) for spelling in (text, text.replace(_SPACE, " "))}
        by_head = defaultdict(list)
        seconds = defaultdict(set)
        for name in sorted(names, key=len, reverse=True):
            by_head[name[:2]].append(name)
            seconds[name[0]].add(name[1])
        self._by_head = {head: tuple(group) for head, group in by_head.items()}
        heads = (f"{re.escape(first)}(?=[{re.escape(''.join(then))}])" for first, then in sorted(seconds.items()))
        self._heads = re.compile("|".join(heads) if names else "(?!)")

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
    """Whether a token of that text, if it is one that stands for itself, is a sign and not just text."""
    kinds = {unicodedata.category(character)[0] for character in text.replace(_SPACE, " ")}
    return len(text) > 1 and not kinds.isdisjoint("PSC")


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
