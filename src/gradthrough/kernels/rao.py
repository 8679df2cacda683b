"""Averages over inner noise given the class drawn, one draw at a time: memory is O(1) in K."""

from collections.abc import Iterable

import torch
from torch import Tensor


def average(
    p: Tensor,
    at: Tensor,
    g: Tensor,
    draws: Iterable[tuple[float, Tensor]],
    tau: float,
    dim: int,
) -> Tensor:
    """Return sum_k w_k J(s_k) g / tau, s_k the conditional relaxation of `eager` for draw k.

    Args:
        p: probabilities, laid out as the logits are.
        at: the class drawn, of size 1 along `dim`.
        g: the direction, as p.
        draws: weights w_k and Exp(1) draws as p, which are written to.
        tau: the temperature.
        dim: that of the classes.
    """
    out = torch.zeros_like(p)
    drawn = p.gather(dim, at)
    one = drawn / drawn  # or NaN in an unsound row
    for weight, e in draws:
        soft = p * e.gather(dim, at)
        soft.div_(e.add_(soft))
        if tau != 1.0:
            soft.pow_(1.0 / tau)
        soft.scatter_(dim, at, one)
        soft.div_(soft.sum(dim, keepdim=True))
        torch.mul(soft, g, out=e)
        out.addcmul_(soft, torch.sub(g, e.sum(dim, keepdim=True), out=e), value=weight)
    return out.div_(tau)


def average_of_pairs(
    other: Tensor, draws: Iterable[tuple[float, Tensor | float, Tensor | float]], tau: float
) -> Tensor:
    """Return sum_k w_k s_k (1 - s_k) / tau for two classes.

    Args:
        other: (R), probability of the class not drawn.
        draws: weights w_k and Exp(1) draws (R) or numbers, of the class drawn and of the other.
        tau: the temperature.
    """
    out = torch.zeros_like(other)
    for weight, mine, its in draws:
        race = other * mine
        ratio = race.div_(race + its)
        if tau != 1.0:
            ratio.pow_(1.0 / tau)
        out.addcdiv_(ratio, (ratio + 1.0).square_(), value=weight)
    return out.div_(tau)
