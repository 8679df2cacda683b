r"""Exact moments of the gradient of Gumbel-Softmax for a linear f, by quadrature.

With ``f(z) = r^T z`` the gradient in logit 0 is ``S_0 (r_0 - r^T S) / tau``, hard or soft: the
slope of f is r everywhere. With weights ``w_i = exp((theta_i + G_i) / tau)``, S is w over its sum
W, and

``E w^a / W^k = 1 / Gamma(k) int_0^inf s^(k-1) E[w^a exp(-s W)] ds``,

where the classes are independent: one-dimensional integrals, and products of them.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

from ...estimators import AbstractEstimator
from ...expect import expect
from ...laws.bernoulli import Bernoulli


class Forms(NamedTuple):
    """Mean and second moment of the gradient in logit 0, for every r at once.

    With ``d = r_0 - r`` they are ``mean . d`` and ``d . square d``.
    """

    mean: Tensor  # (C,)
    square: Tensor  # (C, C)

    def moments(self, rewards: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of one sample, (...), for r (..., C)."""
        d = rewards[..., :1] - rewards
        mean = d @ self.mean
        return mean, ((d @ self.square) * d).sum(-1) - mean.square()


def forms(logits: Tensor, tau: float, nodes: int = 400) -> Forms:
    r"""Return the forms of the gradient at a temperature.

    Where ``s w_i = e^y``, the Gumbel of class i is ``tau y - u`` with ``u = theta_i + tau log s``,
    so that all integrals are of smooth functions of y and u however small tau is.

    Args:
        logits: (C,), float64.
        tau: > 0.
        nodes: of each of the two integrals.
    """
    y = torch.linspace(-45.0, 5.0, nodes, dtype=torch.float64)
    u = torch.linspace(-25.0 * max(tau, 1.0), 6.0 * (1.0 + tau), nodes, dtype=torch.float64)
    steps = float(y[1] - y[0]), float(u[1] - u[0])
    different, which = cast("tuple[Tensor, Tensor]", torch.unique(logits, return_inverse=True))
    x = tau * y - u.unsqueeze(-1) - different.reshape(-1, 1, 1)  # the Gumbels, (C, u, y)
    below = (-(-x).exp()).exp()
    density = (-x - (-x).exp()).exp()
    # E exp(-s w), and E (s w)^a exp(-s w) / tau, (C, u)
    none = (below @ (y - y.exp()).exp() * steps[0])[which]
    once, twice = ((density @ (a * y - y.exp()).exp() * steps[0])[which] for a in (1.0, 2.0))
    count = len(logits)
    mean, square = logits.new_zeros(count), logits.new_zeros(count, count)
    for j in range(1, count):
        mean[j] = (once[0] * once[j] * _others(none, 0, j)).sum() * steps[1]
        square[j, j] = (twice[0] * twice[j] * _others(none, 0, j)).sum() * steps[1] / tau
        for k in range(1, j):
            product = twice[0] * once[j] * once[k] * _others(none, 0, j, k)
            square[j, k] = square[k, j] = product.sum() * steps[1]
    return Forms(mean, square / 6.0)


def _others(none: Tensor, *which: int) -> Tensor:
    kept = [i for i in range(len(none)) if i not in which]
    return none[kept].prod(0)


def binary_moments(
    estimator: AbstractEstimator, logit: float, tau: float, nodes: int = 4_001
) -> tuple[float, float]:
    """Return mean and variance of the gradient that an estimator sends to the logit of one bit.

    f is the bit itself, and the estimator one whose noise are two Gumbels. It is given pairs whose
    difference L is ``tau x - logit``, x from -40 to 40: beyond, its gradient is nothing.

    Args:
        estimator: of temperature tau.
        logit: of the bit.
        tau: > 0.
        nodes: of the integral over x.
    """
    x = torch.linspace(-40.0, 40.0, nodes, dtype=torch.float64)
    difference = tau * x - logit
    weights = torch.sigmoid(difference) * torch.sigmoid(-difference) * tau * float(x[1] - x[0])
    # Only the difference counts: the smaller Gumbel is 2, where uniforms have all their digits.
    pair = 2.0 + torch.stack((difference, -difference), -1).clamp_min(0.0)
    noise = -torch.expm1(-torch.exp(-pair))
    logits = torch.full_like(x, logit, requires_grad=True)
    value = expect(lambda z: z, Bernoulli(logits), estimator, noise=noise.unsqueeze(0))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    mean = float((weights * gradient).sum())
    return mean, float((weights * gradient.square()).sum()) - mean**2
