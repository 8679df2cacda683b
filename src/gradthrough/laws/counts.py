"""Laws over the whole numbers."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from .parametric import Parametric
from .quantiles import binomial_tail, inner, known_most, least_count, special, together

_BISECTIONS = 24
_FEW = 100  # trials, of which a sum over the support is less work than integrals


class Count(Parametric):
    """A law over 0, 1, 2, ...; raw points are float64."""

    family: ClassVar[str] = "count"


class Poisson(Count):
    """The Poisson law."""

    names: ClassVar[tuple[str, ...]] = ("rate",)
    moved: ClassVar[tuple[int, ...]] = (0,)

    def raw(self, noise: Tensor) -> Tensor:
        """Return the least number with more than u of the law at or below it."""
        (rate,) = self.numbers(torch.float64)
        rate, u = together(rate.detach(), noise.detach())
        # Less than the last step of the grid of uniforms lies beyond these ends, by Bernstein.
        width = 9.0 * rate.sqrt() + 40.0
        below, at = (rate - width).floor().clamp_min(-1.0), (rate + width).ceil()
        return least_count(below, at, lambda k: self._exceeds(k, rate, u), _BISECTIONS)

    @staticmethod
    def _exceeds(k: Tensor, rate: Tensor, u: Tensor) -> Tensor:
        """Return whether P(z <= k) > u, from whichever tail is small."""
        more = k.clamp_min(0.0) + 1.0
        lower, upper = special.gammaincc(more, rate), special.gammainc(more, rate)
        return torch.where(u < 0.5, lower > u, upper < 1.0 - u) & (k >= 0.0)

    def log_density(self, raw: Tensor) -> Tensor:
        """Return the log-probability, variable by variable."""
        (rate,) = self.numbers(raw.dtype)
        # At 0, where nothing is counted, the factor 0 is no slope of a rate of 0 either.
        some = raw > 0.0
        powers = torch.where(some, raw * torch.where(some, rate, 1.0).log(), 0.0)
        return powers - rate - torch.lgamma(raw + 1.0)

    def raw_moves(self, raw: Tensor, spare: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the move to one more."""
        return [(torch.ones_like(raw), raw + 1.0)]


