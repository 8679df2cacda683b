"""Orderings of variances that are theorems, with second moments that are exact."""

import pytest
import torch

import gradthrough as gt
from enumerations import branches, cells, independent, joint_table
from problems import F64, draws, exact, points_of, probabilities, problem
from test_score_identities import weights_of

SEEDS = pytest.mark.parametrize("seed", range(4))
SLACK = 1e-12


def spread(gradients, weight, want):
    """(total variance, variance of each entry) of draws (M, ...), whose mean is checked."""
    weight = weight.reshape(-1, *(1,) * (gradients.ndim - 1))
    torch.testing.assert_close((gradients * weight).sum(0), want, rtol=0.0, atol=1e-12)
    each = ((gradients - want).square() * weight).sum(0)
    return float(each.sum()), each


def each_draw(estimator, p, f, samples, noise, weight):
    theta = p.logits.expand(len(weight), *p.logits.shape).clone().requires_grad_()
    value = gt.expect(f, p.dist(theta), estimator, samples=samples, noise=noise)
    return torch.autograd.grad(value.sum(), theta)[0]


def variance(estimator, p, f, samples=1):
    noise, weight = draws(estimator, p.dist(p.logits), samples)
    got = each_draw(estimator, p, f, samples, noise, weight)
    return spread(got, weight, exact(p, f)[1])


@SEEDS
def test_disarm_has_less_variance_than_arm(seed):
    """The square of ARM is quadratic in u within a cell: two nodes of Gauss are exact."""
    p = problem("bernoulli", variables=3, seed=10 * seed)
    want = exact(p, p.lookup)[1]
    units = []
    for law in probabilities("bernoulli", p.logits):
        middle, width = cells(law, mirrored=True)
        nodes = torch.cat((middle - width / 12**0.5, middle + width / 12**0.5))
        units.append((nodes, width.repeat(2) / 2))
    noise, weight = independent(units, 1, (3,))
    (arm, of_arm), (disarm, of_disarm) = (
        spread(each_draw(one, p, p.lookup, 1, noise, weight), weight, want)
        for one in (gt.ARM(), gt.DisARM())
    )
    assert disarm < arm
    assert bool((of_disarm <= of_arm + SLACK).all())
    assert disarm == pytest.approx(variance(gt.DisARM(), p, p.lookup)[0])


@SEEDS
@pytest.mark.parametrize("family", ["categorical", "bernoulli"])
@pytest.mark.parametrize("samples", [1, 2])
def test_sums_over_some_points_or_one_variable_have_less_variance_than_reinforce(
    family, samples, seed
):
    p = problem(family, seed=10 * seed)
    whole, each = variance(gt.Reinforce(), p, p.lookup, samples)
    for k in (1, 2, 3):
        assert variance(gt.SumAndSample(k=k), p, p.lookup, samples)[0] < whole
    local = variance(gt.LocalExpectation(), p, p.lookup, samples)[1]
    assert bool((local <= each + SLACK).all())


@SEEDS
def test_the_best_constant_baseline_is_the_weighted_mean_of_f(seed):
    """c* = E f |s|^2 / E |s|^2, s the score."""
    p = problem(seed=10 * seed)
    noise, weight = draws(gt.Reinforce(), p.dist(p.logits), 1)
    q = p.dist(p.logits.expand(len(weight), *p.logits.shape))
    z = gt.Reinforce().draw(q.expand(1), noise).points
    square = (z[0] - probabilities("categorical", p.logits)).square().sum((-2, -1)) * weight
    best = float((p.lookup(z)[0] * square).sum() / square.sum())
    least = variance(gt.Reinforce(baseline=best), p, p.lookup)[0]
    for away in (-1.0, -0.1, 0.1, 1.0, -best):
        assert least < variance(gt.Reinforce(baseline=best + away), p, p.lookup)[0]


@SEEDS
@pytest.mark.parametrize("samples", [2, 3])
def test_the_best_double_cv_has_less_variance_than_rloo(samples, seed):
    """The gradient is linear in alpha, so its variance is a parabola."""
    p = problem("bernoulli", variables=2, seed=10 * seed)
    rloo, half, one = (
        variance(gt.DoubleCV(alpha=alpha), p, p.cubic, samples)[0] for alpha in (0.0, 0.5, 1.0)
    )
    assert rloo == pytest.approx(variance(gt.RLOO(), p, p.cubic, samples)[0])
    curve, slope = 2 * (one - 2 * half + rloo), 4 * half - one - 3 * rloo
    best = -slope / (2 * curve)
    least = variance(gt.DoubleCV(alpha=best), p, p.cubic, samples)[0]
    assert least == pytest.approx(rloo - slope**2 / (4 * curve))
    assert least < rloo


@SEEDS
@pytest.mark.parametrize("n", [2, 3])
def test_the_unordered_set_averages_its_parent_over_the_first_draw(n, seed):
    """Kool et al.: the parent is the first sample's signal, the set without it the baseline."""
    p = problem(seed=10 * seed)
    probs = probabilities("categorical", p.logits)
    table, want = joint_table(probs), exact(p, p.lookup)[1]
    f = {s: float(p.lookup(points_of("categorical", torch.tensor([[s]]), 3))) for s in table}
    parents, law, known = [], [], {}
    todo = [((), 1.0)]
    for _ in range(n):
        todo = [
            ((*codes, code), w * chance)
            for codes, w in todo
            for code, _, chance in branches(table, frozenset(codes), 2, 3)
        ]
    for codes, w in todo:
        first, key = codes[0], frozenset(codes)
        if key not in known:
            known[key] = weights_of(table, sorted(key))[1]
        others = sum(known[key][first, t] * f[t] for t in codes[1:])
        score = points_of("categorical", torch.tensor(first), 3) - probs
        parents.append((f[first] - table[first] * f[first] - others) * score)
        law.append(w)
    parent, of_parent = spread(torch.stack(parents), torch.tensor(law, dtype=F64), want)
    child, of_child = variance(gt.UnorderedSet(), p, p.lookup, n)
    assert child < parent
    assert bool((of_child <= of_parent + SLACK).all())
