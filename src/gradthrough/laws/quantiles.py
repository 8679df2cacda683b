"""What finds quantiles without a closed form, and the tail of a binomial law, in float64."""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from .._slope import in_transform

GRID = 2.0**-53  # of the uniforms
special: Any = torch.special  # torch has no types for it


def together(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return tensors in their common shape."""
    return cast(tuple[Tensor, ...], torch.broadcast_tensors(*tensors))  # pyright: ignore[reportUnknownMemberType]


def inner(noise: Tensor) -> Tensor:
    """Return uniforms moved off 0, by half a step of their grid, to where quantiles are finite."""
    return noise.detach().clamp(GRID / 2, 1.0 - GRID)


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


LEGENDRE = _legendre(48)


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


def may_look(x: Tensor) -> bool:
    """Return whether what is done may depend on numbers, without waiting for them."""
    return not in_transform() and x.device.type == "cpu"


def known_most(x: Tensor) -> int | None:
    """Return the largest of whole numbers, where there is one and looking means no waiting."""
    if not may_look(x):
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
    node, weight = torch.tensor(LEGENDRE, dtype=torch.float64, device=k.device).unbind(-1)
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
