"""Draws are right in law down to rare classes and long rows, whatever the dtype.

A draw is a step function of its uniforms: its edges are found by bisection and compared with
those of the exact law, so that nothing here is sampled.
"""

import pytest
import torch

import gradthrough as gt
from gradthrough import _random
from gradthrough._random import CounterExponentials, antithetic, exponentials
from gradthrough.estimators.base import AbstractScore
from problems import (
    ANY,
    F64,
    UNBIASED,
    VARIANTS,
    case,
    exact,
    mean,
    normal,
    plain,
    problem,
    select,
    served,
    uniform,
)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LAST = 1.0 - 2.0**-53
BY_CDF = select(lambda e: e.traits.pathwise and e.traits.noise.startswith("variable"))
RACES = select(lambda e: e.traits.noise in ("class", "class2") and not e.traits.relaxed)
ONE_BY_ONE = select(lambda e: isinstance(e, AbstractScore) and e.traits.noise == "variable")


def exact_law(logits):
    return logits.double().softmax(-1)


def index_by_sample(logits, u):
    """Class drawn for each uniform, all from one row of logits."""
    return gt.Categorical(logits).expand(len(u)).sample(noise=u).argmax(-1)


def edge(index_of, near, above, slack):
    """Where the class drawn rises to `above`, found by bisection around the exact place."""
    low, high = (near - slack).clamp_min(0.0), (near + slack).clamp_max(LAST)
    assert bool((index_of(high) >= above).all() | (near >= LAST).all())
    for _ in range(40):
        middle = (low + high) / 2
        up = index_of(middle) >= above
        low, high = torch.where(up, low, middle), torch.where(up, middle, high)
    return high


def widths(logits, classes, slack=1e-6):
    """(width of the interval of u that draws each of the classes, its exact probability)."""
    cdf = torch.cat((torch.zeros(1, dtype=F64), exact_law(logits).cumsum(-1)))
    where = torch.as_tensor(classes)
    index_of = lambda u: index_by_sample(logits, u)  # noqa: E731
    left = torch.where(where == 0, 0.0, edge(index_of, cdf[where], where, slack))
    last = where == logits.shape[-1] - 1
    right = torch.where(last, 1.0, edge(index_of, cdf[where + 1], where + 1, slack))
    return right - left, exact_law(logits)[where]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_vocabulary_of_32_000_is_drawn_from_its_law(dtype):
    logits = (3 * normal(32_000, seed=61)).to(dtype)
    order = logits.argsort().tolist()
    chosen = [0, 1, 31_998, *order[:4], *order[16_000:16_004], *order[-4:]]
    got, want = widths(logits, chosen)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-15)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_class_of_probability_1e_minus_9_has_its_interval(place, dtype):
    p = torch.tensor([0.6, 0.4], dtype=F64)
    p = torch.cat((p[:place], torch.tensor([1e-9], dtype=F64), p[place:]))
    got, want = widths(p.log().to(dtype), [place])
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-16)
    assert 0.9e-9 < float(want) < 1.1e-9


def test_a_million_classes_have_their_intervals():
    logits = normal(1_000_000, seed=62, dtype=torch.float32)
    got, want = widths(logits, [3, 999_990])
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-15)


def test_equal_classes_in_a_long_row_share_equally():
    """A cumulative sum in float32 would merge some and stretch others."""
    count = 300_000
    u = (torch.arange(50, dtype=F64) * 5_999 + 0.5) / count
    drawn = index_by_sample(torch.zeros(count, dtype=torch.float16), u)
    assert drawn.tolist() == [i * 5_999 for i in range(50)]


@pytest.mark.parametrize("name", BY_CDF)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kernel_with_one_uniform_draws_alike(name, dtype):
    logits = (2 * normal(3_000, 7, seed=63)).to(dtype)
    u = uniform(3_000, seed=64)
    estimator = VARIANTS[name](gt.Categorical(logits))
    noise = torch.stack((u, u), -1) if estimator.traits.noise == "variable+seed" else u
    z = plain(estimator)(logits, noise=noise)
    assert torch.equal(z, gt.Categorical(logits).sample(noise=u))
    cdf = exact_law(logits).cumsum(-1)
    want = (cdf <= u.unsqueeze(-1)).sum(-1)
    near = (cdf - u.unsqueeze(-1)).abs().amin(-1) < 1e-6
    assert int(((z.argmax(-1) != want) & ~near).sum()) == 0


