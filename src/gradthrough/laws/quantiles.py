"""Quantiles that have no closed form, found in float64, and the slope of the gamma one."""

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._attach import attach
from .._slope import in_transform

GRID = 2.0**-53  # of the uniforms
special: Any = torch.special  # torch has no types for it
_STEPS = 10  # 8 are enough but in the far tails
_SERIES = 32
_TINY = -60.0  # log z below which P(a, z) = z^a / Gamma(a + 1) to the last bit


def log_gamma_quantile(concentration: Tensor, noise: Tensor) -> Tensor:
    r"""Return log z with P(Gamma(concentration, 1) <= z) = noise, and its derivative.

    In logarithms, because z of a small concentration is below the least number: half of all draws
    of Gamma(0.001) are below 1e-301. Newton steps on the logarithm of the smaller tail, kept
    between bounds; the derivative is the implicit one, ``-(dP/da) / (dP/dlog z)``.

    Args:
        concentration: above 0; computed in float64.
        noise: float64 uniforms in [0, 1), a shape that broadcasts with it.

    Returns:
        Float64, of the common shape, with a first derivative in the concentration.
    """
    a, u = together(concentration.to(torch.float64), noise)
    fixed = a.detach()
    log_z = _solve(fixed, inner(u))
    return attach(log_z, a, log_gamma_slope(fixed, log_z)) if _is_followed(a) else log_z


def together(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return tensors in their common shape."""
    return cast(tuple[Tensor, ...], torch.broadcast_tensors(*tensors))  # pyright: ignore[reportUnknownMemberType]


def _is_followed(x: Tensor) -> bool:
    """Return whether somebody may ask for a derivative in x."""
    tangent: Tensor | None = None if in_transform() else forward_ad.unpack_dual(x).tangent
    return x.requires_grad or in_transform() or tangent is not None


def inner(noise: Tensor) -> Tensor:
    """Return uniforms moved off 0, by half a step of their grid, to where quantiles are finite."""
    return noise.detach().clamp(GRID / 2, 1.0 - GRID)


def _solve(a: Tensor, u: Tensor) -> Tensor:
    log_norm = torch.lgamma(a)
    low = (u.log() + torch.lgamma(a + 1.0)) / a  # P(a, z) <= z^a / Gamma(a + 1)
    high = (2.0 * a + 50.0).log()  # by Chernoff, less than the last step of the grid is above it
    x: Tensor = special.ndtri(u)
    cube = 1.0 - 1.0 / (9.0 * a) + x / (3.0 * a.sqrt())  # Wilson, Hilferty
    start = a.log() + 3.0 * cube.clamp_min(1e-3).log()
    y = torch.where((cube > 0.2) & (a > 0.3), start, low)
    y = torch.minimum(torch.maximum(y, low), high)
    lower = u < 0.5
    want = torch.where(lower, u.log(), torch.log1p(-u))
    lo, hi = low, high
    for _ in range(_STEPS):
        z = y.exp()
        tail: Tensor = torch.where(
            lower, special.gammainc(a, z), special.gammaincc(a, z)
        ).clamp_min(1e-300)
        gap = tail.log() - want
        over = torch.where(lower, gap > 0, gap < 0)  # y is too large
        lo, hi = torch.where(over, lo, y), torch.where(over, y, hi)
        rate = (a * y - z - log_norm).exp() / tail
        step = y - torch.where(lower, gap, -gap) / rate
        inside = (step >= lo) & (step <= hi)
        y = torch.where(inside, step, (lo + hi) / 2.0)
    return torch.where(low < _TINY, low, y)


def log_gamma_slope(a: Tensor, log_z: Tensor) -> Tensor:
    r"""Return the derivative in a of the quantile log z of Gamma(a, 1), at a fixed uniform.

    ``-(dP/da)/(dP/dlog z)`` with ``dP/da = int_0^z (log t - psi(a)) p(t) dt``: a series for small
    z, else Gauss-Legendre over t = z e^{-s} below the mean, and z e^{s} above it.
    """
    z = log_z.exp()
    small = z <= 2.0
    series = _slope_series(a, torch.where(small, log_z, 0.0))
    # What is not asked for is computed all the same, and must be finite.
    other_a, other_log = torch.where(small, 3.0, a), torch.where(small, math.log(3.0), log_z)
    return torch.where(small, series, _slope_integral(other_a, other_log))


def _slope_series(a: Tensor, log_z: Tensor) -> Tensor:
    # e^z sum_k (-z)^k / k! (A / (a + k) + 1 / (a + k)^2), A = psi(a) - log z
    z = log_z.exp()
    gap: Tensor = special.digamma(a) - log_z
    total: Tensor = (special.digamma(a + 1.0) - log_z) / a  # k = 0, its poles cancelled
    term = torch.ones_like(z)
    for k in range(1, _SERIES):
        term = term * -z / k
        total = total + term * (gap + 1.0 / (a + k)) / (a + k)
    return z.exp() * total


def _slope_integral(a: Tensor, log_z: Tensor) -> Tensor:
    z = log_z.exp()
    side = torch.where(z > a, 1.0, -1.0)
    gap: Tensor = side * (log_z - special.digamma(a))
    # Where the exponent side a s - z (e^{side s} - 1) has fallen by 45, by Newton from above.
    end = torch.where(side > 0, torch.log1p(90.0 / z + (90.0 / z).sqrt()), (45.0 + z) / a)
    for _ in range(8):
        fall = z * torch.expm1(side * end) - side * a * end - 45.0
        end = end - fall / (side * (z * (side * end).exp() - a))
    total = torch.zeros_like(z)
    for node, weight in _LEGENDRE:
        s = end * node
        total = total + weight * (gap + s) * (side * a * s - z * torch.expm1(side * s)).exp()
    return end * total


def _legendre(n: int) -> list[tuple[float, float]]:
    """Return nodes and weights of Gauss-Legendre on [0, 1], by Newton on the polynomial."""
    found: list[tuple[float, float]] = []
    for i in range(n):
        x = math.cos(math.pi * (i + 0.75) / (n + 0.5))
        slope = 1.0
        for _ in range(6):
            p, q = 1.0, x
            for k in range(2, n + 1):
                p, q = q, ((2 * k - 1) * x * q - (k - 1) * p) / k
            slope = n * (x * q - p) / (x * x - 1.0)
            x -= q / slope
        found.append(((1.0 + x) / 2.0, 1.0 / ((1.0 - x * x) * slope * slope)))
    return found


_LEGENDRE = _legendre(48)
