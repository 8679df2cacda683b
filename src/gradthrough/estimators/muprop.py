"""MuProp: a Taylor expansion around the mean as control variate."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..kernels.dispatch import probabilities
from ..laws.base import Distribution
from .base import (
    DISCRETE,
    AbstractScore,
    Draw,
    Estimate,
    Traits,
    learning_signal,
    send,
    spread,
    total,
)
from .checks import Scalar, check_scalar, scalar_like


@dataclass(frozen=True, eq=False)
class MuProp(AbstractScore):
    r"""MuProp: REINFORCE minus the Taylor expansion of f around the mean. Unbiased for every f.

    With ``h(z) = f(m) + f'(m) . (z - m)`` around the mean point m = E z,
    ``(f(z) - eta h(z)) d log p(z) / d theta + eta f'(m) . dm / d theta``. For f affine, and
    eta = 1, the variance is zero. f is evaluated once more, at m, which is off the corners, and
    must be differentiable there.

    Args:
        eta: scale of the control variate: a number or a tensor of one number, which
            ``Estimate.tuning_loss`` then trains.

    Raises:
        UnsupportedError: f does not depend differentiably on its points.

    Example:
        >>> import torch, gradthrough as gt
        >>> f = lambda z: (z * torch.tensor([1.0, 2.0, 4.0])).sum(-1) ** 2
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> gt.expect(f, logits, gt.MuProp()).sum().backward()
        >>> logits.grad.shape
        torch.Size([5, 3])

    Reference:
        Gu, Levine, Sutskever, Mnih, ICLR 2016, arXiv:1511.05176.
    """

    eta: Scalar = 1.0

    traits: ClassVar[Traits] = Traits(
        unbiased=True,
        families=DISCRETE,
        reference="Gu et al., ICLR 2016, arXiv:1511.05176",
        exact_for="all",
        needs_point_gradients=True,
        needs_relaxed_points=True,
        scalars=("eta",),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "eta", check_scalar("eta", self.eta))

    def evaluations(self, dist: Distribution, samples: int) -> int:
        """Return how often f is evaluated: at the samples and at the mean."""
        return samples + 1

    def draw(self, dist: Distribution, noise: Tensor) -> Draw:
        """Draw samples, and add the mean point."""
        z = super().draw(dist, noise).points
        p = probabilities(dist.row.class_logits().detach())
        mean = dist.from_classes(p).to(z.dtype).unsqueeze(0)
        return Draw(torch.cat((z, mean)), dist, (p,), "values")

    def combine(
        self, draws: Sequence[Draw], values: Tensor, point_gradients: Tensor | None = None
    ) -> Estimate:
        """Send (f - eta h) times the score, and the slope at the mean."""
        (one,) = draws
        (p,) = one.aux
        value = values[:-1].mean(0)
        if point_gradients is None:
            return Estimate(value)
        dims = one.dist.event_dims + 1
        numbers, eta = learning_signal(values), scalar_like(self.eta, p)
        score = one.dist.to_classes(one.points[:-1]).to(p.dtype) - p
        slope = one.dist.class_gradient(point_gradients[-1].to(p.dtype))
        taylor = numbers[-1] + total(slope * score, dims)
        signal = spread(numbers[:-1] - eta * taylor, dims)
        through_mean = p * (slope - (p * slope).sum(-1, keepdim=True))
        gradient = (signal * score).mean(0) + eta * through_mean
        return send(one, value, one.dist.from_classes(gradient))
