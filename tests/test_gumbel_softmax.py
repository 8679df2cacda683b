"""gumbel_softmax takes the calls of torch.nn.functional.gumbel_softmax, and learns tau."""

import inspect
import warnings

import pytest
import torch
import torch.nn.functional as F

import gradthrough as gt
from gradthrough.kernels.gumbel import _corner
from problems import (
    F64,
    normal,
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


# Small and large, of few and of many classes, in one part and in several.
SEEDED = [((5,), -1), ((100, 4, 8), -1), ((20_000, 3), -1), ((90_000, 2), -1), ((2_000, 64), -1)]
SEEDED += [((2, 70_000), -1), ((7, 400), 0), ((30, 5, 40), 1)]


@pytest.mark.parametrize("seeded", [False, True])
@pytest.mark.parametrize(("shape", "dim"), SEEDED)
def test_a_seed_gives_the_samples_of_torch(shape, dim, seeded):
    x, upstream = normal(2, *shape, seed=23, dtype=torch.float32)
    z, slopes = [], []
    for f in (F.gumbel_softmax, gt.gumbel_softmax):
        own = torch.Generator().manual_seed(3) if seeded and f is gt.gumbel_softmax else None
        options = {} if own is None else {"generator": own}
        leaf = x.clone().requires_grad_()
        torch.manual_seed(3)
        z.append(f(leaf, 0.6, hard=True, dim=dim, **options))
        slopes.append(torch.autograd.grad(z[-1], leaf, upstream)[0])
    # Torch's hard sample is off by a rounding, which is not in its law.
    assert torch.equal(z[0].argmax(dim), z[1].argmax(dim))
    torch.testing.assert_close(slopes[1], slopes[0], rtol=0.0, atol=2e-5)


@pytest.mark.parametrize("dim", [0, -1])
def test_of_equal_maxima_the_first_is_drawn(dim):
    x = torch.tensor([[-1.0, 0.0, 0.0], [0.0, -INF, -2.0], [0.0, 0.0, 0.0]])
    want = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    x, want = (t.t().contiguous() if dim == 0 else t for t in (x, want))
    for check in (True, False):
        gt.set_validation(check)
        assert torch.equal(_corner(x, dim), want)


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
