"""Sparse routing: multipliers and their chosen slopes, by every draw; balance; the router."""

import copy
import math
from itertools import product
from typing import NamedTuple

import pytest
import torch
from torch.func import grad, hessian, jvp, vmap

import gradthrough as gt
from gradthrough.nn.router import Router
from gradthrough.routing import load_balance, sparsemixer, sparsemixer_v2
from problems import F64, HARD, PATHWISE, VARIANTS, normal, refuses, uniform

# torch's own tracer makes an instance of every autograd.Function that it meets.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated")


class Rule(NamedTuple):
    """What the papers say."""

    low: float  # where the slope is taken if m = 0
    full: float  # P(m = 1) below the best
    gain: float
    exact: int  # degree of the losses whose quadrature is exact


RULES = {
    sparsemixer: Rule(1 / 2, 1 / 2, 2.0, 2),
    sparsemixer_v2: Rule(1 / 3, 1 / 4, 1.0, 3),
}
rules = pytest.mark.parametrize("mixer", RULES, ids=lambda f: f.__name__)
# At eps = 0.4 the first and the last are kept of each row.
THETA = torch.tensor([0.9, -0.2, 1.5, 0.4], dtype=F64)
EPS = pytest.mark.parametrize("eps", [None, 0.4, 0.1, 0.0])
ROW = gt.Categorical(torch.zeros(1, 4))
ROUTED = [n for n in PATHWISE if n in HARD]


def kept(theta, eps):
    """Which experts may be drawn, by the quotient of the papers."""
    top = max(theta.tolist())
    far = [(top - t) / max(abs(t), top) for t in theta.tolist()]
    return torch.tensor([eps is None or not x > 2 * eps for x in far])


def law(theta, eps):
    """Probabilities of the experts."""
    weights = theta.exp() * kept(theta, eps)
    return weights / weights.sum()


def middles(p):
    """A uniform that draws each class, NaN for one that is never drawn."""
    return torch.where(p > 0, p.cumsum(-1) - p / 2, torch.nan)


def every(theta, eps, rule):
    """All draws of one expert: noise (M, 1, 2), probabilities (M,), D (M,), whether m = 1 (M,)."""
    p = law(theta, eps)
    out = []
    for d, m in product(range(len(p)), (0, 1)):
        if p[d] > 0:
            u = rule.full / 2 if m else (1 + rule.full) / 2
            out.append((middles(p)[d].item(), u, p[d] * (rule.full if m else 1 - rule.full), d, m))
    draw, coin, weight, d, m = (torch.tensor(column) for column in zip(*out, strict=True))
    best = d == theta.argmax()
    noise = torch.stack((draw, coin), -1).to(F64).unsqueeze(1)
    return noise, weight.to(F64), d, (m == 1) | best


def rows(theta, noise):
    return theta.expand(len(noise), -1).clone().requires_grad_()


def pull(f, x):
    """f(x), and the gradient of its sum."""
    out = f(x)
    return out.detach(), torch.autograd.grad(out.sum(), x)[0]


def slope_of_probability(p, d):
    """dp_D / dtheta = p_D (D - p), for each D of (M,)."""
    return p[d].unsqueeze(-1) * (torch.eye(len(p), dtype=F64)[d] - p)


# --- one expert, all draws


@EPS
@rules
def test_the_multiplier_is_the_probability_or_a_part_of_it(mixer, eps):
    rule, p = RULES[mixer], law(THETA, eps)
    noise, _, d, whole = every(THETA, eps, rule)
    out = mixer(rows(THETA, noise), eps=eps, noise=noise)
    assert out.multiplier.shape == out.index.shape == (len(noise), 1)
    assert torch.equal(out.index[:, 0], d)
    want = torch.where(whole, p[d], rule.low * p[d])
    torch.testing.assert_close(out.multiplier[:, 0].detach(), want, rtol=1e-14, atol=0.0)


@rules
def test_the_multiplier_of_the_best_expert_is_its_probability(mixer):
    p = law(THETA, None)
    coins = torch.linspace(0, 1, 9, dtype=F64)[:-1]
    noise = torch.stack((middles(p)[2].expand(8), coins), -1).unsqueeze(1)
    out = mixer(rows(THETA, noise), eps=None, noise=noise)
    torch.testing.assert_close(out.multiplier, p[2].expand(8, 1), rtol=1e-14, atol=0.0)


