"""Numbers between bounds, as the digits that they are written with.

Written without exponent, sign of plus or leading zeros. What has no bound ends at 16 digits, as a double can tell
apart; a bound that has more digits counts.
"""

from __future__ import annotations

from decimal import Decimal
from typing import NamedTuple

from nrvna.grammar.rules import either

DIGITS = 16
# Below it doubles tell any two numbers apart, so that what is less on paper is less in a computer.
_SURE_DIGITS = 15


class Bound(NamedTuple):
    """The least or largest number; ``open`` if it is not one of them itself."""

    value: Decimal
    open: bool = False


def integers(low: int | None, high: int | None) -> list[str]:
    """Alternatives for the integers from ``low`` to ``high``; none if there are no such integers."""
    if low is None and high is None:
        return ['"-"? "0"', f'"-"? [1-9] {_any_digits(0, DIGITS - 1)}']
    largest = 10 ** max(DIGITS, *(len(str(abs(bound))) for bound in (low, high) if bound is not None)) - 1
    low, high = -largest if low is None else low, largest if high is None else high
    found = [f'"-" {digits}' for digits in _naturals(max(1, -high), -low)]
    return found + _naturals(max(0, low), high)


def decimals(low: Bound | None, high: Bound | None) -> list[str]:
    """Alternatives for the numbers between two bounds of which at least one is given; none if there are none."""
    found = []
    if low is None or low.value < 0:
        # Minus zero is zero.
        least = Bound(-high.value, high.open) if high and high.value <= 0 else Bound(Decimal(0))
        found += [f'"-" {digits}' for digits in _magnitudes(least, low and Bound(-low.value, low.open))]
    if high is None or high.value >= 0:
        found += _magnitudes(low if low and low.value > 0 else Bound(Decimal(0), _excludes_zero(low)), high)
    return found


def _excludes_zero(low: Bound | None) -> bool:
    return low is not None and low.value == 0 and low.open


# Integers.


def _naturals(low: int, high: int) -> list[str]:
    """From ``low``, not below 0, to ``high``."""
    if low > high:
        return []
    found = []
    full: list[int] = []
    for length in range(len(str(low)), len(str(high)) + 1):
        first, last = max(low, 10 ** (length - 1) if length > 1 else 0), min(high, 10**length - 1)
        if length > 1 and (first, last) == (10 ** (length - 1), 10**length - 1):
            full.append(length - 1)
        else:
            found += _same_length(str(first), str(last))
    if full:
        found.append(f"[1-9] {_any_digits(full[0], full[-1])}")
    return found


def _same_length(low: str, high: str) -> list[str]:
    """Alternatives for the digits from ``low`` to ``high``, which are as long as each other."""
    length = len(low)
    if length == 1:
        return [_digit(low, high)]
    rest = length - 1
    if low[1:] == "0" * rest and high[1:] == "9" * rest:
        return [f"{_digit(low[0], high[0])} {_any_digits(rest, rest)}"]
    if low[0] == high[0]:
        return [f"{_digit(low[0], low[0])} {either(_same_length(low[1:], high[1:]))}"]
    found = []
    first, last = int(low[0]), int(high[0])
    if low[1:] != "0" * rest:
        found.append(f"{_digit(low[0], low[0])} {either(_same_length(low[1:], '9' * rest))}")
        first += 1
    if high[1:] != "9" * rest:
        last -= 1
    if first <= last:
        found.append(f"{_digit(str(first), str(last))} {_any_digits(rest, rest)}")
    if high[1:] != "9" * rest:
        found.append(f"{_digit(high[0], high[0])} {either(_same_length('0' * rest, high[1:]))}")
    return found


# Numbers with a fraction.


