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
from enumerations import (
    cells,
    coin_walks,
    coins,
    coupled,
    decisions,
    distinct,
    grid,
    independent,
    node_probabilities,
    relaxed_pairs,
    remaining,
    stick_probabilities,
    swap_cells,
)

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


def wave(dist):
    """A control variate: any function of points (N, *batch, *event[, C]) that is not f."""
    lead = 1 + len(dist.batch_shape)
    return lambda z: 0.7 * z.sin().unsqueeze(-1).flatten(lead).sum(-1)


def bend(x):
    """A surrogate of f, from its Taylor term and its value: any function of the pair."""
    return torch.stack((x.sum(-1).tanh(), x[..., 0] - 0.3 * x[..., 1] ** 2), -1)


# An estimator may serve continuous laws and counts alone: for those see the tests of these laws.
DISCRETE = {k: kind for k, kind in gt.ESTIMATORS.items() if kind.traits.families & set(FAMILIES)}
VARIANTS = {key: lambda dist, kind=kind: kind() for key, kind in DISCRETE.items()} | {
    "gumbel_softmax tau": lambda dist: gt.GumbelSoftmax(tau=0.7),
    "st tau": lambda dist: gt.StraightThrough(tau=1.4),
    "st importance": lambda dist: gt.StraightThrough(importance=True),
    "stgs tau": lambda dist: gt.StraightThroughGumbelSoftmax(tau=0.6),
    "gumbel_rao k": lambda dist: gt.GumbelRao(tau=0.8, k=7),
    "gumbel_rao qmc": lambda dist: gt.GumbelRao(tau=0.7, k=6, qmc=True),
    "gst p": lambda dist: gt.GappedStraightThrough(tau=0.9, gap="p"),
    "reinmax tau": lambda dist: gt.ReinMax(tau=1.3),
    "reinmax_rao tau": lambda dist: gt.ReinMaxRao(tau=0.6, k=7),
    "reinmax_cv eta": lambda dist: gt.ReinMaxCV(tau=1.2, k=5, eta=0.4, tau_cv=0.7),
    "decoupled_st backward": lambda dist: gt.DecoupledStraightThrough(tau_backward=1.4),
    "redge t1": lambda dist: gt.ReDGE(steps=3, t1=0.4, covariance=False),
    "reindge covariance": lambda dist: gt.ReinDGE(steps=4, t1=0.6, covariance=True),
    "reinforce number": lambda dist: gt.Reinforce(baseline=0.7),
    "reinforce tensor": lambda dist: gt.Reinforce(baseline=torch.tensor(-0.4, dtype=F64)),
    "reinforce critic": lambda dist: gt.Reinforce(baseline=critic),
    "reinforce antithetic": lambda dist: gt.Reinforce(antithetic=True),
    "reinforce proposal": lambda dist: gt.Reinforce(proposal=proposal_for(dist)),
    "reinforce self_critical": lambda dist: gt.Reinforce(baseline="self_critical"),
    "muprop eta": lambda dist: gt.MuProp(eta=0.6),
    "rebar eta": lambda dist: gt.Rebar(eta=0.7, tau=1.1),
    "relax control": lambda dist: gt.Relax(wave(dist), eta=0.8, tau=0.9),
    "relax black box": lambda dist: gt.Relax(wave(dist), eta=0.0, tau=0.9),
    "double_cv alpha": lambda dist: gt.DoubleCV(alpha=0.4),
    "rodeo surrogate": lambda dist: gt.Rodeo(alpha=0.7, beta=-0.3, surrogate=bend),
    "coupled sb": lambda dist: gt.Coupled("sb"),
    "coupled tree": lambda dist: gt.Coupled("tree"),
    "carms independent": lambda dist: gt.CARMS("independent"),
    "sum_and_sample k": lambda dist: gt.SumAndSample(k=3),
}
ANY = gt.Categorical(torch.zeros(1, 2))


def select(predicate):
    """Names of the variants whose estimator satisfies a predicate."""
    return [name for name, make in VARIANTS.items() if predicate(make(ANY))]


PATHWISE = select(lambda e: e.traits.pathwise)
SCORE = select(lambda e: not e.traits.pathwise and e.traits.noise != "none")
HARD = select(lambda e: not e.traits.relaxed)
UNBIASED = select(lambda e: e.traits.unbiased)
SERVED = [(n, f) for n in VARIANTS for f in FAMILIES if f in VARIANTS[n](ANY).traits.families]


def family_of(name, preferred="categorical"):
    """The preferred family if the estimator serves it, else one that it serves."""
    return preferred if (name, preferred) in SERVED else dict(SERVED)[name]


def served(names=tuple(VARIANTS)):
    """Run a test for each variant with each family that it serves."""
    return pytest.mark.parametrize(("name", "family"), [p for p in SERVED if p[0] in names])


def temperatures(estimator):
    """Names of the options that are temperatures."""
    return [field.name for field in fields(estimator) if field.name.startswith("tau")]


TEMPERED = select(lambda e: e.traits.pathwise and temperatures(e))
PLAIN_TAU = select(
    lambda e: e.traits.pathwise and all(getattr(e, name) == 1.0 for name in temperatures(e))
)


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
        return torch.stack((logits.sigmoid(), (-logits).sigmoid()), -1)
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


# --- the diffusion of ReDGE, each denoiser by Bayes' rule


