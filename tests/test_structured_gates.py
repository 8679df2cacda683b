"""Hard Concrete gates against their closed forms, with the noise where they change."""

import math

import pytest
import torch
from scipy import stats

import gradthrough as gt
from gradthrough import structured as s
from problems import F64, normal, uniform

LEVEL = 1e-5
LOG_ALPHA = torch.tensor([-4.0, -1.0, 0.0, 0.7, 3.0], dtype=F64)
OPTIONS = [
    {},
    {"beta": 0.3, "gamma": -0.5, "zeta": 1.2},
    {"beta": 2.0, "gamma": -0.05, "zeta": 1.9},
]


def close(got, want, tolerance=1e-12):
    torch.testing.assert_close(got, want, rtol=0.0, atol=tolerance)


def draw(u, options, log_alpha=LOG_ALPHA):
    return s.hard_concrete(log_alpha, noise=u, **options)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_gate_opens_at_the_uniform_that_the_closed_form_says(options):
    """A gate grows with u: P(z != 0) is 1 minus the u from which on it is not 0."""
    chance = s.hard_concrete_penalty(LOG_ALPHA, **options)
    assert bool((draw(1 - chance - 1e-9, options) == 0).all())
    assert bool((draw(1 - chance + 1e-9, options) > 0).all())
    chance = s.hard_concrete_open(LOG_ALPHA, **options)
    assert bool((draw(1 - chance - 1e-9, options) < 1).all())
    assert bool((draw(1 - chance + 1e-9, options) == 1).all())


def test_the_closed_forms_are_those_of_the_defaults():
    odds = 11 ** (2 / 3)  # (1.1 / 0.1)^beta
    assert math.isclose(
        float(s.hard_concrete_penalty(torch.zeros((), dtype=F64))), odds / (1 + odds)
    )
    close(s.hard_concrete_open(-LOG_ALPHA), 1 - s.hard_concrete_penalty(LOG_ALPHA))  # symmetric


@pytest.mark.parametrize("options", OPTIONS)
def test_gates_are_the_formula(options):
    u = uniform(1000, 5, seed=1)
    beta, gamma, zeta = ({"beta": 2 / 3, "gamma": -0.1, "zeta": 1.1} | options).values()
    stretched = torch.sigmoid((torch.logit(u) + LOG_ALPHA) / beta) * (zeta - gamma) + gamma
    close(draw(u, options, LOG_ALPHA.expand(1000, 5)), stretched.clamp(0, 1))
    gate = torch.sigmoid(LOG_ALPHA) * (zeta - gamma) + gamma
    close(s.hard_concrete_gate(LOG_ALPHA, gamma=gamma, zeta=zeta), gate.clamp(0, 1))


def test_the_gradient_is_pathwise_inside_and_zero_where_clipped():
    x = LOG_ALPHA.expand(200, 5).clone().requires_grad_()
    z = s.hard_concrete(x, noise=uniform(200, 5, seed=2))
    (g,) = torch.autograd.grad(z.sum(), x)
    z = z.detach()
    inside = (z > 0) & (z < 1)
    assert 0.1 < inside.double().mean() < 0.9
    assert bool((g[~inside] == 0).all())
    sigma = (z + 0.1) / 1.2
    close(g[inside], (1.2 * sigma * (1 - sigma) * 1.5)[inside])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("options", OPTIONS)
def test_gates_are_closed_and_open_as_often_as_the_closed_forms_say(dtype, options):
    n, x = 100_000, LOG_ALPHA.to(dtype)
    z = s.hard_concrete(x.expand(n, 5), generator=torch.Generator().manual_seed(1), **options)
    chances = (
        1 - s.hard_concrete_penalty(x.double(), **options),
        s.hard_concrete_open(x.double(), **options),
    )
    for i in range(5):
        closed, opened = int((z[:, i] == 0).sum()), int((z[:, i] == 1).sum())
        want = torch.stack((chances[0][i], chances[1][i]))
        want = torch.cat((want, 1 - want.sum()[None])) * n
        got = [closed, opened, n - closed - opened]
        assert stats.chisquare(got, want.numpy(), sum_check=False).pvalue > LEVEL


def test_minus_infinity_closes_a_gate_for_good():
    x = torch.tensor([-torch.inf, 0.0]).requires_grad_()
    z = s.hard_concrete(x.expand(100, 2))
    penalty = s.hard_concrete_penalty(x)
    assert bool((z[:, 0] == 0).all())
    assert penalty[0] == s.hard_concrete_open(x)[0] == s.hard_concrete_gate(x)[0] == 0
    (g,) = torch.autograd.grad(z.sum() + penalty.sum(), x)
    assert g[0] == 0
    assert g.isfinite().all()


def test_the_penalty_trains_a_gate_that_is_always_closed():
    x = torch.full((10,), -6.0, requires_grad=True)
    z = s.hard_concrete(x, noise=torch.full((10,), 0.3, dtype=F64))
    assert bool((z == 0).all())
    assert torch.autograd.grad(z.sum(), x)[0].abs().sum() == 0
    assert bool((torch.autograd.grad(s.hard_concrete_penalty(x).sum(), x)[0] > 0).all())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"gamma": 0.0}, gt.DomainError),
        ({"gamma": -math.inf}, gt.DomainError),
        ({"zeta": 1.0}, gt.DomainError),
        ({"zeta": math.nan}, gt.DomainError),
        ({"zeta": "1.1"}, gt.UnsupportedError),
        ({"beta": 0.0}, gt.DomainError),
        ({"beta": None}, gt.UnsupportedError),
    ],
)
def test_options_that_cannot_be_are_refused(options, error):
    (name,) = options
    for f in (s.hard_concrete, s.hard_concrete_penalty, s.hard_concrete_open, s.hard_concrete_gate):
        if name == "beta" and f is s.hard_concrete_gate:
            continue
        with pytest.raises(error, match=name):
            f(normal(3), **options)
