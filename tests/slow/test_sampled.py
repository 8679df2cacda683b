"""What cannot be enumerated: one scalar statistic, a fixed seed, level 1e-5."""

import math

import pytest
import torch
from scipy import integrate, stats

import gradthrough as gt
from gradthrough._random import CounterExponentials
from problems import (
    F64,
    PATHWISE,
    PLAIN_TAU,
    SERVED,
    UNBIASED,
    VARIANTS,
    exact,
    normal,
    plain,
    problem,
    samples_for,
    select,
)

pytestmark = pytest.mark.slow
LEVEL = 1e-5
RACE_OR_CDF = ["st", "stgs"]
EXACT_FOR_QUADRATICS = select(lambda e: e.traits.exact_for == "quadratic")
APPROXIMATE = select(lambda e: e.traits.approximate)


def assert_mean(draws, want):
    """A two-sided z-test of the mean of independent draws (n,)."""
    z = (draws.mean() - want) / (draws.std() / len(draws) ** 0.5)
    assert 2 * stats.norm.sf(abs(float(z))) > LEVEL, f"z = {float(z):.2f}"


def assert_law(drawn, law, groups=20):
    """A chi-square test of drawn classes, in groups of about equal probability."""
    order = torch.randperm(len(law))
    group = torch.empty_like(order)
    group[order] = (law[order].cumsum(0) * groups).long().clamp_max(groups - 1)
    want = torch.zeros(groups, dtype=F64).index_add(0, group, law) * len(drawn)
    got = torch.bincount(group[drawn], minlength=groups).double()
    assert int(got[want == 0].sum()) == 0
    kept = want > 0  # one class can be as probable as several groups
    statistic = float(((got - want) ** 2 / want)[kept].sum())
    assert stats.chi2.sf(statistic, int(kept.sum()) - 1) > LEVEL


@pytest.mark.parametrize("name", RACE_OR_CDF)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_vocabulary_of_32_000(name, dtype):
    logits = (2 * normal(32_000, seed=71)).to(dtype)
    draw = plain(VARIANTS[name](gt.Categorical(logits)))
    generator = torch.Generator().manual_seed(1)
    drawn = [draw(logits.expand(100, -1), generator=generator).argmax(-1) for _ in range(10)]
    assert_law(torch.cat(drawn), logits.double().softmax(-1))


@pytest.mark.parametrize("name", RACE_OR_CDF)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_ties_do_not_favour_the_first_classes(name, dtype):
    """The place of the drawn class in the cdf is uniform, so 1/2 on average."""
    logits = torch.zeros(60, dtype=dtype)
    draw = plain(VARIANTS[name](gt.Categorical(logits)))
    generator = torch.Generator().manual_seed(9)
    drawn = [draw(logits.expand(80_000, -1), generator=generator).argmax(-1) for _ in range(10)]
    assert_mean((torch.cat(drawn).double() + 0.5) / 60, 0.5)


