"""Estimators on continuous laws: unbiased by quadrature over their noise, refusals, and doors."""

import dataclasses
import math

import pytest
import torch
import torch.distributions as td

import gradthrough as gt
from continuous import (
    CONTINUOUS,
    COUNTS,
    EVERY,
    EXPLICIT,
    F64,
    Case,
    each,
    having,
    law_of,
    moments,
    rows,
    second,
    uniforms,
)
from problems import normal, refuses, uniform

SCORED = having(EXPLICIT, "uniform", "cauchy", "gamma small")  # whose score is smooth enough
MOVED = having(EXPLICIT, "cauchy", "gamma small") | {"student": CONTINUOUS["student"]}
SCORE = {
    "reinforce": (gt.Reinforce(), 1),
    "reinforce baseline": (gt.Reinforce(baseline=0.7), 1),
    "reinforce antithetic": (gt.Reinforce(antithetic=True), 2),
    "rloo": (gt.RLOO(), 2),
    "vargrad": (gt.VarGrad(), 2),
}


def close(got, want, tolerance=1e-8):
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def integral(f, case, leaves, estimator, samples, nodes):
    """The mean of an estimator over all of its noise, with its graph."""
    shape = estimator.noise_shape(law_of(rows(case.at(leaves), 1)).expand(samples))
    free = shape[0] * (shape[2] if len(shape) > 2 else 1)
    u, weight = uniforms(nodes, free)
    noise = u.reshape(len(u), shape[0], *shape[2:]).movedim(1, 0)
    value = gt.expect(f, rows(case.at(leaves), len(u)), estimator, samples=samples, noise=noise)
    return (value * weight).sum()


def derivatives(value, leaves):
    return torch.autograd.grad(value, list(leaves.values()), retain_graph=True)


def agree(got, want, leaves, tolerance=1e-8):
    close(got, want, tolerance)
    for a, b in zip(derivatives(got, leaves), derivatives(want, leaves), strict=True):
        close(a, b, tolerance)


# --- unbiased


@each(SCORED)
@pytest.mark.parametrize("name", SCORE)
def test_score_function_estimators_are_unbiased(case, name):
    estimator, samples = SCORE[name]
    leaves = case.leaves()
    got = integral(second, case, leaves, estimator, samples, nodes=100)
    agree(got, moments(case.at(leaves)), leaves)


@pytest.mark.parametrize("name", ["beta", "student"])
def test_the_score_of_a_law_of_two_uniforms_is_unbiased(name):
    case = CONTINUOUS[name]
    leaves = case.leaves()
    got = integral(second, case, leaves, gt.Reinforce(), 1, nodes=140)
    agree(got, moments(case.at(leaves)), leaves, 1e-6)


def moves_integral(f, case, leaves, nodes=64):
    """The mean of MeasureValued: each of its terms takes one uniform beside that of the sample."""
    law = law_of(rows(case.at(leaves), 1))
    each_, spare = law._each, law.spare
    # Where the standard sample changes sign, the side on which its move lies changes too.
    mode = 1 / math.e if case.kind is td.Gumbel else 0.5
    u, weight = uniforms(nodes, each_ + min(spare, 1), mode)
    u = torch.cat((u[:, :each_], u[:, each_:].expand(-1, spare)), -1)
    noise = u.unsqueeze(0) if u.shape[-1] > 1 else u.T
    value = gt.expect(f, rows(case.at(leaves), len(u)), gt.MeasureValued(), noise=noise)
    return (value * weight).sum()


@each(MOVED)
def test_measure_valued_derivatives_are_unbiased(case):
    leaves = case.leaves()
    if case.kind is td.StudentT:
        leaves["df"] = leaves["df"].detach()
    nodes = 40 if case.kind is td.StudentT else 100
    got = moves_integral(second, case, leaves, nodes)
    free = {n: x for n, x in leaves.items() if x.requires_grad}
    # Near the mode the density falls as a square: a root, which quadrature feels.
    agree(got, moments(case.at(leaves)), free, 1e-6 if case.kind is td.StudentT else 1e-7)


