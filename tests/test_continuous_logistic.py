"""The logistic distribution, as one of torch's."""

import math

import mpmath
import pytest
import torch
import torch.distributions as td
from scipy import stats

import gradthrough as gt
from continuous import F64, uniforms
from problems import normal, refuses, uniform

LOC, SCALE = torch.tensor(-0.4, dtype=F64), torch.tensor(1.3, dtype=F64)


def logistic(loc=LOC, scale=SCALE, **options):
    return gt.distributions.Logistic(loc, scale, **options)


def close(got, want, tolerance=1e-13):
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def test_it_is_the_law_of_scipy():
    z, theirs = normal(50) * 20, stats.logistic(-0.4, 1.3)
    close(logistic().log_prob(z), torch.as_tensor(theirs.logpdf(z.numpy())))
    close(logistic().cdf(z), torch.as_tensor(theirs.cdf(z.numpy())))
    u = uniform(50)
    close(logistic().icdf(u), torch.as_tensor(theirs.ppf(u.numpy())))
    close(logistic().mean, torch.tensor(theirs.mean(), dtype=F64))
    close(logistic().variance, torch.tensor(theirs.var(), dtype=F64))
    close(logistic().stddev, torch.tensor(theirs.std(), dtype=F64))
    close(logistic().entropy(), torch.tensor(float(theirs.entropy()), dtype=F64), 1e-9)
    assert logistic().mode == LOC


def test_a_sample_is_the_quantile_of_its_uniform():
    u = uniform(7, 3)
    q = logistic(LOC.expand(3), SCALE)
    close(q.rsample((7,), noise=u), q.icdf(u))
    assert q.sample((7, 2)).shape == (7, 2, 3)
    generator = torch.Generator().manual_seed(3)
    first = q.rsample((5,), generator=generator)
    assert torch.equal(first, q.rsample((5,), generator=generator.manual_seed(3)))


def test_samples_carry_the_gradient_and_sample_does_not():
    loc, scale = LOC.clone().requires_grad_(), SCALE.clone().requires_grad_()
    q = logistic(loc, scale)
    z = q.rsample(noise=torch.tensor(0.8, dtype=F64))
    close(torch.autograd.grad(z, (loc, scale))[1], torch.tensor(math.log(4.0), dtype=F64))
    assert not q.sample().requires_grad


def test_entropy_and_log_density_against_quadrature():
    u, weight = uniforms(120)
    z = logistic().rsample((len(u),), noise=u[:, 0])
    close(-(logistic().log_prob(z) * weight).sum(), logistic().entropy(), 1e-10)


@pytest.mark.parametrize("loc", [0.0, 0.7, -30.0])
@pytest.mark.parametrize("scale", [1e-3, 0.2, 1.3, 1.3000001, 8.0, 400.0])
def test_the_kl_divergence_against_quadrature(loc, scale):
    p, q = logistic(), logistic(torch.tensor(loc, dtype=F64), torch.tensor(scale, dtype=F64))

    def integrand(x):
        # in the standard variable of p, whose density is even
        y = (p.loc.item() + p.scale.item() * x - loc) / scale
        both = mpmath.log1p(mpmath.exp(-abs(y)))
        log_q = -abs(y) - 2 * both - mpmath.log(scale)
        log_p = -abs(x) - 2 * mpmath.log1p(mpmath.exp(-abs(x)))
        return mpmath.exp(log_p) * (log_p - mpmath.log(p.scale.item()) - log_q)

    turn = (loc - p.loc.item()) / p.scale.item()
    points = sorted({-80.0, -20.0, -5.0, 0.0, 5.0, 20.0, 80.0, turn, turn - 0.01, turn + 0.01})
    want = float(mpmath.quad(integrand, points, maxdegree=8))
    assert float(td.kl_divergence(p, q)) == pytest.approx(want, rel=1e-10, abs=1e-12)


def test_the_kl_divergence_at_equal_scales_is_closed():
    for delta in (1e-3, 0.5, 3.0, 50.0):
        q = logistic(LOC + delta * SCALE)
        want = delta / math.tanh(delta / 2) - 2
        assert float(td.kl_divergence(logistic(), q)) == pytest.approx(want, rel=1e-7, abs=1e-13)
    assert float(td.kl_divergence(logistic(), logistic())) < 1e-14


def test_the_kl_divergence_from_a_normal_is_its_integral():
    u, weight = uniforms(120)
    normal_ = td.Normal(torch.tensor(0.3, dtype=F64), torch.tensor(2.1, dtype=F64))
    z = logistic().rsample((len(u),), noise=u[:, 0])
    want = ((logistic().log_prob(z) - normal_.log_prob(z)) * weight).sum()
    close(td.kl_divergence(logistic(), normal_), want, 1e-10)


def test_the_gradients_of_the_kl_divergence_are_those_of_differences():
    values = [torch.tensor(x, dtype=F64, requires_grad=True) for x in (0.2, 0.9, -0.5, 1.7)]

    def kl(a, s, b, t):
        return td.kl_divergence(logistic(a, s), logistic(b, t))

    assert torch.autograd.gradcheck(kl, values)
    assert torch.autograd.gradcheck(lambda a, s, b, t: kl(a, t, b, s), values)


def test_it_expands_and_validates_as_the_others_of_torch():
    q = logistic().expand((4, 2))
    assert (q.batch_shape, q.loc.shape, q.rsample((3,)).shape) == ((4, 2), (4, 2), (3, 4, 2))
    assert isinstance(td.Independent(q, 1).log_prob(torch.zeros(2)), torch.Tensor)
    with pytest.raises(ValueError, match="scale"):
        logistic(scale=torch.tensor(-1.0), validate_args=True)
    with pytest.raises(ValueError, match="value"):
        logistic(validate_args=True).log_prob(torch.tensor(torch.nan))
    logistic(scale=torch.tensor(-1.0), validate_args=False)
    with refuses(gt.ShapeError, "noise", "loc"):
        logistic().rsample((3,), noise=uniform(2))
    assert "Logistic(loc: " in repr(logistic())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_tails_are_finite_in_low_precision(dtype):
    loc, scale = (torch.tensor(x, dtype=dtype, requires_grad=True) for x in (0.0, 1.0))
    q = logistic(loc, scale)
    z = torch.tensor([-6e4, -90.0, 0.0, 90.0, 6e4], dtype=dtype)
    log_prob = q.log_prob(z)
    assert log_prob.dtype == dtype
    torch.testing.assert_close(log_prob[[0, 1, 3, 4]], -z[[0, 1, 3, 4]].abs())
    assert all(g.isfinite().all() for g in torch.autograd.grad(log_prob[1:4].sum(), (loc, scale)))
    u = torch.tensor([0.0, 2.0**-53, 1 - 2.0**-53], dtype=F64)
    z = q.rsample((3,), noise=u)
    assert z.dtype == dtype
    assert z.isfinite().all()


def test_expect_takes_it_through_independent():
    loc = torch.zeros(5, 3, dtype=F64, requires_grad=True)
    q = td.Independent(logistic(loc, SCALE), 1)
    for estimator in (gt.Pathwise(), gt.RLOO(), gt.MeasureValued()):
        value = gt.expect(lambda z: z.square().sum(-1), q, estimator, samples=2)
        assert value.shape == (5,)
        assert torch.autograd.grad(value.sum(), loc)[0].shape == (5, 3)