@rules
def test_the_mean_of_m_below_the_best(mixer):
    rule, p, n = RULES[mixer], law(THETA, None), 1000
    coins = (torch.arange(n, dtype=F64) + 0.5) / n
    noise = torch.stack((middles(p)[0].expand(n), coins), -1).unsqueeze(1)
    parts = mixer(rows(THETA, noise), eps=None, noise=noise).multiplier.detach() / p[0]
    m = (parts - rule.low) / (1 - rule.low)
    assert m.mean().item() == pytest.approx(rule.full, abs=1e-12)


@rules
def test_the_law_is_the_softmax_over_the_experts_that_are_kept(mixer):
    n = 100_000
    draws = (torch.arange(n, dtype=F64) + 0.5) / n
    noise = torch.stack((draws, draws), -1).unsqueeze(1)
    for eps in (None, 0.4):
        index = mixer(rows(THETA, noise), eps=eps, noise=noise).index[:, 0]
        found = torch.bincount(index, minlength=4) / n
        torch.testing.assert_close(found.to(F64), law(THETA, eps), rtol=0.0, atol=1.1 / n)


@EPS
@rules
def test_the_gradient_is_the_slope_of_the_probability_whatever_m(mixer, eps):
    rule, p = RULES[mixer], law(THETA, eps)
    noise, _, d, _ = every(THETA, eps, rule)
    h = normal(len(noise))
    _, got = pull(lambda x: h * mixer(x, eps=eps, noise=noise).multiplier[:, 0], rows(THETA, noise))
    want = rule.gain * h.unsqueeze(-1) * slope_of_probability(p, d)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(got.sum(-1), torch.zeros(len(noise), dtype=F64), atol=1e-15, rtol=0)
    assert not got[:, ~kept(THETA, eps)].any()


# --- the mean gradient of a mixture, over all draws

X, DIRECTION = normal(5), normal(5, seed=1)
EXPERTS = normal(4, 5, 5, seed=2)
COEFFICIENTS = (0.7, -1.1, 0.6, 0.5, -0.8)


def loss(y, degree):
    """A polynomial in the mixture's output (..., 5): one in the multiplier, too."""
    s = y @ DIRECTION
    return sum(c * s**k for k, c in enumerate(COEFFICIENTS[: degree + 1]))


def of_expert(i, a, degree):
    """f_i(a): expert i runs, and its output is multiplied with a."""
    return loss(a * (EXPERTS[i] @ X), degree)


def mean_gradient(mixer, theta, eps, degree):
    noise, weight, d, _ = every(theta, eps, RULES[mixer])
    x = rows(theta, noise)
    multiplier, index = mixer(x, eps=eps, noise=noise)
    assert torch.equal(index[:, 0], d)
    values = loss(multiplier * (EXPERTS[index[:, 0]] @ X), degree)
    return torch.autograd.grad((weight * values).sum(), x)[0].sum(0)


def terms(mixer, theta, eps, degree, *, exact_at_best):
    """The gradient that is estimated, (N,): a sum over experts, each by its own slope."""
    p, best = law(theta, eps), int(theta.argmax())
    total = torch.zeros_like(theta)
    for i in range(len(p)):
        at, zero = p[i].clone(), torch.zeros((), dtype=F64)
        rise = of_expert(i, at, degree) - of_expert(i, zero, degree)
        linear = at * grad(lambda a, i=i: of_expert(i, a, degree))(at)
        through_law = linear if i == best and not exact_at_best else rise
        through_multiplier = linear if mixer is sparsemixer else 0.0
        slope = slope_of_probability(p, torch.tensor([i]))[0]
        total += slope * (through_law + through_multiplier)
    return total


@pytest.mark.parametrize("eps", [None, 0.4])
@rules
def test_the_mean_gradient_is_exact_off_the_best_expert_up_to_its_degree(mixer, eps):
    for degree in range(1, 5):
        got = mean_gradient(mixer, THETA, eps, degree)
        want = terms(mixer, THETA, eps, degree, exact_at_best=False)
        if degree <= RULES[mixer].exact:
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
        else:
            assert (got - want).abs().max() > 1e-3


