"""Gumbel-Rao without the price: all inner noise by quadrature, and inner noise that is spread."""

import math
from itertools import pairwise

import pytest
import torch
from scipy import integrate

import gradthrough as gt
from gradthrough._random import CounterExponentials
from problems import F64, normal, refuses, uniform


def gradient(x, g, **options):
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(gt.gumbel_rao(leaf, **options), leaf, g)[0]


def mean_slope(other, tau):
    """E[s (1 - s)] / tau by adaptive quadrature, over the logit of the ratio of exponentials."""

    def integrand(x):
        v, rest = 1.0 / (1.0 + math.exp(-x)), 1.0 / (1.0 + math.exp(x))
        relative = (other * v / (rest + other * v)) ** (1.0 / tau)
        return relative / (1.0 + relative) ** 2 * v * rest

    ends = [-300.0, -60.0, -30.0, -15.0, -5.0, 0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 60.0, 300.0]
    pieces = [
        integrate.quad(integrand, low, high, epsabs=1e-14, limit=400)[0]
        for low, high in pairwise(ends)
    ]
    return sum(pieces) / tau


@pytest.mark.parametrize("backend", ["eager", "fused"])
@pytest.mark.parametrize("tau", [0.02, 0.1, 0.5, 1.0, 3.0, 20.0])
def test_exact_is_the_mean_over_all_inner_noise(tau, backend):
    probs = torch.tensor([1e-7, 1e-3, 0.1, 0.5, 0.9, 1 - 1e-4], dtype=F64)
    x = torch.stack((torch.log1p(-probs), probs.log()), -1)
    g = torch.tensor([0.0, 1.0], dtype=F64).expand_as(x)
    for u, drawn in ((0.0, 0), (1 - 2.0**-53, 1)):
        noise = torch.tensor([u, 0.5], dtype=F64).expand(len(x), 2)
        got = gradient(x, g, tau=tau, k="exact", noise=noise, backend=backend)
        for one, p in zip(got, probs.tolist(), strict=True):
            want = mean_slope(p if drawn == 0 else 1.0 - p, tau)
            assert abs(float(one[1]) - want) < 1e-7 * 0.25 / tau
            assert abs(float(one.sum())) < 1e-15


def test_draws_tend_to_exact():
    x, g, noise = normal(50, 2), normal(50, 2, seed=1), uniform(50, 2)
    exact = gradient(x, g, tau=0.5, k="exact", noise=noise)
    spread = gradient(x, g, tau=0.5, k=4096, qmc=True, noise=noise)
    torch.testing.assert_close(spread, exact, rtol=0.0, atol=5e-3)


def test_exact_draws_the_same_sample_and_has_its_derivatives():
    x, noise = normal(20, 2), uniform(20, 2)
    one = gt.gumbel_rao(x, 0.7, "exact", noise=noise)
    assert torch.equal(one, gt.gumbel_rao(x, 0.7, 3, noise=noise))
    leaf = x.clone().requires_grad_()
    gt.gumbel_rao(leaf, 0.7, "exact", noise=noise).mul(normal(20, 2, seed=2)).sum().backward()
    by_class = x.clone().requires_grad_()
    f = lambda z: (z * normal(20, 2, seed=2)).sum(-1)  # noqa: E731
    gt.expect(f, by_class, gt.GumbelRao(0.7, "exact"), noise=noise.unsqueeze(0)).sum().backward()
    torch.testing.assert_close(by_class.grad, leaf.grad, rtol=0.0, atol=1e-15)


def test_exact_serves_bernoulli():
    x = normal(6, 3).requires_grad_()
    q = gt.Bernoulli(x, event_dims=1)
    gt.expect(lambda b: b.sum(-1) ** 2, q, gt.GumbelRao(0.5, "exact")).sum().backward()
    assert bool(x.grad.isfinite().all())


def test_exact_beside_what_it_cannot_do_is_refused():
    x = normal(4, 3)
    with refuses(gt.UnsupportedError, "exact", "two classes", "3"):
        gt.gumbel_rao(x, k="exact")
    with refuses(gt.UnsupportedError, "exact", "two classes", "3"):
        gt.expect(lambda z: z.sum(-1), x, gt.GumbelRao(k="exact"))
    with refuses(gt.ConfigError, "exact", "qmc"):
        gt.GumbelRao(k="exact", qmc=True)
    with refuses(gt.ConfigError, "inner"):
        gt.gumbel_rao(x, qmc=True, inner=torch.ones(4, 5, 3, dtype=F64))
    with refuses(gt.UnsupportedError, "k", "int"):
        gt.GumbelRao(k="all")


SEEDS = uniform(20_000, seed=3)


@pytest.mark.parametrize("points", [1, 2, 7, 10, 64])
def test_each_point_of_the_lattice_is_uniform_and_they_are_spread(points):
    draw = CounterExponentials(SEEDS, 3, F64, points=points)
    u = torch.stack([-torch.expm1(-draw(k)) for k in range(points)])  # (k, row, class)
    count = u[0].numel()
    for one in u:
        ordered = one.flatten().sort().values
        grid = (torch.arange(count, dtype=F64) + 0.5) / count
        assert float((ordered - grid).abs().max()) < 2.5 / count**0.5  # level 1e-5
    # The points of a class of a row are equidistant before the fold: two in each 2 / K of u.
    spread = (u * points / 2).floor().to(torch.int64).clamp_max((points + 1) // 2 - 1)
    counts = torch.zeros((points + 1) // 2, *u.shape[1:], dtype=torch.int64)
    counts.scatter_add_(0, spread, torch.ones_like(spread))
    if points % 2 == 0:
        assert bool((counts == 2).all())
    # Classes and rows do not follow one another.
    across = torch.corrcoef(u.permute(2, 0, 1).reshape(3, -1)).fill_diagonal_(0.0)
    assert float(across.abs().max()) < 5.5 / count**0.5


@pytest.mark.parametrize("classes", [3, 10])
def test_spread_draws_have_the_mean_of_independent_ones_and_less_variance(classes):
    rows, k = 40_000, 10
    x = normal(classes, seed=5).expand(rows, classes)
    g = normal(classes, seed=6).expand(rows, classes)
    noise = torch.stack((torch.full((rows,), 0.4, dtype=F64), uniform(rows, seed=7)), -1)
    plain, spread = (gradient(x, g, tau=0.5, k=k, qmc=q, noise=noise) for q in (False, True))
    error = ((plain.var(0) + spread.var(0)) / rows).sqrt()
    assert bool(((plain.mean(0) - spread.mean(0)).abs() < 4.9 * error + 1e-12).all())
    assert float(spread.var(0).sum()) < 0.7 * float(plain.var(0).sum())
