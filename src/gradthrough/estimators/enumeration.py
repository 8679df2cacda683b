"""Enumerate: the exact expectation, by summing over every point."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._errors import UnsupportedError
from ..laws.base import Distribution
from .base import DISCRETE, AbstractEstimator, Draw, Estimate, Traits
from .checks import check_count


@dataclass(frozen=True)
class Enumerate(AbstractEstimator):
    """Enumerate: f at every point of the support, weighted by its probability. Exact.

    ``E f = sum_z p(z) f(z)``; backward through p and f, to every order. `samples` and noise have
    no effect.

    Args:
        limit: the largest support that is accepted, >= 1; f sees that many points a row.

    Raises:
        UnsupportedError: the support is larger than `limit`.

    Example:
        >>> import torch, gradthrough as gt
        >>> f = lambda z: (z * torch.tensor([1.0, 2.0, 4.0])).sum(-1)
        >>> gt.expect(f, torch.zeros(1, 3), gt.Enumerate())
        tensor([2.3333])

    Reference:
        Definition of the expectation.
    """

    limit: int = 100_000

    traits: ClassVar[Traits] = Traits(
        unbiased=True,
        families=DISCRETE,
        reference="definition of the expectation",
        exact_for="all",
        noise="none",
    )

    def __post_init__(self) -> None:
        check_count("limit", self.limit, 1)

    def evaluations(self, dist: Distribution, samples: int) -> int:
        """Return the size of the support."""
        return dist.support_size

    def draw(self, dist: Distribution, noise: Tensor) -> Draw:
        """Ask for every point."""
        size = dist.support_size
        if size > self.limit:
            raise UnsupportedError(
                f"Enumerate would evaluate f at {size:,} points for each row ({dist.classes} "
                f"classes, event shape {dist.event_shape}); its limit is {self.limit:,}. Raise "
                "limit=, or use an unbiased estimator that samples: gradthrough.RLOO()."
            )
        row = dist.row
        rows = row.expand(size)
        support = dist.support()
        ones = (1,) * (len(dist.batch_shape) - 1)
        points = support.reshape(size, *ones, *support.shape[1:]).expand(rows.logits.shape)
        # f may be undefined where a class is masked: such a point has no weight, so f is asked at
        # a point of the same row that has some.
        log_probs = row.precise_log_prob(points)
        possible = log_probs > -torch.inf
        extra = (1,) * (points.ndim - possible.ndim)
        points = torch.where(possible.reshape(possible.shape + extra), points, row.mode())
        return Draw(points, rows, (log_probs.exp(),))

    def combine(
        self, draws: Sequence[Draw], values: Tensor, point_gradients: Tensor | None = None
    ) -> Estimate:
        """Sum the values, weighted by their probabilities."""
        (one,) = draws
        (weights,) = one.aux
        return Estimate((weights * values).sum(0).to(values.dtype))
