"""Identities of ReinMax-Rao, ReinMax-CV, Decoupled ST, ReDGE and ReinDGE."""

import math

import pytest
import torch
from scipy import integrate, stats
from torch.func import hessian

import gradthrough as gt
from gradthrough._random import normals
from gradthrough.kernels.diffusion import Matched, evidence, levels
from gradthrough.kernels.eager import Kept
from gradthrough.kernels.eager import ReinMaxCV as CVKernel
from problems import (
    F64,
    VARIANTS,
    cells,
    diffused,
    exact,
    final_draws,
    last_law,
    mean,
    noise_for_rows,
    normal,
    plain,
    problem,
    select,
    uniform,
)
from surrogates import reference_sample

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
THETA = normal(40, 4, seed=11)
UPSTREAM = normal(40, 4, seed=12)
BOTH = pytest.mark.parametrize("covariance", [False, True])
KINDS = (gt.ReinMaxRao, gt.ReinMaxCV, gt.DecoupledStraightThrough, gt.ReDGE, gt.ReinDGE)
NAMES = select(lambda e: isinstance(e, KINDS))


def close(got, want, tolerance=1e-12):
    torch.testing.assert_close(got, want, rtol=0.0, atol=tolerance)


def pull(sample, logits=THETA, upstream=UPSTREAM):
    """(sample, its vector-Jacobian product with the upstream gradient)."""
    leaf = logits.clone().requires_grad_()
    z = sample(leaf)
    return z.detach(), torch.autograd.grad(z, leaf, upstream)[0]


def same(ours, theirs, tolerance=1e-12):
    for got, want in zip(pull(ours), pull(theirs), strict=True):
        close(got, want, tolerance)


def jacobian(p, g):
    return p * (g - (p * g).sum(-1, keepdim=True))


def test_all_five_are_here():
    assert {type(VARIANTS[name](None)) for name in NAMES} == set(KINDS)
    assert len(NAMES) == 2 * len(KINDS)


# --- ReinMax-Rao


def test_a_hot_reinmax_rao_keeps_only_the_second_term():
    noise, want = uniform(40, 2), -jacobian(THETA.softmax(-1), UPSTREAM) / 2
    gaps = []
    for tau in (1.0, 10.0, 1e3, 1e6):
        got = pull(lambda x, tau=tau: gt.reinmax_rao(x, tau, 5, noise=noise))[1]
        gaps.append(float((got - want).abs().max()))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.1
    assert gaps[-1] < 1e-5


@pytest.mark.parametrize("tau", [0.5, 1.0])
@pytest.mark.parametrize("drawn", [0, 1])
def test_the_mean_of_reinmax_rao_given_its_draw_by_quadrature(tau, drawn):
    """Two classes: J(S) averaged over a logistic, truncated to where the drawn class wins."""
    phi, size = 0.4, 20_000
    logits = torch.tensor([[phi, 0.0]], dtype=F64)
    p = 1 / (1 + math.exp(-phi))
    middle = (p + (drawn == 0)) / 2
    odds = math.log(middle / (1 - middle))

    def integrand(noise):
        s = 1 / (1 + math.exp(-(odds + noise) / tau))
        return s * (1 - s) / tau / (2 + math.exp(-noise) + math.exp(noise))

    span, chance = ((-odds, 40.0), middle) if drawn == 0 else ((-40.0, -odds), 1 - middle)
    smooth = integrate.quad(integrand, *span, epsabs=1e-13, limit=200)[0] / chance
    v = (torch.arange(size, dtype=F64) + 0.5) / size
    inner = torch.stack((v, 1.0 - v), -1)[None]  # the ratio of two exponentials, its quantiles
    noise = torch.tensor([[p / 2 if drawn == 0 else (1 + p) / 2, 0.5]], dtype=F64)
    slope = torch.tensor([[1.0, 0.0]], dtype=F64)
    z, got = pull(lambda x: gt.reinmax_rao(x, tau, noise=noise, inner=inner), logits, slope)
    assert int(z.argmax()) == drawn
    close(float(got[0, 0]), 2 * smooth - p * (1 - p) / 2, 1e-7)


# --- ReinMax-CV


@pytest.mark.parametrize("tau", [1.0, 1.3])
def test_with_weight_zero_reinmax_cv_is_reinmax_and_asks_for_no_inner_draw(tau):
    noise = uniform(40, 2)
    got = pull(lambda x: gt.reinmax_cv(x, tau, eta=0.0, noise=noise))
    want = pull(lambda x: gt.reinmax(x, tau, noise=noise[:, 0]))
    assert torch.equal(got[0], want[0])
    close(got[1], want[1])
    drawn, nothing = THETA.argmax(-1), noise.new_zeros(0)
    for eta, count in ((0.0, 2), (0.1, 2 + 7 + 1)):
        kernel = CVKernel(tau, 7, eta, 1.0)
        kept = Kept(THETA, drawn, noise, nothing, kernel.forward(THETA, noise).saved)
        assert len(list(kernel.terms(kept))) == count


