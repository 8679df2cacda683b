"""Which estimator to take: the smallest error once a training run has averaged over its steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from .._errors import ConfigError, DomainError
from .rows import AuditRow, Reference

AVERAGING = 1000.0  # of 3,000 to 8,000 steps, between 300 and 3,000 foretold best: docs/audit.md
_EXACTNESS = ("none", "affine", "quadratic", "all")


@dataclass(frozen=True)
class Recommendation:
    """Which estimator an audit speaks for. `print` it for the reason.

    An optimiser does not follow one gradient, it follows about the mean of its last ones: noise
    averages out over k of them, a bias does not. So estimators are ranked by ``bias^2 +
    variance / k``. Where the intervals of several overlap with that of the first, the one is
    taken that promises to be exact for more functions: a bias that does not show at these logits
    may at those that training leads to.

    Args:
        choice: the label of the estimator to take.
        runner_up: that of the next by its error, None if there is no other.
        text: the reason in words.
        averaging: k.
        error: ``bias^2 + variance / k`` of the choice, relative to the squared norm of the
            reference.
        ties: labels whose error the audit cannot tell from that of the choice.
        fewer: (k, label): below so many estimates another one has the smaller error.
        more: (k, label): above so many, likewise.
    """

    choice: str
    runner_up: str | None
    text: str
    averaging: float
    error: float
    ties: tuple[str, ...]
    fewer: tuple[float, str] | None
    more: tuple[float, str] | None

    def __str__(self) -> str:
        """Return the text."""
        return self.text


def choose(
    rows: Sequence[AuditRow], reference: Reference, *, averaging: float = AVERAGING
) -> Recommendation:
    """Rank the rows of an audit.

    Args:
        rows: measured or skipped.
        reference: what they were held against.
        averaging: k > 0, over how many estimates of this size training averages; 1 ranks by the
            error of a single one.

    Raises:
        ConfigError: nothing was measured.
        DomainError: averaging is not a positive number.
    """
    k = averaging
    if not (isinstance(k, int | float) and 0 < k < math.inf):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise DomainError(f"averaging must be a number > 0, but is {k!r}.")
    measured = [row for row in rows if row.skipped is None]
    if not measured:
        raise ConfigError("no estimator was measured: see the `skipped` sentence of each row.")
    ranked = sorted(measured, key=lambda row: error(row, k))
    high = _interval(ranked[0], k)[1]
    equal = [row for row in ranked if row is ranked[0] or _interval(row, k)[0] <= high]
    best = max(equal, key=lambda row: _EXACTNESS.index(row.exact_for))  # of several, the first
    others = [row for row in ranked if row is not best]
    ties = tuple(row.estimator for row in equal if row is not best)
    fewer, more = _change(best, others, k, up=False), _change(best, others, k, up=True)
    unit = reference.norm**2
    found = Recommendation(
        choice=best.estimator,
        runner_up=others[0].estimator if others else None,
        text="",
        averaging=k,
        error=error(best, k) / unit if unit else math.nan,
        ties=ties,
        fewer=fewer,
        more=more,
    )
    return _with_text(found, best, others, reference)


def error(row: AuditRow, k: float) -> float:
    """Return bias^2 + variance / k; what promises no bias, and shows none, has none."""
    return _bias(row) ** 2 + row.variance / k


def _bias(row: AuditRow) -> float:
    return 0.0 if row.unbiased and not row.biased else row.bias


def _interval(row: AuditRow, k: float) -> tuple[float, float]:
    sure = row.unbiased and not row.biased
    low, high = (0.0, 0.0) if sure else (row.bias_low, row.bias_high)
    return low**2 + row.variance_low / k, high**2 + row.variance_high / k


def _change(
    best: AuditRow, others: Sequence[AuditRow], k: float, *, up: bool
) -> tuple[float, str] | None:
    """Return the nearest k, above or below, at which another error gets smaller, and whose."""
    found: list[tuple[float, str]] = []
    for row in others:
        bias, variance = _bias(row) ** 2 - _bias(best) ** 2, best.variance - row.variance
        # bias^2 + variance / k is a line in 1 / k: two of them cross once at most.
        if bias * variance > 0 and (bias < 0) == up:
            found.append((variance / bias, row.estimator))
    return (min if up else max)(found, default=None)


def _with_text(
    found: Recommendation, best: AuditRow, others: Sequence[AuditRow], reference: Reference
) -> Recommendation:
    k, unit = found.averaging, reference.norm**2
    if not unit:
        text = (
            "The reference cannot be told from zero: the mean of f does not depend on the "
            "parameters here, and no direction is right or wrong. "
            f"{best.estimator} has the smallest error."
        )
        return dataclasses.replace(found, text=text)
    lines = [
        *_noisy(reference),
        f"Take {best.estimator}. Averaged over {_count(k)} estimates of this size, its gradient "
        f"is off by {_percent(found.error)} of the gradient's norm: {_parts(best, k, unit)}.",
    ]
    if others:
        second = others[0]
        lines.append(
            f"Next comes {second.estimator}, off by {_percent(error(second, k) / unit)}: "
            f"{_parts(second, k, unit)}. {_price(best, second)}"
        )
    if found.ties:
        lines.append(
            f"This audit cannot tell it from {', '.join(found.ties)}, whose intervals overlap; "
            "none of them promises to be exact for more functions."
        )
    if found.fewer:
        lines.append(
            f"Averaged over fewer than {_count(found.fewer[0])} (smaller batches, larger steps), "
            f"{found.fewer[1]} has the smaller error."
        )
    if found.more:
        lines.append(
            f"Over more than {_count(found.more[0])} (larger batches, more draws, smaller steps), "
            f"{found.more[1]} has."
        )
    if not found.fewer and not found.more and others:
        lines.append("That does not change with the batch size or the number of draws.")
    return dataclasses.replace(found, text=" ".join(line.strip() for line in lines))


def _noisy(reference: Reference) -> list[str]:
    if reference.standard_error < 0.3 * reference.norm:
        return []
    share = _percent((reference.standard_error / reference.norm) ** 2)
    return [
        f"The reference is off by {share} of the gradient's norm itself, so that biases are hardly "
        "known: take more replicates, or fewer rows."
    ]


def _parts(row: AuditRow, k: float, unit: float) -> str:
    if row.unbiased and not row.biased:
        bias = "no bias"
    else:
        bias = f"bias {_percent(_bias(row) ** 2 / unit)}"
    return f"{bias}, noise {_percent(row.variance / k / unit)}"


def _price(best: AuditRow, second: AuditRow) -> str:
    ours = best.seconds_forward + best.seconds_backward
    theirs = second.seconds_forward + second.seconds_backward
    if not (ours > 0 and theirs > 0):
        return ""
    return f"An estimate takes {1000 * ours:.3g} ms, against {1000 * theirs:.3g} ms."


def _percent(square: float) -> str:
    x = 100 * math.sqrt(square)
    return f"{x:,.0f} %" if x >= 10 else f"{x:.2g} %"


def _count(k: float) -> str:
    return f"{k:,.0f}" if k >= 10 else f"{k:.2g}"
