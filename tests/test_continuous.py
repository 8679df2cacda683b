"""Continuous laws: samples, densities and derivatives against closed forms and quadrature."""

import mpmath
import numpy as np
import pytest
import torch
import torch.distributions as td

import gradthrough as gt
from continuous import (
    CONTINUOUS,
    EVERY,
    EXPLICIT,
    F64,
    IMPLICIT,
    Case,
    each,
    having,
    law_of,
    moments,
    rows,
    second,
    uniforms,
)
from gradthrough.laws.gamma_quantile import log_gamma_quantile, log_gamma_slope
from problems import refuses, uniform

EXACT = 1e-10
LADDER = torch.tensor(
    [1e-12, 1e-6, 1e-3, 0.02, 0.1, 0.3, 0.5, 0.6, 0.8, 0.95, 0.999, 1 - 1e-6, 1 - 1e-12], dtype=F64
)


def close(got, want, tolerance=EXACT):
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def point(q, u):
    """The sample of a law with batch (M,) at uniforms (M[, k]), by the front door."""
    return gt.estimate(
        lambda z: z if z.ndim == 2 else z[..., 0], q, gt.Pathwise(), noise=u[None]
    ).value


def integral(f, case, leaves, nodes=80, estimator=None, samples=1):
    """The mean over all noise of an estimator, with its graph."""
    one = estimator or gt.Pathwise()
    shape = one.noise_shape(law_of(rows(case.at(leaves), 1)).expand(samples))
    dims = int(np.prod(shape))
    u, weight = uniforms(nodes, dims)
    noise = u.reshape(len(u), samples, *shape[2:]).movedim(1, 0)
    value = gt.expect(f, rows(case.at(leaves), len(u)), one, samples=samples, noise=noise)
    return (value * weight).sum()


# --- samples


@each(having(EXPLICIT, "lognormal"))
def test_the_cdf_of_the_sample_is_its_uniform(case):
    z = point(rows(case.at(case.leaves()), len(LADDER)), LADDER).detach()
    got = torch.as_tensor(case.cdf(z.numpy()))
    torch.testing.assert_close(
        got, LADDER, rtol=1e-10 if case is not EXPLICIT["gamma large"] else 1e-8, atol=1e-12
    )


def test_the_log_normal_is_the_exponential_of_its_normal():
    loc, scale = torch.tensor(0.2, dtype=F64), torch.tensor(0.4, dtype=F64)
    z = point(rows(td.LogNormal(loc, scale), len(LADDER)), LADDER)
    close(z.log(), point(rows(td.Normal(loc, scale), len(LADDER)), LADDER))


@each(having(EXPLICIT, "gumbel"))
def test_samples_rise_with_their_uniform(case):
    z = point(rows(case.at(case.leaves()), len(LADDER)), LADDER)
    assert bool((z.diff() > 0).all())


@pytest.mark.parametrize("a", [1e-4, 1e-3, 0.02, 0.3, 0.999, 1.0, 2.7, 12.0, 150.0, 1e4, 1e6])
def test_the_gamma_quantile_solves_its_equation_in_both_tails(a):
    a = torch.tensor(a, dtype=F64)
    u = torch.cat(
        (torch.tensor([0.0, 2.0**-53], dtype=F64), LADDER, torch.tensor([1 - 2.0**-53], dtype=F64))
    )
    y = log_gamma_quantile(a, u)
    u = u.clamp_min(2.0**-54)
    lower, upper = torch.special.gammainc(a, y.exp()), torch.special.gammaincc(a, y.exp())
    # By the nearer tail; and where z has no room, P(a, z) = z^a / Gamma(a + 1).
    asymptote = (a * y - torch.lgamma(a + 1)).exp()
    lower = torch.where(y < -600.0, asymptote, lower)
    upper = torch.where(y < -600.0, 1 - asymptote, upper)
    tolerance = 1e-10 if a < 20 else 1e-8  # what the incomplete gamma function of torch is good for
    torch.testing.assert_close(lower[u < 0.5], u[u < 0.5], rtol=tolerance, atol=0.0)
    torch.testing.assert_close(upper[u >= 0.5], (1 - u)[u >= 0.5], rtol=tolerance, atol=0.0)


