import re

import pytest
import torch

import gradthrough as gt
from gradthrough.estimators.pathwise import AbstractPathwise

OPTIONS = {"gumbel_rao": {"k": 3}, "reinmax_rao": {"k": 3}, "reinmax_cv": {"k": 3}}
WITH_TAU = [
    key
    for key, kind in gt.ESTIMATORS.items()
    if issubclass(kind, AbstractPathwise) and "tau" in getattr(kind, "__dataclass_fields__", {})
]
FIXED = ("reinmax", "reinmax_cv")  # tau moves a point that is held constant
LEARNING = [key for key in WITH_TAU if key not in FIXED]


def make(key, tau):
    return gt.ESTIMATORS[key](tau=tau, **OPTIONS.get(key, {}))


def logits(*shape, dtype=torch.float64):
    g = torch.Generator().manual_seed(7)
    return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()


def noise_for(key, x):
    g = torch.Generator().manual_seed(8)
    return make(key, 1.0).noise(gt.Categorical(x), generator=g)


def loss(z):
    return (z * torch.linspace(-1.0, 2.0, z.shape[-1], dtype=z.dtype)).sum(-1).sin()


def outcome(key, tau, x, noise):
    z = make(key, tau).sample(x, noise)
    return z.detach(), torch.autograd.grad(loss(z).sum(), x)[0]


@pytest.mark.parametrize("key", WITH_TAU)
def test_a_tensor_is_the_number_that_it_holds(key):
    x = logits(6, 4)
    noise = noise_for(key, x)
    for tau in (torch.tensor([[0.6]]), torch.full((6, 1), 0.6), torch.tensor(0.6)):
        tau = tau.double().expand(tau.shape).clone()
        if tau.numel() == 1 and key in LEARNING:
            tau.requires_grad_()
        for a, b in zip(outcome(key, tau, x, noise), outcome(key, 0.6, x, noise), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("key", WITH_TAU)
def test_each_row_has_its_own(key):
    x, taus = logits(2, 3, 4), torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)
    noise = noise_for(key, x)
    z, slope = outcome(key, taus.unsqueeze(-1), x, noise)
    for i, tau in enumerate(taus):
        found = outcome(key, float(tau), x, noise)
        torch.testing.assert_close(z[:, i], found[0][:, i])
        torch.testing.assert_close(slope[:, i], found[1][:, i])


@pytest.mark.parametrize("key", LEARNING)
def test_the_derivative_in_tau_is_that_of_the_surrogate(key):
    x = logits(5, 4)
    noise, g = noise_for(key, x), torch.linspace(-1.0, 2.0, 4, dtype=torch.float64)
    tau = torch.full((5, 1), 0.8, dtype=torch.float64, requires_grad=True)
    z = make(key, tau).sample(x, noise)
    (found,) = torch.autograd.grad((z * g).sum(), tau)

    def moved(step):
        """The surrogate at another tau, by its slope in the logits along a straight line."""
        here = (0.8 + step) * torch.ones(5, 1, dtype=torch.float64)
        kernel = make(key, here).kernel
        from gradthrough.kernels.eager import Kept
        from gradthrough.kernels.softmax import centre

        rows = centre(x.detach())
        drawn = kernel.forward(rows, noise)
        kept = Kept(rows, drawn.chosen, noise, rows.new_empty(0), drawn.saved)
        return sum((p * w * g).sum(-1, keepdim=True) for p, w, _ in kernel.terms(kept))

    h = 1e-6
    torch.testing.assert_close(found, (moved(h) - moved(-h)) / (2 * h), rtol=1e-6, atol=1e-8)


def all_noise(nodes=4_001, reach=40.0):
    """Noise of two Gumbels by their difference L, which alone counts; L; and its density."""
    x = torch.linspace(-reach, reach, nodes, dtype=torch.float64)
    pair = 2.0 + torch.stack((x, -x), -1).clamp_min(0.0)
    density = torch.sigmoid(x) * torch.sigmoid(-x) * (x[1] - x[0])
    return -torch.expm1(-torch.exp(-pair)), x, density


def curved(z):
    return (2.0 * z[..., 0] - 0.3).pow(3) + z[..., 1].square()


@pytest.mark.parametrize("tau", [0.3, 0.8, 2.0])
def test_of_a_soft_sample_the_mean_slope_in_tau_is_that_of_the_mean(tau):
    noise, apart, density = all_noise()

    def mean(t):
        s = torch.sigmoid((0.4 + apart) / t)
        return (density * curved(torch.stack((s, 1.0 - s), -1))).sum().item()

    x = torch.tensor([0.4, 0.0], dtype=torch.float64).expand(noise.shape)
    leaf = torch.tensor(tau, dtype=torch.float64, requires_grad=True)
    value = (density * curved(make("gumbel_softmax", leaf).sample(x, noise))).sum()
    assert value.item() == pytest.approx(mean(tau), rel=1e-12)
    (found,) = torch.autograd.grad(value, leaf)
    h = 1e-5
    assert found.item() == pytest.approx((mean(tau + h) - mean(tau - h)) / (2 * h), rel=1e-7)


def test_of_a_hard_sample_the_mean_has_no_tau_and_the_surrogate_has():
    noise, _, density = all_noise()
    x = torch.tensor([0.4, 0.0], dtype=torch.float64)
    values, slopes = [], []
    for tau in (0.3, 0.8):
        leaf = torch.tensor(tau, dtype=torch.float64, requires_grad=True)
        z = make("stgs", leaf).sample(x.expand(noise.shape), noise)
        value = (density * curved(z)).sum()
        values.append(value.item())
        slopes.append(torch.autograd.grad(value, leaf)[0].item())
    want = (x.softmax(-1) * curved(torch.eye(2, dtype=torch.float64))).sum().item()
    assert values[0] == values[1] == pytest.approx(want, abs=1e-2)  # a jump on a grid
    assert min(map(abs, slopes)) > 1e-2


