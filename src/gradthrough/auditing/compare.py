"""An estimator against the reference: bias, variance, error and cosine, each with its interval."""

from __future__ import annotations

import math
from typing import TypedDict

import torch
from torch import Tensor

from .._types import compute_dtype
from .intervals import Spread, of_mean, of_norm, student, trace_of_square, zero_mean
from .moments import Moments, Target


class Found(TypedDict):
    """The measured fields of an `AuditRow`."""

    replicates: int
    bias: float
    bias_low: float
    bias_high: float
    variance: float
    variance_low: float
    variance_high: float
    mse: float
    mse_low: float
    mse_high: float
    p_value: float
    cosine: float
    cosine_single: float
    relative_bias: float
    relative_variance: float
    relative_mse: float


def rounding(dtype: torch.dtype, norm: float, magnitude: float) -> float:
    """Return how far a gradient may be off by rounding alone.

    Args:
        dtype: of the gradient.
        norm: of the gradient.
        magnitude: of f times the score: values that differ in their last digits alone make a
            gradient of that size times the last digit.
    """
    steps = torch.finfo(compute_dtype(dtype)).eps
    return max(100 * steps, torch.finfo(dtype).eps / 2) * norm + 4 * steps * magnitude


def compare(moments: Moments, target: Target, floor: float) -> Found:
    """Hold the moments of an estimator against the reference.

    Args:
        moments: of the estimator, about this target's mean.
        target: the reference; its groups are as many as those of the moments.
        floor: a difference that rounding may make, which is no bias.
    """
    variance, variance_low, variance_high = of_mean(moments.squares)
    away = moments.mean - target.mean
    square = float(away.square().sum())
    trace = variance / moments.count + target.variance
    opposite = target.mean if target.groups is None else target.groups
    vectors = moments.groups - opposite
    direction: Tensor = away / max(math.sqrt(square), 1e-300)
    excess = max(square - trace, 0.0)
    products = vectors @ vectors.T
    low, high = _bias(vectors, away, trace)
    real = excess > floor**2
    mse_low, mse_high = _error(moments, target, direction, excess)
    mse = variance + excess
    norm, mean_square = target.square, float(moments.mean.square().sum())
    along = float(moments.mean @ target.mean)
    clean = max(mean_square - variance / moments.count, 0.0) * norm
    if target.variance > norm:  # a direction that is mostly noise
        clean = 0.0
    return Found(
        replicates=moments.count,
        bias=math.sqrt(excess),
        bias_low=max(low - floor, 0.0),
        bias_high=high + floor,
        variance=variance,
        variance_low=max(variance_low, 0.0),
        variance_high=variance_high,
        mse=mse,
        mse_low=mse_low,
        mse_high=mse_high,
        p_value=zero_mean(products) if real else 1.0,
        cosine=max(-1.0, min(1.0, along / math.sqrt(clean))) if clean > 0 else math.nan,
        cosine_single=float(moments.cosines.mean()),
        relative_bias=math.sqrt(excess / norm) if norm > 0 else math.nan,
        relative_variance=variance / norm if norm > 0 else math.nan,
        relative_mse=mse / norm if norm > 0 else math.nan,
    )


def _spread(vectors: Tensor, direction: Tensor, trace: float) -> Spread:
    """Return the covariance of the mean of M vectors; its trace is known better from elsewhere."""
    m, d = vectors.shape
    centred = vectors - vectors.mean(0)
    square = trace_of_square(centred @ centred.T) / m**2
    if d == 1:
        return Spread(trace, trace**2, trace)
    along = float((centred @ direction).square().sum()) / (m - 1) / m
    # From few groups: as wide as Student's law is wider than the normal one.
    along *= (student(m - 1) / student(math.inf)) ** 2
    return Spread(trace, max(square, trace**2 / d), along)


def _bias(vectors: Tensor, away: Tensor, trace: float) -> tuple[float, float]:
    r"""Return the interval of ||b||, for `away` the mean of vectors, with b as its own mean.

    With x = away and W its covariance, ||x||^2 varies as 2 x^T dx + |dx|^2, and dx along W x: that
    is where b must lie further out if it is longer, with a variance of rho = x^T W^2 x / x^T W x.
    What of x lies across W x hardly varies. As much of it as stands out of the noise is the same
    in b; taken off both, the rest is a norm whose variance along b is rho, as `of_norm` needs it.
    """
    m, d = vectors.shape
    n, square = m - 1, float(away.square().sum())
    centred = vectors - vectors.mean(0)
    products, x = centred @ centred.T, centred @ away
    own, once = float(products.diagonal().sum()) / n, float(x.square().sum()) / n
    if d == 1 or once <= 0.0:
        return of_norm(square, Spread(trace, trace**2, trace))
    # Shares of the vectors' own trace; how large that is, is known better from all replicates.
    once /= own
    twice = (float(x @ products @ x) / n**2 / own**2 - once / n) / (1 - 1 / n)
    even = (float(products.square().sum()) / n**2 / own**2 - 1 / n) / (1 - 1 / n)
    share = min(max(twice / once, once / square), math.sqrt(min(max(even, 1 / d), 1.0)))
    even = max(even, share**2 + (1 - share) ** 2 / (d - 1))
    across = math.sqrt(max(square - once / share, 0.0))
    noise = 3 * math.sqrt(trace * (1 - share)) + 1e-6 * math.sqrt(square + trace)
    fixed = max(across - noise, 0.0) ** 2
    # From few groups: as wide as Student's law is wider than the normal one.
    wider = (student(n) / student(math.inf)) ** 2
    spread = Spread(
        trace * (1 + (wider - 1) * share),
        trace**2 * (even + (wider**2 - 1) * share**2),
        trace * share * wider,
    )
    low, high = of_norm(square - fixed, spread)
    return math.hypot(low, math.sqrt(fixed)), math.hypot(high, math.sqrt(fixed))


def _error(
    moments: Moments, target: Target, direction: Tensor, bias_square: float
) -> tuple[float, float]:
    """Return the interval of E ||g - r||^2; a reference that is noisy adds its own variance."""
    mean, low, high = of_mean(moments.errors)
    if target.groups is None:
        return max(low, 0.0), high
    own = _spread(target.groups, direction, target.variance)
    sd = math.sqrt(4 * own.along * bias_square + 2 * own.square)
    below = math.hypot(mean - low, student(math.inf) * sd)
    above = math.hypot(high - mean, student(math.inf) * sd)
    mse = mean - target.variance
    return max(mse - below, 0.0), max(mse, 0.0) + above
