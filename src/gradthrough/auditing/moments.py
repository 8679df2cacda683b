"""Moments of gradients that stream past: nothing of size replicates x parameters is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

_GROUPS = 100  # means of this many groups stand for the replicates where vectors are needed
_BYTES = 2**26  # of those means together


def group_count(replicates: int, dimensions: int) -> int:
    """Return how many groups replicates are dealt into, for so many parameters."""
    fitting = _BYTES // (8 * max(dimensions, 1))
    return min(replicates, max(20, min(_GROUPS, fitting)))


class Moments:
    """Sums over gradients (n, D), chunk by chunk.

    Kept are D numbers for each of the groups, and three numbers for each gradient: its squared
    distance from a centre near the mean, that from the reference, and its cosine with it.

    Args:
        centre: float64 (D,), near the mean; about it squares are summed without cancellation.
        reference: float64 (D,), or None while that is what is measured.
        groups: how many, >= 2.
    """

    def __init__(self, centre: Tensor, reference: Tensor | None, groups: int) -> None:
        self.centre, self.reference = centre, reference
        self.count = 0
        self._sums = centre.new_zeros(groups, len(centre))  # about the centre
        self._sizes = centre.new_zeros(groups)
        # Numbers, not tensors: those would lie between large blocks and keep them from being freed.
        self._spread: list[float] = []
        self._error: list[float] = []
        self._cosines: list[float] = []

    def add(self, gradients: Tensor) -> None:
        """Take in gradients (n, D)."""
        deviation = gradients.double() - self.centre
        places = (torch.arange(len(deviation), device=deviation.device) + self.count) % len(
            self._sums
        )
        self._sums.index_add_(0, places, deviation)
        self._sizes.index_add_(0, places, torch.ones_like(deviation[:, 0]))
        self.count += len(deviation)
        self._spread += _numbers(deviation.square().sum(-1))
        if self.reference is None:
            return
        # ||g - r||^2 and <g, r> from g - c: no second tensor of the chunk's size.
        away = self.centre - self.reference
        shifted = deviation.add_(away)
        self._error += _numbers(shifted.square().sum(-1))
        g = shifted.add_(self.reference)
        norms = (g.square().sum(-1) * self.reference.square().sum()).sqrt()
        self._cosines += _numbers(torch.where(norms > 0, (g @ self.reference) / norms, 0.0))

    @property
    def mean(self) -> Tensor:
        """The mean gradient, float64 (D,)."""
        return self.centre + self._sums.sum(0) / self.count

    @property
    def groups(self) -> Tensor:
        """The mean of each group, float64 (groups, D)."""
        return self.centre + self._sums / self._sizes.unsqueeze(-1)

    @property
    def squares(self) -> Tensor:
        """Squared distances from the mean, float64 (count,), whose mean is the variance's trace.

        About a centre that misses the mean by d they are too large by d^2 on average, which is
        taken off, and n - 1 of n are left as in every variance.
        """
        squares = torch.tensor(self._spread, dtype=torch.float64)
        excess = (self._sums.sum(0) / self.count).square().sum().cpu()
        return (squares - excess) * (self.count / max(self.count - 1, 1))

    @property
    def errors(self) -> Tensor:
        """Squared distances from the reference, float64 (count,)."""
        return torch.tensor(self._error, dtype=torch.float64)

    @property
    def cosines(self) -> Tensor:
        """Cosines with the reference, float64 (count,)."""
        return torch.tensor(self._cosines, dtype=torch.float64)


def _numbers(x: Tensor) -> list[float]:
    return cast("list[float]", x.tolist())


@dataclass(frozen=True)
class Target:
    """The reference as numbers.

    Args:
        mean: float64 (D,).
        groups: means of groups of its draws (M, D), None if it is exact.
        variance: trace of the covariance of `mean`, 0 if it is exact.
    """

    mean: Tensor
    groups: Tensor | None = None
    variance: float = 0.0

    def group_count(self, replicates: int) -> int:
        """Return into how many groups replicates are dealt that are held against it.

        As many as its own: the noise of both is then in the differences of the groups.
        """
        if self.groups is None:
            return group_count(replicates, len(self.mean))
        return len(self.groups)

    @property
    def square(self) -> float:
        """Its squared norm, without what its own noise adds."""
        return max(float(self.mean.square().sum()) - self.variance, 0.0)
