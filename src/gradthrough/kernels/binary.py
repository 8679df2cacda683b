"""Two classes: all is a function of the difference of their logits.

A softmax with value (1 - s, s) has the derivative s (1 - s) (g_1 - g_0) (-1, 1), so a surrogate
comes down to one number for each row, the sum of w s (1 - s) / tau over its softmaxes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .eager import (
    NODES,
    AbstractKernel,
    DecoupledStraightThrough,
    ExactGumbelRao,
    GappedStraightThrough,
    GumbelRao,
    GumbelSoftmax,
    Kept,
    ReinMax,
    SoftGumbelSoftmax,
    StraightThrough,
)
from .rao import average_of_pairs


class Pair(NamedTuple):
    """Rows of two classes."""

    lead: Tensor  # (R), theta_1 - theta_0, inf or -inf where one class is masked
    kept: Kept  # the same rows, as they came


def draw(rows: Tensor, u: Tensor, law: float) -> Tensor:
    """Draw classes (R, N), bool, with u (R, N) from softmax(rows / law), rows (R, 2)."""
    # In float64, where 1 - p has room for a rare class 0 and p for a rare class 1.
    behind = (rows[:, 0] - rows[:, 1]).to(torch.float64)
    if law != 1.0:
        behind = behind / law
    return u >= behind.sigmoid_().unsqueeze(-1)


def slope(kernel: AbstractKernel, pair: Pair) -> Tensor:
    """Return sum_m w_m s_m (1 - s_m) / tau_m for each row."""
    return _SLOPES[type(kernel)](kernel, pair)


def covers(kernel: AbstractKernel) -> bool:
    """Return whether a kernel is written out here."""
    return type(kernel) in _SLOPES


def _bump(x: Tensor) -> Tensor:
    """Return s (1 - s), s = sigmoid(x), without losing the small one of the two."""
    s = x.abs().neg_().sigmoid_()
    return s.mul_(1.0 - s)


def _straight_through(kernel: StraightThrough, pair: Pair) -> Tensor:
    out = _bump(pair.lead / kernel.tau).div_(kernel.tau)
    if not kernel.importance:
        return out
    alive = 2 - pair.lead.isinf().to(torch.int64)
    return out.div_(alive * _drawn(pair).sigmoid_().clamp_min_(1e-12))


def _drawn(pair: Pair) -> Tensor:
    """Return the logit of the class drawn less that of the other."""
    return torch.where(pair.kept.chosen.to(torch.bool), pair.lead, -pair.lead)


def _decoupled(kernel: DecoupledStraightThrough, pair: Pair) -> Tensor:
    return _bump(pair.lead / kernel.tau_backward).div_(kernel.tau_backward)


def _gumbel_softmax(kernel: GumbelSoftmax, pair: Pair) -> Tensor:
    relaxed = pair.kept.saved[0]
    return (relaxed[:, 0] * relaxed[:, 1]).div_(kernel.tau)


def _reinmax(kernel: ReinMax, pair: Pair) -> Tensor:
    other = _drawn(pair).neg_()
    if kernel.tau == 1.0:
        return other.sigmoid_().mul_(0.5)
    half = (other / kernel.tau).sigmoid_().mul_(0.5)  # the point in the middle is (half, 1 - half)
    return (1.0 - half).mul_(half).mul_(2.0).sub_(_bump(other).mul_(0.5))


def _gapped(kernel: GappedStraightThrough, pair: Pair) -> Tensor:
    ahead = _drawn(pair)
    if kernel.gap == "p":
        share = ahead.sigmoid().clamp_min_(1e-20).mul_(1.0 - 1e-5)
        pushed = (-ahead).minimum(torch.log1p(-share).div_(share))
    else:
        pushed = (-ahead).clamp_max_(-kernel.gap)
    return _bump(pushed.div_(kernel.tau)).div_(kernel.tau)


def _gumbel_rao(kernel: GumbelRao, pair: Pair) -> Tensor:
    second = pair.kept.chosen.to(torch.bool)
    draws = pair.kept.draws(kernel.k, kernel.points, dim=0)
    pairs = (
        (1.0 / kernel.k, torch.where(second, e[1], e[0]), torch.where(second, e[0], e[1]))
        for e in draws
    )
    return average_of_pairs(_drawn(pair).neg_().sigmoid_(), pairs, kernel.tau)


def _exact_gumbel_rao(kernel: ExactGumbelRao, pair: Pair) -> Tensor:
    return average_of_pairs(_drawn(pair).neg_().sigmoid_(), NODES, kernel.tau)


_SLOPES: dict[type[AbstractKernel], Callable[[Any, Pair], Tensor]] = {
    StraightThrough: _straight_through,
    DecoupledStraightThrough: _decoupled,
    ExactGumbelRao: _exact_gumbel_rao,
    GumbelRao: _gumbel_rao,
    GumbelSoftmax: _gumbel_softmax,
    SoftGumbelSoftmax: _gumbel_softmax,
    GappedStraightThrough: _gapped,
    ReinMax: _reinmax,
}
