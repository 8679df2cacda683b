"""Masked classes, extreme logits and temperatures, and what a constant may change: nothing."""

import pytest
import torch

import gradthrough as gt
from problems import (
    F64,
    HARD,
    PATHWISE,
    TEMPERED,
    VARIANTS,
    case,
    every,
    noise_for_rows,
    normal,
    plain,
    select,
    temperatures,
    uniform,
)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
INF = torch.inf


def close(got, want, tolerance=1e-12):
    torch.testing.assert_close(got, want, rtol=0.0, atol=tolerance)


MASKED = torch.tensor(
    [
        [0.3, -INF, 1.0, -INF, 0.2],
        [-INF, 0.0, 0.0, 0.0, -INF],
        [-INF, -INF, -2.0, -INF, -INF],
        [50.0, -50.0, -INF, 49.0, 0.0],
        [1e4, -1e4, -1e4, 1e4, -INF],
        [-1e4, -INF, -1e4, -1e4, -INF],
    ],
    dtype=F64,
)


def grid_of_uniforms(shape):
    """Uniforms that include 0, the largest below 1, and values next to both."""
    ends = torch.tensor([0.0, 2.0**-53, 1e-12, 0.5, 1 - 1e-12, 1 - 2.0**-53], dtype=F64)
    return ends[torch.randint(6, shape, generator=torch.Generator().manual_seed(3))]


@every()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ends", [False, True])
def test_masked_classes_are_never_drawn_and_get_no_gradient(name, dtype, ends):
    x = MASKED.repeat(60, 1).to(dtype).requires_grad_()
    masked = x.detach().isneginf()
    q, estimator, n, noise = case(name, x, at_least=2)
    noise = grid_of_uniforms(noise.shape) if ends else noise
    drawn = estimator.draw(q.expand(n), noise).points.detach()
    assert drawn.isfinite().all()
    assert bool((drawn[:, masked] == 0).all())
    slope = normal(5, seed=13).to(dtype)
    value = gt.expect(lambda z: (z * slope).sum(-1) ** 2, q, estimator, samples=n, noise=noise)
    assert value.isfinite().all()
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert gradient.isfinite().all()
    assert bool((gradient[masked] == 0).all())
    alone = (~masked).sum(-1) == 1 if q.family == "categorical" else masked.all(-1)
    close(gradient[alone].double(), torch.zeros_like(gradient[alone]).double(), 1e-6)


CERTAIN = torch.tensor([[-INF, 0.5, -1e4], [-INF, -INF, -INF], [50.0, -50.0, -INF]], dtype=F64)


@every(select(lambda e: "bernoulli" in e.traits.families))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("ends", [False, True])
def test_a_bernoulli_whose_logit_is_minus_infinity_is_0(name, dtype, ends):
    x = CERTAIN.repeat(60, 1).to(dtype).requires_grad_()
    masked = x.detach().isneginf()
    q, estimator, n, noise = case(name, x, "bernoulli", at_least=2)
    noise = grid_of_uniforms(noise.shape) if ends else noise
    drawn = estimator.draw(q.expand(n), noise).points.detach()
    assert drawn.isfinite().all()
    assert bool((drawn[:, masked] == 0).all())
    f = lambda z: (z[..., 0] + 2 * z[..., 1] - z[..., 2] + 1) ** 2  # noqa: E731
    value = gt.expect(f, q, estimator, samples=n, noise=noise)
    assert value.isfinite().all()
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert gradient.isfinite().all()
    assert bool((gradient[masked] == 0).all())


@every(PATHWISE)
def test_a_mask_equals_leaving_the_classes_out(name):
    x = normal(50, 3, seed=14)
    filled = torch.full((50, 5), -INF, dtype=F64)
    filled[:, [0, 2, 3]] = x
    estimator = VARIANTS[name](gt.Categorical(x))
    if estimator.traits.noise == "variable+seed":
        pytest.skip("the counter numbers all classes")
    noise = noise_for_rows(estimator, x)
    wide = noise
    if noise.ndim == 2:  # some of each class, perhaps some of the row
        wide = uniform(50, 5 + noise.shape[1] - 3)
        wide[:, [0, 2, 3, *range(5, wide.shape[1])]] = noise
    upstream = normal(50, 5, seed=15)
    results = []
    for logits, u, g in ((filled, wide, upstream), (x, noise, upstream[:, [0, 2, 3]])):
        leaf = logits.clone().requires_grad_()
        z = plain(estimator)(leaf, noise=u)
        results.append((z.detach(), torch.autograd.grad(z, leaf, g)[0]))
    for got, want in zip(*results, strict=True):
        close(got[:, [0, 2, 3]], want)
        assert bool((got[:, [1, 4]] == 0).all())


