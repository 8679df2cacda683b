"""Test functions with known answers, every estimator in a few forms, and all of their draws.

Nothing here uses the library to compute what is right: probabilities, expectations, surrogates
and samples are written out again, in float64.
"""

from dataclasses import fields
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import gradthrough as gt

F64 = torch.float64
FAMILIES = {"categorical": gt.Categorical, "bernoulli": gt.Bernoulli}


def normal(*shape, seed=0, dtype=F64):
    """Standard normal numbers that depend on the seed alone."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(shape, generator=generator, dtype=F64).to(dtype)


def uniform(*shape, seed=0):
    """Uniforms that depend on the seed alone."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(2000 + seed), dtype=F64)


# --- every estimator, by name; where an option has the shape of the rows, it is made from them


def critic(dist):
    """A baseline made from the distribution: one number for each row."""
    logits = dist.logits.detach().clamp(-2.0, 2.0)
    return logits.flatten(len(dist.batch_shape)).sum(-1).to(F64) if logits.ndim else logits


def proposal_for(dist):
    """A flatter law with the same support, moved a little."""
    logits = dist.logits.detach()
    ramp = torch.linspace(-0.5, 0.5, logits.shape[-1], dtype=logits.dtype)
    return dist.with_logits(0.5 * logits + ramp)


VARIANTS = {key: lambda dist, kind=kind: kind() for key, kind in gt.ESTIMATORS.items()} | {
    "gumbel_softmax tau": lambda dist: gt.GumbelSoftmax(tau=0.7),
    "st tau": lambda dist: gt.StraightThrough(tau=1.4),
    "st importance": lambda dist: gt.StraightThrough(importance=True),
    "stgs tau": lambda dist: gt.StraightThroughGumbelSoftmax(tau=0.6),
    "gumbel_rao k": lambda dist: gt.GumbelRao(tau=0.8, k=7),
    "gst p": lambda dist: gt.GappedStraightThrough(tau=0.9, gap="p"),
    "reinmax tau": lambda dist: gt.ReinMax(tau=1.3),
    "reinforce number": lambda dist: gt.Reinforce(baseline=0.7),
    "reinforce tensor": lambda dist: gt.Reinforce(baseline=torch.tensor(-0.4, dtype=F64)),
    "reinforce critic": lambda dist: gt.Reinforce(baseline=critic),
    "reinforce antithetic": lambda dist: gt.Reinforce(antithetic=True),
    "reinforce proposal": lambda dist: gt.Reinforce(proposal=proposal_for(dist)),
}
ANY = gt.Categorical(torch.zeros(1, 2))


def select(predicate):
    """Names of the variants whose estimator satisfies a predicate."""
    return [name for name, make in VARIANTS.items() if predicate(make(ANY))]


PATHWISE = select(lambda e: e.traits.pathwise)
SCORE = select(lambda e: not e.traits.pathwise and e.traits.noise != "none")
HARD = select(lambda e: not e.traits.relaxed)
UNBIASED = select(lambda e: e.traits.unbiased)


def samples_for(estimator, at_least=1):
    """The fewest samples that the estimator takes, at least so many."""
    n = max(estimator.traits.min_samples, at_least)
    return n + n % 2 if getattr(estimator, "antithetic", False) else n


def plain(estimator):
    """The function form of a pathwise estimator: (logits, **keywords) -> sample."""
    want = type(estimator).__name__.lower()
    (name,) = [n for n in dir(gt) if n.islower() and n.replace("_", "") == want]
    options = {field.name: getattr(estimator, field.name) for field in fields(estimator)}
    return lambda logits, **keywords: getattr(gt, name)(logits, **(options | keywords))


def noise_for_rows(estimator, logits, seed=0):
    """Fixed noise for the function form, classes along the last dim."""
    return uniform(*estimator.noise_shape(gt.Categorical(logits)), seed=seed)


def refuses(kind, *words):
    """The error kind, and each word in its message, in any order."""
    return pytest.raises(kind, match="".join(f"(?=(?s:.*){word})" for word in words) or None)


# --- functions of points (N, M, *event[, C]) with values (N, M)


class Problem(NamedTuple):
    """Logits of one row, and functions of its points from easy to hard."""

    family: str
    logits: Tensor  # (event[, C])
    linear: Tensor  # (D,)
    cross: Tensor  # (D, D), zero within a variable
    full: Tensor  # (D, D)
    table: Tensor  # (size of the support,)

    def dist(self, logits):
        return FAMILIES[self.family](logits, event_dims=1)

    def flat(self, z):
        return z.flatten(2)

    def affine(self, z):
        """Affine in each variable, with products between variables."""
        x = self.flat(z)
        return 0.3 + x @ self.linear + ((x @ self.cross) * x).sum(-1)

    def quadratic(self, z):
        x = self.flat(z)
        return x @ self.linear + ((x @ self.full) * x).sum(-1)

    def cubic(self, z):
        x = self.flat(z)
        return self.quadratic(z) + (x @ self.linear) ** 3

    def lookup(self, z):
        """A table indexed by the point: it has no derivative."""
        index = z.argmax(-1) if self.family == "categorical" else z.to(torch.int64)
        base = self.logits.shape[-1] if self.family == "categorical" else 2
        places = base ** torch.arange(index.shape[-1])
        return self.table[(index * places).sum(-1)]