@rules
def test_the_mean_gradient_of_an_affine_loss_is_exact(mixer):
    theta = THETA.clone().requires_grad_()
    p = theta.softmax(-1)
    values = torch.stack([of_expert(i, p[i], 1) for i in range(4)])
    # v2 is the gradient in the law alone; f(0), the same for all experts, drops out.
    fixed = values.detach() if mixer is sparsemixer_v2 else values
    (want,) = torch.autograd.grad((p * fixed).sum(), theta)
    torch.testing.assert_close(mean_gradient(mixer, THETA, None, 1), want, rtol=1e-12, atol=1e-14)


@rules
def test_all_that_is_wrong_is_the_term_of_the_best_expert(mixer):
    degree = RULES[mixer].exact
    p, best = law(THETA, None), int(THETA.argmax())
    whole = terms(mixer, THETA, None, degree, exact_at_best=True)
    error = mean_gradient(mixer, THETA, None, degree) - whole
    slope = slope_of_probability(p, torch.tensor([best]))[0]
    at, zero = p[best], torch.zeros((), dtype=F64)
    linear = at * grad(lambda a: of_expert(best, a, degree))(at)
    rise = of_expert(best, at, degree) - of_expert(best, zero, degree)
    torch.testing.assert_close(error, slope * (linear - rise), rtol=1e-10, atol=1e-14)
    assert error.abs().max() > 1e-3


# --- several experts


def test_two_experts_are_two_draws_the_second_without_the_first():
    rule, seen = RULES[sparsemixer_v2], 0
    for eps in (None, 0.4):
        for first, w1, d1, whole1 in zip(*every(THETA, eps, rule), strict=True):
            rest = THETA.clone()
            rest[d1] = -math.inf
            for second, w2, d2, whole2 in zip(*every(rest, eps, rule), strict=True):
                noise = torch.cat((first, second)).unsqueeze(0)
                x = rows(THETA, noise)
                multiplier, index = sparsemixer_v2(x, top=2, eps=eps, noise=noise)
                assert index.tolist() == [[int(d1), int(d2)]]
                want, slope = [], torch.zeros(4, dtype=F64)
                for theta, d, whole, h in ((THETA, d1, whole1, 1.3), (rest, d2, whole2, -0.4)):
                    p = law(theta, eps)
                    want.append(p[d] * (1.0 if whole else rule.low))
                    slope += h * slope_of_probability(p, d.reshape(1))[0]
                torch.testing.assert_close(
                    multiplier[0].detach(), torch.stack(want), rtol=1e-13, atol=0.0
                )
                h = torch.tensor([[1.3, -0.4]], dtype=F64)
                (got,) = torch.autograd.grad((h * multiplier).sum(), x)
                torch.testing.assert_close(got[0], slope, rtol=1e-12, atol=1e-15)
                seen += float(w1 * w2)
    assert seen == pytest.approx(2.0, abs=1e-12)  # the draws of both settings


def test_as_many_experts_as_there_are_run_once_each():
    x = normal(50, 4)
    index = sparsemixer_v2(x, top=4, noise=uniform(50, 4, 2)).index
    assert torch.equal(index.sort(-1).values, torch.arange(4).expand(50, 4))


# --- experts that are left out


@pytest.mark.parametrize(
    "theta",
    [
        [0.9, -0.2, 1.5, 0.4],
        [-1.0, -1.1, -3.0, -1.25],
        [5.0, 4.1, 4.0, 3.9],
        [0.2, -5.0, 0.19, 0.1],
    ],
)
@rules
def test_experts_far_below_the_best_never_run(mixer, theta):
    theta = torch.tensor(theta, dtype=F64)
    draws = torch.linspace(0, 1, 401, dtype=F64)[:-1]
    noise = torch.stack((draws, draws), -1).unsqueeze(1)
    index = mixer(theta.expand(400, 4), noise=noise).index
    assert torch.equal(index.unique(), kept(theta, 0.1).nonzero()[:, 0])


