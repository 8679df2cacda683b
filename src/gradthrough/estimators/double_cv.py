"""Double CV: leave-one-out REINFORCE with a Taylor control variate on both of its sides."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..kernels.dispatch import probabilities
from ..laws.base import Distribution
from .base import (
    BERNOULLI,
    AbstractScore,
    Draw,
    Estimate,
    Traits,
    learning_signal,
    leave_one_out,
    send,
    spread,
    total,
)
from .checks import Scalar, check_scalar, scalar_like


@dataclass(frozen=True, eq=False)
class DoubleCV(AbstractScore):
    r"""Double CV: RLOO plus a control variate from the gradient of f. Unbiased for every f.

    With ``b_k = alpha (mean of f'(x_j), j != k) . (x_k - p)`` and F_k = f(x_k) + b_k, the gradient
    in the Bernoulli logits is
    ``1/N sum_k (F_k - mean of F_j, j != k)(x_k - p) - alpha (mean of f'(x_j)) p (1 - p)``.
    For f affine, and alpha = -1, the variance is zero; alpha = 0 is RLOO.

    Args:
        alpha: a number or a tensor of one number, which ``Estimate.tuning_loss`` then trains.

    Raises:
        DomainError: fewer than 2 samples.
        UnsupportedError: f does not depend differentiably on its points.

    Example:
        >>> import torch, gradthrough as gt
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> q = gt.Bernoulli(logits, event_dims=1)
        >>> gt.expect(lambda b: b.sum(-1) ** 2, q, gt.DoubleCV(), samples=2).sum().backward()
        >>> logits.grad.shape
        torch.Size([5, 3])

    Reference:
        Titsias, Shi, AISTATS 2022, arXiv:2111.05300.
    """

    alpha: Scalar = -1.0

    traits: ClassVar[Traits] = Traits(
        unbiased=True,
        families=BERNOULLI,
        reference="Titsias, Shi, AISTATS 2022, arXiv:2111.05300",
        exact_for="all",
        min_samples=2,
        needs_point_gradients=True,
        scalars=("alpha",),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", check_scalar("alpha", self.alpha))

    def draw(self, dist: Distribution, noise: Tensor) -> Draw:
        """Draw samples; the gradient of f is wanted at each."""
        p = probabilities(dist.row.class_logits().detach())
        return super().draw(dist, noise)._replace(aux=(p,), gradients="values")

    def combine(
        self, draws: Sequence[Draw], values: Tensor, point_gradients: Tensor | None = None
    ) -> Estimate:
        """Send (F - mean of the other F) times the score, and what that adds on average."""
        (one,) = draws
        (p,) = one.aux
        if point_gradients is None:
            return Estimate(values.mean(0))
        dims, alpha = one.dist.event_dims, scalar_like(self.alpha, p)
        slope = point_gradients.to(p.dtype)
        score = one.points.to(p.dtype) - p[..., 0]
        full = learning_signal(values) + alpha * total(leave_one_out(slope) * score, dims)
        signal = spread(full - leave_one_out(full), dims)
        mean = alpha * slope.mean(0) * p.prod(-1)
        return send(one, values.mean(0), (signal * score).mean(0) - mean)
