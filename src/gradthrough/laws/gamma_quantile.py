"""The quantile of the gamma law, in logarithms, and its slope in the concentration."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._attach import attach
from .._slope import in_transform
from .quantiles import LEGENDRE, inner, may_look, special, together

_STEPS = 10  # 8 are enough but in the far tails
_SERIES = 32
_STILL = 1e-10  # a step in log z after which the next one is less than rounding
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


def _is_followed(x: Tensor) -> bool:
    """Return whether somebody may ask for a derivative in x."""
    tangent: Tensor | None = None if in_transform() else forward_ad.unpack_dual(x).tangent
    return x.requires_grad or in_transform() or tangent is not None


class _Search(NamedTuple):
    """Where log z of each variable is looked for, and what for."""

    a: Tensor
    log_norm: Tensor
    want: Tensor  # the logarithm of the smaller tail
    lo: Tensor
    hi: Tensor
    y: Tensor

    def at(self, rows: Tensor) -> "_Search":
        """Return some of them."""
        return _Search(*(x[rows] for x in self))


def _solve(a: Tensor, u: Tensor) -> Tensor:
    low = (u.log() + torch.lgamma(a + 1.0)) / a  # P(a, z) <= z^a / Gamma(a + 1)
    high = (2.0 * a + 50.0).log()  # by Chernoff, less than the last step of the grid is above it
    x: Tensor = special.ndtri(u)
    cube = 1.0 - 1.0 / (9.0 * a) + x / (3.0 * a.sqrt())  # Wilson, Hilferty
    start = a.log() + 3.0 * cube.clamp_min(1e-3).log()
    y = torch.where((cube > 0.2) & (a > 0.3), start, low)
    y = torch.minimum(torch.maximum(y, low), high)
    lower = u < 0.5
    want = torch.where(lower, u.log(), torch.log1p(-u))
    search = _Search(a, torch.lgamma(a), want, low, high, y)
    if may_look(a):
        y = _until_found(search, lower)
    else:
        for _ in range(_STEPS):
            search = _step(search, lower)
        y = search.y
    return torch.where(low < _TINY, low, y)


def _until_found(search: _Search, lower: Tensor) -> Tensor:
    """Take steps with those that still move: the same as all steps with all, but for rounding."""
    flat, sides = _Search(*(x.reshape(-1) for x in search)), lower.reshape(-1)
    found = flat.y.clone()
    for side in (True, False):
        rows = (sides == side).nonzero().squeeze(-1)
        left = flat.at(rows)
        for _ in range(_STEPS):
            before, left = left.y, _step(left, side)
            found[rows] = left.y
            moves = ((left.y - before).abs() > _STILL).nonzero().squeeze(-1)
            rows, left = rows[moves], left.at(moves)
            if not len(rows):
                break
    return found.reshape(search.y.shape)


def _step(s: _Search, lower: Tensor | bool) -> _Search:
    """Take a Newton step, or halve the interval where that would leave it."""
    z = s.y.exp()
    if isinstance(lower, bool):
        tail: Tensor = special.gammainc(s.a, z) if lower else special.gammaincc(s.a, z)
        lower = torch.full_like(s.y, lower, dtype=torch.bool)
    else:
        tail = torch.where(lower, special.gammainc(s.a, z), special.gammaincc(s.a, z))
    tail = tail.clamp_min(1e-300)
    gap = torch.where(lower, tail.log() - s.want, s.want - tail.log())
    over = gap > 0  # y is too large
    lo, hi = torch.where(over, s.lo, s.y), torch.where(over, s.y, s.hi)
    rate = (s.a * s.y - z - s.log_norm).exp() / tail
    step = s.y - gap / rate
    inside = (step >= lo) & (step <= hi)
    return s._replace(lo=lo, hi=hi, y=torch.where(inside, step, (lo + hi) / 2.0))


def log_gamma_slope(a: Tensor, log_z: Tensor) -> Tensor:
    r"""Return the derivative in a of the quantile log z of Gamma(a, 1), at a fixed uniform.

    ``-(dP/da)/(dP/dlog z)`` with ``dP/da = int_0^z (log t - psi(a)) p(t) dt``: a series for small
    z, else Gauss-Legendre over t = z e^{-s} below the mean, and z e^{s} above it.
    """
    small = log_z <= math.log(2.0)
    if may_look(a):
        out = torch.full_like(log_z, torch.nan)
        a = a.expand_as(out)
        for slope, rows in ((_slope_series, small), (_slope_integral, ~small)):
            out[rows] = slope(a[rows], log_z[rows])
        return out
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
    for node, weight in LEGENDRE:
        s = end * node
        total = total + weight * (gap + s) * (side * a * s - z * torch.expm1(side * s)).exp()
    return end * total