@rules
def test_equal_logits_are_all_kept(mixer):
    draws = torch.linspace(0, 1, 41, dtype=F64)[:-1]
    noise = torch.stack((draws, draws), -1).unsqueeze(1)
    for value in (0.0, 2.0, -2.0):
        index = mixer(torch.full((40, 4), value, dtype=F64), eps=0.0, noise=noise).index
        assert index.unique().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("eps", [None, 0.0, 0.1, math.inf])
@rules
def test_masked_experts_never_run_and_get_no_gradient(mixer, eps):
    x = normal(6, 4).masked_fill(torch.arange(4) % 2 == 1, -torch.inf).requires_grad_()
    for training in (True, False):
        out = mixer(x, eps=eps, noise=uniform(6, 1, 2), training=training)
        assert not (out.index % 2).any()
        (g,) = torch.autograd.grad(out.multiplier.sum(), x)
        assert g.isfinite().all()
        assert not g[:, 1::2].any()


def test_the_second_expert_may_be_masked_as_well():
    x = torch.tensor([[0.0, -torch.inf, 0.1]], dtype=F64, requires_grad=True)
    out = sparsemixer_v2(x, top=2, noise=uniform(1, 2, 2))
    assert sorted(out.index[0].tolist()) == [0, 2]
    (g,) = torch.autograd.grad(out.multiplier.sum(), x)
    assert g.isfinite().all()
    assert g[0, 1] == 0


# --- evaluation


