"""Measure-valued derivatives: differences of f between samples of two laws."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._attach import attach
from .._errors import UnsupportedError
from ..laws.law import Law
from .base import AbstractEstimator, Draw, Estimate, Traits, learning_signal


@dataclass(frozen=True)
class MeasureValued(AbstractEstimator):
    r"""The derivative of the law as a difference of two laws: unbiased for every f, jumps and all.

    ``dE f/dphi = c (E_+ f - E_- f)``, variable by variable, the others of the row at their sample.
    The two laws are coupled: where one of them is the law itself its sample is the ordinary one,
    and the other sample lies as near as it can.

    - ``loc`` of normal, logistic, Laplace, Cauchy, Gumbel and Student's t: c the density at the
      mode, the samples right and left of it, where the density has fallen to a uniform fraction.
      For the normal that is ``loc +- scale * W``, W of Weibull(2, 2^{1/2}).
    - their ``scale``: c = 1/scale, the law itself against ``loc + scale * y``, with y beyond the
      standard x, where the density has fallen to a uniform fraction of that at x. For the normal
      y is of the double-sided Maxwell law. The log-normal has both from its normal.
    - ``rate`` of the exponential: c = 1/rate, z against z + z'. Of the gamma:
      concentration/rate, z against a gamma with a concentration of 1 more.
    - ``concentration`` of the gamma G, with rate 1: ``int e^{-x}/x (E f(G + x) - E f(G)) dx``, the
      jumps that it makes as it grows. The measure has no total c, so x is of Gamma(1/2) and the
      difference is weighted by ``(pi / x)^{1/2}``. Those of the beta: the same, for the two gammas
      of which it is a share.
    - ends of a uniform: the density, the end against z. ``rate`` of Poisson: c = 1, z + 1 against
      z.
    - geometric: dE/dp, c = 1/p, z against z + z' + 1. Binomial: c = n, one trial that is 1 against
      0. Bernoulli: c = 1, 1 against 0, with no variance of its own.

    f is evaluated at N samples and, for each variable of a row, at N more points for each of these
    terms but ``loc``, which takes 2 N. The value is the mean over the ordinary samples.

    Raises:
        UnsupportedError: a parameter that needs a gradient has no such derivative here: the
            concentration of a Dirichlet, df of Student's t. (A Dirichlet is a row of independent
            gammas, over their sum: take those, and divide in f.)

    Example:
        >>> import torch, gradthrough as gt
        >>> rate = torch.full((5,), 3.0, requires_grad=True)
        >>> f = lambda z: (z > 2).float()  # f may jump
        >>> q = torch.distributions.Poisson(rate)
        >>> gt.expect(f, q, gt.MeasureValued(), samples=4).sum().backward()
        >>> rate.grad.shape
        torch.Size([5])

    Reference:
        Pflug, Annals of Operations Research 18, 1989; Mohamed, Rosca, Figurnov, Mnih, JMLR 2020,
        arXiv:1906.10652.
    """

    traits: ClassVar[Traits] = Traits(
        unbiased=True,
        families=frozenset({"bernoulli", "continuous", "count"}),
        reference="Mohamed et al., JMLR 2020, arXiv:1906.10652",
        exact_for="all",
    )

    def check_law(self, dist: Law) -> None:
        """Refuse a gradient that no move leads to."""
        for index, (name, parameter) in enumerate(zip(dist.names, dist.parameters, strict=True)):
            if index not in dist.moved and parameter.requires_grad:
                raise UnsupportedError(
                    f"MeasureValued has no derivative in the {name} of a {type(dist).__name__}. "
                    "Use gradthrough.Pathwise() if f is differentiable, or gradthrough.RLOO(); or "
                    f"detach the {name}, if it needs no gradient."
                )

    def evaluations(self, dist: Law, samples: int) -> int:
        """Return how often f is evaluated: also once for each move of each variable."""
        return samples * (1 + len(dist.moved) * math.prod(dist.event_shape))

    def noise_shape(self, dist: Law) -> tuple[int, ...]:
        """Return the shape of the noise: more uniforms in a last dim, where moves are random."""
        return dist.moves_noise_shape()

    def draw(self, dist: Law, noise: Tensor) -> Draw:
        """Draw samples, and each of them with one of its variables moved."""
        self.check_law(dist)
        z, moves = dist.moves(noise)
        n, lead = z.shape[0], len(dist.batch_shape)
        flat = z.flatten(lead) if dist.event_dims else z.unsqueeze(-1)  # (N, *batch, D)
        size = flat.shape[-1]
        eye = torch.eye(size, dtype=torch.bool, device=z.device)
        eye = eye.reshape(size, *(1,) * lead, size)
        parts = [z]
        for move in moves:
            # Without a weight there is no move: it might lead to where the law has no point.
            where = torch.where(move.weight == 0, z, move.where).reshape(flat.shape)
            each = torch.where(eye, where.unsqueeze(0), flat.unsqueeze(0))  # (D, N, *batch, D)
            parts.append(each.reshape(size * n, *z.shape[1:]))
        return Draw(torch.cat(parts), dist, tuple(move.weight for move in moves))

    def combine(
        self, draws: Sequence[Draw], values: Tensor, point_gradients: Tensor | None = None
    ) -> Estimate:
        """Send the weighted differences from the ordinary samples to each parameter."""
        (one,) = draws
        dist = one.dist
        n, row, event = dist.variables[0], dist.row, dist.event_shape
        numbers = learning_signal(values)
        base, moved = numbers[:n], numbers[n:]
        value = values[:n].mean(0)
        if not dist.moved:
            return Estimate(value)
        moved = moved.reshape(len(dist.moved), math.prod(event), *base.shape)
        gaps = (moved - base).movedim(1, -1).reshape(len(dist.moved), *base.shape, *event)
        totals: dict[int, Tensor] = {}
        for index, weight, gap in zip(dist.moved, one.aux, gaps, strict=True):
            term = torch.where(weight == 0, 0.0, weight * gap).mean(0)
            totals[index] = totals[index] + term if index in totals else term
        for index, parameter in enumerate(row.parameters):
            # Nobody was found to need a gradient there: if one comes all the same, it is not 0.
            missing = torch.full_like(parameter, torch.nan)
            value = attach(value, parameter, totals.get(index, missing))
        return Estimate(value)
