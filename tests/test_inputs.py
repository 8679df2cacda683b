"""Dtypes, layouts, dims, masks and extreme logits: every estimator takes them all."""

import inspect
import warnings

import pytest
import torch
import torch.nn.functional as F

import gradthrough as gt
from problems import (
    F64,
    HARD,
    PATHWISE,
    VARIANTS,
    noise_for_rows,
    normal,
    plain,
    problem,
    samples_for,
    select,
    uniform,
)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
INF = torch.inf


def close(got, want, tolerance=1e-12):
    torch.testing.assert_close(got, want, rtol=0.0, atol=tolerance)


def every(names=tuple(VARIANTS)):
    return pytest.mark.parametrize("name", names)


def setup(name, logits, family="categorical", event_dims=0, at_least=1):
    """An estimator for a law, its number of samples and fixed noise."""
    make = {"categorical": gt.Categorical, "bernoulli": gt.Bernoulli}[family]
    q = make(logits, event_dims=event_dims)
    estimator = VARIANTS[name](q)
    n = samples_for(estimator, at_least)
    return q, estimator, n, uniform(*estimator.noise_shape(q.expand(n)))


@every()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["categorical", "bernoulli"])
def test_dtypes_go_through(name, dtype, family):
    x = normal(40, 3, seed=1).to(dtype).requires_grad_()
    q, estimator, n, noise = setup(name, x, family, event_dims=int(family == "bernoulli"))
    seen = []

    def f(z):
        seen.append(z)
        return (z.sum(-1) - z[..., 0] * 2) ** 2

    value = gt.expect(f, q, estimator, samples=n, noise=noise)
    assert seen[0].dtype == value.dtype == dtype
    if not estimator.traits.relaxed:
        assert bool(((seen[0] == 0) | (seen[0] == 1)).all())
        if family == "categorical":
            assert bool((seen[0].sum(-1) == 1).all())
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
        q, estimator, n, noise = setup(name, x)
        value = gt.expect(
            lambda z: (z @ slope.to(z.dtype)).square(), q, estimator, samples=n, noise=noise
        )
        gradients.append(torch.autograd.grad(value.sum(), x)[0].double())
    slack = 4 * torch.finfo(dtype).eps + 1e-5
    scale = gradients[1].abs().amax(-1, keepdim=True).clamp_min(1.0)
    assert float(((gradients[0] - gradients[1]) / scale).abs().max()) < slack


