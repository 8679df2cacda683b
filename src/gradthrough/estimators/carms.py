"""CARMS: n antithetic categorical samples at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .._errors import ConfigError
from ..kernels.copula import pair_ratio, rare_hits
from ..kernels.dispatch import probabilities
from ..kernels.sticks import Sticks, first_stop, points_at, sticks
from ..laws.base import Distribution
from .base import DISCRETE, AbstractEstimator, Draw, Estimate, Traits, learning_signal, send, spread


@dataclass(frozen=True)
class CARMS(AbstractEstimator):
    r"""CARMS: n coupled categorical samples, corrected by their exact joint law. Unbiased.

    Each variable walks along its classes, sorted ascending, and stops at each with some
    probability; the n walks are coupled at every step by a Dirichlet copula, which makes equal
    samples rare. With r_ij = pi(z_i) pi(z_j) / P(z_i, z_j) the gradient is
    ``1/(n(n-1)) sum_{i<j} r_ij (f_i - f_j)(D_i - D_j)``. The joint probability P is exact, and
    positive for every pair of different classes. This is the stick-breaking form (CARMS-SB).

    Args:
        copula: "dirichlet", or "independent": then r_ij = 1 and the estimator is RLOO.

    Raises:
        DomainError: fewer than 2 samples.
        ConfigError: unknown copula.

    Example:
        >>> import torch, gradthrough as gt
        >>> f = lambda z: z.argmax(-1).float()  # no gradient of f is needed
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> gt.expect(f, logits, gt.CARMS(), samples=4).sum().backward()
        >>> logits.grad.shape
        torch.Size([5, 3])

    Reference:
        Dimitriev, Zhou, NeurIPS 2021, arXiv:2110.14002.
    """

    copula: Literal["dirichlet", "independent"] = "dirichlet"

    traits: ClassVar[Traits] = Traits(
        unbiased=True,
        families=DISCRETE,
        reference="Dimitriev, Zhou, NeurIPS 2021, arXiv:2110.14002",
        exact_for="all",
        noise="class-1",
        min_samples=2,
    )

    def __post_init__(self) -> None:
        if self.copula not in ("dirichlet", "independent"):
            raise ConfigError(
                f"copula is {self.copula!r}, but must be 'dirichlet' or 'independent'."
            )

    def draw(self, dist: Distribution, noise: Tensor) -> Draw:
        """Walk n times, coupled at every step."""
        s = sticks(probabilities(dist.row.class_logits().detach()))
        stops = noise < s.sigma if self.copula == "independent" else rare_hits(noise, s.sigma)
        place = first_stop(stops)
        points = dist.from_classes(points_at(place, s, dist.logits.dtype))
        return Draw(points, dist, (place, *s))

    def combine(
        self, draws: Sequence[Draw], values: Tensor, point_gradients: Tensor | None = None
    ) -> Estimate:
        """Send the difference of every pair of samples, weighted by r."""
        (one,) = draws
        place, s = one.aux[0], Sticks(*one.aux[1:])
        n, dist = values.shape[0], one.dist
        numbers = learning_signal(values)
        weight = self._ratios(s, n)
        earlier = torch.minimum(place.unsqueeze(0), place.unsqueeze(1))  # (n, n, ...)
        r = weight.expand(n, *place.shape, weight.shape[-1])
        r = r.gather(-1, earlier.unsqueeze(-1)).squeeze(-1)
        gap = spread(numbers.unsqueeze(1) - numbers.unsqueeze(0), dist.event_dims)
        coefficient = (r * gap).sum(1) / (n * (n - 1))  # (n, ...); sums to 0 over the samples
        z = dist.to_classes(one.points).to(coefficient.dtype)
        gradient = (coefficient.unsqueeze(-1) * z).sum(0)
        return send(one, values.mean(0), dist.from_classes(gradient))

    def _ratios(self, s: Sticks, n: int) -> Tensor:
        """Return r for two walks that part at each place; pairs that never part do not count."""
        ones = torch.ones_like(s.p)
        if self.copula == "independent":
            return ones
        stay, both = 1.0 - s.sigma, s.sigma * pair_ratio(s.sigma, n)
        part = stay / (1.0 - pair_ratio(s.sigma, n))
        # Up to the place, both walks went on; the last stick is never among these.
        on = stay[..., :-1].square() / (1.0 - 2.0 * s.sigma + both)[..., :-1]
        passed = torch.cat((ones[..., :1], on.cumprod(-1)), -1)
        return torch.cat((passed[..., : part.shape[-1]] * part, ones[..., :1]), -1)
