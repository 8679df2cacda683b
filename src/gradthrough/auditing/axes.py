"""Log axes as data: where they begin and end, and their ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_DECADES = 9  # what lies further below the largest would squeeze the others together


@dataclass(frozen=True)
class Axis:
    """A log axis.

    Args:
        title: what it counts.
        low: decadic logarithm of its lower end.
        high: of its upper end.
        ticks: values and their texts.
    """

    title: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]

    def at(self, value: float) -> float:
        """Return where a value lies, 0 at the lower end and 1 at the upper."""
        return (math.log10(value) - self.low) / (self.high - self.low)


def inside(value: float, axis: Axis) -> tuple[float, bool]:
    """Return a value that is no smaller than the axis begins, and whether it was."""
    least = 10 ** (axis.low + 0.02 * (axis.high - axis.low))
    return max(value, least), value < least


def axis_of(title: str, values: Sequence[float]) -> Axis:
    """Return an axis that holds all values but those that are nearly zero beside the others."""
    positive = [v for v in values if 0 < v < math.inf] or [1.0]
    top = math.log10(max(positive))
    low = math.log10(min(v for v in positive if math.log10(v) > top - _DECADES))
    pad = max(0.08 * (top - low), (1.2 - (top - low)) / 2, 0.1)
    below = pad + (0.1 * (top - low + pad) if any(v < 10**low for v in values) else 0.0)
    low, high = low - below, top + pad
    return Axis(title, low, high, tuple((v, tick(v)) for v in round_numbers(low, high, 6)))


def round_numbers(low: float, high: float, most: int) -> list[float]:
    """Return round numbers between two powers of ten, the most that are no more than `most`."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    steps = [[float(f"{m}e{d}") for d in decades for m in (1, 2, 5)]]
    steps += [[float(f"1e{d}") for d in decades if d % n == 0] for n in range(1, len(decades) + 1)]
    for values in steps:
        inside = [v for v in values if low <= math.log10(v) <= high]
        if len(inside) <= most:
            return inside
    return []


def tick(value: float) -> str:
    """Return a round number, as a power of ten where it is long."""
    if 1e-3 <= value < 1e4:
        return f"{value:,g}" if value < 1e3 else f"{value:,.0f}"
    power = math.floor(math.log10(value) + 1e-9)
    exponent = f"10{power}"[2:].translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    digit = round(value / 10**power)
    return f"10{exponent}" if digit == 1 else f"{digit}·10{exponent}"