@every(select(lambda e: not e.traits.pathwise and e.traits.noise != "none"))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_values_of_low_precision_are_compared_in_full(name, dtype):
    """Differences of large values: a mean rounded to their dtype would swallow them."""
    x = normal(30, 4, seed=2).to(dtype)
    values = torch.tensor([100.0, 100.5, 101.0, 102.0])
    gradients = []
    for y in (x.clone(), x.double()):
        y.requires_grad_()
        q, estimator, n, noise = setup(name, y, at_least=3)
        value = gt.expect(
            lambda z: (z * values.to(z.dtype)).sum(-1), q, estimator, samples=n, noise=noise
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
            q, estimator, n, noise = setup(name, x, event_dims=1)
            value = gt.expect(p.cubic, q, estimator, samples=n, noise=noise)
            results.append(torch.autograd.grad(value.sum(), x)[0])
        close(*results)


@every()
@pytest.mark.parametrize("shape", [(0, 3), (0, 2, 3), (4, 0, 3)])
def test_empty_batches(name, shape):
    x = torch.zeros(shape, dtype=F64, requires_grad=True)
    q, estimator, n, noise = setup(name, x)
    value = gt.expect(lambda z: z.square().sum(-1), q, estimator, samples=n, noise=noise)
    assert value.shape == shape[:-1]
    value.sum().backward()
    assert x.grad.shape == shape


@every()
def test_one_class_is_certain(name):
    x = normal(5, 1, seed=7).requires_grad_()
    q, estimator, n, noise = setup(name, x)
    value = gt.expect(lambda z: 3.0 * z.sum(-1) ** 2, q, estimator, samples=n, noise=noise)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    if getattr(estimator, "baseline", None) is None:
        close(value.detach(), torch.full((5,), 3.0, dtype=F64))
    close(gradient, torch.zeros(5, 1, dtype=F64))


@every()
def test_rows_without_batch_dims(name):
    x = normal(4, seed=8).requires_grad_()
    q, estimator, n, noise = setup(name, x)
    value = gt.expect(lambda z: z[..., 0] ** 2, q, estimator, samples=n, noise=noise)
    assert value.shape == ()
    value.backward()
    assert x.grad.shape == (4,)


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


# --- masks and extreme logits

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
    q, estimator, n, noise = setup(name, x, at_least=2)
    noise = grid_of_uniforms(noise.shape) if ends else noise
    drawn = estimator.draw(q.expand(n), noise).points.detach()
    assert drawn.isfinite().all()
    if estimator.traits.noise != "none":  # which asks for all points, and weighs
        assert bool((drawn[:, masked] == 0).all())
    slope = normal(5, seed=13).to(dtype)
    value = gt.expect(lambda z: (z * slope).sum(-1) ** 2, q, estimator, samples=n, noise=noise)
    assert value.isfinite().all()
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert gradient.isfinite().all()
    assert bool((gradient[masked] == 0).all())
    alone = (~masked).sum(-1) == 1
    close(gradient[alone].double(), torch.zeros_like(gradient[alone]).double(), 1e-6)


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
    if estimator.traits.noise == "class":
        wide = uniform(50, 5)
        wide[:, [0, 2, 3]] = noise
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
    table = torch.tensor([0.0, 1.0, 2.0], dtype=F64, requires_grad=True)
    q, estimator, n, noise = setup(name, x)
    value = gt.expect(lambda z: (z @ table).log(), q, estimator, samples=n, noise=noise)
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
    q, estimator, n, noise = setup(name, x)
    value = gt.expect(lambda z: z[..., 0] ** 2, q, estimator, samples=n, noise=noise)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert value.isfinite().all()
    assert gradient.isfinite().all()


@every(PATHWISE)
@pytest.mark.parametrize("tau", [0.01, 30.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_temperatures_stay_finite(name, tau, dtype):
    kind = type(VARIANTS[name](gt.Categorical(torch.zeros(1, 2))))
    x = torch.cat((MASKED[:4], 30 * normal(50, 5, seed=16))).to(dtype).requires_grad_()
    z = plain(kind(tau=tau))(x)
    (gradient,) = torch.autograd.grad(z, x, normal(54, 5, seed=17).to(dtype))
    assert z.isfinite().all()
    assert gradient.isfinite().all()
    assert bool((gradient[x.isneginf()] == 0).all())


SHIFTED = select(lambda e: not callable(getattr(e, "baseline", None)))
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
        q, estimator, n, noise = setup(name, x)
        points = estimator.draw(q.expand(n), noise).points.detach()
        value = gt.expect(lambda z: (z @ slope) ** 2, q, estimator, samples=n, noise=noise)
        results.append((points, torch.autograd.grad(value.sum(), x)[0]))
    assert int((results[0][0] != results[1][0]).any(-1).sum()) == 0
    close(results[1][1], results[0][1], 1e-4)


# --- the calls of torch.nn.functional.gumbel_softmax

CALLS = {
    "logits": lambda f, x: f(x),
    "positional": lambda f, x: f(x, 0.5, True, 1e-10, 1),
    "keywords": lambda f, x: f(logits=x, tau=0.5, hard=False, dim=0),
    "int tau": lambda f, x: f(x, 2),
    "tensor tau": lambda f, x: f(x, torch.tensor(0.7)),
    "tensor tau of each row": lambda f, x: f(x, torch.full((4, 1), 0.7), dim=-1),
    "integer tensor tau": lambda f, x: f(x, torch.tensor(2)),
    "tensor tau, hard, dim": lambda f, x: f(x, torch.tensor([[0.7]]), hard=True, dim=0),
    "0-d": lambda f, x: f(x[0, 0]),
    "0-d hard": lambda f, x: f(x[0, 0], hard=True),
    "0-d dim 0": lambda f, x: f(x[0, 0], tau=torch.tensor(0.5), dim=0),
    "half": lambda f, x: f(x.half(), 0.5),
    "no rows": lambda f, x: f(x[:0], 0.5, hard=True),
}


@pytest.mark.parametrize("call", CALLS)
def test_gumbel_softmax_takes_the_calls_of_torch(call):
    x = normal(4, 3, seed=17, dtype=torch.float32)
    want, got = (CALLS[call](f, x) for f in (F.gumbel_softmax, gt.gumbel_softmax))
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    along = {"positional": 1, "keywords": 0, "tensor tau, hard, dim": 0, "0-d dim 0": 0}.get(
        call, -1
    )
    torch.testing.assert_close(got.sum(along), torch.ones_like(got.sum(along)), rtol=0, atol=2e-3)
    names = list(inspect.signature(F.gumbel_softmax).parameters)
    assert list(inspect.signature(gt.gumbel_softmax).parameters)[: len(names)] == names


@pytest.mark.parametrize("hard", [False, True])
def test_gumbel_softmax_is_torchs_on_the_same_gumbels(hard, monkeypatch):
    x, u = normal(40, 5, seed=18).requires_grad_(), uniform(40, 5)
    upstream = normal(40, 5, seed=19)
    with monkeypatch.context() as patch:  # torch draws E ~ Exp(1) and takes -log E
        patch.setattr(torch.Tensor, "exponential_", lambda self: self.copy_(-torch.log1p(-u)))
        want = F.gumbel_softmax(x, 0.6, hard)
    got = gt.gumbel_softmax(x, 0.6, hard, noise=u)
    close(got, want)
    close(*(torch.autograd.grad(z, x, upstream)[0] for z in (got, want)))


def test_eps_warns_and_does_nothing():
    x, u = normal(4, 3), uniform(4, 3)
    with pytest.warns(UserWarning, match="eps"):
        got = gt.gumbel_softmax(x, eps=1e-6, noise=u)
    assert torch.equal(got, gt.gumbel_softmax(x, noise=u))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gt.gumbel_softmax(x, eps=1e-10)


@pytest.mark.parametrize("shape", [(), (1,), (4, 1), (4, 3)])
@pytest.mark.parametrize("dim", [-1, 0])
def test_a_learned_temperature_gets_its_gradient(shape, dim):
    x, u = normal(4, 3, seed=20).requires_grad_(), uniform(4, 3, seed=21)
    weights = normal(4, 3, seed=22)
    tau = (0.5 + uniform(*shape, seed=23)).requires_grad_()

    def loss(tau, x=x):
        return ((gt.gumbel_softmax(x, tau, noise=u, dim=dim) * weights).sum(dim) ** 2).sum()

    assert torch.autograd.gradcheck(loss, (tau, x))
    g_tau, g_x = torch.autograd.grad(loss(tau), (tau, x))
    if tau.numel() == 1:
        number = gt.gumbel_softmax(x, float(tau.detach()), noise=u, dim=dim)
        want = ((number * weights).sum(dim) ** 2).sum()
        close(loss(tau), want)
        close(g_x, torch.autograd.grad(want, x)[0])
    assert g_tau.shape == tau.shape


def test_a_learned_temperature_with_hard_samples_and_masks():
    x = MASKED[:4].clone().requires_grad_()
    u = uniform(4, 5).requires_grad_()
    tau = torch.tensor(0.7, dtype=F64, requires_grad=True)
    z = gt.gumbel_softmax(x, tau, hard=True, noise=u)
    assert bool(((z == 0) | (z == 1)).all())
    assert bool((z[x.isneginf()] == 0).all())
    (z * normal(4, 5)).sum().backward()
    assert tau.grad.isfinite()
    assert x.grad.isfinite().all()
    assert bool((x.grad[x.isneginf()] == 0).all())
    assert u.grad is None, "a gradient reached the noise"


TAUS = select(lambda e: e.traits.pathwise and e.tau == 1.0)


@every(TAUS)
def test_a_temperature_given_as_tensor_is_the_number(name):
    kind = type(VARIANTS[name](gt.Categorical(torch.zeros(1, 2))))
    assert kind(tau=torch.tensor(0.5)) == kind(tau=0.5)
