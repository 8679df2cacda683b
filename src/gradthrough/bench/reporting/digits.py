"""Numbers as text, with the digits that they deserve."""

from __future__ import annotations

import math
from collections.abc import Iterable
from decimal import Decimal

_LEAST, _MOST = -4, 7  # decadic exponents between which a number is written out
_NOISE = 1e-10  # a deviation this far below its mean is rounding


def significant(x: float, digits: int = 4) -> str:
    """Return a number with some significant digits; digits before the point all stand.

    Example:
        >>> from gradthrough.bench.reporting.digits import significant
        >>> significant(0.20381), significant(125.083), significant(96000)
        ('0.2038', '125.1', '96000')
    """
    if x == 0 or not math.isfinite(x):
        return f"{x:g}"
    power = _power(x, digits)
    if not _LEAST <= power < _MOST:
        return f"{x:.{digits - 1}e}"
    return f"{x:.{max(digits - 1 - power, 0)}f}"


def measured(mean: float, sd: float | None = None) -> str:
    """Return a mean with as many decimals as its standard deviation needs to show two digits.

    Args:
        mean: to show; with four significant digits where there is no deviation.
        sd: its standard deviation, None if there is none.

    Example:
        >>> from gradthrough.bench.reporting.digits import measured
        >>> measured(125.083, 0.6812), measured(0.203807, 0.000119), measured(109.7, 17.1)
        ('125.08 ± 0.68', '0.20381 ± 0.00012', '110 ± 17')
    """
    if sd is None or not math.isfinite(sd):
        return significant(mean)
    if sd <= _NOISE * abs(mean):
        return f"{significant(mean)} ± 0"
    power = _power(max(abs(mean), sd), 2)
    if _LEAST <= power < _MOST:
        decimals = max(1 - _power(sd, 2), 0)
        return f"{mean:.{decimals}f} ± {sd:.{decimals}f}"
    # Both with the exponent of the larger one.
    decimals = min(max(1 - _power(sd, 2) + power, 0), 9)
    ends = [f"{x / 10.0**power:.{decimals}f}e{power:+03d}" for x in (mean, sd)]
    return " ± ".join(ends)


def decimals_of(numbers: Iterable[float]) -> int:
    """Return the most decimals that one of some numbers is written with.

    Example:
        >>> from gradthrough.bench.reporting.digits import decimals_of
        >>> decimals_of([97.7, 0.39, 207])
        2
    """
    exponents = [Decimal(repr(x)).normalize().as_tuple().exponent for x in numbers]
    return max((max(-int(e), 0) for e in exponents), default=0)


def signed(x: float) -> str:
    """Return a difference in standard deviations; one that is past 2 does not look like 2.

    Example:
        >>> from gradthrough.bench.reporting.digits import signed
        >>> signed(0.52), signed(-3.14), signed(2.03), signed(-0.01)
        ('+0.5', '-3.1', '+2.03', '0.0')
    """
    for decimals in range(1, 9):
        text = f"{x:+.{decimals}f}"
        if abs(x) <= 2 or abs(float(text)) > 2:
            return text if float(text) else text[1:]
    return f"{x:+}"


def ranges(numbers: list[int]) -> str:
    """Return whole numbers in a line, as one types seeds.

    Example:
        >>> from gradthrough.bench.reporting.digits import ranges
        >>> ranges([0, 1, 2, 3, 7])
        '0..3,7'
    """
    parts: list[list[int]] = []
    for n in sorted(set(numbers)):
        if parts and n == parts[-1][-1] + 1:
            parts[-1].append(n)
        else:
            parts.append([n])
    return ",".join(f"{p[0]}..{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)


def _power(x: float, digits: int) -> int:
    """Return the decadic exponent that a number has once it is rounded."""
    return int(f"{x:.{digits - 1}e}".split("e")[1])