def problem(family="categorical", variables=2, classes=3, seed=0):
    """Make a problem; `classes` is that of the categorical."""
    shape = (variables, classes) if family == "categorical" else (variables,)
    width = classes if family == "categorical" else 1
    d, size = variables * width, (classes if family == "categorical" else 2) ** variables
    block = torch.arange(d) // width
    full = normal(d, d, seed=seed + 3)
    return Problem(
        family,
        normal(*shape, seed=seed + 1),
        normal(d, seed=seed + 2),
        full * (block[:, None] != block[None, :]),
        full,
        normal(size, seed=seed + 4),
    )


def probabilities(family, logits):
    """Probabilities of the classes of each variable, (..., C)."""
    if family == "bernoulli":
        p = 1.0 / (1.0 + (-logits).exp())
        return torch.stack((p, 1.0 - p), -1)
    e = (logits - logits.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


def points_of(family, codes, classes):
    """Points from class indices (..., event)."""
    if family == "bernoulli":
        return (codes == 0).to(F64)
    return (codes.unsqueeze(-1) == torch.arange(classes)).to(F64)


def expectation(p, f, theta):
    """E f as a function of the logits of one row: the sum over every point."""
    probs = probabilities(p.family, theta)
    m, c = probs.shape
    codes = grid([torch.arange(c)] * m)
    weight = probs[torch.arange(m), codes].prod(-1)
    return (weight * f(points_of(p.family, codes, c).unsqueeze(0))[0]).sum()


def exact(p, f):
    """E f, with its graph, and its derivative in the logits."""
    theta = p.logits.clone().requires_grad_()
    value = expectation(p, f, theta)
    return value, torch.autograd.grad(value, theta, retain_graph=True)[0]


# --- all draws of an estimator, with their probabilities


def cells(probs, mirrored=False):
    """Middles and widths of the intervals of a uniform on which no draw from probs changes.

    `probs` (..., C) may hold several laws; `mirrored`: nor does the draw of 1 - u change.
    """
    edges = torch.cat((torch.zeros(1, dtype=F64), probs.cumsum(-1)[..., :-1].reshape(-1)))
    edges = torch.cat((edges, 1.0 - edges) if mirrored else (edges, torch.ones(1, dtype=F64)))
    edges = torch.cat((edges, torch.ones(1, dtype=F64))).sort().values
    width = edges.diff()
    return ((edges[1:] + edges[:-1]) / 2)[width > 1e-13], width[width > 1e-13]


def grid(columns):
    """Every combination of entries of the columns, (M, number of columns)."""
    return torch.cartesian_prod(*columns).reshape(-1, len(columns))


def draws(estimator, dist, samples):
    """Noise (N, M, ...) that makes each of M draws of one row, and their weights (M,).

    Exact but for noise per class, where C must be 2: the ratio of the two exponentials, all that
    matters, runs over a fine grid of its quantiles.
    """
    kind, shape = estimator.traits.noise, tuple(dist.variables)
    if kind == "none":
        return None, torch.ones(1, dtype=F64)
    if kind == "class":
        v = (torch.arange(20_000, dtype=F64) + 0.5) / 20_000
        u = -torch.expm1(-torch.stack((v, 1.0 - v), -1))
        noise = u.reshape(1, -1, *([1] * len(shape)), 2).expand(samples, -1, *shape, 2)
        return noise, torch.full((20_000,), 1 / 20_000, dtype=F64)
    source = getattr(estimator, "proposal", None) or dist
    mirrored = getattr(estimator, "antithetic", False)
    each = probabilities(dist.family, source.logits.detach()).flatten(0, -2)
    columns = [cells(p, mirrored) for p in each] * (samples // 2 if mirrored else samples)
    u = grid([middle for middle, _ in columns]).unflatten(-1, (-1, *shape)).movedim(1, 0)
    if kind == "variable+seed":
        u = torch.stack((u, uniform(*u.shape, seed=5)), -1)
    return u, grid([width for _, width in columns]).prod(-1)


def case(name, logits, family="categorical", event_dims=0, at_least=1):
    """An estimator for a law, its number of samples and fixed noise."""
    q = FAMILIES[family](logits, event_dims=event_dims)
    estimator = VARIANTS[name](q)
    n = samples_for(estimator, at_least)
    return q, estimator, n, uniform(*estimator.noise_shape(q.expand(n)))


class Mean(NamedTuple):
    """The exact mean of an estimator over its draws."""

    value: Tensor
    gradient: Tensor


def mean(name, p, f, samples=1):
    """Run an estimator (or variant) on each of its draws; average with their probabilities."""
    make = VARIANTS[name] if isinstance(name, str) else lambda dist: name
    theta = p.logits.clone().requires_grad_()
    one = make(p.dist(theta))
    n = samples_for(one, samples)
    noise, weight = draws(one, p.dist(theta), n)
    rows = p.dist(theta.expand(len(weight), *theta.shape))
    value = gt.expect(f, rows, make(rows), samples=n, noise=noise)
    total = (value * weight).sum()
    return Mean(total.detach(), torch.autograd.grad(total, theta)[0])


def every(names=tuple(VARIANTS)):
    """Run a test for each variant of each estimator."""
    return pytest.mark.parametrize("name", names)
