"""ARMS: n antithetic Bernoulli samples at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..kernels.copula import pair_ratio, rare_hits
from ..kernels.dispatch import probabilities
from ..laws.base import Distribution
from .base import (
    BERNOULLI,
    AbstractEstimator,
    Draw,
    Estimate,
    Traits,
    learning_signal,
    send,
    spread,
)


@dataclass(frozen=True)
class ARMS(AbstractEstimator):
    r"""ARMS, antithetic REINFORCE for many samples: n coupled draws. Unbiased for every f.

    The n samples of each variable come from a Dirichlet copula: each is Bernoulli(p), and two of
    them are both 1 with a probability rho below p^2: 0 where p is at most 2^-(n-1). The gradient
    in the Bernoulli logits is
    ``1/(n-1) sum_i (f_i - mean f) (b_i - p) . p (1 - p) / (p - rho)``. With n = 2 this is DisARM.

    Raises:
        DomainError: fewer than 2 samples.

    Example:
        >>> import torch, gradthrough as gt
        >>> f = lambda b: (b.sum(-1) > 1).float()  # no gradient of f is needed
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> q = gt.Bernoulli(logits, event_dims=1)
        >>> gt.expect(f, q, gt.ARMS(), samples=4).sum().backward()
        >>> logits.grad.shape
        torch.Size([5, 3])

    Reference:
        Dimitriev, Zhou, ICML 2021, arXiv:2105.14141.
    """

    traits: ClassVar[Traits] = Traits(
        unbiased=True,
        families=BERNOULLI,
        reference="Dimitriev, Zhou, ICML 2021, arXiv:2105.14141",
        exact_for="all",
        min_samples=2,
    )

    def draw(self, dist: Distribution, noise: Tensor) -> Draw:
        """Draw the coupled samples: the rarer value of each variable hits or not."""
        p = probabilities(dist.row.class_logits().detach())
        one, other = p.to(torch.float64).unbind(-1)
        hit = rare_hits(noise, torch.minimum(one, other)).to(dist.logits.dtype)
        points = torch.where(one <= other, hit, 1.0 - hit)
        # A comparison with NaN is False, a plausible sample; an unsound row must stay NaN.
        return Draw(points + (0.0 * one).to(points.dtype), dist, (p,))

    def combine(
        self, draws: Sequence[Draw], values: Tensor, point_gradients: Tensor | None = None
    ) -> Estimate:
        """Send (f - mean f)(b - p), corrected for how seldom two samples agree."""
        (one,) = draws
        (p,) = one.aux
        n = values.shape[0]
        numbers = learning_signal(values)
        signal = spread(numbers - numbers.mean(0), one.dist.event_dims) / (n - 1)
        # p (1 - p) / (p - rho), written in the rarer value: nothing vanishes in the denominator.
        factor = p.amax(-1) / (1.0 - pair_ratio(p.amin(-1), n))
        score = one.points.detach().to(p.dtype) - p[..., 0]
        return send(one, values.mean(0), (signal * score).sum(0) * factor)