@rules
def test_in_evaluation_the_best_expert_runs_with_its_probability_and_no_noise(mixer):
    x = normal(7, 4).requires_grad_()
    before = torch.get_rng_state()
    out = mixer(x, training=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(out.index[:, 0], x.argmax(-1))
    p = torch.stack([law(row, 0.1) for row in x.detach()])
    want = p.gather(-1, out.index)
    torch.testing.assert_close(out.multiplier.detach(), want, rtol=1e-13, atol=0.0)
    (got,) = torch.autograd.grad(out.multiplier.sum(), x)
    slopes = [slope_of_probability(q, i)[0] for q, i in zip(p, out.index, strict=True)]
    torch.testing.assert_close(got, torch.stack(slopes), rtol=1e-12, atol=1e-15)


def test_in_evaluation_the_best_two_experts_run():
    x = normal(7, 4)
    out = sparsemixer_v2(x, top=2, training=False)
    assert torch.equal(out.index, x.topk(2).indices)


# --- what every estimator obeys


@rules
def test_the_generator_decides_and_the_input_stays(mixer):
    x = normal(40, 4)
    held = x.clone()
    seeds = [torch.Generator().manual_seed(s) for s in (1, 1, 2)]
    a, b, c = (mixer(x, eps=None, generator=g) for g in seeds)
    assert torch.equal(x, held)
    assert torch.equal(a.index, b.index)
    assert torch.equal(a.multiplier, b.multiplier)
    assert not torch.equal(a.multiplier, c.multiplier)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@rules
def test_low_precision_is_computed_in_float32_and_rounded_once(mixer, dtype):
    x, noise = (0.2 * normal(300, 4)).to(dtype).requires_grad_(), uniform(300, 1, 2)
    wide = x.detach().float().requires_grad_()
    low, high = (mixer(y, eps=0.3, noise=noise).multiplier for y in (x, wide))
    assert low.dtype == dtype
    assert torch.equal(low, high.to(dtype))
    got, want = (torch.autograd.grad(m.sum(), y)[0] for m, y in ((low, x), (high, wide)))
    assert torch.equal(got, want.to(dtype))


@rules
def test_strides_and_sizes_of_nothing(mixer):
    x, noise = normal(4, 6), uniform(6, 1, 2)
    a, b = mixer(x.T, noise=noise), mixer(x.T.contiguous(), noise=noise)
    assert torch.equal(a.multiplier, b.multiplier)
    assert [tuple(t.shape) for t in mixer(x.new_zeros(0, 4))] == [(0, 1), (0, 1)]
    assert [tuple(t.shape) for t in mixer(x[:, 0])] == [(1,), (1,)]
    assert mixer(x.new_zeros(3, 1)).multiplier.tolist() == [[1.0]] * 3


def objective(mixer, **options):
    """(logits (..., 4), noise) -> (...): differs by expert, and is not linear."""
    w = torch.tensor([0.5, -1.0, 2.0, 0.3], dtype=F64)

    def f(x, noise):
        multiplier, index = mixer(x, noise=noise, **options)
        return (multiplier * w[index]).exp().sum(-1)

    return f


SETTINGS = pytest.mark.parametrize(
    ("mixer", "options"),
    [
        (sparsemixer, {"eps": None}),
        (sparsemixer_v2, {"eps": 0.3}),
        (sparsemixer_v2, {"eps": None, "top": 2}),
    ],
    ids=["v1", "v2", "top 2"],
)


@SETTINGS
def test_transforms_agree_with_autograd(mixer, options):
    f, top = objective(mixer, **options), options.get("top", 1)
    x, noise, t = normal(6, 4), uniform(6, top, 2), normal(6, 4, seed=5)
    _, want = pull(lambda x: f(x, noise), x.clone().requires_grad_())
    torch.testing.assert_close(vmap(grad(f))(x, noise), want)
    value, tangent = jvp(lambda x: f(x, noise), (x,), (t,))
    torch.testing.assert_close(value, f(x, noise))
    torch.testing.assert_close(tangent, (want * t).sum(-1))


@rules
def test_the_second_derivative_is_that_of_the_probability(mixer):
    noise = uniform(1, 2)
    d = int(mixer(THETA, eps=None, noise=noise).index)
    got = hessian(lambda x: mixer(x, eps=None, noise=noise).multiplier.sum())(THETA)
    want = RULES[mixer].gain * hessian(lambda x: x.softmax(-1)[d])(THETA)
    torch.testing.assert_close(got, want)


@SETTINGS
def test_compiles_in_one_graph(mixer, options, compiler):
    f, top = objective(mixer, **options), options.get("top", 1)
    x, noise = normal(6, 4), uniform(6, top, 2)
    want = pull(lambda x: f(x, noise), x.clone().requires_grad_())
    fast = compiler(f)
    got = pull(lambda x: fast(x, noise), x.clone().requires_grad_())
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


BAD = {
    "nan": (torch.tensor([[0.0, math.nan]]), {}, gt.DomainError, ["NaN"]),
    "inf": (torch.tensor([[0.0, math.inf]]), {}, gt.DomainError, ["inf"]),
    "masked": (torch.full((1, 2), -math.inf), {}, gt.DomainError, ["masked"]),
    "int": (torch.zeros(1, 2, dtype=torch.int64), {}, gt.UnsupportedError, ["float"]),
    "none": (torch.zeros(1, 0), {}, gt.ShapeError, ["no class"]),
    "scalar": (torch.zeros(()), {}, gt.ShapeError, ["dim"]),
    "eps": (torch.zeros(1, 2), {"eps": -0.1}, gt.DomainError, ["eps", "-0.1"]),
    "eps nan": (torch.zeros(1, 2), {"eps": math.nan}, gt.DomainError, ["eps"]),
    "eps text": (torch.zeros(1, 2), {"eps": "0.1"}, gt.UnsupportedError, ["eps"]),
    "training": (torch.zeros(1, 2), {"training": 1}, gt.UnsupportedError, ["training"]),
    "shape": (torch.zeros(1, 2), {"noise": uniform(1, 2)}, gt.ShapeError, ["noise"]),
    "dtype": (torch.zeros(1, 2), {"noise": torch.zeros(1, 1, 2)}, gt.UnsupportedError, ["noise"]),
    "range": (torch.zeros(1, 2), {"noise": uniform(1, 1, 2) + 1}, gt.DomainError, ["noise"]),
    "both": (
        torch.zeros(1, 2),
        {"noise": uniform(1, 1, 2), "generator": torch.Generator()},
        gt.ConfigError,
        ["generator"],
    ),
}


@pytest.mark.parametrize("name", BAD)
@rules
def test_what_cannot_be_routed_is_refused(mixer, name):
    logits, options, kind, words = BAD[name]
    with refuses(kind, *words):
        mixer(logits, **options)


@rules
def test_unsound_logits_are_refused_in_evaluation_too(mixer):
    for name in ("nan", "inf", "masked"):
        with refuses(gt.DomainError):
            mixer(BAD[name][0], training=False)


def test_more_experts_than_there_are_are_refused():
    for top, kind in ((3, gt.DomainError), (0, gt.DomainError), (1.0, gt.UnsupportedError)):
        with refuses(kind, "top"):
            sparsemixer_v2(torch.zeros(1, 2), top=top)


@pytest.mark.parametrize("training", [True, False])
def test_rows_that_have_too_few_experts_left_are_counted(training):
    x = torch.tensor([[0.0, -math.inf, 1.0], [0.0, -math.inf, -math.inf]])
    with refuses(gt.DomainError, "top is 2", "1 of 2 rows", "smaller top"):
        sparsemixer_v2(x, top=2, training=training)
    for bad, words in ((math.nan, "NaN"), (-math.inf, "all masked")):
        with refuses(gt.DomainError, words):
            sparsemixer_v2(torch.full_like(x, bad), top=2, training=training)
    noise = uniform(2, 2, 2)
    with refuses(gt.DomainError, "top is 2"):
        vmap(lambda x, u: sparsemixer_v2(x, top=2, training=training, noise=u))(x, noise)


# --- balance


def test_the_balance_is_the_sum_of_products_of_shares():
    probs, index = normal(3, 5, 4).softmax(-1), torch.randint(4, (3, 5, 2))
    flat, used = probs.reshape(15, 4), index.reshape(-1).tolist()
    want = 4 * sum(flat[:, i].mean() * used.count(i) / len(used) for i in range(4))
    torch.testing.assert_close(load_balance(probs, index), want)


def test_the_balance_is_one_when_all_are_used_alike_and_n_when_one_is():
    every_other = torch.arange(4).unsqueeze(-1)
    probs = torch.eye(4, dtype=F64)
    assert load_balance(probs, every_other).item() == 1.0
    assert load_balance(probs[:1].expand(4, 4), torch.zeros_like(every_other)).item() == 4.0
    assert load_balance(torch.zeros(0, 4), torch.zeros(0, 1, dtype=torch.int64)).item() == 0.0


def test_the_balance_moves_the_probabilities_alone():
    x, index = normal(6, 4).requires_grad_(), torch.tensor([[0], [0], [0], [1], [1], [3]])
    (got,) = torch.autograd.grad(load_balance(x, index), x)
    share = torch.tensor([3, 2, 0, 1], dtype=F64) / 6
    torch.testing.assert_close(got, (4 * share / 6).expand(6, 4))
    low = load_balance(x.detach().softmax(-1).bfloat16(), index)
    assert low.dtype == torch.float32


def test_the_balance_refuses_what_does_not_belong_together():
    probs, index = torch.ones(3, 4) / 4, torch.zeros(3, 1, dtype=torch.int64)
    for bad in (index[:, 0], index[:2]):
        with refuses(gt.ShapeError, "index"):
            load_balance(probs, bad)
    with refuses(gt.UnsupportedError, "int64"):
        load_balance(probs, index.int())
    for wrong in (4, -1):
        with refuses(gt.DomainError, "0 and 3", "one column for each expert"):
            load_balance(probs, index + wrong)


def test_the_balance_maps_and_compiles(compiler):
    probs, index = normal(3, 5, 4).softmax(-1), torch.randint(4, (3, 5, 2))
    want = torch.stack([load_balance(p, i) for p, i in zip(probs, index, strict=True)])
    torch.testing.assert_close(vmap(load_balance)(probs, index), want)
    torch.testing.assert_close(compiler(load_balance)(probs[0], index[0]), want[0])


# --- the router

INPUT = normal(9, 6, seed=7)


def router(**options):
    torch.manual_seed(3)
    return Router(6, 4, dtype=F64, **options)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("estimator", "mixer", "options"),
    [
        ("sparsemixer", sparsemixer, {}),
        ("sparsemixer_v2", sparsemixer_v2, {}),
        ("sparsemixer_v2", sparsemixer_v2, {"top": 2}),
    ],
)
def test_a_router_is_a_linear_layer_and_its_mixer(estimator, mixer, options, training):
    layer = router(estimator=estimator, eps=0.3, **options).train(training)
    noise = uniform(9, options.get("top", 1), 2)
    out = layer(INPUT, noise=noise)
    logits = INPUT @ layer.linear.weight.T
    want = mixer(logits, eps=0.3, training=training, noise=noise, **options)
    torch.testing.assert_close(out.weights, want.multiplier)
    assert torch.equal(out.index, want.index)
    torch.testing.assert_close(out.balance, load_balance(logits.softmax(-1), out.index))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"estimator": "sparsemixer"},
        {"top": 2},
        {"estimator": gt.ReinMax(), "tau": lambda step: 0.5},
        {"estimator": "dense"},
    ],
    ids=["v1", "top 2", "ReinMax", "dense"],
)
def test_a_router_compiles_in_one_graph_and_draws_inside_of_it(options, training, compiler):
    layer = router(**options).train(training)
    fast = compiler(layer)
    seen = set()
    for _ in range(8):
        out = fast(INPUT)
        (out.weights.sum() + out.balance).backward()
        seen.add(tuple(out.index.flatten().tolist()))
        assert torch.equal(out.index.sort(-1).values.diff(dim=-1) > 0, out.index[:, 1:] >= 0)
    drawn = training and layer.estimator != "dense"
    assert (len(seen) > 1) == drawn
    assert layer.linear.weight.grad.isfinite().all()