@every()
def test_f_may_be_infinite_at_a_masked_class(name):
    """f is not asked, or its answer is not used, where the law puts no mass."""
    x = torch.tensor([[-INF, 0.5, -0.3]], dtype=F64).repeat(20, 1).requires_grad_()
    table = torch.tensor([1.0, 1.0, 2.0], dtype=F64, requires_grad=True)
    q, estimator, n, noise = case(name, x, at_least=2)

    def f(z):
        return (table[0] - z[..., 0]).log() + (z[..., 1:] @ table[1:]) ** 2

    value = gt.expect(f, q, estimator, samples=n, noise=noise)
    assert value.isfinite().all()
    for gradient in torch.autograd.grad(value.sum(), (x, table)):
        assert gradient.isfinite().all()


def test_a_proposal_may_reach_where_the_target_cannot():
    x = torch.tensor([[-INF, 0.5, -0.3]], dtype=F64).repeat(3, 1).requires_grad_()
    everywhere = gt.Reinforce(proposal=torch.zeros(3, 3, dtype=F64))
    noise = torch.tensor([[0.1, 0.5, 0.9]], dtype=F64)  # classes 0, 1, 2
    for f in (lambda z: z[..., 1] + 2.0, lambda z: z[..., 1:].sum(-1).log()):
        value = gt.expect(f, x, everywhere, noise=noise)
        assert value.isfinite().all()
        assert value[0] == 0
        (gradient,) = torch.autograd.grad(value.sum(), x)
        assert gradient.isfinite().all()
        assert bool((gradient[0] == 0).all())


@every()
@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_logits_stay_finite(name, dtype):
    rows = torch.tensor([[50.0, -50.0, 0.0], [1e4, -1e4, 1e4], [-1e4, -1e4, -1e4], [6e4, 0, -6e4]])
    x = rows.repeat(40, 1).to(dtype).requires_grad_()
    q, estimator, n, noise = case(name, x)
    value = gt.expect(lambda z: z[..., 0] ** 2, q, estimator, samples=n, noise=noise)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert value.isfinite().all()
    assert gradient.isfinite().all()


@every(TEMPERED)
@pytest.mark.parametrize("tau", [0.01, 30.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_temperatures_stay_finite(name, tau, dtype):
    one = VARIANTS[name](gt.Categorical(torch.zeros(1, 2)))
    one = type(one)(**dict.fromkeys(temperatures(one), tau))
    x = torch.cat((MASKED[:4], 30 * normal(50, 5, seed=16))).to(dtype).requires_grad_()
    z = plain(one)(x)
    (gradient,) = torch.autograd.grad(z, x, normal(54, 5, seed=17).to(dtype))
    assert z.isfinite().all()
    assert gradient.isfinite().all()
    assert bool((gradient[x.isneginf()] == 0).all())


SHIFTED = select(
    lambda e: "categorical" in e.traits.families and not callable(getattr(e, "baseline", None))
)
SHIFTED = [name for name in SHIFTED if name in HARD and name.split()[0] != "reinforce"]


@every([*SHIFTED, "reinforce"])
@pytest.mark.parametrize("shift", [2.0**13, 2.0**20])
def test_a_constant_in_the_logits_changes_nothing_in_float32(name, shift):
    """On a coarse grid, where the sum is exact, the law is the same, and so is the draw."""
    base = (normal(4000, 3, seed=16) * 4).round().float() / 4
    slope = torch.tensor([1.0, -2.0, 0.5])
    results = []
    for logits in (base, base + shift):
        x = logits.clone().requires_grad_()
        q, estimator, n, noise = case(name, x)
        points = estimator.draw(q.expand(n), noise).points.detach()
        value = gt.expect(lambda z: (z @ slope) ** 2, q, estimator, samples=n, noise=noise)
        results.append((points, torch.autograd.grad(value.sum(), x)[0]))
    assert int((results[0][0] != results[1][0]).any(-1).sum()) == 0
    close(results[1][1], results[0][1], 1e-4)
