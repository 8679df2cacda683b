"""Laws of torch with closed answers, and uniforms that integrate over their noise.

What is right comes from torch's own means and variances, from SciPy, or from quadrature.
"""

from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.distributions as td
from scipy import stats
from torch import Tensor

import gradthrough as gt

F64 = torch.float64


class Case(NamedTuple):
    """A law, where it is taken, and its cdf by SciPy (of one coordinate)."""

    kind: type
    parameters: dict[str, float | list[float]]
    cdf: object = None

    def leaves(self, dtype=F64):
        return {
            n: torch.tensor(x, dtype=dtype, requires_grad=True) for n, x in self.parameters.items()
        }

    def at(self, leaves):
        return self.kind(**leaves)


def lazily(name):
    """A class of gt.distributions, which is loaded when it is asked for."""
    return lambda **parameters: getattr(gt.distributions, name)(**parameters)


EXPLICIT = {
    "normal": Case(td.Normal, {"loc": 0.4, "scale": 1.3}, stats.norm(0.4, 1.3).cdf),
    "lognormal": Case(
        td.LogNormal, {"loc": 0.2, "scale": 0.4}, stats.lognorm(0.4, scale=np.exp(0.2)).cdf
    ),
    "logistic": Case(
        lazily("Logistic"), {"loc": -0.3, "scale": 0.7}, stats.logistic(-0.3, 0.7).cdf
    ),
    "laplace": Case(td.Laplace, {"loc": 0.5, "scale": 0.8}, stats.laplace(0.5, 0.8).cdf),
    "gumbel": Case(td.Gumbel, {"loc": -0.2, "scale": 0.6}, stats.gumbel_r(-0.2, 0.6).cdf),
    "cauchy": Case(td.Cauchy, {"loc": 0.1, "scale": 0.9}, stats.cauchy(0.1, 0.9).cdf),
    "exponential": Case(td.Exponential, {"rate": 1.7}, stats.expon(scale=1 / 1.7).cdf),
    "uniform": Case(td.Uniform, {"low": -0.4, "high": 1.1}, stats.uniform(-0.4, 1.5).cdf),
    "gamma": Case(
        td.Gamma, {"concentration": 1.6, "rate": 1.9}, stats.gamma(1.6, scale=1 / 1.9).cdf
    ),
    "gamma small": Case(
        td.Gamma, {"concentration": 0.3, "rate": 0.8}, stats.gamma(0.3, scale=1 / 0.8).cdf
    ),
    "gamma large": Case(
        td.Gamma, {"concentration": 300.0, "rate": 90.0}, stats.gamma(300.0, scale=1 / 90.0).cdf
    ),
    "chi2": Case(td.Chi2, {"df": 5.0}, stats.chi2(5.0).cdf),
}
# More than one uniform for each variable.
IMPLICIT = {
    "beta": Case(td.Beta, {"concentration1": 1.4, "concentration0": 2.2}),
    "dirichlet": Case(td.Dirichlet, {"concentration": [1.1, 0.8, 2.0]}),
    "student": Case(td.StudentT, {"df": 9.0, "loc": 0.3, "scale": 1.2}),
}
CONTINUOUS = EXPLICIT | IMPLICIT
COUNTS = {
    "poisson": Case(td.Poisson, {"rate": 2.6}),
    "poisson small": Case(td.Poisson, {"rate": 0.05}),
    "geometric": Case(td.Geometric, {"probs": 0.35}),
    "geometric logits": Case(td.Geometric, {"logits": 0.8}),
    "binomial": Case(lambda **p: td.Binomial(6, **p), {"probs": 0.3}),
    "binomial logits": Case(lambda **p: td.Binomial(5, **p), {"logits": -0.4}),
}
EVERY = CONTINUOUS | COUNTS


def each(cases):
    """Run a test for each case of a table."""
    return pytest.mark.parametrize("case", cases.values(), ids=list(cases))


def having(cases, *names):
    """Those of a table but the ones named."""
    return {n: case for n, case in cases.items() if n not in names}


def uniforms(nodes, dims=1, middle=0.5):
    """Uniforms (nodes ** dims, dims) and weights: Gauss-Legendre in t, u = Phi(t), in two parts."""
    x, w = np.polynomial.legendre.leggauss(nodes // 2)
    split, end = float(torch.special.ndtri(torch.tensor(middle, dtype=F64))), 8.16
    left, right = (split + end) / 2.0, (end - split) / 2.0
    t = torch.as_tensor(np.concatenate((split + left * (x - 1.0), split + right * (x + 1.0))))
    weight = torch.as_tensor(np.concatenate((left * w, right * w)))
    weight = weight * (-0.5 * t.square()).exp() / (2.0 * np.pi) ** 0.5
    u = torch.special.ndtr(t)
    grid = torch.stack(torch.meshgrid(*[u] * dims, indexing="ij"), -1).reshape(-1, dims)
    weights = torch.stack(torch.meshgrid(*[weight] * dims, indexing="ij"), -1).reshape(-1, dims)
    return grid, weights.prod(-1)


def rows(q, count):
    """The law with so many equal rows."""
    return q.expand((count,))


def law_of(q):
    return gt.as_distribution(q)


def moments(q):
    """E of z + z^2, coordinate by coordinate, by torch."""
    return q.mean + q.mean.square() + q.variance


def second(z: Tensor) -> Tensor:
    """f = z + z^2, summed over the entries of a point."""
    return z + z.square()
