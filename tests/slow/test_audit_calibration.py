"""What an audit promises, over many audits of problems whose truth is known.

Truth is exact: a sum over all draws of the estimator, or, where its noise is continuous,
Gauss-Legendre quadrature that has converged to rounding. Seeds run from 0.
"""

import functools
import importlib
from itertools import product

import pytest
import torch
from numpy.polynomial.legendre import leggauss
from scipy import stats

import gradthrough as gt
from gradthrough.auditing.compare import compare
from gradthrough.auditing.moments import Moments, Target
from problems import F64, draws, exact, points_of, probabilities, problem

pytestmark = pytest.mark.slow
SAMPLES, REPLICATES, SEEDS = 4, 1000, 50
CLASSES, BIT = problem("categorical", variables=2, classes=3), problem("bernoulli", variables=1)
PROBLEMS = {
    "linear": (CLASSES, CLASSES.affine),
    "quadratic": (CLASSES, CLASSES.quadratic),
    "cubic": (CLASSES, CLASSES.cubic),
    "bernoulli": (BIT, BIT.cubic),
}
ESTIMATORS = {
    "st": gt.StraightThrough(),
    "reinmax": gt.ReinMax(),
    "rloo": gt.RLOO(),
    "stgs": gt.StraightThroughGumbelSoftmax(),
    "reinforce": gt.Reinforce(),
}
UNBIASED = ["reinforce", "rloo"]
ROUNDING = 1e-12


@pytest.fixture(autouse=True)
def untimed(monkeypatch):
    """Leave out the stopwatch, which no statistic looks at: it takes most of a small audit."""
    module = importlib.import_module("gradthrough.auditing.engine")
    monkeypatch.setattr(module, "halves", lambda steps: dict.fromkeys(steps, (0.0, 0.0)))


def report(name, estimators, seed):
    p, f = PROBLEMS[name]
    return gt.audit(
        f,
        p.dist(p.logits.unsqueeze(0)),
        estimators,
        evaluations=SAMPLES,
        replicates=REPLICATES,
        generator=torch.Generator().manual_seed(seed),
        chunk=REPLICATES,
    )


# --- the truth


def by_draws(p, f, estimator, samples):
    """Mean and variance of the gradient, by every draw of the estimator."""
    noise, weight = draws(estimator, p.dist(p.logits), samples)
    theta = p.logits.expand(len(weight), *p.logits.shape).clone().requires_grad_()
    value = gt.expect(f, p.dist(theta), estimator, samples=samples, noise=noise)
    gradients = torch.autograd.grad(value.sum(), theta)[0].flatten(1)
    mean = weight @ gradients
    return mean, float(weight @ (gradients - mean).square().sum(-1))


def relaxed(p, winner):
    """Nodes (M, C) and weights (M,) of softmax(theta + Gumbel) given which class is the largest.

    With T_i ~ Exp(p_i), T_i = E_i / p_i: the smallest is T ~ Exp(1), the others are
    T (1 + s_j / p_j), and the s_j have the density (C - 1)! / (1 + sum s)^C, drawn one by one.
    """
    x, dx = (torch.from_numpy(a) for a in leggauss(60))
    q, weight = (x + 1) / 2, dx / 2  # nodes on (0, 1)
    others = [j for j in range(len(p)) if j != winner]
    if len(others) == 1:
        s, law = (1 / q - 1).unsqueeze(-1), weight
    else:  # 1 - q^2 is the uniform of the second
        first, second = (a.flatten() for a in torch.meshgrid(q, q, indexing="ij"))
        s1 = 1 / first - 1
        s = torch.stack((s1, (1 + s1) * (1 / second - 1)), -1)
        law = (weight.unsqueeze(-1) * (weight * 2 * q)).flatten()
    w = torch.ones(len(law), len(p), dtype=F64)
    w[:, others] = 1 / (1 + s / p[others])
    return w / w.sum(-1, keepdim=True), law


def jacobians(p, winner):
    """E J_ab and E J_ab J_ac of J = diag(w) - w w^T at the relaxed sample w."""
    w, weight = relaxed(p, winner)
    j = torch.diag_embed(w) - w.unsqueeze(-1) * w.unsqueeze(-2)
    return torch.einsum("m,mab->ab", weight, j), torch.einsum("m,mab,mac->abc", weight, j, j)


