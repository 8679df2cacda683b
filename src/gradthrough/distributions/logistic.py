"""The logistic distribution, which torch lacks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self, cast

import torch
import torch.distributions as td
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid, softplus

from .._random import uniforms
from .._types import compute_dtype
from ..laws.base import check_noise
from ..laws.continuous import Logistic as Law

# Of the trapezoidal rule over a standard logistic: beyond, less than 1e-16 of it; and between, the
# error is e^{-2 pi^2 / step}.
_END, _STEP = 39.0, 0.5


class Logistic(td.Distribution):
    r"""The logistic distribution, with cdf sigmoid((z - loc) / scale).

    A sample is ``loc + scale * log(u / (1 - u))``. Densities and cdf are those of float32 or
    better, and hold in the tails. The KL divergence from a normal is closed; that between two of
    them has no closed form, and is a sum of 157 terms, right to 1e-14.

    Args:
        loc: (\*batch), the mean.
        scale: (\*batch), above 0; the standard deviation is ``pi / 3^{1/2}`` times it.
        validate_args: whether to check parameters and values; by default as torch does.

    Raises:
        ValueError: a parameter or value outside its range, from torch.

    Example:
        >>> import torch, gradthrough as gt
        >>> loc = torch.zeros(5, requires_grad=True)
        >>> q = gt.distributions.Logistic(loc, 2.0)
        >>> z = q.rsample((7,))
        >>> z.shape, q.log_prob(z).shape
        (torch.Size([7, 5]), torch.Size([7, 5]))
        >>> gt.expect(lambda z: z**2, q, gt.Pathwise(), samples=4).sum().backward()
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {  # pyright: ignore[reportIncompatibleMethodOverride]
        "loc": constraints.real,
        "scale": constraints.positive,
    }
    support = constraints.real  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    has_rsample = True
    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        loc: Tensor | float,
        scale: Tensor | float,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale = cast(tuple[Tensor, Tensor], broadcast_all(loc, scale))
        super().__init__(self.loc.shape, validate_args=validate_args)

    @property
    def _law(self) -> Law:
        return Law((self.loc, self.scale))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:  # noqa: ANN401
        r"""Return the distribution with other batch dims.

        Args:
            batch_shape: (\*batch), to which the present one broadcasts.
        """
        new = cast(Self, self._get_checked_instance(Logistic, _instance))
        shape = torch.Size(batch_shape)
        new.loc, new.scale = self.loc.expand(shape), self.scale.expand(shape)
        td.Distribution.__init__(new, shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """The loc."""
        return self.loc

    @property
    def mode(self) -> Tensor:
        """The loc."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """``(pi * scale)^2 / 3``."""
        return (math.pi * self.scale).square() / 3.0

    def rsample(
        self,
        sample_shape: Sequence[int] = (),
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        r"""Draw samples with the graph of the parameters.

        Args:
            sample_shape: dims in front.
            generator: source of the noise; without it, the global one.
            noise: float64 uniforms in [0, 1) of the shape of the samples instead.

        Returns:
            (\*sample_shape, \*batch).
        """
        shape = (*sample_shape, *self.loc.shape)
        if noise is None:
            u = uniforms(shape, self.loc.device, generator)
        else:
            u = check_noise(noise, shape, self.loc, generator, "loc")
        law = self._law
        return law.point(law.raw(u))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        r"""Draw the samples that `rsample` would draw, without a graph."""
        with torch.no_grad():
            return self.rsample(sample_shape).detach()

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density at values."""
        if self._validate_args:
            self._validate_sample(value)
        law = self._law
        return law.log_density(value.to(compute_dtype(value.dtype))).to(law.dtype)

    def cdf(self, value: Tensor) -> Tensor:
        """Return the probability of less than a value."""
        if self._validate_args:
            self._validate_sample(value)
        return ((value - self.loc) / self.scale).sigmoid()

    def icdf(self, value: Tensor) -> Tensor:
        """Return the quantile of a probability."""
        return self.loc + self.scale * (value.log() - torch.log1p(-value))

    def entropy(self) -> Tensor:
        """Return ``log scale + 2``, in nats."""
        return self.scale.log() + 2.0


def _mean_softplus(x: Tensor, spread: Tensor) -> Tensor:
    """Return E softplus(x + spread L), L standard logistic and the spread at most 1."""
    count = round(2.0 * _END / _STEP) + 1
    nodes = torch.linspace(-_END, _END, count, dtype=x.dtype, device=x.device)
    weights = _STEP * (logsigmoid(nodes) + logsigmoid(-nodes)).exp()
    return (weights * softplus(x.unsqueeze(-1) + spread.unsqueeze(-1) * nodes)).sum(-1)


@td.register_kl(Logistic, Logistic)
def _from_logistic(p: Logistic, q: Logistic) -> Tensor:
    dtype = torch.promote_types(p.loc.dtype, q.loc.dtype)
    a, s, b, t = (x.to(torch.float64) for x in (p.loc, p.scale, q.loc, q.scale))
    # -log q(z) = log t + y + 2 softplus(-y), y = (z - b) / t; and t E softplus(-y) is the mean of
    # (b - a + s L - t L')_+, in which the two may change places: the wider one is summed in closed
    # form, so that what is left is smooth.
    wide, narrow = torch.maximum(s, t), torch.minimum(s, t)
    positive = wide * _mean_softplus((b - a) / wide, narrow / wide)
    cross = t.log() + (a - b + 2.0 * positive) / t
    return (cross - s.log() - 2.0).clamp_min(0.0).to(dtype)


@td.register_kl(Logistic, td.Normal)
def _from_normal(p: Logistic, q: td.Normal) -> Tensor:
    ratio = (math.pi * p.scale / q.scale).square() / 3.0 + ((p.loc - q.loc) / q.scale).square()
    gap = q.scale.log() - p.scale.log()
    return 0.5 * (ratio + math.log(2.0 * math.pi)) + gap - 2.0
