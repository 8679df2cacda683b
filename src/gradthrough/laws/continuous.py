"""Laws whose sample is an explicit function of a uniform: the inverse of their cdf."""

import abc
import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .._random import exponentials, normals
from .parametric import Parametric
from .quantiles import inner

_LOG_2PI = math.log(2.0 * math.pi)


class Continuous(Parametric):
    """A law with a density."""

    family: ClassVar[str] = "continuous"


class LocationScale(Continuous):
    """``z = loc + scale x``, with x of a standard law that is unimodal at 0.

    Such an x is V y, with V uniform (Khinchine): y, on the side of x and beyond it, is where the
    density has fallen to a fraction V of that at x. So the derivative of the density in the scale
    is the law of y less that of x; that in the loc, the law of a y beyond 0 on the right less one
    on the left, times the density at the mode.
    """

    names: ClassVar[tuple[str, ...]] = ("loc", "scale")
    moved: ClassVar[tuple[int, ...]] = (0, 0, 1)
    spare: ClassVar[int] = 2

    @abc.abstractmethod
    def standard(self, noise: Tensor) -> Tensor:
        """Return standard draws, float64."""

    @abc.abstractmethod
    def log_standard(self, x: Tensor) -> Tensor:
        """Return the standard log-density."""

    @abc.abstractmethod
    def fall(self, x: Tensor, e: Tensor) -> Tensor:
        """Return where, on the side of x, the standard log-density is e less than at x."""

    def raw(self, noise: Tensor) -> Tensor:
        """Return loc + scale x."""
        loc, scale = self.numbers()[-2:]
        return loc + scale * self.standard(noise).to(loc.dtype)

    def log_density(self, raw: Tensor) -> Tensor:
        """Return the log-density, variable by variable."""
        loc, scale = self.numbers(raw.dtype)[-2:]
        return self.log_standard((raw - loc) / scale) - scale.log()

    def raw_moves(self, raw: Tensor, spare: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the moves to the right and left of the mode, and beyond the sample."""
        loc, scale = self.numbers()[-2:]
        first, second = (exponentials(e, loc.dtype) for e in spare.unbind(-1))
        x = (raw - loc) / scale
        zero = torch.zeros_like(x)
        peak = self.log_standard(zero).exp() / scale
        right, left = self.fall(zero, first), self.fall(-zero, first)
        beyond = self.fall(x, second)
        terms = [(peak, right), (-peak, left), ((1.0 / scale).expand_as(x), beyond)]
        return [(weight, loc + scale * y) for weight, y in terms]


def _beyond(x: Tensor, size: Tensor) -> Tensor:
    """Give a size the sign of x, and of its zero."""
    return torch.copysign(size, x)


class Normal(LocationScale):
    """The normal law."""

    def standard(self, noise: Tensor) -> Tensor:
        """Return standard draws, float64."""
        return normals(noise.detach(), torch.float64)

    def log_standard(self, x: Tensor) -> Tensor:
        """Return the standard log-density."""
        return -0.5 * (x.square() + _LOG_2PI)

    def fall(self, x: Tensor, e: Tensor) -> Tensor:
        """Return where the standard log-density is e less than at x."""
        return _beyond(x, torch.hypot(x, (2.0 * e).sqrt()))


class LogNormal(Normal):
    """The exponential of a normal; a raw point is its logarithm."""

    def point(self, raw: Tensor) -> Tensor:
        """Return the exponential."""
        return raw.exp().to(self.dtype)

    def log_density(self, raw: Tensor) -> Tensor:
        """Return the log-density at the exponential of raw points."""
        return super().log_density(raw) - raw


class Logistic(LocationScale):
    """The logistic law."""

    def standard(self, noise: Tensor) -> Tensor:
        """Return standard draws, float64."""
        u = inner(noise)
        return u.log() - torch.log1p(-u)

    def log_standard(self, x: Tensor) -> Tensor:
        """Return the standard log-density."""
        return logsigmoid(x) + logsigmoid(-x)

    def fall(self, x: Tensor, e: Tensor) -> Tensor:
        """Return where the standard log-density is e less than at x."""
        # cosh(y/2) = cosh(x/2) e^{e/2}, in logarithms
        size = x.abs()
        log_cosh = 0.5 * (size + e) + torch.log1p(torch.expm1(-size) / 2.0)
        root = (-torch.expm1(-2.0 * log_cosh)).clamp_min(0.0).sqrt()
        return _beyond(x, 2.0 * (log_cosh + torch.log1p(root)))


class Laplace(LocationScale):
    """The Laplace law."""

    def standard(self, noise: Tensor) -> Tensor:
        """Return standard draws, float64."""
        u = inner(noise)
        return torch.where(u < 0.5, (2.0 * u).log(), -(2.0 * (1.0 - u)).log())

    def log_standard(self, x: Tensor) -> Tensor:
        """Return the standard log-density."""
        return -x.abs() - math.log(2.0)

    def fall(self, x: Tensor, e: Tensor) -> Tensor:
        """Return where the standard log-density is e less than at x."""
        return _beyond(x, x.abs() + e)


class Cauchy(LocationScale):
    """The Cauchy law."""

    def standard(self, noise: Tensor) -> Tensor:
        """Return standard draws, float64."""
        u = inner(noise)
        tail = torch.where(u < 0.5, u, 1.0 - u)  # from the nearer end, where the digits are
        return torch.where(u < 0.5, -1.0, 1.0) / torch.tan(math.pi * tail)

    def log_standard(self, x: Tensor) -> Tensor:
        """Return the standard log-density."""
        return -torch.log1p(x.square()) - math.log(math.pi)

    def fall(self, x: Tensor, e: Tensor) -> Tensor:
        """Return where the standard log-density is e less than at x."""
        root = torch.expm1(e).sqrt()
        return _beyond(x, torch.hypot(x, root * torch.hypot(x, torch.ones_like(x))))


class Gumbel(LocationScale):
    """The Gumbel law of maxima."""

    def standard(self, noise: Tensor) -> Tensor:
        """Return standard draws, float64."""
        return -(-inner(noise).log()).log()

    def log_standard(self, x: Tensor) -> Tensor:
        """Return the standard log-density."""
        return -x - (-x).exp()

    def fall(self, x: Tensor, e: Tensor) -> Tensor:
        """Return where the standard log-density is e less than at x."""
        # y + e^{-y} = h on the side of x: Newton from beyond, on a convex function
        h = x + (-x).exp() + e
        right = ~torch.signbit(x)
        y = torch.where(right, h, -(2.0 * h).log())
        for _ in range(60):  # at the mode itself, where the roots meet, each only halves the error
            gap = y + torch.expm1(-y) + 1.0 - h
            slope = -torch.expm1(-y)
            y = torch.where(slope == 0, y, y - gap / torch.where(slope == 0, 1.0, slope))
        return torch.where(right, torch.maximum(x, y), torch.minimum(x, y))


class Exponential(Continuous):
    """The exponential law."""

    names: ClassVar[tuple[str, ...]] = ("rate",)
    moved: ClassVar[tuple[int, ...]] = (0,)
    spare: ClassVar[int] = 1

    def raw(self, noise: Tensor) -> Tensor:
        """Return -log(1 - u) / rate."""
        (rate,) = self.numbers()
        return exponentials(noise.detach(), rate.dtype) / rate

    def log_density(self, raw: Tensor) -> Tensor:
        """Return the log-density, variable by variable."""
        (rate,) = self.numbers(raw.dtype)
        return rate.log() - rate * raw

    def raw_moves(self, raw: Tensor, spare: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the move to Gamma(2, rate), the sample and another one."""
        (rate,) = self.numbers()
        return [((-1.0 / rate).expand_as(raw), raw + self.raw(spare[..., 0]))]


class Uniform(Continuous):
    """The uniform law on an interval."""

    names: ClassVar[tuple[str, ...]] = ("low", "high")
    moved: ClassVar[tuple[int, ...]] = (0, 1)
    without_score: ClassVar[str] = "the ends of its support are its parameters"

    def raw(self, noise: Tensor) -> Tensor:
        """Return low + (high - low) u."""
        low, high = self.numbers()
        u = noise.detach().to(low.dtype)
        return low + (high - low) * u

    def log_density(self, raw: Tensor) -> Tensor:
        """Return the log-density, variable by variable."""
        low, high = self.numbers(raw.dtype)
        inside = (raw >= low) & (raw <= high)
        return torch.where(inside, -(high - low).log(), -torch.inf)

    def raw_moves(self, raw: Tensor, spare: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the moves to the ends."""
        low, high = (x.expand_as(raw) for x in self.numbers())
        density = 1.0 / (high - low)
        return [(-density, low), (density, high)]