@pytest.mark.parametrize("tau", [1.0, 1.3])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_over_all_choices_of_the_extra_draw_reinmax_cv_is_reinmax(k, tau):
    """The draws are exchangeable, so this is its mean over them: ReinMax, whatever K and eta."""
    noise, inner = uniform(40, 2), -torch.log1p(-uniform(40, k + 1, 4, seed=3))
    each = [
        pull(lambda x, i=i: gt.reinmax_cv(
            x, tau, eta=1.7, tau_cv=0.6, noise=noise, inner=inner.roll(i, 1)
        ))
        for i in range(k + 1)
    ]  # fmt: skip
    z, want = pull(lambda x: gt.reinmax(x, tau, noise=noise[:, 0]))
    assert (each[0][1] - want).abs().max() > 0.1
    for drawn, _ in each:
        assert torch.equal(drawn, z)
    close(sum(gradient for _, gradient in each) / (k + 1), want, 1e-14)


def test_the_mean_of_reinmax_cv_is_exact_for_quadratics():
    """By orderings: with ReinMax's mean, which is."""
    p = problem(variables=1, classes=4)
    pi = p.logits.softmax(-1)[0]
    noise = torch.stack((pi.cumsum(0) - pi / 2, torch.zeros(4, dtype=F64)), -1).unsqueeze(1)
    inner = -torch.log1p(-uniform(4, 1, 2, 4, seed=4))
    theta = p.logits.expand(4, 1, 4).clone().requires_grad_()
    total = torch.zeros((), dtype=F64)
    for order in (inner, inner.flip(2)):
        z = gt.reinmax_cv(theta, eta=0.8, noise=noise, inner=order)
        total = total + (pi * p.quadratic(z[None])[0]).sum() / 2
    (gradient,) = torch.autograd.grad(total, theta)
    close(gradient.sum(0), exact(p, p.quadratic)[1], 1e-13)


def test_the_bracket_of_reinmax_cv_adds_the_variance_that_its_docstring_says():
    """Given D, ReinMax is a number: (1 + 1/K) eta^2 Var of one relaxed gradient comes on top."""
    rows = 40_000
    theta, g = THETA[:1].expand(rows, 4), UPSTREAM[:1].expand(rows, 4)
    noise = torch.stack((torch.full((rows,), 0.3, dtype=F64), uniform(rows, seed=5)), -1)
    one = pull(lambda x: gt.reinmax_rao(x, k=1, noise=noise), theta, g)[1] / 2
    alone = float(one.var(0).sum())
    for k, eta in ((1, 1.0), (4, -0.5)):
        got = pull(lambda x, k=k, eta=eta: gt.reinmax_cv(x, k=k, eta=eta, noise=noise), theta, g)[1]
        close(float(got.var(0).sum()) / alone, (1 + 1 / k) * eta**2, 0.05 * (1 + 1 / k) * eta**2)


@pytest.mark.parametrize("function", [gt.reinmax_rao, gt.reinmax_cv])
def test_the_inner_draws_follow_the_rows_and_are_not_kept(function):
    x, inner, u = normal(4, 6, seed=11), uniform(6, 5, 4, seed=12) + 0.1, uniform(6, 2)
    upstream = normal(4, 6, seed=13)
    got = pull(lambda x: function(x, dim=0, noise=u, inner=inner), x, upstream)
    want = pull(lambda x: function(x, noise=u, inner=inner), x.T.contiguous(), upstream.T)
    for one, other in zip(got, want, strict=True):
        close(one, other.T)
    kept = []
    for k in (1, 400):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t
        ):
            function(THETA.clone().requires_grad_(), k=k)
        kept.append(sum(sizes))
    assert kept[0] == kept[1]


# --- Decoupled Straight-Through


