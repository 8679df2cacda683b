"""The sample as a function of its parameters: explicit and implicit reparameterisation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..laws.parametric import Parametric
from .base import AbstractEstimator, Draw, Estimate, Traits
from .pathwise import average


@dataclass(frozen=True)
class Pathwise(AbstractEstimator):
    r"""The reparameterisation trick: differentiate f through the sample of a continuous law.

    ``(dz/dphi)^T grad f(z)``, with z the quantile of the uniform: an explicit function (normal,
    logistic, Laplace, Gumbel, Cauchy, log-normal, exponential, uniform), or an implicit one,
    ``dz/dphi = -(dF(z)/dphi) / q(z)`` (gamma, and beta, Dirichlet and Student's t, which are made
    from gammas). Unbiased for every f that is continuous and differentiable but for kinks; at a
    jump it is biased, silently. Laws of counts are refused, and so is an f whose values do not
    depend differentiably on the sample.

    The derivative of a gamma in its concentration is computed in float64 to 12 digits, those of
    torch are good for three or four; it has no second derivative.

    Example:
        >>> import torch, gradthrough as gt
        >>> loc = torch.zeros(5, requires_grad=True)
        >>> q = torch.distributions.Normal(loc, 2.0)
        >>> gt.expect(lambda z: z**2, q, gt.Pathwise(), samples=4).sum().backward()
        >>> loc.grad.shape
        torch.Size([5])

    Reference:
        Kingma, Welling, ICLR 2014, arXiv:1312.6114; Rezende, Mohamed, Wierstra, ICML 2014,
        arXiv:1401.4082; implicit: Figurnov, Mohamed, Mnih, NeurIPS 2018, arXiv:1805.08498.
    """

    traits: ClassVar[Traits] = Traits(
        unbiased=True,
        families=frozenset({"continuous"}),
        reference="Kingma, Welling, ICLR 2014, arXiv:1312.6114",
        exact_for="all",
        pathwise=True,
        many_draws=True,
    )

    def draw(self, dist: Parametric, noise: Tensor) -> Draw:
        """Draw samples with the graph of their parameters."""
        return Draw(dist.point(dist.raw(noise)), dist)

    def combine(
        self, draws: Sequence[Draw], values: Tensor, point_gradients: Tensor | None = None
    ) -> Estimate:
        """Average; the graph of the values is the estimator."""
        return average(type(self).__name__, draws, values)