def _magnitudes(low: Bound, high: Bound | None) -> list[str]:
    """Numbers not below 0."""
    first, after_first = _parts(low)
    if high is None:
        last, after_last = 10 ** max(DIGITS, len(str(first))) - 1, None
    else:
        last, after_last = _parts(high)
        if high.value < low.value:
            return []
    bound = max(first, last if high else 0)
    # One digit more than the bounds have: between two of them there is always a number.
    places = max(len(after_first) + 1, len(after_last or "") + 1, min(DIGITS, _SURE_DIGITS - len(str(bound))))
    from_first = _End(after_first, low.open)
    to_last = None if after_last is None or high is None else _End(after_last, high.open)
    if first == last:
        return _with_fraction([str(first)], _fraction(from_first, to_last, places))
    found = _with_fraction([str(first)], _fraction(from_first, None, places))
    between = [*_naturals(first + 1, last - 1)] if to_last else _naturals(first + 1, last)
    found += _with_fraction(between, _fraction(None, None, places))
    if to_last:
        found += _with_fraction([str(last)], _fraction(None, to_last, places))
    return found


def _parts(bound: Bound) -> tuple[int, str]:
    """The integer part, and the digits of the fraction without zeros at their end."""
    whole, _, fraction = format(bound.value, "f").partition(".")
    return int(whole), fraction.rstrip("0")


def _with_fraction(whole: list[str], fraction: str | None) -> list[str]:
    if fraction is None or not whole:
        return []
    digits = [f'"{number}"' if number.isdecimal() else number for number in whole]
    return [f"{either(digits)} {fraction}".rstrip()]


class _End(NamedTuple):
    """The digits of a fraction that the digits to come are compared with."""

    digits: str
    open: bool

    @property
    def is_met_by_zeros(self) -> bool:
        """Whether a number that has no more digits is as large as this one, and may be."""
        return not self.digits and not self.open

    def after(self, digit: int) -> int:
        """How this digit compares with the next one here: below 0, 0 or above."""
        return digit - int(self.digits[:1] or 0)


def _fraction(low: _End | None, high: _End | None, places: int) -> str | None:
    """What may stand behind the integer part, of up to ``places`` digits; None if nothing may, not even nothing."""
    digits = _digits(low, high, places)
    if _may_stop(low, high):
        return f'("." {digits})?' if digits else ""
    return f'"." {digits}' if digits else None


def _may_stop(low: _End | None, high: _End | None) -> bool:
    return (low is None or low.is_met_by_zeros) and (high is None or bool(high.digits) or not high.open)


def _digits(low: _End | None, high: _End | None, places: int) -> str | None:
    """At least one digit more; an end of None sets no limit any longer."""
    if low is not None and low.is_met_by_zeros:
        low = None
    if places == 0 or (high is not None and not high.digits and high.open):
        return None
    if low is None and high is None:
        return _any_digits(1, places)
    # Neighbouring digits behind which the same may follow.
    branches: dict[tuple[_End | None, _End | None], list[int]] = {}
    for digit in range(10):
        above_low, above_high = low.after(digit) if low else 1, high.after(digit) if high else -1
        if above_low < 0 or above_high > 0:
            continue
        then_low = None if low is None or above_low > 0 else low._replace(digits=low.digits[1:])
        then_high = None if high is None or above_high < 0 else high._replace(digits=high.digits[1:])
        branches.setdefault((then_low, then_high), []).append(digit)
    found = []
    for (then_low, then_high), chosen in branches.items():
        digit_class, more = _digit(str(chosen[0]), str(chosen[-1])), _digits(then_low, then_high, places - 1)
        if _may_stop(then_low, then_high):
            found.append(f"{digit_class} ({more})?" if more else digit_class)
        elif more:
            found.append(f"{digit_class} {more}")
    return either(found) if found else None


def _digit(low: str, high: str) -> str:
    return f'"{low}"' if low == high else f"[{low}-{high}]"


def _any_digits(least: int, most: int) -> str:
    if (least, most) == (1, 1):
        return "[0-9]"
    return f"[0-9]{{{least}}}" if least == most else f"[0-9]{{{least},{most}}}"