def denoiser(estimator, theta, x, alpha):
    """Logits of the posterior of D given x = alpha D + (1 - alpha) eps, (..., C)."""
    pi = theta.softmax(-1)
    mean = pi if estimator.covariance else torch.zeros_like(pi)
    variance = (pi * (1 - pi)).clamp_min(0.1) if estimator.covariance else torch.ones_like(pi)
    corners = alpha * torch.eye(theta.shape[-1], dtype=F64)
    miss = x.unsqueeze(-2) - corners - (1 - alpha) * mean.unsqueeze(-2)  # (..., corner, C)
    return theta - (miss**2 / variance.unsqueeze(-2)).sum(-1) / (2 * (1 - alpha) ** 2)


def diffused(estimator, theta, u):
    """Run the chain of ReDGE from uniforms (..., C): x_1 and its alpha, with their graph."""
    eps = torch.special.ndtri(u)
    if estimator.covariance:
        pi = theta.softmax(-1)
        eps = pi + (pi * (1 - pi)).clamp_min(0.1).sqrt() * eps
    alphas = torch.linspace(1 - estimator.t1, 1e-4, estimator.steps - 1, dtype=F64).tolist()
    x = eps
    for alpha, following in zip(alphas[:0:-1], alphas[-2::-1], strict=True):
        clean = denoiser(estimator, theta, x, alpha).softmax(-1)
        residual = (x - alpha * clean) / (1 - alpha)
        x = following * clean + (1 - following) * residual
    return x, alphas[0]


def last_law(estimator, theta, u):
    """The law of the final draw of ReDGE, given the uniforms (..., C) of its normals."""
    return denoiser(estimator, theta, *diffused(estimator, theta, u)).softmax(-1)


# --- all draws of an estimator, with their probabilities


def draws(estimator, dist, samples):
    """Noise (N, M, ...) that makes each of M draws of one row, and their weights (M,).

    Exact but for pathwise noise per class, where C must be 2: the ratio of the two exponentials,
    or the difference of the two normals, all that matters, runs over a fine grid of its quantiles.
    """
    kind, shape = estimator.traits.noise, tuple(dist.variables)
    source = getattr(estimator, "proposal", None) or dist
    each = probabilities(dist.family, source.logits.detach()).flatten(0, -2)
    match estimator:
        case gt.ARM() | gt.DisARM():
            return independent([cells(p, mirrored=True) for p in each], samples, shape)
        case gt.Coupled():
            steps = node_probabilities if estimator.kind == "tree" else stick_probabilities
            return independent([decisions(steps(p), mirrored=True) for p in each], samples, shape)
        case gt.CARMS(copula="independent"):
            return independent([decisions(stick_probabilities(p)) for p in each], samples, shape)
        case gt.CARMS():
            return coupled([coin_walks(stick_probabilities(p), samples) for p in each], shape)
        case gt.ARMS():
            return coupled([coins(p.min(), samples) for p in each], shape)
        case gt.ARSM():
            return independent([swap_cells(p) for p in each], samples, shape)
        case gt.Rebar() | gt.Relax():  # the samples need not differ: nothing looks at two of them
            units = [relaxed_pairs(p, product=len(each) == 1) for p in each]
            noise, weight = independent(units, 1, shape)
            return noise.expand(samples, *noise.shape[1:]), weight
        case gt.SumAndSample():
            return remaining(each, estimator.k, samples, shape)
        case gt.UnorderedSet():
            return distinct(each, samples, shape)
    if kind == "none":
        return None, torch.ones(1, dtype=F64)
    if kind == "class":
        v = (torch.arange(20_000, dtype=F64) + 0.5) / 20_000
        u = -torch.expm1(-torch.stack((v, 1.0 - v), -1))
        noise = u.reshape(1, -1, *([1] * len(shape)), 2).expand(samples, -1, *shape, 2)
        return noise, torch.full((20_000,), 1 / 20_000, dtype=F64)
    if estimator.traits.approximate:
        u, law = final_draws(estimator, dist)
        middles = torch.cat((law[..., :1] / 2, law[..., :1] + law[..., 1:] / 2))
        noise = torch.cat((u.repeat(2, 1, 1), middles), -1)
        return noise.expand(samples, *noise.shape), law[:, 0].T.flatten() / len(law)
    mirrored = getattr(estimator, "antithetic", False)
    units = [cells(p, mirrored) for p in each]
    u, weight = independent(units, samples // 2 if mirrored else samples, shape)
    if kind == "variable+seed":
        u = torch.stack((u, uniform(*u.shape, seed=5)), -1)
    return u, weight


def final_draws(estimator, dist):
    """Noise per class (M, 1, 2) of one variable of two classes, and the laws that it leads to."""
    v = (torch.arange(2_000, dtype=F64) + 0.5) / 2_000
    half = torch.special.ndtri(v) / 2**0.5  # plus and minus it: their difference is N(0, 2)
    u = torch.special.ndtr(torch.stack((half, -half), -1)).unsqueeze(-2)
    theta = dist.class_logits().detach()
    return u, last_law(estimator, theta.expand(len(u), *theta.shape), u)


def value_under(estimator, p, f):
    """E f under the law that the estimator samples."""
    if not estimator.traits.approximate:
        return exact(p, f)[0]
    law = final_draws(estimator, p.dist(p.logits))[1].mean(0)
    points = points_of(p.family, torch.arange(2).unsqueeze(-1), 2)
    return (law[0] * f(points.unsqueeze(0))[0]).sum()


def law(name, logits, family=None, event_dims=0):
    """A law with a row for each (..., C) of the logits, where Bernoulli as C variables.

    So the points and values of one f have the same shapes in both families.
    """
    family = family or family_of(name)
    return FAMILIES[family](logits, event_dims=event_dims + (family == "bernoulli"))


def case(name, logits, family=None, event_dims=0, at_least=1):
    """An estimator for a law, its number of samples and fixed noise."""
    q = law(name, logits, family, event_dims)
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
