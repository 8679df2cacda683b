"""ARM and DisARM: antithetic pairs of Bernoulli samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._random import antithetic
from .._types import compute_dtype
from ..kernels.dispatch import probabilities
from ..laws.base import Distribution
from .base import BERNOULLI, AbstractScore, Draw, Estimate, Traits, learning_signal, send, spread


class _AbstractPairs(AbstractScore):
    """One sample is a pair: b~ from the uniform u, b from 1 - u."""

    def evaluations(self, dist: Distribution, samples: int) -> int:
        """Return how often f is evaluated: twice for each sample."""
        return 2 * samples

    def draw(self, dist: Distribution, noise: Tensor) -> Draw:
        """Draw b~ = 1[u < p] for every sample, then b = 1[1 - u < p]."""
        rows = dist.row.expand(2 * noise.shape[0])
        points = super().draw(rows, torch.cat((noise, antithetic(noise)))).points
        return Draw(points, dist, (noise,))


@dataclass(frozen=True)
class ARM(_AbstractPairs):
    r"""ARM, augment-REINFORCE-merge: two coupled samples and their uniform. Unbiased for every f.

    With u uniform for each variable, ``b = 1[u > 1 - p]`` and ``b~ = 1[u < p]``, the gradient in
    the Bernoulli logits is ``(f(b) - f(b~)) (u - 1/2)``. Each of the N samples is such a pair:
    2N evaluations.

    Example:
        >>> import torch, gradthrough as gt
        >>> f = lambda b: (b.sum(-1) > 1).float()  # no gradient of f is needed
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> q = gt.Bernoulli(logits, event_dims=1)
        >>> gt.expect(f, q, gt.ARM()).sum().backward()
        >>> logits.grad.shape
        torch.Size([5, 3])

    Reference:
        Yin, Zhou, ICLR 2019, arXiv:1807.11143.
    """

    traits: ClassVar[Traits] = Traits(
        unbiased=True,
        families=BERNOULLI,
        reference="Yin, Zhou, ICLR 2019, arXiv:1807.11143",
        exact_for="all",
    )

    def combine(
        self, draws: Sequence[Draw], values: Tensor, point_gradients: Tensor | None = None
    ) -> Estimate:
        """Send the difference of each pair times u - 1/2."""
        (one,) = draws
        (u,) = one.aux
        tilde, plain = learning_signal(values).chunk(2)
        x = one.dist.row.logits.detach()
        # A variable that is masked, or an unsound one, shows in its probability.
        p = probabilities(one.dist.row.class_logits().detach())
        centred = (u - 0.5).to(compute_dtype(x.dtype)) * _moves(p)
        gradient = spread(plain - tilde, one.dist.event_dims) * centred
        return send(one, values.mean(0), gradient.mean(0))


def _moves(p: Tensor) -> Tensor:
    """Return 1 where both values of a variable are possible, 0 where one is not, NaN as it was."""
    return torch.where(p.amin(-1) == 0, 0.0, 1.0) + 0.0 * p[..., 0]


@dataclass(frozen=True)
class DisARM(_AbstractPairs):
    r"""DisARM (U2G): ARM with its uniform integrated out. Unbiased for every f.

    For the pair b, b~ of `ARM`, the gradient in the Bernoulli logits phi is
    ``1/2 (f(b) - f(b~)) (b - b~) sigmoid(|phi|)``, the mean of ARM given the pair. Each of the N
    samples is such a pair: 2N evaluations.

    Example:
        >>> import torch, gradthrough as gt
        >>> f = lambda b: (b.sum(-1) > 1).float()  # no gradient of f is needed
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> q = gt.Bernoulli(logits, event_dims=1)
        >>> gt.expect(f, q, gt.DisARM()).sum().backward()
        >>> logits.grad.shape
        torch.Size([5, 3])

    Reference:
        Dong, Mnih, Tucker, NeurIPS 2020, arXiv:2006.10680; U2G: Yin et al., 2020,
        arXiv:2006.06448.
    """

    traits: ClassVar[Traits] = Traits(
        unbiased=True,
        families=BERNOULLI,
        reference="Dong et al., NeurIPS 2020, arXiv:2006.10680",
        exact_for="all",
    )

    def combine(
        self, draws: Sequence[Draw], values: Tensor, point_gradients: Tensor | None = None
    ) -> Estimate:
        """Send half the difference of each pair where its two values differ."""
        (one,) = draws
        tilde, plain = learning_signal(values).chunk(2)
        p = probabilities(one.dist.row.class_logits().detach())
        b_tilde, b = one.points.detach().to(p.dtype).chunk(2)
        difference = spread(0.5 * (plain - tilde), one.dist.event_dims)
        gradient = difference * (b - b_tilde) * p.amax(-1)
        return send(one, values.mean(0), gradient.mean(0))