class Geometric(Count):
    """How often an event fails to happen before it does, of probability sigmoid(logits)."""

    names: ClassVar[tuple[str, ...]] = ("logits",)
    moved: ClassVar[tuple[int, ...]] = (0,)
    spare: ClassVar[int] = 1

    def raw(self, noise: Tensor) -> Tensor:
        """Return floor(log(1 - u) / log(1 - p))."""
        (logits,) = self.numbers(torch.float64)
        return (torch.log1p(-inner(noise)) / logsigmoid(-logits.detach())).floor()

    def log_density(self, raw: Tensor) -> Tensor:
        """Return the log-probability, variable by variable."""
        (logits,) = self.numbers(raw.dtype)
        return logsigmoid(logits) + raw * logsigmoid(-logits)

    def raw_moves(self, raw: Tensor, spare: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the move to one more than the sum of the sample and another one."""
        # dE/dp = (E f(z) - E f(z + z' + 1)) / p: what z + z' shares with z is left out.
        (logits,) = self.numbers(torch.float64)
        weight = -(-logits).sigmoid()
        return [(weight.expand_as(raw), raw + self.raw(spare[..., 0]) + 1.0)]


class Binomial(Count):
    r"""How often an event of probability sigmoid(logits) happens in total_count trials.

    Args:
        parameters: (logits,).
        event_dims: how many trailing dims are seen jointly by f.
        total_count: whole numbers of the shape of the logits, without a gradient.
    """

    names: ClassVar[tuple[str, ...]] = ("logits",)
    moved: ClassVar[tuple[int, ...]] = (0,)
    spare: ClassVar[int] = 1

    def __init__(
        self,
        parameters: tuple[Tensor, ...],
        event_dims: int,
        total_count: Tensor,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(parameters, event_dims, dtype)
        self.total_count = total_count.detach()

    def with_parameters(self, *parameters: Tensor) -> "Binomial":
        """Return the same law with other parameters; a dim more or less is one of equal rows."""
        count, gained = self.total_count, parameters[0].ndim - self.total_count.ndim
        count = count[0] if gained < 0 else count.expand(parameters[0].shape)
        return type(self)(parameters, self.event_dims, count, self.dtype)

    def raw(self, noise: Tensor) -> Tensor:
        """Return the least number with more than u of the law at or below it."""
        (logits,) = self.numbers(torch.float64)
        logits, u = together(logits.detach(), noise.detach())
        n = self.total_count.to(torch.float64).expand_as(u)
        most = known_most(self.total_count)
        if most is not None and most <= _FEW:
            return _by_sums(n, logits, u, most)
        mean = n * logits.sigmoid()
        width = 9.0 * (mean * (-logits).sigmoid()).sqrt() + 40.0  # as above
        below = (mean - width).floor().clamp_min(-1.0)
        at = torch.minimum((mean + width).ceil(), n)
        return least_count(below, at, lambda k: self._exceeds(k, n, logits, u), _BISECTIONS)

    @staticmethod
    def _exceeds(k: Tensor, n: Tensor, logits: Tensor, u: Tensor) -> Tensor:
        """Return whether P(z <= k) > u."""
        inside = torch.minimum(k, n - 1.0).clamp_min(0.0)
        above, tail = binomial_tail(inside, n.clamp_min(1.0), logits)
        over = torch.where(above, tail < 1.0 - u, tail > u)
        return (over & (k >= 0.0)) | (k >= n)

    def log_density(self, raw: Tensor) -> Tensor:
        """Return the log-probability, variable by variable."""
        (logits,) = self.numbers(raw.dtype)
        return _log_binomial(raw, self.total_count.to(raw.dtype), logits)

    def raw_moves(self, raw: Tensor, spare: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the move of one trial, drawn at random, to its other outcome."""
        # dE/dp = n (E f(w + 1) - E f(w)), w the sample without one of its trials
        (logits,) = self.numbers(torch.float64)
        n = self.total_count.to(torch.float64)
        side = torch.where(spare[..., 0] * n < raw, -1.0, 1.0)
        weight = side * n * logits.sigmoid() * (-logits).sigmoid()
        moved = torch.minimum((raw + side).clamp_min(0.0), n)  # no trial: nowhere to move to
        return [(weight, moved)]


def _by_sums(n: Tensor, logits: Tensor, u: Tensor, most: int) -> Tensor:
    """Return the least number with more than u of a binomial law at or below it."""
    support = torch.arange(most + 1, dtype=torch.float64, device=u.device)
    mass = _log_binomial(support, n.unsqueeze(-1), logits.unsqueeze(-1)).exp()
    # Each tail is summed from its own end, so that the small one keeps its digits.
    lower = mass.cumsum(-1)
    upper = mass.flip(-1).cumsum(-1).flip(-1) - mass
    x = u.unsqueeze(-1)
    below = torch.where(x < 0.5, lower <= x, upper >= 1.0 - x)
    z = torch.minimum(below.to(torch.float64).sum(-1), n)
    return torch.where(logits.isnan(), torch.nan, z)


def _log_binomial(k: Tensor, n: Tensor, logits: Tensor) -> Tensor:
    inside = (k >= 0.0) & (k <= n)
    k = torch.where(inside, k, 0.0)
    choose = torch.lgamma(n + 1.0) - torch.lgamma(k + 1.0) - torch.lgamma(n - k + 1.0)
    return torch.where(inside, choose + k * logits - n * softplus(logits), -torch.inf)


def logits_of(probs: Tensor) -> Tensor:
    """Return log-odds, finite also where a probability is 0 or 1."""
    dtype = torch.float64 if probs.dtype == torch.float64 else torch.float32
    eps = torch.finfo(dtype)
    p = probs.to(dtype).clamp(eps.tiny, 1.0 - eps.eps / 2)
    return p.log() - torch.log1p(-p)
