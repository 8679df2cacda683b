"""An estimator against the reference: bias, variance, error and cosine, each with its interval."""

from __future__ import annotations

import math
from typing import TypedDict

import torch
from torch import Tensor

from .._types import compute_dtype
from .intervals import Spread, along_mean, of_mean, of_norm, student, trace_of_square, zero_mean
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
    spread = _along(_spread(vectors, direction, trace), products, excess)
    low, high = of_norm(square, spread)
    real = excess > floor**2
    mse_low, mse_high = _error(moments, target, direction, excess)
    mse = variance + excess
    norm, mean_square = target.square, float(moments.mean.square().sum())
    along = float(moments.mean @ target.mean)
    clean = max(mean_square - variance / moments.count, 0.0) * norm
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


def _along(spread: Spread, products: Tensor, excess: float) -> Spread:
    """Return the spread with its variance along the bias, as far as the bias can be seen.

    Along their own mean, as the spread has it, vectors vary as they do on average where that mean
    is noise, and the bias may well lie where they vary most.
    """
    m, noise = len(products), math.sqrt(2 * spread.square)
    if not 0 < spread.along < spread.trace:
        return spread  # one dimension, or none
    seen = (along_mean(products) / m + noise * spread.along) / (excess + noise)
    return Spread(spread.trace, spread.square, max(seen, spread.along))


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