def by_quadrature(p, f):
    """Mean and variance of one Gumbel straight-through gradient at tau = 1."""
    probs = probabilities(p.family, p.logits)
    m, c = probs.shape
    kept = 1 if p.family == "bernoulli" else c  # its logit is that of the first of two classes
    moments = [[jacobians(row, k) for k in range(c)] for row in probs]
    mean, square = torch.zeros(m, kept, dtype=F64), 0.0
    for codes in product(range(c), repeat=m):
        z = points_of(p.family, torch.tensor(codes), c).requires_grad_()
        (slope,) = torch.autograd.grad(f(z[None, None]).sum(), z)
        slope = slope.reshape(m, kept)
        weight = float(probs[range(m), codes].prod())
        for i, k in enumerate(codes):
            first, second = (x[:kept] for x in moments[i][k])
            mean[i] += weight * first[:, :kept] @ slope[i]
            square += weight * float(
                torch.einsum("abc,b,c->", second[:, :kept, :kept], slope[i], slope[i])
            )
    return mean.flatten(), square - float(mean.square().sum())


@functools.cache
def truth(name, key):
    """Bias, variance and error of the mean of four samples of an estimator."""
    (p, f), estimator = PROBLEMS[name], ESTIMATORS[key]
    if key == "rloo":  # whose samples are not independent terms
        mean, variance = by_draws(p, f, estimator, SAMPLES)
    else:
        one = by_quadrature(p, f) if key == "stgs" else by_draws(p, f, estimator, 1)
        mean, variance = one[0], one[1] / SAMPLES
    bias = float((mean - exact(p, f)[1].flatten()).norm())
    return bias, variance, variance + bias**2


def test_95_percent_intervals_cover_bias_variance_and_error_in_95_percent_of_audits():
    covered = dict.fromkeys(("bias", "variance", "mse"), 0)
    for name, seed in product(PROBLEMS, range(SEEDS)):
        for row in report(name, ESTIMATORS, seed).rows:
            for what, true in zip(covered, truth(name, row.estimator), strict=True):
                low, high = getattr(row, f"{what}_low"), getattr(row, f"{what}_high")
                covered[what] += low - ROUNDING <= true <= high + ROUNDING
    audits = len(PROBLEMS) * SEEDS * len(ESTIMATORS)
    assert audits == 1000
    assert all(930 <= count <= 970 for count in covered.values()), covered


def test_estimators_without_bias_are_not_called_biased():
    wrong = []
    for seed in range(1000):
        name = list(PROBLEMS)[seed % len(PROBLEMS)]
        rows = report(name, UNBIASED, seed).rows
        assert not any(row.skipped for row in rows)
        wrong += [(seed, name, row.estimator) for row in rows if row.biased]
    assert len({seed for seed, *_ in wrong}) <= 4, wrong


@pytest.mark.parametrize(
    ("cosine", "bias"), [(1.0, 0.5), (0.3, 5.0), (0.1, 25.0), (0.0, 3.0)], ids=str
)
def test_a_bias_is_covered_where_all_noise_runs_along_one_line(cosine, bias):
    """The line at an angle to the bias, which is so many standard errors long."""
    line = torch.tensor([cosine, (1 - cosine**2) ** 0.5, 0.0], dtype=F64)
    truth = torch.tensor([bias, 0.0, 0.0], dtype=F64) / REPLICATES**0.5
    reference, covered, audits = torch.zeros(3, dtype=F64), 0, 300
    generator = torch.Generator().manual_seed(0)
    for _ in range(audits):
        moments = Moments(truth, reference, 100)
        noise = torch.randn(REPLICATES, 1, generator=generator, dtype=F64)
        moments.add(truth + noise * line)
        found = compare(moments, Target(reference), 0.0)
        covered += found["bias_low"] - ROUNDING <= float(truth.norm()) <= found["bias_high"]
    assert covered >= stats.binom.ppf(1e-5, audits, 0.95), covered
