"""The variance of a gradient, told apart into that of the draws and that of the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from ..estimators import AbstractEstimator
from .problem import AbstractProblem


class Variances(TypedDict):
    """The two parts of the variance of a gradient."""

    minibatch_variance: float
    sampling_variance: float


def over_batches(
    problems: Sequence[AbstractProblem],
    estimator: AbstractEstimator,
    samples: int,
    replicates: int,
    generator: torch.Generator,
) -> Variances:
    r"""Return ``tr Var E[g | batch]`` and ``E tr Var[g | batch]``, neither with a bias.

    Args:
        problems: one for each batch, at least 2.
        estimator: of the gradient g.
        samples: of each estimate.
        replicates: estimates in all; each batch gets the same share, at least 2.
        generator: of the draws.
    """
    n = max(2, replicates // len(problems))
    within, means = 0.0, list[Tensor]()
    for problem in problems:
        first = problem.gradients(estimator, samples, 1, generator)[0].double()
        total, squares = torch.zeros_like(first), 0.0
        for _ in range(n):
            away = problem.gradients(estimator, samples, 1, generator)[0].double() - first
            total += away
            squares += float(away.square().sum())
        within += (squares - float(total.square().sum()) / n) / (n - 1) / len(problems)
        means.append(first + total / n)
    between = float(torch.stack(means).var(0).sum()) - within / n
    return Variances(minibatch_variance=max(between, 0.0), sampling_variance=within)
