"""Relaxed top-k against its formula written out, and the hard one against the draw."""

import pytest
import torch

import gradthrough as gt
from gradthrough import structured as s
from problems import F64, normal, uniform

INF = torch.inf


def close(got, want, tolerance=1e-12):
    torch.testing.assert_close(got, want, rtol=0.0, atol=tolerance)


def gumbel(u):
    return -(-torch.log1p(-u)).log()


def by_definition(x, k, tau, u):
    """As in the paper: only where no probability is near 1."""
    a, out = x + gumbel(u), 0.0
    for _ in range(k):
        p = (a / tau).softmax(-1)
        out = out + p
        a = a + torch.log(1.0 - p)
    return out


@pytest.mark.parametrize("k", range(1, 7))
@pytest.mark.parametrize("tau", [0.7, 1.0, 3.0])
def test_value_and_gradient_are_those_of_the_formula(k, tau):
    x, u, w = normal(4, 6, seed=1), uniform(4, 6, seed=1), normal(4, 6, seed=2)
    results = []
    for f in (lambda y: s.relaxed_k_hot(y, k, tau, noise=u), lambda y: by_definition(y, k, tau, u)):
        y = x.clone().requires_grad_()
        out = f(y)
        results.append((out.detach(), torch.autograd.grad((out * w).sum(), y)[0]))
    for got, want in zip(*results, strict=True):
        close(got, want, 1e-9)


def test_one_of_n_is_the_gumbel_softmax():
    x, u = normal(20, 6, seed=3), uniform(20, 6, seed=3)
    for ours, theirs in (
        (s.relaxed_k_hot, gt.gumbel_softmax),
        (s.straight_through_k_hot, gt.straight_through_gumbel_softmax),
    ):
        y, z = x.clone().requires_grad_(), x.clone().requires_grad_()
        got, want = ours(y, 1, 0.5, noise=u), theirs(z, 0.5, noise=u)
        close(got, want)
        got.square().cumsum(-1).sum().backward()
        want.square().cumsum(-1).sum().backward()
        close(y.grad, z.grad)


@pytest.mark.parametrize("k", range(1, 7))
def test_points_sum_to_k_and_have_no_negative_entry(k):
    for tau in (0.05, 1.0, 20.0):
        z = s.relaxed_k_hot(3.0 * normal(50, 6, seed=4), k, tau)
        close(z.sum(-1), torch.full((50,), float(k), dtype=F64), 1e-10)
        assert bool((z >= 0).all())


@pytest.mark.parametrize(("lead", "want"), [(0.2, [2.0, 1.0, 0.0]), (3.0, [1.0, 1.0, 1.0])])
def test_a_lead_below_tau_times_the_distance_is_picked_twice(lead, want):
    """Not only at a high temperature; the docstring warns of it."""
    x, tau = torch.tensor([100.0 + lead, 100.0, 0.0], dtype=F64), 0.02
    point = s.relaxed_k_hot(x, 3, tau, noise=torch.full((3,), 0.5, dtype=F64))
    close(point, torch.tensor(want, dtype=F64), 1e-4)


@pytest.mark.parametrize("k", range(1, 7))
def test_the_hard_point_is_the_draw_and_the_limit_of_the_soft_one(k):
    x, u = normal(50, 6, seed=5), uniform(50, 6, seed=5)
    hard = s.straight_through_k_hot(x, k, 0.5, noise=u)
    want = torch.zeros_like(x).scatter(-1, s.gumbel_top_k(x, k, noise=u).index, 1.0)
    assert torch.equal(hard, want)
    apart = (x + gumbel(u)).sort(-1)[0].diff().amin(-1) > 0.02
    assert apart.sum() > 20
    close(s.relaxed_k_hot(x, k, 5e-4, noise=u)[apart], want[apart], 1e-9)


def test_the_hard_point_has_the_jacobian_of_the_soft_one():
    x, u = normal(3, 6, seed=6), uniform(3, 6, seed=6)
    got, want = (
        torch.autograd.functional.jacobian(lambda y, f=f: f(y, 3, 0.5, noise=u), x)
        for f in (s.straight_through_k_hot, s.relaxed_k_hot)
    )
    close(got, want)
    assert want.abs().max() > 0.1


@pytest.mark.parametrize("k", [1, 3, 5, 6])
def test_a_low_temperature_and_large_logits_make_no_nan_in_float32(k):
    x = torch.tensor([200.0, -200.0, 199.9, 0.0, -200.0, 200.0], requires_grad=True)
    for f in (s.relaxed_k_hot, s.straight_through_k_hot):
        z = f(x.expand(200, -1), k, 0.05)
        close(z.sum(-1), torch.full((200,), float(k)), 1e-4)
        (g,) = torch.autograd.grad((z * torch.arange(6.0)).sum(), x)
        assert g.isfinite().all()


def test_the_second_pick_is_right_although_the_first_has_probability_one():
    """1 - p is 0 in float32: without care the first class would be picked again, or be NaN."""
    x = torch.tensor([30.0, 1.0, 0.9, -3.0])
    u = torch.full((4,), 0.5, dtype=F64)
    got, want = (s.relaxed_k_hot(y, 2, 0.5, noise=u) for y in (x, x.double()))
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
    close(want[0], torch.tensor(1.0, dtype=F64), 1e-9)
    close(want[1:].sum(), torch.tensor(1.0, dtype=F64), 1e-9)
    got, want = (
        torch.autograd.functional.jacobian(lambda y: s.relaxed_k_hot(y, 2, 0.5, noise=u), y)
        for y in (x, x.double())
    )
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-6)
    assert want.abs().max() > 0.1


def test_all_classes_are_all_ones_and_masks_stay_closed():
    x = torch.tensor([0.3, -INF, 2.0, -1.0], dtype=F64)
    assert torch.equal(s.straight_through_k_hot(x, 3), torch.tensor([1.0, 0, 1, 1], dtype=F64))
    assert s.relaxed_k_hot(x, 3, 0.2)[1] == 0.0


def test_a_hundred_thousand_classes():
    x = normal(100_000, seed=7, dtype=torch.float32).requires_grad_()
    z = s.straight_through_k_hot(x, 3, 0.5)
    assert z.sum() == 3.0
    assert torch.autograd.grad((z * x.detach()).sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("tau", [0.0, -1.0, torch.nan, INF])
def test_a_temperature_that_cannot_be_is_refused(tau):
    for f in (s.relaxed_k_hot, s.straight_through_k_hot):
        with pytest.raises(gt.DomainError, match="tau"):
            f(normal(3, 5), 2, tau)
