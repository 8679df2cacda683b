r"""Intervals and tests from moments: of a mean, of the norm of a mean vector, and of many at once.

The mean vector x of R estimates is, by the central limit theorem, normal about its truth b with
some covariance W, whatever the estimator. So ||x||^2 is a sum of squared normals: in the direction
of b one with variance kappa and mean ||b||, and beside it a rest that is matched by a scaled
chi-squared law with the trace and the trace of the square of what remains of W. That is exact for
one parameter and for equal variances, and good to second order otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LEVEL = 0.05  # of the intervals: 95 %
FAMILY = 1e-3  # of the test for bias, over all estimators of an audit
_Z = 1.959963984540054  # the normal law's quantile at 1 - LEVEL / 2


def student(freedom: float) -> float:
    """Return the 97.5 % quantile of Student's law, by its expansion about the normal's."""
    z, n = _Z, max(freedom, 3.0)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3


def of_mean(x: Tensor) -> tuple[float, float, float]:
    """Return the mean of float64 numbers (n,) and its interval, corrected for their skewness.

    Squared norms are skewed, and Student's interval then misses on one side. Hall's cubic
    transformation of Student's t removes the skewness to second order and is monotone, so that
    it can be inverted.

    Reference:
        Hall, Journal of the Royal Statistical Society B 54, 1992.
    """
    n, mean = len(x), float(x.mean())
    if n < 2:
        return mean, -math.inf, math.inf
    centred = x - mean
    sd = float(centred.square().sum() / (n - 1)) ** 0.5
    if sd == 0.0:
        return mean, mean, mean
    a = float((centred / sd).pow(3).mean()) / math.sqrt(n)
    q, error = student(n - 1), sd / math.sqrt(n)
    return mean, mean - error * _unskewed(q, a), mean - error * _unskewed(-q, a)


def _unskewed(y: float, a: float) -> float:
    """Return the t whose transform is y, for a skewness of the mean of a."""
    if abs(a) < 1e-6:
        return y
    inner = 1 + a * (y - a / 6)
    return 3 / a * (math.copysign(abs(inner) ** (1 / 3), inner) - 1)


@dataclass(frozen=True)
class Spread:
    """What is known of the covariance W of a mean vector.

    Args:
        trace: of W.
        square: trace of W^2.
        along: kappa, the variance in the direction of the mean.
    """

    trace: float
    square: float
    along: float

    def __post_init__(self) -> None:
        # Estimates of the three need not fit together; no covariance lies outside these bounds.
        square = min(max(self.square, 0.0), self.trace**2)
        along = min(max(self.along, 1e-9 * self.trace), math.sqrt(square), self.trace)
        object.__setattr__(self, "square", square)
        object.__setattr__(self, "along", along)

    def below(self, t: float, b: float) -> float:
        """Return P(||x||^2 <= t) where ||E x|| is b."""
        if t <= 0:
            return 0.0
        kappa = self.along
        delta, reach = b / math.sqrt(kappa), math.sqrt(t / kappa)
        low, high = max(-reach, delta - 9), min(reach, delta + 9)
        if low >= high:
            return 0.0 if delta > reach else 1.0
        rest, rest2 = self.trace - kappa, self.square - kappa**2
        if rest <= 1e-6 * self.trace or rest2 <= 1e-12 * self.square:
            shift = max(rest, 0.0)  # a rest without spread
            reach = math.sqrt(max(t - shift, 0.0) / kappa)
            return _normal(reach - delta) - _normal(-reach - delta)
        w = torch.linspace(low, high, 513, dtype=torch.float64)
        shape = torch.tensor(rest**2 / rest2 / 2, dtype=torch.float64)
        left = (t - kappa * w.square()).clamp_min(0.0)
        inner = torch.igamma(shape, left * (rest / rest2 / 2))
        density = (-0.5 * (w - delta).square()).exp() / math.sqrt(2 * math.pi)
        return float(torch.trapezoid(density * inner, w).clamp(0.0, 1.0))


def of_norm(square: float, spread: Spread) -> tuple[float, float]:
    """Return the interval of ||b||, from ||x||^2 for x with mean b.

    A value is kept if the test of it is not rejected. Far from zero both tails of that test are
    of 2.5 %; towards zero, where nothing lies below, the lower tail is given over to the upper
    one, so that a bias of zero is covered in 95 % of the cases as all others are, and no
    interval is empty.

    Reference:
        The principle: Feldman, Cousins, Physical Review D 57, 1998.
    """
    if spread.trace <= 0.0:
        return math.sqrt(max(square, 0.0)), math.sqrt(max(square, 0.0))

    def lower_tail(b: float) -> float:
        return LEVEL / 2 * -math.expm1(-(b**2) / math.sqrt(2 * spread.square))

    def too_large(b: float) -> bool:  # whether x is too far out for b
        return 1 - spread.below(square, b) < LEVEL - lower_tail(b)

    def too_small(b: float) -> bool:
        return spread.below(square, b) < lower_tail(b)

    far = math.sqrt(max(square, 0.0)) + 12 * math.sqrt(spread.trace)
    return _first(lambda b: not too_large(b), far), _first(too_small, far)


def _first(holds: Callable[[float], bool], far: float) -> float:
    """Return where something begins to hold on [0, far], 0 if it does from the start."""
    if holds(0.0):
        return 0.0
    low, high = 0.0, far
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return (low + high) / 2


def zero_mean(products: Tensor) -> float:
    r"""Return the p-value of "these vectors have mean zero", from their inner products (M, M).

    The statistic is the sum of all products of two different vectors. If the mean is zero, each
    vector is as likely as its opposite, and under such changes of sign the sum has mean zero,
    variance 2 sum K^2 and third cumulant 8 tr K^3 (K without its diagonal): no covariance is
    estimated, however many dimensions there are. A gamma law has these moments.
    """
    k = products - torch.diag(products.diagonal())
    variance = 2 * float(k.square().sum())
    if variance <= 0.0:
        return 1.0
    x = float(k.sum()) / math.sqrt(variance)
    skewness = 8 * float((k @ k * k).sum()) / variance**1.5
    if skewness < 1e-3:
        return _normal(-x)
    shape = torch.tensor(4 / skewness**2, dtype=torch.float64)
    at = shape + shape.sqrt() * x
    return float(torch.igammac(shape, at.clamp_min(0.0)))


def holm(p_values: Sequence[float], level: float = FAMILY) -> list[bool]:
    """Return which hypotheses are rejected, with at most `level` for any error at all.

    Reference:
        Holm, Scandinavian Journal of Statistics 6, 1979.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    out = [False] * len(p_values)
    for rank, i in enumerate(order):
        if not p_values[i] <= level / (len(p_values) - rank):
            break
        out[i] = True
    return out


def _normal(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def trace_of_square(centred: Tensor) -> float:
    """Return the trace of S^2 for the covariance S of M vectors, from centred products (M, M).

    The plain estimate is too large where there are more dimensions than vectors; under the
    normal law this one has no bias.

    Reference:
        Bai, Saranadasa, Statistica Sinica 6, 1996.
    """
    n = len(centred) - 1
    if n < 2:
        return math.inf
    trace = float(centred.diagonal().sum()) / n
    plain = float(centred.square().sum()) / n**2
    return max(n**2 / ((n - 1) * (n + 2)) * (plain - trace**2 / n), 0.0)
