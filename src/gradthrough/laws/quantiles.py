"""Quantiles and tails that have no closed form, in float64, and the slope of the gamma one."""

import math
from collections.abc import Callable
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


def least_count(
    below: Tensor, at: Tensor, exceeds: Callable[[Tensor], Tensor], steps: int
) -> Tensor:
    """Return the least whole number in (below, at] that exceeds, by bisection.

    Args:
        below: float64 whole numbers of which none exceeds.
        at: float64 whole numbers that exceed.
        exceeds: whether whole numbers do; monotone.
        steps: how many halvings are enough, where the gaps may not be looked at.
    """
    gap = known_most(at - below)
    if gap is not None:
        steps = min(steps, max(gap - 1, 0).bit_length())
    for _ in range(steps):
        middle = ((below + at) / 2.0).floor()
        over = exceeds(middle)
        below, at = torch.where(over, below, middle), torch.where(over, middle, at)
    return at


def known_most(x: Tensor) -> int | None:
    """Return the largest of whole numbers, where there is one and looking means no waiting."""
    if in_transform() or x.device.type != "cpu":
        return None
    most = float(x.max()) if x.numel() else 0.0
    return int(most) if math.isfinite(most) else None


def binomial_tail(k: Tensor, n: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return whether k + 1 is above the bulk of a binomial law, and the tail on its side of k.

    ``P(z > k)`` where it is, else ``P(z <= k)``: with a = k + 1, b = n - k, N = n + 1, and p the
    probability of an event, the incomplete beta integral over t with logit t = logit p - s. Its
    logarithm falls from s = 0 on, and Gauss-Legendre takes it to where it has fallen by 45.

    Args:
        k: float64, from 0 to n - 1.
        n: float64, the number of trials, from 1.
        logits: float64, log-odds of an event.

    Returns:
        Both of the common shape; the tail is float64.
    """
    a, b, size = k + 1.0, n - k, n + 1.0
    p, q = logits.sigmoid(), (-logits).sigmoid()
    above = a > size * p
    own, share = torch.where(above, a, b), torch.where(above, p, q)
    end = _fall_of_beta(own, size, share).unsqueeze(-1)
    node, weight = torch.tensor(_LEGENDRE, dtype=torch.float64, device=k.device).unbind(-1)
    x, own, size_, share = end * node, own.unsqueeze(-1), size.unsqueeze(-1), share.unsqueeze(-1)
    fall = own * x + size_ * torch.log1p(share * torch.expm1(-x))
    total = (end * weight * (-fall).exp()).sum(-1)
    # The factor before it, p^a q^b / B(a, b), by Stirling: log-gammas of large n lose digits.
    off = a - size * p
    far = a * torch.log1p(off / (size * p)) + b * torch.log1p(-off / (size * q))
    shape = 0.5 * (a * b / (2.0 * math.pi * size)).log()
    return above, total * (shape - far + _stirling(size) - _stirling(a) - _stirling(b)).exp()


def _fall_of_beta(own: Tensor, size: Tensor, share: Tensor) -> Tensor:
    """Return s where own s + size log(1 - share (1 - e^{-s})) is 45, by Newton from above."""
    mean = own / size
    linear = 45.0 / (own - size * share).clamp_min(1e-300)
    square = 2.0 * (90.0 / (own * (1.0 - mean))).sqrt() + 100.0 / own
    end = torch.minimum(linear, square)
    for _ in range(6):
        lost = -torch.expm1(-end)
        t = share * (1.0 - lost) / (1.0 - share * lost)
        fall = own * end + size * torch.log1p(-share * lost)
        end = end - (fall - 45.0) / (own - size * t)
    return end


def _stirling(x: Tensor) -> Tensor:
    """Return log Gamma(x) less ``(x - 1/2) log x - x + log(2 pi) / 2``, x from 1."""
    small = x.clamp_max(16.0)
    near = torch.lgamma(small) - (small - 0.5) * small.log() + small - 0.5 * math.log(2.0 * math.pi)
    y = 1.0 / x.clamp_min(16.0)
    z = y * y
    far = y * (1 / 12 - z * (1 / 360 - z * (1 / 1260 - z * (1 / 1680 - z / 1188))))
    return torch.where(x < 16.0, near, far)
