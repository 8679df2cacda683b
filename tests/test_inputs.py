"""Dtypes, layouts and dims: every estimator takes them all."""

import pytest
import torch

import gradthrough as gt
from problems import (
    F64,
    PATHWISE,
    SCORE,
    TEMPERED,
    VARIANTS,
    case,
    every,
    noise_for_rows,
    normal,
    plain,
    problem,
    select,
    served,
    temperatures,
    uniform,
)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
INF = torch.inf


def close(got, want, tolerance=1e-12):
    torch.testing.assert_close(got, want, rtol=0.0, atol=tolerance)


@served()
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_go_through(name, family, dtype):
    x = normal(40, 3, seed=1).to(dtype).requires_grad_()
    q, estimator, n, noise = case(name, x, family)
    seen = []

    def f(z):
        seen.append(z)
        return (z.sum(-1) - z[..., 0] * 2) ** 2

    value = gt.expect(f, q, estimator, samples=n, noise=noise)
    assert seen[0].dtype == value.dtype == dtype
    if not estimator.traits.relaxed:
        corners = seen[0][:n] if estimator.traits.needs_relaxed_points else seen[0]
        assert bool(((corners == 0) | (corners == 1)).all())
        if family == "categorical":
            assert bool((corners.sum(-1) == 1).all())
    value.sum().backward()
    assert x.grad.dtype == dtype
    assert x.grad.isfinite().all()


@every()
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_low_precision_is_float64_rounded(name, dtype):
    """On equal logits and noise, up to the rounding of the result and of a float32 softmax."""
    low = normal(200, 4, seed=2).to(dtype)
    slope = torch.tensor([1.0, -2.0, 0.5, 0.25], dtype=F64)
    gradients = []
    for x in (low.clone(), low.double()):
        x.requires_grad_()
        q, estimator, n, noise = case(name, x)
        value = gt.expect(
            lambda z: (z @ slope.to(z.dtype)).square(), q, estimator, samples=n, noise=noise
        )
        gradients.append(torch.autograd.grad(value.sum(), x)[0].double())
    slack = 4 * torch.finfo(dtype).eps + 1e-5
    scale = gradients[1].abs().amax(-1, keepdim=True).clamp_min(1.0)
    assert float(((gradients[0] - gradients[1]) / scale).abs().max()) < slack