@rules
def test_one_expert_always_runs_and_two_of_two_both(mixer):
    x = normal(7, 1).requires_grad_()
    for training in (True, False):
        out = mixer(x, training=training)
        assert out.multiplier.tolist() == [[1.0]] * 7
        assert not torch.autograd.grad(out.multiplier.sum(), x)[0].any()
    both = sparsemixer_v2(normal(7, 2), top=2)
    assert torch.equal(both.index.sum(-1), torch.ones(7, dtype=torch.int64))
    assert both.multiplier[:, 1].tolist() == [1.0] * 7


@pytest.mark.parametrize("name", ROUTED)
def test_an_estimator_routes_with_the_entry_of_its_sample(name):
    estimator = VARIANTS[name](ROW)
    layer = router(estimator=estimator)
    logits = (INPUT @ layer.linear.weight.T).detach().requires_grad_()
    noise = uniform(*estimator.noise_shape(gt.Categorical(logits)))
    out, z = layer(INPUT, noise=noise), gt.sample(logits, estimator, noise=noise)
    assert torch.equal(out.index[:, 0], z.argmax(-1))
    torch.testing.assert_close(out.weights, torch.ones(9, 1, dtype=F64), rtol=0, atol=0)
    h = normal(9, 1, seed=8)
    (got,) = torch.autograd.grad((h * out.weights).sum(), layer.linear.weight)
    # Only the entry of the expert that runs sees a gradient.
    (want,) = torch.autograd.grad((h * z.detach() * z).sum(), logits)
    torch.testing.assert_close(got, want.T @ INPUT)