@pytest.mark.parametrize("a", [1e-3, 0.05, 0.4, 1.0, 1.9, 2.1, 7.0, 60.0, 2e3])
@pytest.mark.parametrize("u", [1e-9, 0.01, 0.4, 0.6, 0.99, 1 - 1e-9])
def test_the_slope_of_the_gamma_quantile_is_the_implicit_one(a, u):
    """-(dP/da)/(dP/dlog z), the derivative of the integral by mpmath with 40 digits."""
    alpha = torch.tensor(a, dtype=F64)
    y = log_gamma_quantile(alpha, torch.tensor(u, dtype=F64))
    with mpmath.workdps(40):
        b, z = mpmath.mpf(a), mpmath.exp(mpmath.mpf(float(y)))
        step = b * mpmath.mpf(10) ** -12

        def lower(x):
            # P for z below the mean, else -Q: the same derivative
            if z > b:
                return -mpmath.gammainc(x, z, mpmath.inf, regularized=True)
            return mpmath.exp(x * mpmath.log(z) - z - mpmath.loggamma(x + 1)) * mpmath.hyp1f1(
                1, x + 1, z
            )

        rise = (lower(b + step) - lower(b - step)) / (2 * step)
        want = -rise / mpmath.exp(b * mpmath.log(z) - z - mpmath.loggamma(b))
        want = float(want)
    assert float(log_gamma_slope(alpha, y)) == pytest.approx(want, rel=1e-11)


def test_the_slope_is_right_where_that_of_torch_has_four_digits():
    a, u = torch.meshgrid(torch.tensor([0.3, 1.0, 8.0, 300.0], dtype=F64), LADDER, indexing="ij")
    y = log_gamma_quantile(a, u)
    torchs = torch._standard_gamma_grad(a, y.exp()) / y.exp()
    off = (torchs / log_gamma_slope(a, y) - 1).abs()
    assert 1e-4 < float(off[:, 3:-3].max()) < 1e-3


@each(IMPLICIT)
@pytest.mark.parametrize("power", [1, 2])
def test_the_moments_of_laws_of_several_uniforms(case, power):
    leaves, q = case.leaves(), case.at(case.leaves())

    def f(z):
        return (z if z.ndim == 2 else z[..., 1]) ** power

    want = q.mean if power == 1 else q.variance + q.mean.square()
    nodes = 60 if case.kind is td.Dirichlet else 120
    close(integral(f, case, leaves, nodes), want if want.ndim == 0 else want[1], 1e-8)


def test_the_kolmogorov_distance_of_a_beta_from_its_cdf():
    """Of all pairs of a fine grid of uniforms, as many are below x as the law says."""
    from scipy import stats

    m = 300
    v = (torch.arange(m, dtype=F64) + 0.5) / m
    u = torch.cartesian_prod(v, v)
    q = td.Beta(torch.tensor(0.6, dtype=F64), torch.tensor(1.7, dtype=F64))
    z = point(rows(q, len(u)), u).sort()[0]
    ranks = (torch.arange(len(u)) + 0.5) / len(u)
    assert float((torch.as_tensor(stats.beta(0.6, 1.7).cdf(z.numpy())) - ranks).abs().max()) < 0.004


# --- derivatives


