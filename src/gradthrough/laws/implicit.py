"""Laws made from gammas, whose sample depends on a shape that no formula solves for."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from .._random import exponentials, normals
from .continuous import Continuous
from .quantiles import log_gamma_quantile


class Gamma(Continuous):
    """The gamma law; a raw point is its logarithm, float64."""

    names: ClassVar[tuple[str, ...]] = ("concentration", "rate")
    moved: ClassVar[tuple[int, ...]] = (1,)
    spare: ClassVar[int] = 1

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
        """Return the move to a concentration that is 1 more."""
        concentration, rate = self.numbers(torch.float64)
        more = exponentials(spare[..., 0], torch.float64).log() - rate.log()
        weight = (-concentration / rate).expand_as(raw)
        return [(weight, torch.logaddexp(raw, more))]


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

    def raw(self, noise: Tensor) -> Tensor:
        """Return the logarithms of two gammas over their sum, (..., 2)."""
        concentration = torch.stack(self.numbers(torch.float64), -1)
        return log_gamma_quantile(concentration, noise).log_softmax(-1)

    def point(self, raw: Tensor) -> Tensor:
        """Return z, inside of (0, 1)."""
        z = _positive(raw[..., 0].exp().to(self.dtype))
        return z.clamp_max(1.0 - torch.finfo(self.dtype).eps / 2)

    def log_density(self, raw: Tensor) -> Tensor:
        """Return the log-density at z."""
        a, b = self.numbers(raw.dtype)
        log_norm = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
        return (a - 1.0) * raw[..., 0] + (b - 1.0) * raw[..., 1] - log_norm


class StudentT(Continuous):
    """Student's t: a normal over the root of a gamma."""

    names: ClassVar[tuple[str, ...]] = ("df", "loc", "scale")
    uniforms: ClassVar[int] = 2
    moved: ClassVar[tuple[int, ...]] = (1, 1, 2)
    spare: ClassVar[int] = 2

    def raw(self, noise: Tensor) -> Tensor:
        """Return loc + scale x (nu / 2G)^{1/2}, G of Gamma(nu / 2, 1)."""
        df, loc, scale = self.numbers(torch.float64)
        x = normals(noise[..., 0].detach(), torch.float64)
        log_g = log_gamma_quantile(df / 2.0, noise[..., 1])
        return loc + scale * (x * (0.5 * ((df / 2.0).log() - log_g)).exp())

    def log_density(self, raw: Tensor) -> Tensor:
        """Return the log-density, variable by variable."""
        df, loc, scale = self.numbers(raw.dtype)
        return _log_student((raw - loc) / scale, df) - scale.log()

    def raw_moves(self, raw: Tensor, spare: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the moves to the right and left of the mode, and beyond the sample."""
        df, loc, scale = self.numbers(torch.float64)
        e, other = exponentials(spare, torch.float64).unbind(-1)
        x = (raw - loc) / scale
        peak = _log_student(torch.zeros_like(x), df).exp() / scale
        mode, beyond = _student_fall(torch.zeros_like(x), e, df), _student_fall(x, other, df)
        terms = [(peak, mode), (-peak, -mode), ((1.0 / scale).expand_as(x), beyond)]
        return [(weight, loc + scale * y) for weight, y in terms]


def _log_student(x: Tensor, df: Tensor) -> Tensor:
    half = (df + 1.0) / 2.0
    log_norm = torch.lgamma(half) - torch.lgamma(df / 2.0) - 0.5 * (math.pi * df).log()
    return log_norm - half * torch.log1p(x.square() / df)


def _student_fall(x: Tensor, e: Tensor, df: Tensor) -> Tensor:
    """Return where, on the side of x, the log-density is e less than at x."""
    root = torch.expm1(2.0 * e / (df + 1.0)).sqrt()
    return torch.copysign(torch.hypot(x, root * torch.hypot(x, df.sqrt())), x)
