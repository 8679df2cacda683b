"""A categorical variable as a walk along sticks: stop at class i with probability sigma_i.

The classes are sorted by probability, ascending. Then sigma_i = p_i / sum_{l >= i} p_l is at most
1/2 for every stick, so that coupled walks can still reach every pair of different classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Sticks(NamedTuple):
    """Sorted probabilities, and what the walk needs of them, all float64."""

    order: Tensor  # (..., C), the class at each place
    p: Tensor  # (..., C), ascending
    tail: Tensor  # (..., C), sum of p from each place on
    sigma: Tensor  # (..., C - 1), probability to stop at each place but the last


def sticks(p: Tensor) -> Sticks:
    r"""Sort probabilities (\*rows, C) into sticks."""
    sorted_p, order = p.to(torch.float64).sort(stable=True, dim=-1)
    tail = sorted_p.flip(-1).cumsum(-1).flip(-1)
    return Sticks(order, sorted_p, tail, sorted_p[..., :-1] / tail[..., :-1])


def first_stop(stops: Tensor) -> Tensor:
    """Return the first place that stops, (..., C - 1) -> (...): the last place if none does."""
    return (stops.cumsum(-1) == 0).sum(-1)


def unsort(x: Tensor, order: Tensor) -> Tensor:
    """Bring numbers at the sorted places back to their classes."""
    return torch.zeros_like(x).scatter(-1, order.expand(x.shape), x)


def points_at(place: Tensor, s: Sticks, dtype: torch.dtype) -> Tensor:
    """Return the one-hot points of places (N, ...); NaN where the probabilities are."""
    index = s.order.expand(*place.shape, s.order.shape[-1]).gather(-1, place.unsqueeze(-1))
    sound = s.p + 0.0 * s.p.sum(-1, keepdim=True)
    zero = (0.0 * sound).to(dtype).expand(*place.shape, s.p.shape[-1])
    return zero.scatter_add(-1, index, torch.ones_like(index, dtype=dtype))