@each(CONTINUOUS)
def test_the_derivative_is_that_of_the_quantile_at_a_fixed_uniform(case):
    leaves = case.leaves()
    count = 40
    shape = gt.Pathwise().noise_shape(law_of(rows(case.at(leaves), count)))
    u = 0.001 + 0.998 * uniform(*shape, seed=3)

    def sample(**moved):
        return point(rows(case.at({**leaves, **moved}), count), u)

    for name, leaf in leaves.items():
        for index in np.ndindex(leaf.shape):
            unit = torch.zeros_like(leaf)
            unit[index] = 1.0
            h = 1e-3 * (1.0 + float(leaf.detach()[index].abs())) / 2.0
            ends = [sample(**{name: leaf.detach() + k * h * unit}).detach() for k in (-2, -1, 1, 2)]
            slope = (ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / (12 * h)
            got = torch.stack(
                [torch.autograd.grad(x, leaf, retain_graph=True)[0][index] for x in sample()]
            )
            torch.testing.assert_close(got, slope, rtol=1e-7, atol=1e-8)


@each(having(CONTINUOUS, "cauchy"))
def test_the_mean_derivative_of_the_sample_is_the_derivative_of_the_mean(case):
    leaves = case.leaves()
    nodes = 50 if case.kind is td.Dirichlet else 120

    def f(z):
        return second(z if z.ndim == 2 else z[..., 0])

    want = moments(case.at(leaves))
    got = integral(f, case, leaves, nodes)
    want = want if want.ndim == 0 else want[0]
    close(got, want, 1e-7)
    for a, b in zip(
        torch.autograd.grad(got, list(leaves.values())),
        torch.autograd.grad(want, list(leaves.values())),
        strict=True,
    ):
        close(a, b, 1e-7)


def test_the_entries_of_a_dirichlet_move_without_changing_their_sum():
    a = torch.tensor([0.3, 1.0, 4.0, 0.02], dtype=F64, requires_grad=True)
    u = uniform(1, 30, 4, seed=2)
    got = gt.expect(lambda z: z.sum(-1), td.Dirichlet(a).expand((30,)), gt.Pathwise(), noise=u)
    (gradient,) = torch.autograd.grad(got.sum(), a)
    close(got, torch.ones(30, dtype=F64), 1e-14)
    close(gradient, torch.zeros(4, dtype=F64), 1e-12)


def test_an_explicit_law_can_be_differentiated_twice_and_a_gamma_says_that_it_cannot():
    scale = torch.tensor(1.5, dtype=F64, requires_grad=True)
    u = torch.full((1,), 0.8, dtype=F64)
    value = gt.expect(lambda z: z**3, td.Normal(0.0, scale), gt.Pathwise(), noise=u)
    (first,) = torch.autograd.grad(value, scale, create_graph=True)
    x = torch.special.ndtri(u[0])
    close(torch.autograd.grad(first, scale)[0], 6 * scale.detach() * x**3)
    value = gt.expect(lambda z: z**3, td.Gamma(scale, 1.0), gt.Pathwise(), noise=u)
    (first,) = torch.autograd.grad(value, scale, create_graph=True)
    with pytest.raises(gt.UnsupportedError):
        torch.autograd.grad(first, scale)


# --- densities


@each(EVERY)
def test_the_log_density_is_that_of_torch(case):
    q = rows(case.at(case.leaves()), 50)
    law = law_of(q)
    z, inner = law.draw(0.01 + 0.98 * uniform(*law.noise_shape("variable"), seed=4))
    close(law.precise_log_prob(inner), q.log_prob(z), 1e-9)


@each(having(EXPLICIT, "gamma large", "cauchy", "uniform"))
def test_the_derivative_of_the_cdf_is_the_density(case):
    """Which therefore integrates to one."""
    q = rows(case.at(case.leaves()), len(LADDER))
    law = law_of(q)
    z, inner = law.draw(LADDER)
    density = law.precise_log_prob(inner).exp()
    h = 1e-4 * (z - z[6]).abs().clamp_min(1e-2).numpy() * np.minimum(1.0, z.abs().numpy())
    at = z.numpy()
    slope = (
        case.cdf(at - 2 * h) - 8 * case.cdf(at - h) + 8 * case.cdf(at + h) - case.cdf(at + 2 * h)
    ) / (12 * h)
    torch.testing.assert_close(density.detach(), torch.as_tensor(slope), rtol=1e-6, atol=1e-9)


# --- the family and its doors


def test_independent_makes_events_and_parameters_broadcast():
    loc = torch.zeros(4, 1, dtype=F64, requires_grad=True)
    scale = torch.ones(3, dtype=F64, requires_grad=True)
    q = td.Independent(td.Normal(loc, scale), 1)
    law = gt.as_distribution(q)
    assert (law.family, law.batch_shape, law.event_shape) == ("continuous", (4,), (3,))
    value = gt.expect(lambda z: (z**2).sum(-1), q, gt.Pathwise(), samples=5)
    assert value.shape == (4,)
    value.sum().backward()
    assert loc.grad.shape == (4, 1)
    assert scale.grad.shape == (3,)
    twice = td.Independent(td.Independent(td.Gamma(torch.ones(2, 3, 4), 1.0), 1), 1)
    assert gt.as_distribution(twice).batch_shape == (2,)


def test_what_torch_has_and_the_library_has_not_is_refused_by_name():
    for q in (td.Weibull(1.0, 1.0), td.VonMises(0.0, 1.0), td.Multinomial(3, torch.ones(2))):
        with refuses(gt.UnsupportedError, type(q).__name__, "Normal", "Poisson", "logits"):
            gt.as_distribution(q)


@pytest.mark.parametrize(
    ("q", "words"),
    [
        (td.HalfNormal(1.0), ("base distribution", "transforms into f")),
        (td.Pareto(1.0, 2.0), ("base distribution", "transforms into f")),
        (td.MultivariateNormal(torch.zeros(2), torch.eye(2)), ("standard normals", "scale_tril")),
    ],
    ids=lambda x: type(x).__name__,
)
def test_the_refusal_of_a_function_of_a_served_law_says_how_to_serve_it(q, words):
    with refuses(gt.UnsupportedError, type(q).__name__, *words):
        gt.as_distribution(q)


@pytest.mark.parametrize("name", ["sample", "rsample", "log_prob"])
def test_a_subclass_that_is_another_law_is_not_taken_for_its_parent(name):
    cut = type("Cut", (td.Normal,), {name: lambda self, *a: getattr(td.Normal, name)(self, *a)})
    with refuses(gt.UnsupportedError, "Cut", name, "Normal"):
        gt.as_distribution(cut(0.0, 1.0))
    plain = type("Named", (td.Normal,), {})
    assert gt.as_distribution(plain(0.0, 1.0)).family == "continuous"


def test_a_dirichlet_of_one_entry_is_that_entry_with_every_estimator():
    q = td.Dirichlet(torch.ones(3, 1))
    for estimator in (gt.Pathwise(), gt.RLOO(), gt.MeasureValued()):
        value = gt.expect(lambda z: z.sum(-1), q, estimator, samples=2)
        assert value.tolist() == [1.0] * 3


def test_a_parameter_that_is_no_floating_point_number_is_refused():
    class Odd(td.Normal):
        def __init__(self):
            super().__init__(0.0, 1.0)
            self.loc = torch.tensor(0)

    with refuses(gt.UnsupportedError, "loc", "int64"):
        gt.as_distribution(Odd())


def test_a_discrete_law_and_a_continuous_one_are_laws():
    assert isinstance(gt.Categorical(torch.zeros(2)), gt.Law)
    assert isinstance(gt.as_distribution(td.Normal(0.0, 1.0)), gt.Law)
    assert not isinstance(gt.as_distribution(td.Normal(0.0, 1.0)), gt.Distribution)


# --- numbers at the edge


@each(CONTINUOUS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_samples_and_gradients_are_finite_for_every_uniform_and_dtype(case, dtype):
    leaves = case.leaves(dtype)
    ends = torch.tensor([0.0, 2.0**-53, 1e-9, 0.5, 1 - 1e-9, 1 - 2.0**-53], dtype=F64)
    q = rows(case.at(leaves), len(ends) ** 2)
    shape = gt.Pathwise().noise_shape(law_of(q))
    noise = torch.cartesian_prod(ends, ends)
    noise = noise[:, 0] if len(shape) == 1 else noise[:, [0, 1] + [0] * (shape[-1] - 2)]
    for estimator in (gt.Pathwise(), gt.Reinforce()):
        if isinstance(estimator, gt.Reinforce) and case.kind is td.Uniform:
            continue
        value = gt.expect(
            lambda z: (z if z.ndim == 2 else z[..., 0]).float().clamp(-10, 10).tanh(),
            q,
            estimator,
            noise=noise[None],
        )
        assert value.isfinite().all()
        gradients = torch.autograd.grad(value.sum(), list(leaves.values()), retain_graph=True)
        for gradient, leaf in zip(gradients, leaves.values(), strict=True):
            assert gradient.dtype == leaf.dtype == dtype
            assert gradient.isfinite().all()


@each(CONTINUOUS)
def test_low_precision_points_have_the_dtype_of_the_parameters(case):
    for dtype in (torch.float32, torch.bfloat16):
        seen = []
        gt.expect(
            lambda z, seen=seen: seen.append(z.dtype) or (z if z.ndim == 2 else z[..., 0]),
            rows(case.at(case.leaves(dtype)), 3),
            gt.Pathwise(),
        )
        assert seen == [dtype]


def test_a_gamma_of_tiny_concentration_has_a_score_where_its_point_has_no_room():
    a = torch.tensor(1e-4, requires_grad=True)
    u = torch.tensor([[0.3]], dtype=F64)
    value = gt.expect(
        lambda z: torch.ones_like(z), td.Gamma(a, 1.0).expand((1,)), gt.Reinforce(), noise=u
    )
    (score,) = torch.autograd.grad(value.sum(), a)
    # log z = (log u + lgamma(a + 1)) / a, and the score is log z - psi(a)
    want = (np.log(0.3) - 0.5772156649 * 1e-4) / 1e-4 - float(
        torch.special.digamma(torch.tensor(1e-4, dtype=F64))
    )
    assert float(score) == pytest.approx(want, rel=1e-4)


def test_a_normal_keeps_its_score_in_low_precision():
    """The score is that of the point before it is rounded."""
    loc = torch.tensor(100.0, dtype=torch.bfloat16, requires_grad=True)
    u = uniform(1, 50, seed=6)
    value = gt.expect(
        lambda z: torch.ones_like(z).float(),
        td.Normal(loc, torch.tensor(0.125, dtype=torch.bfloat16)).expand((50,)),
        gt.Reinforce(),
        noise=u,
    )
    (got,) = torch.autograd.grad(value[7], loc)
    assert float(got) == pytest.approx(float(torch.special.ndtri(u[0, 7]) / 0.125), rel=0.01)


@pytest.mark.parametrize("scale", [1e-3, 1e-7, 1e-20])
def test_a_scale_below_the_digits_of_loc_keeps_its_score(scale):
    """In float32 loc + scale x has few digits of x left, or none."""
    for kind in (td.Normal, td.Laplace, td.Cauchy, lambda *p: gt.distributions.Logistic(*p)):
        loc, leaf = torch.tensor(1.0), torch.tensor(scale, requires_grad=True)
        u = uniform(1, 40, seed=3)
        one = lambda z: torch.ones_like(z)  # noqa: E731
        got = gt.expect(one, kind(loc, leaf).expand((40,)), gt.Reinforce(), noise=u)
        unit = torch.tensor(1.0, dtype=F64, requires_grad=True)
        at = kind(torch.tensor(0.0, dtype=F64), unit).expand((40,))
        want = gt.expect(lambda z: torch.ones_like(z), at, gt.Reinforce(), noise=u)
        if scale > 1e-15:  # where float64 has digits left
            for k in (0, 7, 23):
                (a,) = torch.autograd.grad(got[k], leaf, retain_graph=True)
                (b,) = torch.autograd.grad(want[k], unit, retain_graph=True)
                assert float(a) * scale == pytest.approx(float(b), rel=1e-5)
        assert torch.autograd.grad(got.sum(), leaf)[0].isfinite()


@pytest.mark.parametrize("df", [1e-3, 0.02, 0.1])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_students_t_of_few_degrees_of_freedom_is_finite(df, dtype):
    """Half of all points of df 1e-3 lie beyond 1e301."""
    ends = torch.tensor([0.0, 2.0**-53, 1e-9, 0.1, 0.5, 0.8, 1 - 2.0**-53], dtype=F64)
    u = torch.cartesian_prod(ends, ends)
    leaves = [torch.tensor(x, dtype=dtype, requires_grad=True) for x in (df, 0.3, 1.2)]
    f = lambda z: 1 / (1 + z.square())  # noqa: E731
    for estimator in (gt.Pathwise(), gt.Reinforce()):
        value = gt.expect(f, td.StudentT(*leaves).expand((49,)), estimator, noise=u[None])
        gradients = torch.autograd.grad(value.sum(), leaves)
        assert all(x.isfinite().all() for x in (value, *gradients))
    q = td.StudentT(leaves[0].detach(), *leaves[1:]).expand((49,))
    value = gt.expect(f, q, gt.MeasureValued(), noise=torch.cat((u, u), -1)[None])
    assert all(x.isfinite() for x in torch.autograd.grad(value.sum(), leaves[1:]))


@pytest.mark.parametrize("df", [1e-3, 0.02, 0.6])
def test_the_score_of_students_t_has_mean_zero_also_where_its_points_have_no_room(df):
    leaf = torch.tensor(df, dtype=F64, requires_grad=True)
    u, weight = uniforms(160, 2)
    q = td.StudentT(leaf, torch.tensor(0.3, dtype=F64), 1.2).expand((len(u),))
    value = gt.expect(lambda z: torch.ones_like(z), q, gt.Reinforce(), noise=u[None])
    (got,) = torch.autograd.grad((value * weight).sum(), leaf)
    assert abs(float(got)) * df < 1e-5


CASES_OF_TRANSFORMS = {n: EXPLICIT.get(n, IMPLICIT.get(n)) for n in ("normal", "gamma", "student")}


@each(CASES_OF_TRANSFORMS)
@pytest.mark.parametrize("estimator", [gt.Pathwise(), gt.RLOO()], ids=repr)
def test_vmap_of_grad_is_the_loop(case: Case, estimator):
    names = list(case.parameters)
    stacked = [
        torch.tensor([case.parameters[n], case.parameters[n] * 1.1], dtype=F64) for n in names
    ]
    q = case.at(case.leaves())
    shape = estimator.noise_shape(law_of(q).expand(2))
    noise = uniform(2, *shape, seed=8)

    def loss(u, *values):
        law = case.kind(**dict(zip(names, values, strict=True)), validate_args=False)
        return gt.expect(torch.sin, law, estimator, samples=2, noise=u)

    every = tuple(range(1, len(names) + 1))
    got = torch.func.vmap(torch.func.grad(loss, every))(noise, *stacked)
    for k in range(2):
        leaves = [x[k].clone().requires_grad_() for x in stacked]
        want = torch.autograd.grad(loss(noise[k], *leaves), leaves)
        for a, b in zip(got, want, strict=True):
            close(a[k], b)


@each(CASES_OF_TRANSFORMS)
def test_forward_mode_is_reverse_mode(case):
    names = list(case.parameters)
    values = [torch.tensor(case.parameters[n], dtype=F64) for n in names]
    noise = uniform(*gt.Pathwise().noise_shape(law_of(case.at(case.leaves())).expand(3)), seed=8)

    def loss(*parameters):
        law = case.kind(**dict(zip(names, parameters, strict=True)), validate_args=False)
        return gt.expect(torch.sin, law, gt.Pathwise(), samples=3, noise=noise)

    every = tuple(range(len(names)))
    wants = torch.func.grad(loss, every)(*values)
    for k, want in enumerate(wants):
        tangents = tuple(torch.ones_like(v) * (i == k) for i, v in enumerate(values))
        close(torch.func.jvp(loss, tuple(values), tangents)[1], want)


@pytest.mark.parametrize("u", [1e-3, 1e-5, 1e-7])
def test_a_beta_near_1_has_the_slopes_of_its_mirror_image_near_0(u):
    def slopes(concentrations, noise):
        a, b = (torch.tensor(x, dtype=F64, requires_grad=True) for x in concentrations)
        value = gt.expect(lambda z: z, td.Beta(a, b), gt.Pathwise(), noise=noise)
        return torch.stack(torch.autograd.grad(value, (a, b)))

    noise = torch.tensor([[0.6, u]], dtype=F64)
    near = slopes((1.3, 0.7), noise)
    mirrored = slopes((0.7, 1.3), noise.flip(-1))
    torch.testing.assert_close(near, -mirrored.flip(0), rtol=1e-13, atol=0.0)