def test_reinmax_that_sees_one_slope_sends_half_a_score():
    layer = router(estimator=gt.ReinMax())
    out = layer(INPUT, noise=uniform(9))
    logits = INPUT @ layer.linear.weight.T
    h = normal(9, 1, seed=8)
    (got,) = torch.autograd.grad((h * out.weights).sum(), layer.linear.weight)
    score = torch.eye(4, dtype=F64)[out.index[:, 0]] - logits.softmax(-1)
    torch.testing.assert_close(got, (0.5 * h * score).T @ INPUT)


def test_in_evaluation_an_estimator_routes_to_the_best_expert_with_weight_one():
    layer = router(estimator=gt.ReinMax()).eval()
    before = torch.get_rng_state()
    out = layer(INPUT)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(out.index[:, 0], (INPUT @ layer.linear.weight.T).argmax(-1))
    assert out.weights.tolist() == [[1.0]] * 9
    with refuses(gt.DomainError, "NaN"):
        layer(INPUT * math.nan)


@pytest.mark.parametrize("training", [True, False])
def test_a_dense_router_runs_all_experts_with_the_softmax(training):
    layer = router(estimator="dense").train(training)
    out = layer(INPUT)
    torch.testing.assert_close(out.weights, (INPUT @ layer.linear.weight.T).softmax(-1))
    assert torch.equal(out.index, torch.arange(4).expand(9, 4))
    assert out.balance.item() == pytest.approx(1.0, abs=1e-12)
    with refuses(gt.DomainError, "NaN"):
        layer(INPUT * math.nan)