@pytest.mark.parametrize("tau", [1.0, 0.6, 1.7])
def test_decoupled_straight_through_with_a_plain_sample_is_straight_through(tau):
    u = uniform(40)
    got = pull(lambda x: gt.decoupled_straight_through(x, 1.0, tau, noise=u))
    want = pull(lambda x: gt.straight_through(x, tau, noise=u))
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_the_forward_temperature_changes_the_law_that_is_sampled(tau):
    theta = THETA[0]
    law = (theta / tau).softmax(-1)
    middle, width = cells(law)
    ends = torch.cat((middle - 0.4999 * width, middle + 0.4999 * width))
    z = gt.decoupled_straight_through(theta.expand(8, 4), tau, 0.7, noise=ends)
    assert z.argmax(-1).tolist() == [0, 1, 2, 3] * 2
    p = problem(variables=1, classes=4)
    law = (p.logits / tau).softmax(-1)
    middle, width = cells(law)
    x = p.logits.expand(4, 1, 4)
    estimator = gt.DecoupledStraightThrough(tau, 0.7)
    value = gt.expect(p.cubic, p.dist(x), estimator, noise=middle.reshape(1, 4, 1))
    points = torch.eye(4, dtype=F64).reshape(1, 4, 1, 4)
    close((width * value).sum(), (law[0] * p.cubic(points)[0]).sum())
    near = ((width * value).sum() - exact(p, p.cubic)[0]).abs() < 1e-6
    assert bool(near) == (tau == 1.0)


def test_both_temperatures_are_those_of_the_surrogate():
    estimator, u = gt.DecoupledStraightThrough(0.4, 1.6), uniform(40)
    sample = plain(estimator)
    same(lambda x: sample(x, noise=u), lambda x: reference_sample(estimator, x, u))
    assert not torch.equal(sample(THETA, noise=u), gt.straight_through(THETA, noise=u))


# --- ReDGE and ReinDGE


@BOTH
@pytest.mark.parametrize("steps", [2, 5])
def test_with_nothing_but_noise_redge_is_straight_through_and_reindge_reinmax(steps, covariance):
    noise = uniform(40, 5)
    for ours, theirs in ((gt.redge, gt.straight_through), (gt.reindge, gt.reinmax)):
        same(
            lambda x, ours=ours: ours(x, steps, 1.0, covariance, noise=noise),
            lambda x, theirs=theirs: theirs(x, noise=noise[:, -1]),
            1e-14,
        )


@BOTH
@pytest.mark.parametrize(("alpha", "sigma"), [(0.5, 0.5), (0.9, 0.1), (0.01, 0.99)])
def test_the_denoiser_is_the_posterior_mean(alpha, sigma, covariance):
    pi = THETA.softmax(-1)
    mean = pi if covariance else torch.zeros_like(pi)
    variance = (pi * (1 - pi)).clamp_min(0.1) if covariance else torch.ones_like(pi)
    x = normal(40, 4, seed=14)
    matched = Matched(mean, variance) if covariance else None
    got = (THETA + evidence(x, alpha, sigma, matched)).softmax(-1)
    corners = torch.eye(4, dtype=F64)[:, None]
    law = torch.distributions.Normal(alpha * corners + sigma * mean, sigma * variance.sqrt())
    joint = pi.T.log() + law.log_prob(x).sum(-1)
    close(got, joint.softmax(0).T)


def test_the_levels_of_the_diffusion():
    assert levels(2, 0.3) == [(0.7, 0.3)]
    for alpha, sigma in levels(6, 0.3):
        assert alpha + sigma == 1.0
    close(
        torch.tensor([alpha for alpha, _ in levels(6, 0.3)], dtype=F64),
        torch.linspace(0.7, 1e-4, 5, dtype=F64),
        1e-15,
    )


@BOTH
def test_reindge_is_a_path_and_the_reinmax_rule_at_the_end(covariance):
    noise, estimator = uniform(40, 5), gt.ReinDGE(4, 0.6, covariance)
    leaf = THETA.clone().requires_grad_()
    s = last_law(estimator, leaf, noise[:, :-1])
    (whole,) = torch.autograd.grad(s, leaf, UPSTREAM)
    s = s.detach()
    d, got = pull(lambda x: gt.reindge(x, 4, 0.6, covariance, noise=noise))
    rise = (UPSTREAM * (d - s)).sum(-1, keepdim=True) * (d - s)
    close(got, whole + (rise - jacobian(s, UPSTREAM)) / 2)


@BOTH
def test_the_matched_noise_has_the_mean_and_variance_of_the_sample(covariance):
    """At the first level x is almost noise alone: pi + sqrt(V) eps, or eps."""
    u = uniform(40, 4, seed=6)
    x, _ = diffused(gt.ReDGE(2, 0.5, covariance), THETA, u)
    eps, pi = normals(u, F64), THETA.softmax(-1)
    close(x, pi + (pi * (1 - pi)).clamp_min(0.1).sqrt() * eps if covariance else eps)