@pytest.mark.parametrize(("a", "b"), [(1.4, 2.2), (3.0, 0.9)])
def test_measure_valued_derivatives_of_a_beta_are_unbiased(a, b):
    """Four uniforms: two gammas, a sum of two, and a jump."""
    leaves = {
        n: torch.tensor(x, dtype=F64, requires_grad=True)
        for n, x in (("concentration1", a), ("concentration0", b))
    }
    case = Case(td.Beta, {})
    u, weight = uniforms(26, 4)
    noise = torch.cat((u, u[:, 3:]), -1).unsqueeze(0)
    q = rows(case.at(leaves), len(u))
    value = gt.expect(second, q, gt.MeasureValued(), noise=noise)
    agree((value * weight).sum(), moments(case.at(leaves)), leaves, 1e-4)


@pytest.mark.parametrize("a", [0.02, 0.3, 1.0, 40.0])
@pytest.mark.parametrize("c", [0.01, 0.7, 35.0])
def test_the_jumps_of_a_gamma_are_its_derivative_also_where_f_jumps(a, c):
    """P(z > c), given the jump x, is smooth in it: what is left is an integral over x alone."""
    from scipy import integrate, stats

    u = torch.linspace(0.005, 0.995, 199, dtype=F64)
    spare = torch.stack((u, torch.full_like(u, 0.5)), -1)
    law = law_of(rows(td.Gamma(torch.tensor(a, dtype=F64), 1.0), len(u)))
    (rarity, far), _ = law.raw_moves(torch.full_like(u, -700.0), spare)
    x = far.exp()  # the sample is nothing beside its jump
    close(x, torch.as_tensor(stats.gamma(0.5).ppf(u.numpy())), 1e-9)
    close(rarity, (math.pi / x).sqrt(), 1e-9)
    tail = lambda at: stats.gamma(a).sf(max(at, 0.0))  # noqa: E731
    gap = lambda t: (tail(c - t * t) - tail(c)) * 2 / t * math.exp(-t * t)  # noqa: E731 - x = t^2
    root = math.sqrt(c)
    want = sum(integrate.quad(gap, *ends, limit=400)[0] for ends in ((1e-9, root), (root, 9.0)))
    h = 1e-4 * a
    ends = [stats.gamma(a + k * h).sf(c) for k in (-2, -1, 1, 2)]
    slope = (ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / (12 * h)
    assert want == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_a_dirichlet_is_moved_by_its_gammas():
    a = torch.tensor([1.2, 0.4, 2.0], dtype=F64, requires_grad=True)
    q = td.Independent(td.Gamma(a.expand(60_000, 3), 1.0), 1)
    share = lambda g: g[..., 0] / g.sum(-1)  # noqa: E731
    make = torch.Generator().manual_seed(1)
    value = gt.expect(share, q, gt.MeasureValued(), generator=make).mean()
    want = td.Dirichlet(a).mean[0]
    agree(value, want, {"a": a}, 0.02)


def test_measure_valued_derivatives_of_a_cauchy_by_a_bounded_f():
    leaves = CONTINUOUS["cauchy"].leaves()
    q = CONTINUOUS["cauchy"].at(leaves)
    got = moves_integral(lambda z: 1 / (1 + z.square()), CONTINUOUS["cauchy"], leaves, 160)
    # The convolution of two Cauchy densities is one of their summed scales.
    want = (1 + q.scale) / ((1 + q.scale).square() + q.loc.square())
    agree(got, want, leaves, 1e-7)


@pytest.mark.parametrize(
    "name", ["normal", "logistic", "laplace", "gumbel", "exponential", "uniform"]
)
def test_at_a_jump_measure_valued_derivatives_are_right(name):
    """P(z > c) has the derivative of the cdf; the mean is over a fine grid of each uniform."""
    case = CONTINUOUS[name]
    leaves, c = case.leaves(), 0.6
    q = case.at(leaves)
    want = 1 - q.cdf(torch.tensor(c, dtype=F64))
    m = 1200
    v = (torch.arange(m, dtype=F64) + 0.5) / m
    grid = torch.cartesian_prod(v, v)
    spare = law_of(q).spare
    noise = grid[:, 0] if not spare else torch.cat((grid[:, :1], grid[:, 1:].expand(-1, spare)), -1)
    f = lambda z: (z > c).to(F64)  # noqa: E731
    got = gt.expect(f, rows(q, len(grid)), gt.MeasureValued(), noise=noise[None]).mean()
    agree(got, want, leaves, 2e-3)


def test_at_a_jump_pathwise_is_refused_or_wrong():
    loc = torch.tensor(0.4, dtype=F64, requires_grad=True)
    q = td.Normal(loc, 1.0)
    with refuses(gt.UnsupportedError, "Pathwise", "differentiabl", "RLOO"):
        gt.expect(lambda z: (z > 1).to(F64), q, gt.Pathwise(), samples=3)
    v = (torch.arange(20_000, dtype=F64) + 0.5) / 20_000
    f = lambda z: torch.where(z > 1, z, 0.0)  # noqa: E731 - jumps by 1 at 1
    value = gt.expect(f, rows(q, len(v)), gt.Pathwise(), noise=v[None]).mean()
    above = 1 - q.cdf(torch.tensor(1.0, dtype=F64))
    exact = (above * loc).detach() + q.log_prob(torch.tensor(1.0, dtype=F64)).exp().detach()
    close(value.detach(), exact, 1e-3)
    (got,) = torch.autograd.grad(value, loc)
    close(got, above.detach(), 1e-3)  # what is missing is the density at the jump, above 0.3


# --- events, several parameters, and what f uses


@each(having(EVERY, "dirichlet", "cauchy"))
def test_moves_go_coordinate_by_coordinate(case):
    """With a linear f the terms of a row of three are those of three rows."""
    kind = {n: torch.tensor(x, dtype=F64) for n, x in case.parameters.items()}
    scale = torch.tensor([1.0, 1.1, 0.8], dtype=F64)
    rate = {n: (x * scale if n != "probs" else x + 0.1 * scale) for n, x in kind.items()}
    w = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    blocked = {"df"} if case.kind is td.StudentT else set()
    results = []
    for event in (0, 1):
        leaves = {n: x.clone().requires_grad_(n not in blocked) for n, x in rate.items()}
        free = [x for x in leaves.values() if x.requires_grad]
        q = td.Independent(case.kind(**leaves), event)
        noise = uniform(*gt.MeasureValued().noise_shape(law_of(q).expand(4)), seed=3)
        f = (lambda z: (z * w).sum(-1)) if event else (lambda z: z * w)
        value = gt.expect(f, q, gt.MeasureValued(), samples=4, noise=noise)
        results.append((value.sum(), *torch.autograd.grad(value.sum(), free)))
    for a, b in zip(*results, strict=True):
        close(a, b, 1e-12)


@each(EVERY)
def test_f_is_evaluated_as_often_as_evaluations_says(case):
    leaves = {n: x.detach() for n, x in case.leaves().items()}
    q = td.Independent(case.at(leaves).expand((2, 3)), 1)
    law = law_of(q)
    for estimator in (gt.Reinforce(), gt.RLOO(), gt.MeasureValued(), gt.Pathwise()):
        if law.family not in estimator.traits.families or case.kind is td.Uniform:
            continue
        seen = []
        gt.expect(
            lambda z, s=seen: s.append(z.shape) or z.flatten(2).sum(-1), q, estimator, samples=4
        )
        assert [s[:2] for s in seen] == [(estimator.evaluations(law, 4), 2)]


@each(EVERY)
def test_the_parameters_of_f_get_the_gradient_of_the_value_and_nothing_else_gets_one(case):
    for estimator in (gt.Reinforce(), gt.RLOO(), gt.MeasureValued(), gt.Pathwise()):
        law = law_of(case.at(case.leaves()))
        if law.family not in estimator.traits.families or case.kind is td.Uniform:
            continue
        leaves = {n: x.detach() for n, x in case.leaves().items()}
        q = rows(case.at(leaves), 5)
        w = torch.tensor(1.3, dtype=F64, requires_grad=True)
        noise = uniform(*estimator.noise_shape(law_of(q).expand(4)), seed=2).requires_grad_()
        seen = []

        def f(z, w=w, seen=seen):
            seen.append(z.detach())
            return (w * (z if z.ndim == 2 else z[..., 0])).sin()

        value = gt.expect(f, q, estimator, samples=4, noise=noise)
        (got,) = torch.autograd.grad(value.sum(), w, retain_graph=True)
        z = seen[0][:4] if seen[0].ndim == 2 else seen[0][:4, ..., 0]
        (want,) = torch.autograd.grad((w * z).sin().mean(0).sum(), w)
        close(got, want, 1e-12)
        assert torch.autograd.grad(value.sum(), noise, allow_unused=True)[0] is None


@each(EVERY)
def test_given_noise_repeats_and_a_generator_gives_what_its_noise_gives(case):
    for estimator in (gt.RLOO(), gt.MeasureValued(), gt.Pathwise()):
        q = rows(case.at({n: x.detach() for n, x in case.leaves().items()}), 5)
        law = law_of(q)
        if law.family not in estimator.traits.families or case.kind is td.Uniform:
            continue
        f = lambda z: z if z.ndim == 2 else z[..., 0]  # noqa: E731
        make = torch.Generator().manual_seed
        noise = estimator.noise(law.expand(2), generator=make(3))
        assert noise.shape == estimator.noise_shape(law.expand(2))
        by_noise = [gt.expect(f, q, estimator, samples=2, noise=noise) for _ in range(2)]
        by_generator = gt.expect(f, q, estimator, samples=2, generator=make(3))
        assert torch.equal(by_noise[0], by_noise[1])
        assert torch.equal(by_noise[0], by_generator)
        with refuses(gt.ShapeError, "noise", law.names[0]):
            gt.expect(f, q, estimator, samples=2, noise=noise[:1])


def test_gradients_go_through_whatever_made_the_parameters():
    """Softplus of a network, broadcast over a batch, by four estimators of one mean."""
    x = normal(6, 3)
    net = torch.nn.Linear(3, 2, dtype=F64)

    def law():
        loc, raw = net(x).unbind(-1)
        return td.Normal(loc, torch.nn.functional.softplus(raw))

    want = torch.autograd.grad(moments(law()).sum(), [*net.parameters()])
    u, weight = uniforms(60)
    noise = u.expand(-1, 6)
    scale = len(weight) * weight.unsqueeze(-1)
    value = gt.expect(
        lambda z: scale * second(z), law(), gt.Pathwise(), samples=len(weight), noise=noise
    )
    got = torch.autograd.grad(value.sum(), [*net.parameters()])
    for a, b in zip(got, want, strict=True):
        close(a, b, 1e-8)


# --- Rollout


@pytest.mark.parametrize("estimator", [gt.Pathwise(), gt.RLOO(), gt.Reinforce()], ids=repr)
def test_a_rollout_of_two_continuous_latents(estimator):
    """z2 ~ N(w z1, 1): E z1 z2 = w (1 + m^2), by quadrature over both (and RLOO's second run)."""
    m, w = (torch.tensor(x, dtype=F64, requires_grad=True) for x in (0.6, 1.4))
    n = estimator.traits.min_samples
    u, weight = uniforms(24 if n == 2 else 60, 2 * n)
    count = len(u)
    rollout = gt.Rollout(estimator, samples=n)
    one = rollout.sample(td.Normal(m.expand(n, count), 1.0), noise=u[:, :n].T.contiguous())
    two = rollout.sample(td.Normal(w * one, 1.0), noise=u[:, n:].T.contiguous())
    value = (rollout.combine(one * two) * weight).sum()
    want = w * (1 + m.square())
    agree(value, want, {"m": m, "w": w}, 1e-7 if n == 1 else 1e-4)


def test_measure_valued_serves_one_latent():
    with refuses(gt.UnsupportedError, "MeasureValued", "one latent"):
        gt.Rollout(gt.MeasureValued())


@pytest.mark.parametrize("kind", [td.Normal, td.Gamma, gt.Bernoulli], ids=lambda k: k.__name__)
def test_forward_mode_of_a_score_is_reverse_mode(kind):
    """Also where a row is one number, of which the tangent has no dims to sum over."""
    x, t = 0.5 + normal(5, seed=1).abs(), normal(5, seed=2)

    def loss(x):
        q = kind(x) if kind is gt.Bernoulli else kind(x, 1.0, validate_args=False)
        noise = uniform(*gt.RLOO().noise_shape(law_of(q).expand(3)), seed=3)
        return gt.expect(torch.sin, q, gt.RLOO(), samples=3, noise=noise)

    reverse = torch.func.grad(lambda x: loss(x).sum())(x) * t
    close(torch.func.jvp(loss, (x,), (t,))[1], reverse, 1e-12)


# --- refusals


def test_a_law_that_an_estimator_does_not_serve_is_refused_with_a_remedy():
    normal_, poisson = td.Normal(0.0, 1.0), td.Poisson(torch.tensor(2.0))
    with refuses(gt.UnsupportedError, "ReinMax", "continuous", r"Pathwise\(\)"):
        gt.expect(lambda z: z, normal_, gt.ReinMax())
    with refuses(gt.UnsupportedError, "Pathwise", "count", r"MeasureValued\(\)"):
        gt.expect(lambda z: z, poisson, gt.Pathwise())
    with refuses(gt.UnsupportedError, "Pathwise", "categorical", "RLOO"):
        gt.expect(lambda z: z.sum(-1), torch.zeros(3), gt.Pathwise())
    with refuses(gt.UnsupportedError, "MeasureValued", "categorical"):
        gt.expect(lambda z: z.sum(-1), torch.zeros(3), gt.MeasureValued())
    for key, kind in gt.ESTIMATORS.items():
        if "continuous" not in kind.traits.families:
            with refuses(gt.UnsupportedError, kind.__name__):
                gt.expect(lambda z: z, normal_, gt.estimator(key), samples=kind.traits.min_samples)


def test_a_parameter_without_a_decomposition_is_refused_only_if_it_needs_a_gradient():
    a, loc = torch.tensor(1.5, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    for q, name in (
        (td.StudentT(a), "df"),
        (td.Dirichlet(a.expand(3)), "concentration"),
    ):
        with refuses(gt.UnsupportedError, name, type(law_of(q)).__name__, "Pathwise", "detach"):
            gt.expect(lambda z: z.sum(-1) if z.ndim > 1 else z, q, gt.MeasureValued())
    value = gt.expect(lambda z: z, td.StudentT(a.detach(), loc), gt.MeasureValued())
    assert torch.autograd.grad(value, loc)[0].isfinite()


def test_a_derivative_that_slips_past_the_refusal_is_not_a_number():
    u = torch.full((1, 4), 0.3, dtype=F64)

    def loss(a):
        return gt.expect(
            lambda z: z, td.StudentT(a, validate_args=False), gt.MeasureValued(), noise=u
        )

    one = torch.tensor(1.5, dtype=F64)
    with pytest.raises(gt.UnsupportedError):
        torch.func.grad(loss)(one)
    assert torch.func.jvp(loss, (one,), (one,))[1].isnan()


def test_the_score_of_a_law_whose_support_moves_is_refused():
    q = td.Uniform(torch.zeros(2), torch.ones(2))
    for estimator in (gt.Reinforce(), gt.RLOO(), gt.VarGrad()):
        with refuses(gt.UnsupportedError, "Uniform", "support", "Pathwise"):
            gt.expect(lambda z: z, q, estimator, samples=2)


def test_reinforce_says_which_of_its_options_need_classes():
    q = td.Normal(torch.zeros(2), 1.0)
    with refuses(gt.UnsupportedError, "self-critical", "Normal"):
        gt.expect(lambda z: z, q, gt.Reinforce(baseline="self_critical"))
    with refuses(gt.UnsupportedError, "critic", "Normal"):
        gt.Reinforce().learned(gt.as_distribution(q))
    estimator, mean = gt.Reinforce(baseline=0.0).learned(gt.as_distribution(q))
    out = gt.estimate(lambda z: z + 3, q, estimator, samples=4)
    out.tuning_loss.backward()
    assert next(mean.parameters()).grad is not None


def test_a_proposal_is_weighted_by_the_ratio_of_densities():
    case = Case(td.Normal, {"loc": 0.3, "scale": 0.8})
    leaves = case.leaves()
    wide = td.Normal(torch.tensor(0.0, dtype=F64), torch.tensor(1.2, dtype=F64))
    u, weight = uniforms(100)
    estimator = gt.Reinforce(proposal=rows(wide, len(u)))
    value = gt.expect(second, rows(case.at(leaves), len(u)), estimator, noise=u.T)
    agree((value * weight).sum(), moments(case.at(leaves)), leaves)
    with refuses(gt.ShapeError, "proposal", "continuous"):
        gt.expect(second, wide, gt.Reinforce(proposal=td.Laplace(0.0, 1.0)))


def test_vimco_and_vargrad_take_continuous_laws():
    """Of the variational posterior of a normal: the gradient of VarGrad is RLOO's."""
    loc = torch.tensor(0.4, dtype=F64, requires_grad=True)
    prior, q = td.Normal(torch.tensor(0.0, dtype=F64), 1.0), td.Normal(loc, 0.7)
    noise = uniform(3, seed=1)
    ratio = lambda z: q.log_prob(z) - prior.log_prob(z)  # noqa: E731
    loss = gt.vargrad(ratio, q, 3, noise=noise)
    detached = td.Normal(loc.detach(), 0.7)
    by_rloo = gt.expect(
        lambda z: detached.log_prob(z) - prior.log_prob(z), q, gt.RLOO(), samples=3, noise=noise
    )
    close(torch.autograd.grad(loss, loc)[0], torch.autograd.grad(by_rloo, loc)[0], 1e-12)


def test_vimco_of_a_continuous_law_is_unbiased():
    """Two samples, all pairs of a grid of uniforms; what the bound is of stays as it is."""
    loc = torch.tensor(0.4, dtype=F64, requires_grad=True)
    weights = lambda z: -(z - 1).square() - z.sin()  # noqa: E731
    u, weight = uniforms(40, 2)
    q = rows(td.Normal(loc, 0.7), len(u))
    bound = gt.vimco(weights, q, 2, noise=u.T.contiguous())
    z = loc + 0.7 * torch.special.ndtri(u)
    want = (weights(z).logsumexp(-1) - math.log(2)) * weight
    agree((bound * weight).sum(), want.sum(), {"loc": loc}, 1e-6)


def test_estimators_of_continuous_laws_are_plain_values():
    assert gt.estimator("pathwise") == gt.Pathwise()
    assert gt.estimator("measure_valued") == gt.MeasureValued()
    with pytest.raises(dataclasses.FrozenInstanceError):
        gt.Pathwise().tau = 1.0


@each({n: EVERY[n] for n in ("normal", "gamma", "poisson")})
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
def test_compiled_with_given_noise_it_is_the_same(case, compiler):
    family = law_of(case.at(case.leaves())).family
    for estimator in (gt.Pathwise(), gt.RLOO(), gt.MeasureValued()):
        blocked = isinstance(estimator, gt.MeasureValued) and case.kind not in (
            td.Normal,
            td.Poisson,
            td.Geometric,
        )
        if family not in estimator.traits.families or blocked:
            continue
        names = list(case.parameters)
        noise = uniform(
            *estimator.noise_shape(law_of(rows(case.at(case.leaves()), 3)).expand(2)), seed=5
        )

        def loss(*parameters, estimator=estimator, noise=noise, names=names):
            leaves = dict(zip(names, parameters, strict=True))
            law = rows(case.kind(**leaves, validate_args=False), 3)
            f = lambda z: z.sin() if z.ndim == 2 else z[..., 0].sin()  # noqa: E731
            return gt.expect(f, law, estimator, samples=2, noise=noise).sum()

        results = []
        for run in (loss, compiler(loss)):
            leaves = case.leaves()
            results.append(torch.autograd.grad(run(*leaves.values()), list(leaves.values())))
        for a, b in zip(*results, strict=True):
            close(a, b, 1e-12)


def test_counts_are_served_by_what_says_so():
    for case in COUNTS.values():
        assert law_of(case.at(case.leaves())).family == "count"
