"""A linear f of one variable: gradients in logit 0, and their variance without a draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...estimators import AbstractEstimator
from ...expect import expect
from ...laws.categorical import Categorical
from ..seeds import Seeds
from .quadrature import forms

CLASSES = 8


def uniform_rewards(seeds: Seeds, count: int) -> Tensor:
    """Return r ~ U(0, 1), (count, 8)."""
    generator = torch.Generator().manual_seed(seeds.of("rewards", count))
    return torch.rand(count, CLASSES, generator=generator, dtype=torch.float64)


def gradients(
    estimator: AbstractEstimator,
    rewards: Tensor,
    *,
    logits: Tensor | None = None,
    samples: int = 1,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Return gradients of ``E r^T z`` in logit 0, (...), one for each row of rewards (..., C).

    Args:
        estimator: any that serves a categorical.
        rewards: r, (..., C).
        logits: (C,), the same for all rows; None: 0.
        samples: N.
        generator: source of the noise.
        noise: the noise itself instead.
    """
    flat = rewards.new_zeros(()) if logits is None else logits
    leaf = flat.expand(rewards.shape).clone().requires_grad_()
    value = expect(
        lambda z: (z * rewards).sum(-1), leaf, estimator,
        samples=samples, generator=generator, noise=noise,
    )  # fmt: skip
    (found,) = torch.autograd.grad(value.sum(), leaf)
    return found[..., 0]


class Exact(NamedTuple):
    """Moments of a gradient, (...)."""

    mean: Tensor
    one: Tensor  # variance of a sample, or of what a sample does to a pair
    pair: Tensor | None = None  # variance of a pair, where the estimator is the mean over pairs

    def variance(self, samples: int) -> Tensor:
        """Return the variance of an estimate from N samples, of a U-statistic for pairs."""
        if self.pair is None:
            return self.one / samples
        whole = 2.0 * (samples - 2) * self.one + self.pair
        return 2.0 * whole / (samples * (samples - 1))


def exact(estimator: AbstractEstimator, rewards: Tensor) -> Exact:
    """Return the moments for rewards (..., 8) and logits 0, by summing or integrating the noise.

    Noise of one variable is a sum over the draws of one sample; for estimators that compare two,
    over the pairs. Gumbels are integrated.
    """
    if estimator.traits.noise == "class":
        tau: float = getattr(estimator, "tau")  # noqa: B009 - those with such noise have one
        return Exact(*forms(rewards.new_zeros(CLASSES), tau).moments(rewards))
    q = Categorical(rewards.new_zeros(CLASSES))
    each = q.noise_for(q.support())
    wide = rewards.unsqueeze(-2)
    if estimator.traits.min_samples == 1:
        rows = wide.expand(*rewards.shape[:-1], CLASSES, CLASSES)
        found = gradients(estimator, rows, noise=each.expand(1, *rows.shape[:-1]))
        return Exact(found.mean(-1), found.var(-1, correction=0))
    rows = wide.unsqueeze(-2).expand(*rewards.shape[:-1], CLASSES, CLASSES, CLASSES)
    first = each.unsqueeze(-1).expand(rows.shape[:-1])
    pairs = gradients(estimator, rows, samples=2, noise=torch.stack((first, first.mT)))
    both = pairs.flatten(-2)
    one = pairs.mean(-1).var(-1, correction=0)
    return Exact(both.mean(-1), one, both.var(-1, correction=0))


def spread(x: Tensor) -> tuple[float, float]:
    """Return the variance of numbers (n,), and its standard error."""
    apart = (x - x.mean()).square()
    return x.var().item(), (apart.var() / len(x)).sqrt().item()


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope of log y over log x, by least squares.

    Example:
        >>> from gradthrough.bench.figures.linear import slope
        >>> round(slope([(1, 8.0), (2, 4.0), (8, 1.0)]), 6)
        -1.0
    """
    x, y = torch.tensor(points, dtype=torch.float64).log().unbind(-1)
    x = x - x.mean()
    return ((x * y).sum() / x.square().sum()).item()
