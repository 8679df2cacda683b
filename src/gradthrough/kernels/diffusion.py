"""A short diffusion whose denoiser is known: the posterior of a one-hot point in Gaussian noise.

x_t = alpha_t D + sigma_t eps with D ~ softmax(theta) and eps normal with diagonal variance, so the
posterior of D given x_t is a softmax of theta and what each x_t says for its own class.
"""

from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from .softmax import centre, normalise

LEAST_NOISE = 1e-6  # of the last step; below, the logits drown in the rounding of x / sigma^2
_LEAST_SIGNAL = 1e-4  # alpha at the noisiest step
_LEAST_VARIANCE = 0.1


class Matched(NamedTuple):
    """Mean and variance, class by class, of noise that is matched to the sample."""

    mean: Tensor
    variance: Tensor


def levels(steps: int, t1: float) -> list[tuple[float, float]]:
    """Return (alpha_t, sigma_t) for t = 1 to steps - 1: sigma evenly from t1 to 1 - 1e-4."""
    last, spans = 1.0 - _LEAST_SIGNAL, max(steps - 2, 1)
    sigmas = [t1 + (last - t1) * i / spans for i in range(steps - 1)]
    return [(1.0 - sigma, sigma) for sigma in sigmas]


def softmax(x: Tensor) -> Tensor:
    """Return the softmax of rows that need not be centred."""
    return normalise(centre(x))[0]


def evidence(x: Tensor, alpha: float, sigma: float, matched: Matched | None) -> Tensor:
    """Return what x_t adds to the logits of its class, up to a constant of the row."""
    if matched is None:
        return x * (alpha / sigma**2)
    gain = alpha * (x - sigma * matched.mean) - 0.5 * alpha**2
    return gain / (matched.variance * sigma**2)


def diffuse(theta: Tensor, eps: Tensor, steps: int, t1: float, covariance: bool) -> Tensor:
    """Return the shift such that the last denoiser is softmax(theta + shift), with its graph.

    Args:
        theta: logits whose rows have maximum 0.
        eps: standard normal draws of that shape.
        steps: number of levels, the clean one among them.
        t1: sigma of the last step.
        covariance: give the noise the mean and the variance of the sample.
    """
    x, matched = eps, None
    if covariance:
        pi = normalise(theta)[0]
        matched = Matched(pi, (pi * (1.0 - pi)).clamp_min(_LEAST_VARIANCE))
        x = pi + matched.variance.sqrt() * eps
    schedule = levels(steps, t1)
    for (alpha, sigma), (next_alpha, next_sigma) in pairwise(reversed(schedule)):
        clean = softmax(theta + evidence(x, alpha, sigma, matched))
        x = next_alpha * clean + (next_sigma / sigma) * (x - alpha * clean)
    return evidence(x, *schedule[0], matched)