@pytest.mark.parametrize("name", ONE_BY_ONE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_score_function_with_one_uniform_draws_alike(name, dtype):
    """Of all points asked for, the first N follow their uniforms; those of a proposal are its."""
    q, estimator, n, noise = case(name, (2 * normal(300, 7, seed=63)).to(dtype), at_least=2)
    drawn = estimator.draw(q.expand(n), noise).points[:n].detach()
    source = getattr(estimator, "proposal", None) or q
    pairs = getattr(estimator, "antithetic", False)
    u = torch.cat((noise, antithetic(noise))) if pairs else noise
    assert torch.equal(drawn, source.expand(n).sample(noise=u))


def runner(name, logits):
    """The draw of an estimator whose noise is a race between classes, as a function of it."""
    q = gt.Categorical(logits)
    estimator = VARIANTS[name](q)
    twice = estimator.traits.noise == "class2"

    def draw(u):
        noise = torch.stack((u, torch.full_like(u, 0.5)), -1) if twice else u
        return estimator.draw(q.expand(1), noise[None]).points[0].detach()

    return draw


def affordable(name, classes):
    return VARIANTS[name](ANY).evaluations(gt.Categorical(torch.zeros(classes)), 1) < 1000


@pytest.mark.parametrize(
    ("name", "classes"), [(n, c) for n in RACES for c in (2, 1000) if affordable(n, c)]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_race_of_exponentials_is_won_where_it_should_be(name, classes, dtype):
    """Class i wins as soon as E_i < pi_i min_j E_j / pi_j, also a class of probability 1e-9."""
    logits = normal(12, classes, seed=65)
    logits[:6, 0] = logits[:6, 1:].logsumexp(-1) - 20.7
    logits = logits.to(dtype)
    noise = uniform(12, classes, seed=66)
    rate = exact_law(logits) / exact_law(logits)[:, :1]
    others = -torch.log1p(-noise[:, 1:]) / rate[:, 1:]
    want = -torch.expm1(-others.amin(-1))
    draw = runner(name, logits)

    def lost(u):
        return draw(torch.cat((u.unsqueeze(-1), noise[:, 1:]), -1))[:, 0] == 0

    low, high = want * 0.5, want * 1.5
    for _ in range(40):
        middle = (low + high) / 2
        up = lost(middle)
        low, high = torch.where(up, low, middle), torch.where(up, middle, high)
    torch.testing.assert_close(high, want, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("u", [0.0, 2.0**-60, LAST])
def test_the_ends_of_the_uniforms_draw_possible_classes(dtype, u):
    inf = torch.inf
    rows = [[-inf, 0, 0, -inf], [-300, 0, 1, -300], [-inf, -inf, -2, -inf], [0, 0, 0, 0]]
    logits = torch.tensor(rows, dtype=dtype)
    noise = torch.full((4,), u, dtype=F64)
    drawn = gt.Categorical(logits).sample(noise=noise)
    assert bool((drawn.sum(-1) == 1).all())
    possible = logits.to(F64 if dtype == F64 else torch.float32).softmax(-1) > 0
    assert bool(possible[drawn.bool()].all())
    for name in RACES:
        z = runner(name, logits)(noise[:, None].expand(4, 4))
        assert bool((z.sum(-1) == 1).all())
        assert bool((logits > -inf)[z.bool()].all())


@pytest.mark.parametrize("name", VARIANTS)
def test_noise_is_drawn_on_the_grid_of_float64(name):
    q = gt.Categorical(torch.zeros(50, 7)).expand(2)
    noise = VARIANTS[name](q).noise(q)
    assert noise.dtype == F64
    assert bool(((noise >= 0) & (noise < 1)).all())
    fine = (noise * 2.0**53) % 2.0**21 != 0  # not on the grid of 32 bits
    assert fine.numel() == 0 or float(fine.double().mean()) > 0.99
    assert torch.equal(noise * 2.0**53, (noise * 2.0**53).floor())


def test_antithetic_uniforms_stay_on_their_grid():
    u = torch.tensor([0.0, 2.0**-53, 0.5, LAST], dtype=F64)
    assert antithetic(u).tolist() == [LAST, 1 - 2.0**-52, 0.5 - 2.0**-53, 0.0]
    assert torch.equal(antithetic(antithetic(u)), u)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_exponentials_are_positive_finite_and_precise_near_zero(dtype):
    u = torch.tensor([0.0, 2.0**-53, 1e-12, 1e-9, 1e-3, 0.5, 0.999, LAST], dtype=F64)
    e = exponentials(u, dtype)
    assert e.dtype == dtype
    assert bool((e > 0).all() & e.isfinite().all())
    want = -torch.log1p(-u[1:7])
    torch.testing.assert_close(e[1:7].double(), want, rtol=1e-4, atol=0.0)
    assert bool((e.diff() >= 0).all())


def test_log_probabilities_of_many_variables_round_once():
    logits = normal(2, 500, 7, seed=67).to(torch.bfloat16)
    q = gt.Categorical(logits, event_dims=1)
    z = q.sample(noise=uniform(2, 500))
    want = (logits.double().log_softmax(-1) * z.double()).sum((-1, -2))
    torch.testing.assert_close(q.log_prob(z).double(), want, rtol=2.0**-8, atol=0.0)


# The cells of a pair of noises are those of a quadrature, which rare classes defeat.
FINITE = [name for name in UNBIASED if VARIANTS[name](ANY).traits.noise != "class2"]


@served(FINITE)
@pytest.mark.parametrize("rare", [0, 1, 2])
def test_the_gradient_of_a_class_of_probability_1e_minus_9_is_exact(name, family, rare):
    p = problem(family, variables=1, classes=3)
    logits = p.logits.clone()
    logits.view(-1)[rare % logits.numel()] = -20.5
    p = p._replace(logits=logits)
    want = exact(p, p.cubic)[1]
    got = mean(name, p, p.cubic, samples=2)
    torch.testing.assert_close(got.gradient, want, rtol=1e-5, atol=1e-15)
    assert float(want.abs().min()) < 1e-7


# --- the counter of Gumbel-Rao

SEEDS = {
    "random": uniform(300, seed=68),
    "neighbours on the grid": torch.arange(300, dtype=F64) * 2.0**-53,
    "round numbers": torch.arange(300, dtype=F64) / 300,
    "neighbours in the high word": torch.arange(300, dtype=F64) * 2.0**-21,
}


def draw_all(seeds, count, classes, dtype=F64):
    counter = CounterExponentials(seeds, classes, dtype)
    return torch.stack([counter(k) for k in range(count)])


@pytest.mark.parametrize("kind", SEEDS)
def test_the_counter_repeats_itself_and_nobody_else(kind):
    e = draw_all(SEEDS[kind], 20, 30)
    assert torch.equal(e, draw_all(SEEDS[kind], 20, 30))
    assert bool((e > 0).all() & e.isfinite().all())
    assert len(e.unique()) > e.numel() * (1 - 1e-3)  # 2^32 values: few collisions
    low = draw_all(SEEDS[kind], 20, 30, torch.float32)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low[e < 0.1].double(), e[e < 0.1], rtol=1e-5, atol=0.0)
    torch.testing.assert_close((-low).exp().double(), (-e).exp(), rtol=0.0, atol=1e-6)
    assert torch.equal(draw_all(SEEDS[kind], 20, 12), e[..., :12])  # of the class alone


@pytest.mark.parametrize("kind", SEEDS)
def test_draws_of_the_counter_are_uncorrelated(kind):
    """Between neighbouring rows, k and classes, and between all pairs of k in one row."""
    u = -torch.expm1(-draw_all(SEEDS[kind], 20, 30)) - 0.5  # (k, row, class)
    noise = 5.0 / u.numel() ** 0.5  # 5 sigma of a correlation of that many pairs
    for dim in range(3):
        for lag in (1, 2, 4, 8):
            n = u.shape[dim]
            pair = u.narrow(dim, 0, n - lag), u.narrow(dim, lag, n - lag)
            assert abs(float((pair[0] * pair[1]).mean()) * 12) < 1.3 * noise
    assert abs(float(u.mean())) * 12**0.5 < noise
    across = torch.corrcoef(u.flatten(1)).fill_diagonal_(0.0)
    assert float(across.abs().max()) < 5.5 / (300 * 30) ** 0.5
    mixed = u[1:, 1:, 1:] * u[:-1, 1:, 1:] * u[1:, :-1, 1:] * u[1:, 1:, :-1]
    assert abs(float(mixed.mean())) < 5 * float(mixed.std()) / mixed.numel() ** 0.5
    square = u[1:, :, 1:] * u[:-1, :, 1:] * u[1:, :, :-1] * u[:-1, :, :-1]  # an xor would show
    assert abs(float(square.mean())) < 5 * float(square.std()) / square.numel() ** 0.5


@pytest.mark.parametrize("word", [0, 2**32 - 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_last_words_of_the_counter_are_finite_draws(word, dtype, monkeypatch):
    monkeypatch.setattr(
        _random, "_mix", lambda x: torch.full_like(x, word, dtype=torch.int64).to(x.dtype)
    )
    e = draw_all(SEEDS["random"], 2, 3, dtype)
    assert bool((e > 0).all() & e.isfinite().all())


def test_no_two_rows_of_the_counter_share_all_their_draws():
    """A state of 32 bits would: half a million rows make 2^37 pairs."""
    e = CounterExponentials(uniform(2**19, seed=69), 2, F64)(0)
    words = (-torch.expm1(-e) * 2.0**32).to(torch.int64)
    assert len((words[:, 0] * 2**32 + words[:, 1]).unique()) == 2**19