@pytest.mark.parametrize("name", RACE_OR_CDF)
def test_a_million_classes(name):
    logits = normal(1_000_000, seed=72, dtype=torch.float32)
    draw = plain(VARIANTS[name](gt.Categorical(logits)))
    generator = torch.Generator().manual_seed(2)
    drawn = [draw(logits.expand(4, -1), generator=generator).argmax(-1) for _ in range(10)]
    assert_law(torch.cat(drawn), logits.double().softmax(-1), groups=4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", RACE_OR_CDF)
def test_a_hundred_million_categories_without_a_bad_row(name, dtype):
    """Random logits of all sizes, half of them masked; 10^8 entries over the four cases."""
    draw = plain(VARIANTS[name](gt.Categorical(torch.zeros(1, 2))))
    generator = torch.Generator().manual_seed(3)
    for scale in (0.5, 3.0, 20.0, 300.0, 6e4):
        x = torch.empty(625_000, 8, dtype=torch.float32)
        x.normal_(generator=generator).mul_(scale).clamp_(-6e4, 6e4)
        x.masked_fill_(x.roll(3, 0) < x, -torch.inf)
        x[:, 5] = torch.where((x == -torch.inf).all(-1), 0.0, x[:, 5])
        logits = x.to(dtype)
        z = draw(logits, generator=generator)
        assert not z.isnan().any()
        assert bool((z.sum(-1) == 1).all())
        assert not bool((z.bool() & logits.isneginf()).any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_counter_draws_exponentials(dtype):
    counter = CounterExponentials(torch.arange(2_000, dtype=F64) / 2_000, 25, dtype)
    e = torch.stack([counter(k) for k in range(10)])
    for part in (e[0], e[:, 7], e[:, :, 3], e):
        assert stats.kstest(part.flatten().double().numpy(), "expon").pvalue > LEVEL


def gradient_along(name, p, f, rows, samples, seed):
    """Independent draws of the gradient along one direction, with the library's own noise."""
    theta = p.logits.expand(rows, *p.logits.shape).clone().requires_grad_()
    dist = p.dist(theta)
    estimator = VARIANTS[name](dist)
    n = samples_for(estimator, samples)
    generator = torch.Generator().manual_seed(seed)
    value = gt.expect(f, dist, estimator, samples=n, generator=generator)
    (gradient,) = torch.autograd.grad(value.sum(), theta)
    along = normal(*p.logits.shape, seed=73)
    return (gradient * along).flatten(1).sum(-1), along, value.detach()


@pytest.mark.parametrize(
    ("name", "family"), [(n, f) for n, f in SERVED if n in UNBIASED and n != "enumerate"]
)
def test_unbiased_with_its_own_noise(name, family):
    p = problem(family, variables=3)
    f = p.cubic if VARIANTS[name](p.dist(p.logits)).traits.needs_point_gradients else p.lookup
    draws, along, values = gradient_along(name, p, f, 200_000, 2, seed=4)
    value, gradient = exact(p, f)
    assert_mean(draws, float((gradient * along).sum()))
    assert_mean(values, float(value.detach()))


@pytest.mark.parametrize("name", [n for n in PLAIN_TAU if n in EXACT_FOR_QUADRATICS])
def test_exact_for_quadratics_with_its_own_noise(name):
    p = problem(variables=3, classes=4)
    draws, along, _ = gradient_along(name, p, p.quadratic, 40_000, 1, seed=5)
    assert_mean(draws, float((exact(p, p.quadratic)[1] * along).sum()))


STGS = (gt.GumbelSoftmax, gt.StraightThroughGumbelSoftmax, gt.GumbelRao)
RELAXATIONS = select(lambda e: isinstance(e, STGS))


@pytest.mark.parametrize("name", RELAXATIONS)
def test_means_of_relaxations_by_quadrature(name):
    """One variable of two classes, where the noise is one logistic."""
    phi, slopes = 0.4, (1.5, 0.3)  # f'(class 0), f'(class 1) along z_0
    estimator = VARIANTS[name](gt.Categorical(torch.zeros(1, 2)))

    def integrand(noise):
        s = 1 / (1 + math.exp(-(phi + noise) / estimator.tau))
        slope = slopes[0] if phi + noise > 0 else slopes[1]
        if estimator.traits.relaxed:
            slope = slopes[0] * s + slopes[1] * (1 - s)
        density = 1 / (2 + math.exp(-noise) + math.exp(noise))
        return slope * s * (1 - s) / estimator.tau * density

    want = integrate.quad(integrand, -40, 40, points=[-phi], limit=200)[0]
    x = torch.tensor([phi, 0.0], dtype=F64).expand(40_000, 2).clone().requires_grad_()
    z = plain(estimator)(x, generator=torch.Generator().manual_seed(6))
    # d/dz_0 of this loss is slopes[0] at class 0 and slopes[1] at class 1, linear in between.
    a, b = z[:, 0], z[:, 0].detach()
    loss = (slopes[1] + (slopes[0] - slopes[1]) * b) * a
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    assert_mean(gradient[:, 0], want)


def test_gumbel_rao_has_less_variance_than_stgs():
    p = problem(variables=2, classes=5)
    spread = {}
    for name in ("stgs", "gumbel_rao"):
        draws, _, _ = gradient_along(name, p, p.cubic, 20_000, 1, seed=7)
        spread[name] = float(draws.var())
    assert spread["gumbel_rao"] < spread["stgs"]


@pytest.mark.parametrize("name", [n for n in PATHWISE if n not in APPROXIMATE])
def test_every_kernel_draws_from_the_law(name):
    logits = 1.5 * normal(30, seed=74)
    draw = plain(VARIANTS[name](gt.Categorical(logits)))
    z = draw(logits.expand(20_000, 30), generator=torch.Generator().manual_seed(8))
    assert_law(z.argmax(-1), logits.softmax(-1), groups=30)
