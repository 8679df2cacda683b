"""Verdicts: what a number of ours says about a published one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .digits import measured, signed
from .number import Number
from .views import Published

Kind = Literal["within", "outside", "shorter", "other", "missing", "none"]
WIDTH = 2.0  # standard deviations that count as agreement


@dataclass(frozen=True)
class Verdict:
    """What a comparison came to.

    Args:
        kind: for colours.
        text: for people, "" for nothing to say.
    """

    kind: Kind
    text: str


def verdict(ours: Number, published: Published | None) -> Verdict:
    """Compare a number with a published one, in units of the published standard deviation.

    A budget below the paper's, or other settings, get no verdict.
    """
    if not ours.values:
        lost = ", ".join(f"{n} {why}" for why, n in sorted(ours.lost.items()))
        return Verdict("missing", lost or "not run")
    if ours.short is not None:
        words = f"shorter: {ours.short[0]} of {ours.short[1]} epochs"
        return Verdict("shorter", f"{words}; {ours.other}" if ours.other else words)
    if ours.other:
        return Verdict("other", ours.other)
    if published is None:
        return Verdict("none", "")
    difference = ours.mean - published.mean
    if not published.sd:
        return Verdict("none", f"difference {_plus(difference, published.decimals)}")
    apart = round(difference / published.sd, 9)  # what is exactly 2 stays 2, however it rounds
    inside = abs(apart) <= WIDTH
    text = f"{signed(apart)} sd"
    return (
        Verdict("within", f"{text}, within 2 sd")
        if inside
        else Verdict("outside", f"outside: {text}")
    )


def ours_text(ours: Number) -> str:
    """Return a mean, its standard deviation, and of how many seeds; "" where there is nothing."""
    if not ours.values:
        return ""
    lost = "".join(f"; {n} {why}" for why, n in sorted(ours.lost.items()))
    searched = f"; best of {ours.trials} trials" if ours.trials else ""
    return f"{measured(ours.mean, ours.sd)} (n={ours.n}{searched}{lost})"


def _plus(x: float, decimals: int) -> str:
    """Return a difference with the decimals that the published number has."""
    text = f"{x:+.{decimals}f}"
    return text if float(text) else f"{0:.{decimals}f}"