def test_omega_is_learnt_with_the_first_sparsemixer_alone():
    layer = router(estimator="sparsemixer")
    layer(INPUT, noise=uniform(9, 1, 2)).weights.sum().backward()
    with torch.no_grad():
        want = sparsemixer(layer.linear(INPUT), noise=uniform(9, 1, 2)).multiplier.sum()
        layer.omega.mul_(2.0)
        doubled = layer(INPUT, noise=uniform(9, 1, 2)).weights.sum()
    torch.testing.assert_close(layer.omega.grad, want)
    torch.testing.assert_close(doubled, 2.0 * want)
    assert router(estimator="sparsemixer_v2").omega is None


@pytest.mark.parametrize("estimator", ["sparsemixer", "sparsemixer_v2", "dense", gt.ReinMax()])
def test_a_router_is_saved_copied_and_shown(estimator):
    layer = router(estimator=estimator, bias=True)
    names = {"linear.weight", "linear.bias"} | ({"omega"} if estimator == "sparsemixer" else set())
    assert set(layer.state_dict()) == names
    other = Router(6, 4, estimator=estimator, bias=True, dtype=F64)
    other.load_state_dict(layer.state_dict())
    noise = uniform(9) if estimator == gt.ReinMax() else uniform(9, 1, 2)
    want = layer(INPUT, noise=noise)
    for one in (other, copy.deepcopy(layer)):
        assert torch.equal(one(INPUT, noise=noise).weights, want.weights)
    assert f"in_features=6, experts=4, estimator={estimator!r}" in repr(layer)
    assert ("eps=0.1" in repr(layer)) == str(estimator).startswith("sparsemixer")
    assert "top=2" in repr(Router(6, 4, top=2))


def test_a_temperature_replaces_that_of_the_estimator():
    tau = gt.nn.Temperature(lambda step: 1.0 + step)
    layer = router(estimator=gt.StraightThrough(), tau=tau)
    tau.step()
    h = layer(INPUT, noise=uniform(9)).weights.sum()
    (got,) = torch.autograd.grad(h, layer.linear.weight)
    other = router(estimator=gt.StraightThrough(tau=2.0))
    h = other(INPUT, noise=uniform(9)).weights.sum()
    torch.testing.assert_close(got, torch.autograd.grad(h, other.linear.weight)[0])


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"estimator": gt.GumbelSoftmax()}, gt.UnsupportedError, ["soft"]),
        ({"estimator": gt.RLOO()}, gt.UnsupportedError, ["RLOO"]),
        ({"estimator": "reinmax"}, gt.ConfigError, ["'reinmax'", "sparsemixer_v2"]),
        ({"estimator": None}, gt.UnsupportedError, ["None"]),
        ({"estimator": gt.ReinMax(), "top": 2}, gt.ConfigError, ["top", "ReinMax"]),
        ({"estimator": "sparsemixer", "top": 2}, gt.ConfigError, ["top"]),
        ({"estimator": "dense", "top": 2}, gt.ConfigError, ["top", "all"]),
        ({"top": 5}, gt.DomainError, ["5", "4"]),
        ({"tau": 1.0}, gt.ConfigError, ["tau"]),
        ({"eps": -1.0}, gt.DomainError, ["eps"]),
    ],
)
def test_a_router_refuses(options, kind, words):
    with refuses(kind, *words):
        Router(6, 4, **options)


def test_a_router_says_which_features_came():
    with refuses(gt.ShapeError, "6", "5"):
        router()(torch.zeros(3, 5, dtype=F64))
    with refuses(gt.DomainError, "experts"):
        Router(6, 0)
