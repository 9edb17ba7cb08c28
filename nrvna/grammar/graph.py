"""The rules of a grammar as a graph: which lead to which before any character is read, and which lead anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn

# Rules that lead to each other before any character: llama.cpp calls itself for each.
MAX_DESCENT = 5_000
# How llama.cpp looks for left recursion takes exponential time in the worst case; this many elements take 0.1 s.
MAX_SEARCH = 20_000_000
# Ways in which a rule may begin. llama.cpp follows all of them at once, for every token of the vocabulary.
MAX_WAYS = 10_000

# A rule's elements: a reference is the other rule's number, all others are negative.
Rule = list[int]
# What stands between the alternatives of a rule.
BAR = -1
# Ends the check with a reason and the number of the rule.
Fail = Callable[[str, int], NoReturn]


class LeftEnds:
    """What rules begin with: the rules that lead to each other before any character is read."""

    def __init__(self, rules: dict[int, Rule], fail: Fail) -> None:
        self._rules = rules
        self._fail = fail

    def check(self) -> None:
        """Fail where llama.cpp would see left recursion, and where it would not and never return."""
        # llama.cpp knows only the rules that have an empty alternative of their own.
        seen_empty = {number for number, rule in self._rules.items() if any(not a for a in _alternatives(rule))}
        as_seen = {number: list(_firsts(rule, seen_empty)) for number, rule in self._rules.items()}
        for group in _components(as_seen):
            if _is_cycle(group, as_seen):
                self._fail("begins with itself (left recursion): let something else come first", min(group))
        self._check_search(as_seen)

        may_be_empty = derivable(self._rules, through_characters=False)
        # A rule may lead back to itself in its last place: nothing piles up. In any other place it does, forever.
        begins = {number: list(_firsts(rule, may_be_empty)) for number, rule in self._rules.items()}
        piling = {number: list(_firsts(rule, may_be_empty, last=False)) for number, rule in self._rules.items()}
        components = list(_components(begins))
        for group in components:
            if any(follower in group for number in group for follower in piling[number]):
                self._fail(
                    "begins with itself where what comes before may be empty (left recursion): "
                    "let something else come first",
                    min(group),
                )
        self._check_ways(components, begins)

    def _check_search(self, begins: dict[int, list[int]]) -> None:
        cost: dict[int, int] = {}
        depth: dict[int, int] = {}
        for (number,) in _components(begins):
            cost[number] = len(self._rules[number]) + 1 + sum(cost[first] for first in begins[number])
            depth[number] = 1 + max((depth[first] for first in begins[number]), default=0)
            if depth[number] > MAX_DESCENT:
                self._fail(f"leads to more than {MAX_DESCENT:,} others before any character", number)
        total, visited = 0, set()
        for number in sorted(self._rules):
            if number in visited:
                continue
            total += cost[number]
            if total > MAX_SEARCH:
                self._fail("begins in so many ways that llama.cpp would search them for too long", number)
            todo = [number]
            while todo:
                if (reached := todo.pop()) not in visited:
                    visited.add(reached)
                    todo += begins[reached]

    def _check_ways(self, components: list[frozenset[int]], begins: dict[int, list[int]]) -> None:
        ways: dict[int, int] = {}
        for group in components:
            own = sum(1 + self._rules[number].count(BAR) for number in group)
            found = own + sum(ways[first] for number in group for first in begins[number] if first not in group)
            if found > MAX_WAYS:
                self._fail(
                    f"begins in more than {MAX_WAYS:,} ways: take parts that they share to their front", min(group)
                )
            ways.update(dict.fromkeys(group, found))


def _alternatives(rule: Rule) -> Iterator[Rule]:
    start = 0
    while True:
        try:
            end = rule.index(BAR, start)
        except ValueError:
            yield rule[start:]
            return
        yield rule[start:end]
        start = end + 1


def _firsts(rule: Rule, empty: set[int], *, last: bool = True) -> Iterator[int]:
    """The rules that a rule may begin with, over those in ``empty``; ``last`` ones of an alternative or without."""
    for alternative in _alternatives(rule):
        for place, element in enumerate(alternative):
            if element < 0:
                break
            if last or place + 1 < len(alternative):
                yield element
            if element not in empty:
                break


def derivable(rules: dict[int, Rule], *, through_characters: bool) -> set[int]:
    """The rules of which some text follows; without ``through_characters`` the empty text."""
    found: set[int] = set()
    # For each alternative that is not done how many different rules it waits for.
    waiting: list[int] = []
    owners: list[int] = []
    waits: dict[int, list[int]] = {}
    todo: list[int] = []
    for number, rule in rules.items():
        for alternative in _alternatives(rule):
            if not through_characters and any(element < 0 for element in alternative):
                continue
            needed = {element for element in alternative if element >= 0}
            if not needed:
                todo.append(number)
            for element in needed:
                waits.setdefault(element, []).append(len(owners))
            owners.append(number)
            waiting.append(len(needed))
    while todo:
        number = todo.pop()
        if number in found:
            continue
        found.add(number)
        for alternative_number in waits.get(number, ()):
            waiting[alternative_number] -= 1
            if not waiting[alternative_number]:
                todo.append(owners[alternative_number])
    return found


def _is_cycle(group: frozenset[int], edges: dict[int, list[int]]) -> bool:
    return len(group) > 1 or any(number in edges[number] for number in group)


def _components(edges: dict[int, list[int]]) -> Iterable[frozenset[int]]:
    """Rules that lead to each other, together; whatever they lead to comes first. Tarjan's, without recursion."""
    order: dict[int, int] = {}
    lowest: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    for root in edges:
        if root in order:
            continue
        work = [(root, iter(edges[root]))]
        order[root] = lowest[root] = len(order)
        stack.append(root)
        on_stack.add(root)
        while work:
            number, followers = work[-1]
            for follower in followers:
                if follower not in order:
                    order[follower] = lowest[follower] = len(order)
                    stack.append(follower)
                    on_stack.add(follower)
                    work.append((follower, iter(edges[follower])))
                    break
                if follower in on_stack:
                    lowest[number] = min(lowest[number], order[follower])
            else:
                work.pop()
                if work:
                    above = work[-1][0]
                    lowest[above] = min(lowest[above], lowest[number])
                if lowest[number] == order[number]:
                    group = set()
                    while number not in group:
                        member = stack.pop()
                        on_stack.discard(member)
                        group.add(member)
                    yield frozenset(group)
