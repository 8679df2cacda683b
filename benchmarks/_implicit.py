"""Errors of derivatives in a concentration, against implicit reparameterisation with 50 digits."""

from collections.abc import Callable
from typing import Any, cast

import mpmath
import torch
import torch.distributions as td
from torch import Tensor

import gradthrough as gt
from gradthrough.laws.gamma_quantile import log_gamma_quantile

POINTS = 200  # at which derivatives are compared
mp: Any = mpmath


def _implicit(cdf: Callable[[Any], Any], a: float, density: Any) -> Any:  # noqa: ANN401
    h = mp.mpf(10) ** -16  # the error of the quotient is of the order of h squared
    return -(cdf(a + h) - cdf(a - h)) / (2 * h) / density


def gamma_slope(a: float, log_z: float) -> Any:  # noqa: ANN401 - a number of mpmath
    """Return d log z / da of the quantile z of Gamma(a, 1)."""
    a, z = mp.mpf(a), mp.exp(mp.mpf(log_z))
    density = mp.exp(a * mp.log(z) - z - mp.loggamma(a))
    return _implicit(lambda x: mp.gammainc(x, 0, z, regularized=True), a, density)


def beta_slope(a: float, b: float, z: float) -> Any:  # noqa: ANN401
    """Return dz/da of the quantile z of Beta(a, b)."""
    a, b, z = mp.mpf(a), mp.mpf(b), mp.mpf(z)
    density = z ** (a - 1) * (1 - z) ** (b - 1) / mp.beta(a, b)
    return _implicit(lambda x: mp.betainc(x, b, 0, z, regularized=True), a, density)


def errors(entries: int, points: int = POINTS) -> tuple[float, float]:
    """Return our largest error and torch's for Gamma (1 entry), Beta (2), Dirichlet (more)."""
    c = torch.randn(points, entries, dtype=torch.float64).exp().clamp(0.3, 30.0).requires_grad_()
    if entries == 1:
        law: Any = td.Gamma(c, torch.ones_like(c))
    else:
        law = td.Beta(c[:, 0], c[:, 1]) if entries == 2 else td.Dirichlet(c)
    ours, one = cast(Any, gt.as_distribution(law).expand(1)), gt.Pathwise()
    noise = one.noise(ours)
    logs = log_gamma_quantile(c.detach(), noise.reshape(c.shape)).tolist()
    samples = (one.draw(ours, noise).points[0], law.rsample())
    found = [_first_slopes(z, c) for z in samples]
    plain = samples[1].detach().reshape(points, -1)[:, 0].tolist()
    worst = [0.0, 0.0]
    with mp.workdps(50):
        for i, (each, log_z) in enumerate(zip(c.tolist(), logs, strict=True)):
            sizes = [mp.exp(mp.mpf(x)) for x in log_z]
            rest = sum(sizes[1:]) / sum(sizes) if entries > 1 else 1
            share = sizes[0] / sum(sizes) if entries > 1 else sizes[0]
            direct = share * rest * gamma_slope(each[0], log_z[0])  # of what is made from gammas
            torchs = (
                plain[i] * gamma_slope(each[0], mp.log(plain[i]))
                if entries == 1
                else beta_slope(each[0], sum(each[1:]), plain[i])
            )
            for side, want in enumerate((direct, torchs)):
                worst[side] = max(worst[side], float(abs(found[side][i] / want - 1)))
    return worst[0], worst[1]


def _first_slopes(z: Tensor, c: Tensor) -> list[float]:
    first = z if z.ndim == 1 else z[:, 0]
    return torch.autograd.grad(first.sum(), c)[0][:, 0].tolist()
