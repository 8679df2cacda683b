"""Every formula and number of the page on how the library works, held against the library."""

import importlib.util
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

import gradthrough as gt
from gradthrough.kernels.eager import Kept
from problems import F64, normal, plain, uniform
from surrogates import conditional_gumbels, gumbel

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs" / "_ext"))
from gradthrough_docs import one_bit  # noqa: E402


def J(p):  # noqa: N802 - as on the page
    return torch.diag(p) - torch.outer(p, p)


THETA, G = normal(4, seed=1), normal(4, seed=2)
PI = THETA.softmax(-1)
HOTS = torch.eye(4, dtype=F64)
K, TAU = 3, 0.7
SMOOTH = (THETA / TAU).softmax(-1)
INNER = -torch.log1p(-uniform(K + 1, 4, seed=3))  # exponentials of the draws given D


def given(law, hot):
    """S_1, S_2, ...: relaxations given that they lead to D, of a law (4,)."""
    return [(conditional_gumbels(law.log(), hot, e) / TAU).softmax(-1) for e in INNER]


def rows(hot):
    """The rows of the page with D drawn from pi: the estimator, and its Jacobian."""
    st = J(SMOOTH) / TAU
    rao, mid = map(J, given(PI, hot)[:K]), [J(s) for s in given((hot + PI) / 2, hot)]
    x = torch.where(hot > 0, THETA.max(), THETA.minimum(THETA.max() - 1.0))
    reinmax = 2 * J((hot + SMOOTH) / 2) - J(PI) / 2
    return (
        (gt.StraightThrough(TAU), st),
        (gt.StraightThrough(TAU, importance=True), st / (4 * PI @ hot)),
        (gt.DecoupledStraightThrough(1.0, TAU), st),
        (gt.GumbelRao(TAU, k=K), sum(rao) / (K * TAU)),
        (gt.GappedStraightThrough(TAU, gap=1.0), J((x / TAU).softmax(-1)) / TAU),
        (gt.ReinMax(TAU), reinmax),
        (gt.ReinMaxRao(TAU, k=K), 2 / (K * TAU) * sum(mid[:K]) - J(PI) / 2),
        (
            gt.ReinMaxCV(TAU, k=K, eta=0.6, tau_cv=TAU),
            reinmax + 0.6 / TAU * (sum(mid[:K]) / K - mid[K]),
        ),
    )


def check(estimator, jacobian, noise):
    """Hold what comes back of G against the page; return the sample."""
    theta = THETA.clone().requires_grad_()
    z = plain(estimator)(theta, noise=noise, backend="eager")
    (got,) = torch.autograd.grad(z @ G, theta)
    torch.testing.assert_close(got, jacobian @ G, rtol=0, atol=1e-12)
    return z.detach()


@pytest.mark.parametrize("drawn", range(4))
def test_the_jacobians_of_the_page_are_those_of_the_code(drawn, monkeypatch):
    hot = HOTS[drawn]
    monkeypatch.setattr(Kept, "draws", lambda kept, count, *rest: iter(INNER[:count]))
    for estimator, jacobian in rows(hot):
        u = gt.Categorical(THETA).noise_for(hot)
        if estimator.traits.noise == "variable+seed":
            u = torch.stack((u, torch.zeros_like(u)))
        assert torch.equal(check(estimator, jacobian, u), hot)


def test_the_jacobians_of_gumbel_softmax_are_those_of_the_code():
    for seed in range(4):
        u = uniform(4, seed=seed)
        s = ((THETA + gumbel(u)) / TAU).softmax(-1)
        hard = check(gt.StraightThroughGumbelSoftmax(TAU), J(s) / TAU, u)
        assert torch.equal(hard, HOTS[s.argmax()])
        torch.testing.assert_close(check(gt.GumbelSoftmax(TAU), J(s) / TAU, u), s)


def test_decoupled_straight_through_draws_at_its_forward_temperature():
    u = gt.Categorical(THETA / 0.3).noise_for(HOTS)
    theta = THETA.expand(4, 4)
    z = gt.decoupled_straight_through(theta, tau_forward=0.3, tau_backward=TAU, noise=u)
    assert torch.equal(z, HOTS)


def cubic(z):
    return (z @ G) ** 3 + z[..., 0]


