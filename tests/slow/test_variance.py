"""Orderings of variances with the library's own noise, and control variates that learn.

Also the laws that the enumerations of the other tests take for granted. Level 1e-5 throughout.

Orderings: 10^6 draws of each, a fixed seed, and the difference of the mean squared errors against
the exact gradient above 0. The exact second moments are in test_moments.py.
"""

import math

import pytest
import torch
from scipy import stats

import gradthrough as gt
from enumerations import coins
from problems import F64, exact, normal, problem, uniform

pytestmark = pytest.mark.slow
LEVEL = 1e-5
DRAWS, CHUNK = 1_000_000, 100_000


def squared_errors(estimator, p, f, samples, seed):
    """|gradient - exact|^2, one for each of 10^6 independent draws."""
    want, out = exact(p, f)[1], []
    generator = torch.Generator().manual_seed(seed)
    for _ in range(DRAWS // CHUNK):
        theta = p.logits.expand(CHUNK, *p.logits.shape).clone().requires_grad_()
        value = gt.expect(f, p.dist(theta), estimator, samples=samples, generator=generator)
        (gradient,) = torch.autograd.grad(value.sum(), theta)
        out.append((gradient - want).square().flatten(1).sum(-1))
    return torch.cat(out)


def assert_less(a, b):
    """The mean of a is below that of b, by far more than chance."""
    se = (a.var() / len(a) + b.var() / len(b)).sqrt()
    z = float((b.mean() - a.mean()) / se)
    assert z > stats.norm.isf(LEVEL), f"{float(a.mean()):.5f} against {float(b.mean()):.5f}"


BITS = problem("bernoulli", variables=3)
CLASSES = problem("categorical", variables=2, classes=4)


@pytest.mark.parametrize(
    ("less", "more", "p", "f", "samples"),
    [
        (gt.DisARM(), gt.ARM(), BITS, BITS.lookup, 1),
        (gt.SumAndSample(k=1), gt.Reinforce(), CLASSES, CLASSES.lookup, 1),
        (gt.SumAndSample(k=4), gt.Reinforce(), CLASSES, CLASSES.lookup, 2),
        (gt.LocalExpectation(), gt.Reinforce(), CLASSES, CLASSES.lookup, 1),
        (gt.GumbelRao(tau=0.5, k=10), gt.StraightThroughGumbelSoftmax(tau=0.5),
         CLASSES, CLASSES.cubic, 1),
    ],
    ids=["disarm", "sum_and_sample", "sum_and_sample k", "leg", "gumbel_rao"],
)  # fmt: skip
def test_what_averages_over_more_has_less_error(less, more, p, f, samples):
    assert_less(squared_errors(less, p, f, samples, 11), squared_errors(more, p, f, samples, 12))


def test_double_cv_at_its_best_has_less_error_than_rloo():
    """alpha by least squares on draws of its own: the gradient is linear in alpha."""
    theta = BITS.logits.expand(CHUNK, 3).clone().requires_grad_()
    gradients = []
    for alpha in (0.0, 1.0):
        generator = torch.Generator().manual_seed(13)
        value = gt.expect(
            BITS.cubic, BITS.dist(theta), gt.DoubleCV(alpha), samples=2, generator=generator
        )
        gradients.append(torch.autograd.grad(value.sum(), theta)[0] - exact(BITS, BITS.cubic)[1])
    slope = gradients[1] - gradients[0]
    alpha = -float((gradients[0] * slope).sum() / slope.square().sum())
    assert_less(
        squared_errors(gt.DoubleCV(alpha), BITS, BITS.cubic, 2, 14),
        squared_errors(gt.RLOO(), BITS, BITS.cubic, 2, 15),
    )


def learn(estimator, owner, f, dist, samples, steps, lr):
    optimizer = torch.optim.Adam(owner.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(16)
    for _ in range(steps):
        loss = gt.estimate(f, dist, estimator, samples=samples, generator=generator).tuning_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def variance_of(estimator, f, dist, samples):
    """Total variance over the rows of a law whose rows are equal, from fresh draws."""
    theta = dist.logits.detach().clone().requires_grad_()
    generator = torch.Generator().manual_seed(17)
    value = gt.expect(f, dist.with_logits(theta), estimator, samples=samples, generator=generator)
    (gradient,) = torch.autograd.grad(value.sum(), theta)
    return float(gradient.var(0).sum())


def test_relax_learns_the_toy_problem_of_its_paper():
    """(b - 0.499)^2: one draw a step, 2,000 steps, at least a tenth of the variance."""
    torch.manual_seed(1)
    start = gt.Relax(gt.controls.Control(()), eta=0.0, tau=torch.tensor(0.5, requires_grad=True))
    owner = torch.nn.ParameterList([*start.control.parameters(), start.tau])
    many = gt.Bernoulli(torch.zeros(100_000))

    def f(b):
        return (b - 0.499) ** 2

    before = variance_of(start, f, many, 1)
    learn(start, owner, f, gt.Bernoulli(torch.zeros(1, requires_grad=True)), 1, 2_000, 0.01)
    after = variance_of(start, f, many, 1)
    assert after < 0.1 * min(before, variance_of(gt.Reinforce(), f, many, 1))


@pytest.mark.parametrize("key", ["double_cv", "rodeo"])
def test_learned_control_variates_beat_rloo_on_200_variables(key):
    """f is the negative log-likelihood of a fixed random network; two samples, 300 steps."""
    first = normal(200, 50, seed=61).float() / 7
    second = normal(50, 100, seed=62).float() / 3.5
    x = (normal(100, seed=63) > 0).float()

    def f(b):
        logits = ((2 * b - 1) @ first).tanh() @ second
        return (torch.nn.functional.softplus(logits) - x * logits).sum(-1)

    phi = 0.5 * normal(200, seed=64).float()
    few = gt.Bernoulli(phi.expand(20, 200).clone().requires_grad_(), event_dims=1)
    many = gt.Bernoulli(phi.expand(1_000, 200), event_dims=1)
    estimator, owner = gt.estimator(key).learned(few)
    learn(estimator, owner, f, few, 2, 300, 1e-2)
    assert variance_of(estimator, f, many, 2) < 0.85 * variance_of(gt.RLOO(), f, many, 2)


@pytest.mark.parametrize("drawn", range(4))
def test_the_second_relaxation_of_rebar_has_the_conditional_law_of_the_first(drawn):
    q = gt.Categorical(normal(4, seed=65).expand(200_000, 4))
    noise = uniform(1, 200_000, 4, 2, seed=7)
    hot, free, tied = gt.Rebar(tau=1.0).draw(q.expand(1), noise).points
    hit = hot[:, drawn] == 1
    others = [c for c in range(4) if c != drawn]
    for look in (lambda s: s[:, others[0]], lambda s: s[:, others[1:]].prod(-1)):
        first, second = (look(s[hit]).numpy() for s in (free, tied))
        assert stats.ks_2samp(first, second).pvalue > LEVEL


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("p", [0.2, 0.45])
def test_coupled_coins_come_in_patterns_as_often_as_the_enumeration_says(n, p):
    q = gt.Bernoulli(torch.full((100_000,), math.log(p / (1 - p)), dtype=F64))
    patterns, weight = coins(p, n)
    few = gt.Bernoulli(q.logits[: len(weight)])
    places = 2 ** torch.arange(n).unsqueeze(-1)
    codes = (gt.ARMS().draw(few.expand(n), patterns.T).points.long() * places).sum(0)
    drawn = (gt.ARMS().draw(q.expand(n), uniform(n, 100_000, seed=8)).points.long() * places).sum(0)
    want = torch.zeros(2**n, dtype=F64).index_add(0, codes, weight) * len(drawn)
    got = torch.bincount(drawn, minlength=2**n).double()
    assert float(got[want == 0].sum()) == 0
    statistic = float(((got - want) ** 2 / want)[want > 0].sum())
    assert stats.chi2.sf(statistic, int((want > 0).sum()) - 1) > LEVEL
