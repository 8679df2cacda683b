"""Laws made from gammas, whose sample depends on a shape that no formula solves for."""

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .._random import exponentials, normals
from .continuous import Continuous
from .gamma_quantile import log_gamma_quantile
from .quantiles import inner

_FAR = 340.0  # log |z|: the square of z still has room in float64


class Gamma(Continuous):
    """The gamma law; a raw point is its logarithm, float64."""

    names: ClassVar[tuple[str, ...]] = ("concentration", "rate")
    moved: ClassVar[tuple[int, ...]] = (0, 1)
    spare: ClassVar[int] = 2

    def raw(self, noise: Tensor) -> Tensor:
        """Return the logarithm of a quantile."""
        concentration, rate = self.numbers(torch.float64)
        return log_gamma_quantile(concentration, noise) - rate.log()

    def point(self, raw: Tensor) -> Tensor:
        """Return the exponential, above 0."""
        return _positive(raw.exp().to(self.dtype))

    def log_density(self, raw: Tensor) -> Tensor:
        """Return the log-density at the exponential of raw points."""
        a, rate = self.numbers(raw.dtype)
        return a * rate.log() + (a - 1.0) * raw - rate * raw.exp() - torch.lgamma(a)

    def raw_moves(self, raw: Tensor, spare: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the moves by a jump of the gamma process, and to a concentration 1 more."""
        concentration, rate = self.numbers(torch.float64)
        jump, rarity = _jump(spare[..., 0])
        more = exponentials(spare[..., 1], torch.float64).log()
        weight = (-concentration / rate).expand_as(raw)
        log_rate = rate.log()
        terms = [(rarity.expand_as(raw), jump), (weight, more)]
        return [(w, torch.logaddexp(raw, log_size - log_rate)) for w, log_size in terms]


def _jump(noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithm of a jump x, and a weight w with E w h(x) = int e^{-x}/x h(x) dx.

    That is the derivative of E h(G) in the concentration of G, h(x) = f(G + x) - f(G): as its
    concentration rises, a gamma jumps so. There are infinitely many small jumps, so x is of
    Gamma(1/2, 1), with which a jump of f, too, has a finite variance.
    """
    root = torch.erfinv(inner(noise))
    return 2.0 * root.log(), math.pi**0.5 / root


def _positive(z: Tensor) -> Tensor:
    """Keep points off 0, as torch does: at the least normal number its derivative is 0."""
    return z.clamp_min(torch.finfo(z.dtype).tiny)


class Dirichlet(Continuous):
    r"""The Dirichlet law over points (..., K); a raw point is their logarithm, float64."""

    names: ClassVar[tuple[str, ...]] = ("concentration",)
    point_dims: ClassVar[int] = 1

    @property
    def _each(self) -> int:
        return self._parameters[0].shape[-1]

    def noise_shape(self, kind: object) -> tuple[int, ...]:
        """Return the shape of the uniforms: one for each entry of a point."""
        return tuple(self._parameters[0].shape)

    def moves_noise_shape(self) -> tuple[int, ...]:
        """Return the shape of the uniforms of a sample: there are no moves."""
        return self.noise_shape("variable")

    def raw(self, noise: Tensor) -> Tensor:
        """Return the logarithms of gammas over their sum."""
        (concentration,) = self.numbers(torch.float64)
        return log_gamma_quantile(concentration, noise).log_softmax(-1)

    def point(self, raw: Tensor) -> Tensor:
        """Return the exponential, above 0."""
        return _positive(raw.exp().to(self.dtype))

    def log_density(self, raw: Tensor) -> Tensor:
        """Return the log-density at the exponential of raw points."""
        (a,) = self.numbers(raw.dtype)
        return ((a - 1.0) * raw).sum(-1) + torch.lgamma(a.sum(-1)) - torch.lgamma(a).sum(-1)


class Beta(Continuous):
    """The beta law; a raw point is the pair of logarithms of z and 1 - z, float64."""

    names: ClassVar[tuple[str, ...]] = ("concentration1", "concentration0")
    uniforms: ClassVar[int] = 2
    moved: ClassVar[tuple[int, ...]] = (0, 1)
    spare: ClassVar[int] = 3

    def raw(self, noise: Tensor) -> Tensor:
        """Return the logarithms of two gammas over their sum, (..., 2)."""
        concentration = torch.stack(self.numbers(torch.float64), -1)
        first, second = log_gamma_quantile(concentration, noise).unbind(-1)
        odds = first - second
        # Not a softmax: its slope, 1 - z, is a difference, which has no digits near 1.
        return torch.stack((logsigmoid(odds), logsigmoid(-odds)), -1)

    def point(self, raw: Tensor) -> Tensor:
        """Return z, inside of (0, 1)."""
        z = _positive(raw[..., 0].exp().to(self.dtype))
        return z.clamp_max(1.0 - torch.finfo(self.dtype).eps / 2)

    def log_density(self, raw: Tensor) -> Tensor:
        """Return the log-density at z."""
        a, b = self.numbers(raw.dtype)
        log_norm = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
        return (a - 1.0) * raw[..., 0] + (b - 1.0) * raw[..., 1] - log_norm

    def raw_moves(self, raw: Tensor, spare: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the moves by a jump of one of the two gammas."""
        # Their sum, of which z is a share, does not depend on z.
        a, b = self.numbers(torch.float64)
        log_sum = log_gamma_quantile(a + b, spare[..., 0])
        terms: list[tuple[Tensor, Tensor]] = []
        for side in (0, 1):
            log_size, rarity = _jump(spare[..., 1 + side])
            parts = list(raw.unbind(-1))
            parts[side] = torch.logaddexp(parts[side], log_size - log_sum)
            terms.append((rarity, torch.stack(parts, -1).log_softmax(-1)))
        return terms


class StudentT(Continuous):
    """Student's t: a normal over the root of a gamma; a raw point is z and log |z|, float64.

    With few degrees of freedom z has no room in float64: there it is cut off, and the logarithm
    goes on.
    """

    names: ClassVar[tuple[str, ...]] = ("df", "loc", "scale")
    uniforms: ClassVar[int] = 2
    moved: ClassVar[tuple[int, ...]] = (1, 1, 2)
    spare: ClassVar[int] = 2

    def raw(self, noise: Tensor) -> Tensor:
        """Return loc + scale x (nu / 2G)^{1/2}, G of Gamma(nu / 2, 1), and its logarithm."""
        df, loc, scale = self.numbers(torch.float64)
        x = normals(noise[..., 0].detach(), torch.float64)
        stretch = 0.5 * ((df / 2.0).log() - log_gamma_quantile(df / 2.0, noise[..., 1]))
        z = loc + scale * (x * stretch.clamp_max(_FAR).exp())
        log_size = (scale * x).detach().abs().log() + stretch.detach()
        return torch.stack((z, torch.where(stretch < _FAR, z.detach().abs().log(), log_size)), -1)

    def point(self, raw: Tensor) -> Tensor:
        """Return z, finite."""
        most = torch.finfo(self.dtype).max
        return raw[..., 0].clamp(-most, most).to(self.dtype)

    def log_density(self, raw: Tensor) -> Tensor:
        """Return the log-density, variable by variable."""
        df, loc, scale = self.numbers(raw.dtype)
        far = raw[..., 1] > _FAR / 2.0  # where loc is nothing beside z
        x = (torch.where(far, 0.0, raw[..., 0]) - loc) / scale
        log_square = 2.0 * (raw[..., 1] - scale.log()) - df.log()
        growth = torch.where(far, log_square, torch.log1p(x.square() / df))
        return _log_peak(df) - (df + 1.0) / 2.0 * growth - scale.log()

    def raw_moves(self, raw: Tensor, spare: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the moves to the right and left of the mode, and beyond the sample."""
        df, loc, scale = self.numbers(torch.float64)
        e, other = exponentials(spare, torch.float64).unbind(-1)
        x = (raw[..., 0] - loc) / scale
        peak = _log_peak(df).exp().expand_as(x) / scale
        mode, beyond = _student_fall(torch.zeros_like(x), e, df), _student_fall(x, other, df)
        terms = [(peak, mode), (-peak, -mode), ((1.0 / scale).expand_as(x), beyond)]
        return [(weight, (loc + scale * y).unsqueeze(-1)) for weight, y in terms]


def _log_peak(df: Tensor) -> Tensor:
    half = torch.lgamma((df + 1.0) / 2.0) - torch.lgamma(df / 2.0)
    return half - 0.5 * (math.pi * df).log()


def _student_fall(x: Tensor, e: Tensor, df: Tensor) -> Tensor:
    """Return where, on the side of x, the log-density is e less than at x."""
    root = torch.expm1(2.0 * e / (df + 1.0)).sqrt()
    return torch.copysign(torch.hypot(x, root * torch.hypot(x, df.sqrt())), x)