@BOTH
@pytest.mark.parametrize("t1", [0.1, 0.5])
def test_more_steps_bring_the_law_of_redge_closer_by_quadrature(t1, covariance):
    p = problem(variables=1, classes=2, seed=7)
    gaps = []
    for steps in (3, 5, 9, 17, 33):  # not 2: at small t1 a third level makes it worse
        law = final_draws(gt.ReDGE(steps, t1, covariance), p.dist(p.logits))[1].mean(0)
        gaps.append(float((law - p.logits.softmax(-1)[0]).abs().sum()) / 2)
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.01
    assert gaps[-1] < 0.1 * gaps[0]


@BOTH
@pytest.mark.parametrize("function", [gt.redge, gt.reindge])
def test_more_steps_bring_the_law_closer_by_sampling(function, covariance):
    theta = 1.5 * normal(5, seed=15)
    gaps = []
    for steps in (3, 5, 9):
        generator = torch.Generator().manual_seed(16)
        x = theta.expand(40_000, 5)
        z = function(x, steps, 0.1, covariance, generator=generator)
        gaps.append(float((z.mean(0) - theta.softmax(-1)).abs().sum()) / 2)
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 3 * gaps[-1]


@pytest.mark.parametrize("function", [gt.redge, gt.reindge])
def test_the_value_of_a_diffusion_is_that_of_the_law_it_samples(function):
    """The class drawn is the one whose interval of s holds the last uniform."""
    noise = uniform(40, 5)
    s = last_law(gt.ReDGE(5, 0.5, False), THETA, noise[:, :-1])
    for edge, step in ((s.cumsum(-1), 1), (s.cumsum(-1) - s, 0)):
        for c in range(4):
            u = (edge[:, c] + (-1e-9 if step else 1e-9)).clamp(0.0, 1 - 2.0**-53)
            z = function(THETA, 5, 0.5, False, noise=torch.cat((noise[:, :-1], u[:, None]), -1))
            assert bool((z.argmax(-1) == c).all())


@BOTH
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("t1", [1e-6, 1e-3, 0.1, 1.0])
@pytest.mark.parametrize("function", [gt.redge, gt.reindge])
def test_extreme_levels_stay_finite(function, t1, dtype, covariance):
    x = torch.cat((10 * THETA, THETA.masked_fill(THETA < 0.5, -torch.inf)[THETA.amax(-1) > 0.5]))
    x = x.to(dtype).requires_grad_()
    z = function(x, 6, t1, covariance, generator=torch.Generator().manual_seed(7))
    (gradient,) = torch.autograd.grad(z, x, normal(*x.shape, seed=8).to(dtype))
    assert bool((z.sum(-1) == 1).all())
    assert not bool(z.bool()[x.isneginf()].any())
    assert gradient.isfinite().all()
    assert bool((gradient[x.isneginf()] == 0).all())


# --- all five


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_with_masked_classes(name):
    """Finite, zero at the mask, and those of the logits without it."""
    estimator = VARIANTS[name](None)
    if hasattr(estimator, "k"):
        estimator = type(estimator)(k=3)
    filled = torch.full((5, 5), -torch.inf, dtype=F64)
    keep = [0, 2, 3]
    filled[:, keep] = THETA[:5, :3]
    noise, curve = noise_for_rows(estimator, filled), normal(5, 5, seed=17)
    got = hessian(
        lambda x: ((plain(estimator)(x, noise=noise) @ curve).sin() * UPSTREAM[:5, :1]).sum()
    )(filled)
    assert got.isfinite().all()
    assert got.abs().max() > 1e-3
    assert bool((got[:, [1, 4]] == 0).all() & (got[..., [1, 4]] == 0).all())
    if hasattr(estimator, "k"):  # the counter numbers all classes
        return
    short = noise if noise.ndim == 1 else noise[:, [*keep, 5]]
    want = hessian(
        lambda x: ((plain(estimator)(x, noise=short) @ curve[keep]).sin() * UPSTREAM[:5, :1]).sum()
    )(THETA[:5, :3])
    close(got[:, keep][..., keep], want, 1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_biased_means_stay_near_the_gradient(name):
    """A sign or a factor would not: within half of its length, for a slowly varying f."""
    p = problem(variables=1, classes=2, seed=7)
    got, want = mean(name, p, p.affine).gradient, exact(p, p.affine)[1]
    assert (got - want).norm() < 0.5 * want.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_normals_are_finite_and_precise_in_both_tails(dtype):
    u = torch.tensor([0.0, 2.0**-53, 1e-12, 1e-3, 0.5, 0.9, 1 - 1e-9, 1 - 2.0**-53], dtype=F64)
    got = normals(u, dtype)
    assert got.dtype == dtype
    assert got.isfinite().all()
    want = torch.from_numpy(stats.norm.ppf(u[1:].numpy()))
    torch.testing.assert_close(got[1:].double(), want, rtol=1e-6, atol=1e-12)
    assert bool((got.diff() > 0).all())