BITS = torch.linspace(0.3, 2.0, 15, dtype=torch.float64).reshape(3, 5)


@pytest.mark.parametrize("tau", [BITS, BITS[0], BITS[:, :1], BITS[:1, :1]], ids=lambda x: x.shape)
def test_a_tau_of_bits_broadcasts_with_their_logits(tau):
    q, f = gt.Bernoulli(logits(3, 5), event_dims=1), lambda z: z.sum(-1).sin()
    noise = torch.rand(1, 3, 5, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    value = gt.expect(f, q, make("stgs", tau), noise=noise)
    (found,) = torch.autograd.grad(value.sum(), q.logits)
    for place in ((0, 0), (1, 3), (2, 4)):
        one = gt.expect(f, q, make("stgs", tau.expand(3, 5)[place].item()), noise=noise)
        (want,) = torch.autograd.grad(one.sum(), q.logits)
        torch.testing.assert_close(found[place], want[place])
    z = gt.distributions.Bernoulli(logits=q.logits, estimator=make("stgs", tau))
    (found,) = torch.autograd.grad(f(z.rsample(noise=noise[0])).sum(), q.logits)
    (want,) = torch.autograd.grad(gt.expect(f, q, make("stgs", tau), noise=noise).sum(), q.logits)
    torch.testing.assert_close(found, want)


def test_a_tau_of_bits_that_fits_no_row_is_refused_in_the_shapes_of_the_user():
    q = gt.Bernoulli(logits(3, 5), event_dims=1)
    for shape in ((2, 5), (5, 1), (3, 5, 1, 1), (3,)):
        with pytest.raises(gt.ShapeError, match=rf"{re.escape(str(shape))}.*\(1, 3, 5\)"):
            gt.expect(lambda z: z.sum(-1), q, make("stgs", torch.ones(shape)))


@pytest.mark.parametrize("key", FIXED)
def test_a_tau_that_cannot_be_learned_is_refused(key):
    tau = torch.tensor(0.8, requires_grad=True)
    with pytest.raises(gt.UnsupportedError, match="no gradient in tau"):
        gt.sample(logits(3, 4), make(key, tau))


@pytest.mark.parametrize("key", LEARNING)
def test_expect_learns_it(key):
    log_tau = torch.zeros((), dtype=torch.float64, requires_grad=True)
    q = gt.Categorical(logits(5, 2, 4), event_dims=1)
    value = gt.expect(lambda z: loss(z).sum(-1), q, make(key, log_tau.exp()), samples=3)
    value.sum().backward()
    assert log_tau.grad.isfinite()
    assert log_tau.grad != 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("key", LEARNING)
def test_masks_extremes_and_low_precision(key, dtype):
    x = torch.tensor([[0.0, -torch.inf, 1.0], [200.0, -200.0, 0.0]], dtype=dtype)
    x.requires_grad_()
    tau = torch.full((2, 1), 0.05, requires_grad=True)
    z = make(key, tau).sample(x, noise_for(key, x))
    assert z.dtype == dtype
    loss(z.float()).sum().backward()
    assert x.grad.isfinite().all()
    assert tau.grad.isfinite().all()
    assert x.grad[0, 1] == 0


@pytest.mark.parametrize("key", LEARNING)
def test_along_another_dim(key):
    x, g = logits(4, 3), torch.Generator()
    tau = torch.tensor([[0.5, 1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    z = gt.sample(x, make(key, tau), dim=0, generator=g.manual_seed(1))
    assert z.shape == (4, 3)
    loss(z.T).sum().backward()
    assert tau.grad.shape == (1, 3)
    assert (tau.grad != 0).all()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
@pytest.mark.parametrize("key", LEARNING)
def test_vmap_grad_and_compile(key, compiler):
    x = logits(3, 4).detach()
    noise = noise_for(key, x)

    def f(row, u, tau):
        return loss(make(key, tau).sample(row, u))

    tau = torch.tensor(0.7, dtype=torch.float64)
    slopes = torch.vmap(torch.func.grad(f, argnums=2), in_dims=(0, 0, None))(x, noise, tau)
    whole = tau.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(f(x, noise, whole).sum(), whole)
    torch.testing.assert_close(slopes.sum(), wanted)
    (found,) = torch.autograd.grad(compiler(f)(x, noise, whole).sum(), whole)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("tau", "error", "words"),
    [
        (torch.tensor([[0.5], [0.0]]), gt.DomainError, "above 0 throughout"),
        (torch.tensor([[0.5], [torch.nan]]), gt.DomainError, "above 0 throughout"),
        (torch.tensor([[1], [2]]), gt.UnsupportedError, "floating point"),
        (torch.tensor([0.5, 1.0, 0.7]), gt.ShapeError, "same for all classes"),
        (torch.ones(5, 1), gt.ShapeError, "must broadcast"),
        (torch.ones(1, 2, 1), gt.ShapeError, "must broadcast"),
    ],
)
def test_what_is_refused(tau, error, words):
    with pytest.raises(error, match=words):
        gt.straight_through(logits(2, 3), tau)


def test_embed_takes_a_number():
    tau = torch.tensor(0.5, requires_grad=True)
    with pytest.raises(gt.UnsupportedError, match="a number for tau"):
        gt.embed(logits(2, 3), torch.zeros(3, 2), gt.StraightThrough(tau=tau))