def slope_at(z):
    x = z.clone().requires_grad_()
    return torch.autograd.grad(cubic(x), x)[0]


def mean_gradient(estimator):
    """The mean over all draws of one variable, exact."""
    theta = THETA.clone().requires_grad_()
    noise = gt.Categorical(THETA).noise_for(HOTS).unsqueeze(0)
    value = gt.expect(cubic, gt.Categorical(theta.expand(4, 4)), estimator, noise=noise)
    return torch.autograd.grad((PI * value).sum(), theta)[0]


def pairs(difference):
    """Sum over i and j of pi_j, a difference from e_j to e_i, and d pi_i / d theta."""
    terms = [
        PI[j] * difference(HOTS[i], HOTS[j]) * PI[i] * (HOTS[i] - PI)
        for i in range(4)
        for j in range(4)
    ]
    return torch.stack(terms).sum(0)


def test_straight_through_is_euler_and_reinmax_is_heun():
    exact = pairs(lambda a, b: cubic(a) - cubic(b))
    euler = pairs(lambda a, b: slope_at(b) @ (a - b))
    heun = pairs(lambda a, b: (slope_at(a) + slope_at(b)) @ (a - b) / 2)
    for estimator, want in (
        (gt.Reinforce(), exact),
        (gt.StraightThrough(), euler),
        (gt.ReinMax(), heun),
    ):
        torch.testing.assert_close(mean_gradient(estimator), want, rtol=0, atol=1e-12)
    assert (heun - exact).abs().max() > 1e-3  # a cubic is beyond both


@pytest.mark.parametrize("drawn", range(4))
def test_both_forms_of_reinmax_are_one(drawn):
    hot = torch.eye(4, dtype=F64)[drawn]
    mean = G @ PI
    closed = (PI * (G - mean) + (G @ hot - mean) * (hot - PI)) / 2
    torch.testing.assert_close((2 * J((hot + PI) / 2) - J(PI) / 2) @ G, closed, rtol=0, atol=1e-14)
    halves = (J(PI) @ G + (G @ (hot - PI)) * (hot - PI)) / 2
    torch.testing.assert_close(halves, closed, rtol=0, atol=1e-14)


def test_the_numbers_of_the_bit_are_those_on_the_page():
    s = one_bit.segment()
    assert (s.exact, s.euler, s.heun) == pytest.approx((0.4, -0.6, 0.4), abs=1e-14)
    for p in (0.1, 0.3, 0.5, 0.8):
        spread = p * (1 - p)
        assert one_bit.exact_gradient(p) == pytest.approx(0.4 * spread, abs=1e-14)
        for estimator, want in ((gt.StraightThrough(), 2 * p - 0.6), (gt.ReinMax(), 0.4)):
            assert one_bit.moments(estimator, p).mean == pytest.approx(want * spread, abs=1e-14)
        cubed = one_bit.moments(gt.ReinMax(), p, lambda z: z**3).mean
        assert cubed == pytest.approx(1.5 * spread, abs=1e-14)


def test_stgs_tends_to_reinmax_and_its_variance_grows_like_one_over_tau():
    found = {
        tau: one_bit.moments(gt.StraightThroughGumbelSoftmax(tau), 0.4, lambda z: z**3 - z, 20_000)
        for tau in (0.2, 0.1, 0.05, 0.02)
    }
    limit = one_bit.moments(gt.ReinMax(), 0.4, lambda z: z**3 - z).mean
    gaps = [abs(m.mean - limit) for m in found.values()]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.03 * abs(limit)
    scaled = [tau * m.variance for tau, m in found.items()]
    assert max(scaled) < 1.1 * min(scaled)


def test_the_pictures_are_those_that_the_script_draws(tmp_path):
    path = ROOT / "scripts" / "draw_how_it_works.py"
    spec = importlib.util.spec_from_file_location("draw_how_it_works", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(tmp_path)
    for new in sorted(tmp_path.iterdir()):
        drawn, kept = (
            matplotlib.image.imread(p) for p in (new, ROOT / "docs" / "figures" / new.name)
        )
        assert drawn.shape == kept.shape
        assert np.abs(drawn - kept).mean() < 1e-3
    assert len(list(tmp_path.iterdir())) == 2
