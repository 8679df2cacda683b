"""One bit and a quadratic f: the numbers of the page on how it works, from the library."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import gradthrough as gt

TARGET = 0.3
Objective = Callable[[Tensor], Tensor]


def f(z: Tensor) -> Tensor:
    """Return the distance of a bit from 0.3, squared."""
    return (z - TARGET).square()


class Segment(NamedTuple):
    """f between the corner that was drawn, 0, and the other one, 1."""

    drawn: float  # f(0)
    other: float  # f(1)
    slope_drawn: float  # f'(0)
    slope_other: float  # f'(1)

    @property
    def exact(self) -> float:
        """The difference: the integral of f' from one corner to the other."""
        return self.other - self.drawn

    @property
    def euler(self) -> float:
        """What the slope at the corner drawn makes of it."""
        return self.slope_drawn

    @property
    def heun(self) -> float:
        """What the mean of the slopes at both ends makes of it."""
        return (self.slope_drawn + self.slope_other) / 2


def segment() -> Segment:
    """Return f and its slope at both corners."""
    z = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    values = f(z)
    (slopes,) = torch.autograd.grad(values.sum(), z)
    return Segment(*values.tolist(), *slopes.tolist())


class Moments(NamedTuple):
    """Of a gradient in the logit."""

    mean: float
    variance: float


def moments(
    estimator: gt.AbstractEstimator, p: float, objective: Objective = f, nodes: int = 2000
) -> Moments:
    """Return mean and variance of the gradient in the logit of a bit that is 1 with probability p.

    Sums over both draws, or, for the noise of Gumbel-Softmax, means over quantiles of it.
    """
    logit = torch.tensor(p, dtype=torch.float64).logit()
    if estimator.traits.noise == "class":
        u = (torch.arange(nodes, dtype=torch.float64) + 0.5) / nodes
        # What counts is the difference of the two Gumbels, a logistic: let the second one be 9.
        pair = torch.stack((u.logit() + 9.0, torch.full_like(u, 9.0)), -1)
        noise = -torch.expm1(-torch.exp(-pair))
        weights = torch.full_like(u, 1.0 / nodes)
    else:
        q = gt.Bernoulli(logit)
        noise = q.noise_for(q.support())
        weights = q.log_prob(q.support()).exp()
    logits = logit.expand(len(weights)).clone().requires_grad_()
    value = gt.expect(objective, gt.Bernoulli(logits), estimator, noise=noise.unsqueeze(0))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    mean = (weights * gradient).sum()
    return Moments(mean.item(), (weights * (gradient - mean).square()).sum().item())


def exact_gradient(p: float) -> float:
    """Return the derivative of E f in the logit of a bit that is 1 with probability p."""
    logit = torch.tensor(p, dtype=torch.float64).logit().requires_grad_()
    value = gt.expect(f, gt.Bernoulli(logit), gt.Enumerate())
    return torch.autograd.grad(value, logit)[0].item()


TAUS = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02)


def temperatures(p: float = 0.4, nodes: int = 100_000) -> str:
    """Return a table of straight-through Gumbel-Softmax at several temperatures, and ReinMax."""
    rows = [("estimator", "mean gradient", "variance", "tau x variance")]
    rows += [("---", "---:", "---:", "---:")]
    for tau in TAUS:
        mean, variance = moments(gt.StraightThroughGumbelSoftmax(tau), p, nodes=nodes)
        rows.append(
            (f"`stgs`, tau = {tau:g}", f"{mean:.4f}", f"{variance:.3f}", f"{tau * variance:.3f}")
        )
    mean, variance = moments(gt.ReinMax(), p)
    rows.append(("`reinmax`, tau = 1", f"{mean:.4f}", f"{variance:.3f}", ""))
    rows.append(("exact", f"{exact_gradient(p):.4f}", "0", ""))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