@every([n for n in SCORE if n in select(lambda e: not e.traits.needs_relaxed_points)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_values_of_low_precision_are_compared_in_full(name, dtype):
    """Differences of large values: a mean rounded to their dtype would swallow them.

    The values are exact at the corners; at other points f itself would round them.
    """
    x = normal(30, 4, seed=2).to(dtype)
    steps = torch.tensor([0.0, 0.5, 1.0, 2.0])
    gradients = []
    for y in (x.clone(), x.double()):
        y.requires_grad_()
        q, estimator, n, noise = case(name, y, at_least=3)
        value = gt.expect(
            lambda z: 100.0 + (z * steps.to(z.dtype)).sum(-1), q, estimator, samples=n, noise=noise
        )
        gradients.append(torch.autograd.grad(value.sum(), y)[0].double())
    scale = gradients[1].abs().amax(-1, keepdim=True).clamp_min(1e-2)
    assert float(((gradients[0] - gradients[1]) / scale).abs().max()) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
def test_enumerate_weighs_with_probabilities_that_sum_to_one(dtype):
    x = (4 * normal(50, 16, seed=3)).to(dtype)
    one = gt.expect(lambda z: z.sum(-1), x, gt.Enumerate())
    wide = dtype in (torch.float64, torch.float32)
    close(one.double(), torch.ones(50, dtype=F64), (16 if wide else 2) * torch.finfo(dtype).eps)


@every()
def test_layouts_do_not_matter(name):
    base = normal(3, 6, 2, seed=4)
    views = {
        "transposed": base.permute(1, 2, 0),
        "strided": normal(12, 2, 6, seed=5)[::2, :, ::2],
        "expanded": normal(1, 2, 3, seed=6).expand(6, 2, 3),
    }
    p = problem()
    for view in views.values():
        results = []
        for x in (view.detach(), view.detach().contiguous()):
            x = x.requires_grad_()
            q, estimator, n, noise = case(name, x, event_dims=1)
            value = gt.expect(p.cubic, q, estimator, samples=n, noise=noise)
            results.append(torch.autograd.grad(value.sum(), x)[0])
        close(*results)


@every()
@pytest.mark.parametrize("shape", [(0, 3), (0, 2, 3), (4, 0, 3)])
def test_empty_batches(name, shape):
    x = torch.zeros(shape, dtype=F64, requires_grad=True)
    q, estimator, n, noise = case(name, x)
    value = gt.expect(lambda z: z.square().sum(-1), q, estimator, samples=n, noise=noise)
    assert value.shape == shape[:-1]
    value.sum().backward()
    assert x.grad.shape == shape


@every()
def test_a_row_without_variables_has_one_point(name):
    x = torch.zeros(4, 0, 3, dtype=F64, requires_grad=True)
    q, estimator, n, noise = case(name, x, event_dims=1, at_least=2)
    value = gt.expect(lambda z: 3.0 + z.sum((-1, -2)), q, estimator, samples=n, noise=noise)
    close(value.detach(), torch.full((4,), 3.0, dtype=F64))
    value.sum().backward()
    assert x.grad.shape == (4, 0, 3)


@every(select(lambda e: "categorical" in e.traits.families))
def test_one_class_is_certain(name):
    x = normal(5, 1, seed=7).requires_grad_()
    q, estimator, n, noise = case(name, x)
    value = gt.expect(lambda z: 3.0 * z.sum(-1) ** 2, q, estimator, samples=n, noise=noise)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    if getattr(estimator, "baseline", None) is None:
        close(value.detach(), torch.full((5,), 3.0, dtype=F64))
    close(gradient, torch.zeros(5, 1, dtype=F64))


@every()
@pytest.mark.parametrize("shape", [(4,), (2, 4)])
def test_rows_without_batch_dims(name, shape):
    """They are a batch of one."""
    results = []
    for lead in ((), (1,)):
        x = normal(*lead, *shape, seed=8).requires_grad_()
        q, estimator, n, noise = case(name, x, event_dims=len(shape) - 1, at_least=2)
        value = gt.expect(
            lambda z: z.square().sin().flatten(-len(shape)).sum(-1),
            q, estimator, samples=n, noise=noise,
        )  # fmt: skip
        assert value.shape == lead
        results.append((value.sum(), torch.autograd.grad(value.sum(), x)[0].reshape(shape)))
    for got, want in zip(*results, strict=True):
        close(got, want)


@every(PATHWISE)
@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
def test_any_dim_is_movedim(name, dim):
    x = normal(3, 4, 5, seed=9).requires_grad_()
    last = x.movedim(dim, -1)
    estimator = VARIANTS[name](gt.Categorical(last))
    noise = noise_for_rows(estimator, last)
    given = noise.movedim(-1, dim) if estimator.traits.noise == "class" else noise
    weights = normal(3, 4, 5, seed=10)
    got = plain(estimator)(x, dim=dim, noise=given)
    want = plain(estimator)(last, noise=noise).movedim(-1, dim)
    assert torch.equal(got, want)
    assert got.shape == x.shape
    first, second = (torch.autograd.grad(z, x, weights)[0] for z in (got, want))
    assert torch.equal(first, second)
    own = plain(estimator)(x, dim=dim)
    close(own.sum(dim), torch.ones_like(own.sum(dim)))


def test_inner_draws_follow_the_rows_along_any_dim():
    x, inner = normal(4, 6, seed=11), uniform(6, 5, 4, seed=12) + 0.1
    u = uniform(6, 2)
    got = gt.gumbel_rao(x, dim=0, noise=u, inner=inner)
    assert torch.equal(got, gt.gumbel_rao(x.T, noise=u, inner=inner).T)


@every(TEMPERED)
def test_a_temperature_given_as_tensor_is_the_number(name):
    one = VARIANTS[name](gt.Categorical(torch.zeros(1, 2)))
    for option in temperatures(one):
        assert type(one)(**{option: torch.tensor(0.5)}) == type(one)(**{option: 0.5})
