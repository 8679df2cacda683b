"""What an audit found, as data: a row for each estimator, and what they were held against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class AuditRow:
    """What was measured of one estimator.

    The gradient is that of the batch mean, flattened; g is one estimate of it, made with
    `evaluations` evaluations of f for each row, and r is the reference.

    Args:
        estimator: its label.
        evaluations: of f for each row of the batch, in one estimate; 0 if it was skipped.
        replicates: how many estimates were drawn.
        samples: how many samples one estimate takes, as in `expect`.
        unbiased: whether it promises to be.
        exact_for: the richest f for which it promises an exact mean: "none", "affine",
            "quadratic", "all".
        bias: ``||E g - r||``, the root of its noise-corrected square, 0 where that is negative.
        bias_low: lower end of the 95 % interval of the bias.
        bias_high: upper end.
        variance: trace of the covariance of g.
        variance_low: lower end of its 95 % interval.
        variance_high: upper end.
        mse: ``E ||g - r||^2``.
        mse_low: lower end of its 95 % interval.
        mse_high: upper end.
        p_value: of the test that the bias is zero, for this estimator alone.
        biased: whether that test rejects, at level 1e-3 for all rows together (Holm).
        cosine: between E g and r, noise-corrected.
        cosine_single: between a single g and r, on average.
        relative_bias: bias / ||r||.
        relative_variance: variance / ||r||^2.
        relative_mse: mse / ||r||^2.
        seconds_forward: median time of one estimate's value.
        seconds_backward: median time of its gradient.
        peak_bytes: the most memory one estimate holds, forward and backward.
        minibatch_variance: trace of the covariance of E[g | batch] over batches, where several
            were given.
        sampling_variance: mean over those batches of the trace of Cov[g | batch].
        skipped: why nothing was measured, a sentence.
    """

    estimator: str
    evaluations: int = 0
    replicates: int = 0
    samples: int = 0
    unbiased: bool = False
    exact_for: str = "none"
    bias: float = math.nan
    bias_low: float = math.nan
    bias_high: float = math.nan
    variance: float = math.nan
    variance_low: float = math.nan
    variance_high: float = math.nan
    mse: float = math.nan
    mse_low: float = math.nan
    mse_high: float = math.nan
    p_value: float = math.nan
    biased: bool = False
    cosine: float = math.nan
    cosine_single: float = math.nan
    relative_bias: float = math.nan
    relative_variance: float = math.nan
    relative_mse: float = math.nan
    seconds_forward: float = math.nan
    seconds_backward: float = math.nan
    peak_bytes: int | None = None
    minibatch_variance: float | None = None
    sampling_variance: float | None = None
    skipped: str | None = None


@dataclass(frozen=True)
class Reference:
    """The gradient that the estimators are held against.

    Args:
        kind: "exact", "given", or that of the draws: "local expectation", "measure-valued" or
            "score function".
        norm: of the gradient; noise-corrected where it was estimated.
        standard_error: root of the trace of its covariance, 0 if it is exact.
        evaluations: of f for each row of the batch, in all.
        words: what it is and how sure, a sentence.
    """

    kind: str
    norm: float
    standard_error: float
    evaluations: int
    words: str


def not_measured(rows: Sequence[AuditRow]) -> list[tuple[tuple[str, ...], str]]:
    """Return the labels of the rows that were skipped, and why, those with one reason together."""
    by_reason: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        if row.skipped is not None:
            first, _, rest = row.skipped.partition(" ")  # the class, where the class is the reason
            by_reason.setdefault(rest, []).append((row.estimator, first))
    return [
        (tuple(label for label, _ in found), f"{_subject([x for _, x in found])} {rest}")
        for rest, found in by_reason.items()
    ]


def _subject(firsts: Sequence[str]) -> str:
    return firsts[0] if len(set(firsts)) == 1 else "Each"
