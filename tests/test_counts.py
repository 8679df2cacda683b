"""Laws of counts: their support is enumerated, up to 1e-14 of its mass."""

import pytest
import torch
import torch.distributions as td
from scipy import stats

import gradthrough as gt
from continuous import COUNTS, F64, each, having, law_of, rows
from gradthrough.laws.quantiles import binomial_tail
from problems import normal, uniform

TAIL = 1e-14
TABLE = normal(400, seed=5)


def close(got, want, tolerance=1e-11):
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def jumpy(z):
    """A table of random numbers, indexed by the count: it has no derivative."""
    return TABLE[z.to(torch.int64)]


def support(q):
    """All counts but those of 1e-14 of the mass, and their probabilities, with the graph of q."""
    most = q.total_count.to(torch.int64).item() if isinstance(q, td.Binomial) else 300
    k = torch.arange(most + 1, dtype=F64)
    p = q.log_prob(k).exp()
    kept = torch.cat((p.detach().cumsum(0) < 1 - TAIL, torch.tensor([], dtype=torch.bool)))
    kept |= torch.arange(len(k)) == int(kept.sum())
    return k[kept], p[kept]


def cells(q):
    """A uniform in the middle of the cell of each count, and the probability of the cell."""
    k, p = support(q)
    ends = p.detach().cumsum(0).clamp_max(1.0)
    middle = (torch.cat((torch.zeros(1, dtype=F64), ends[:-1])) + ends) / 2
    return k, middle.clamp_max(1 - 2.0**-53), p.detach()


def expectation(case, leaves, f=jumpy):
    k, p = support(case.at(leaves))
    return (p * f(k)).sum()


def agree(got, want, leaves, tolerance=1e-11):
    close(got, want, tolerance)
    for a, b in zip(
        torch.autograd.grad(got, list(leaves.values()), retain_graph=True),
        torch.autograd.grad(want, list(leaves.values()), retain_graph=True),
        strict=True,
    ):
        close(a, b, tolerance)


# --- samples


@each(COUNTS)
def test_a_uniform_draws_the_count_of_its_cell(case):
    k, u, _ = cells(case.at(case.leaves()))
    z, _ = law_of(rows(case.at(case.leaves()), len(k))).draw(u)
    assert torch.equal(z, k)


@pytest.mark.parametrize("rate", [1e-12, 0.03, 0.9, 7.0, 80.0, 3e3, 2e6])
def test_the_quantile_of_poisson_is_that_of_scipy(rate):
    u = torch.cat((uniform(200), torch.tensor([0.0, 1e-12, 1 - 1e-12, 1 - 2.0**-53], dtype=F64)))
    z, _ = gt.as_distribution(td.Poisson(torch.full((204,), rate, dtype=F64))).draw(u)
    below = torch.as_tensor(stats.poisson(rate).cdf(z.numpy() - 1))
    at = torch.as_tensor(stats.poisson(rate).cdf(z.numpy()))
    assert bool((below <= u + 1e-9).all())  # torch's incomplete gamma function has nine digits
    assert bool((at >= u - 1e-9).all())


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (td.Poisson(torch.tensor(0.9, dtype=F64)), stats.poisson(0.9)),
        (td.Poisson(torch.tensor(7.0, dtype=F64)), stats.poisson(7.0)),
        (td.Binomial(40, torch.tensor(0.2, dtype=F64)), stats.binom(40, 0.2)),
        (td.Geometric(torch.tensor(0.2, dtype=F64)), stats.geom(0.2, loc=-1)),
    ],
)
def test_the_upper_tail_is_drawn_by_what_lies_beyond(ours, theirs):
    """Where the cdf has rounded to 1: on the last steps of the grid of uniforms."""
    beyond = 2.0**-53 * torch.tensor([1, 2, 3, 5, 8, 40, 1000, 12345], dtype=F64)
    z, _ = law_of(rows(ours, len(beyond))).draw(1 - beyond)
    assert bool((torch.as_tensor(theirs.sf(z.numpy())) < beyond * (1 + 1e-9)).all())
    assert bool((torch.as_tensor(theirs.sf(z.numpy() - 1)) > beyond * (1 - 1e-9)).all())


@pytest.mark.parametrize("n", [0, 1, 7, 250])
def test_the_quantile_of_a_binomial_is_that_of_scipy(n):
    u = torch.cat((uniform(200), torch.tensor([0.0, 1e-12, 1 - 1e-12, 1 - 2.0**-53], dtype=F64)))
    for p in (1e-9, 0.2, 0.5, 0.97):
        z, _ = gt.as_distribution(td.Binomial(n, torch.full((204,), p, dtype=F64))).draw(u)
        assert bool((z <= n).all())
        below = torch.as_tensor(stats.binom(n, p).cdf(z.numpy() - 1))
        assert bool((below <= u + 1e-13).all())
        assert bool((torch.as_tensor(stats.binom(n, p).cdf(z.numpy())) >= u - 1e-13).all())


def test_binomials_of_unequal_counts_draw_each_from_its_own():
    n = torch.tensor([0.0, 3.0, 40.0], dtype=F64)
    q = td.Binomial(n, torch.tensor(0.5, dtype=F64))
    z, _ = law_of(q).expand(200).draw(uniform(200, 3))
    assert bool((z <= n).all())
    assert z[:, 2].max() > 20
    assert law_of(q).expand(200).row.total_count.tolist() == n.tolist()
    whole = law_of(td.Binomial(n.expand(2, 3), torch.full((2, 3), 0.5)))
    assert whole.row.total_count.tolist() == n.tolist()


# --- estimators


@each(COUNTS)
@pytest.mark.parametrize(
    ("estimator", "samples"),
    [(gt.Reinforce(), 1), (gt.Reinforce(baseline=0.4), 1), (gt.RLOO(), 2), (gt.VarGrad(), 2)],
    ids=["reinforce", "baseline", "rloo", "vargrad"],
)
def test_score_function_estimators_are_unbiased(case, estimator, samples):
    leaves = case.leaves()
    _, u, p = cells(case.at(leaves))
    index = torch.cartesian_prod(*[torch.arange(len(u))] * samples).reshape(-1, samples)
    weight = p[index].prod(-1)
    q = rows(case.at(leaves), len(index))
    value = gt.expect(jumpy, q, estimator, samples=samples, noise=u[index].T.contiguous())
    agree((value * weight).sum(), expectation(case, leaves), leaves)


@each(having(COUNTS, "binomial", "binomial logits"))
def test_measure_valued_derivatives_are_unbiased(case):
    leaves = case.leaves()
    _, u, p = cells(case.at(leaves))
    if law_of(case.at(leaves)).spare:
        pair = torch.cartesian_prod(torch.arange(len(u)), torch.arange(len(u)))
        noise, weight = u[pair].unsqueeze(0), p[pair].prod(-1)
    else:
        noise, weight = u.unsqueeze(0), p
    q = rows(case.at(leaves), len(weight))
    f = lambda z: jumpy(z.clamp_max(399.0))  # noqa: E731 - pairs reach further
    value = gt.expect(f, q, gt.MeasureValued(), noise=noise)
    agree((value * weight).sum(), expectation(case, leaves), leaves)


@each({n: COUNTS[n] for n in ("binomial", "binomial logits")})
def test_the_measure_valued_derivative_of_a_binomial_is_unbiased(case):
    """A trial is drawn: of z successes in n, with probability z / n it is one of them."""
    leaves = case.leaves()
    k, u, p = cells(case.at(leaves))
    n = float(case.at(leaves).total_count)
    noise, weight = [], []
    for count, v, mass in zip(k, u, p, strict=True):
        for start, end in ((0.0, count / n), (count / n, 1.0)):
            if end > start:
                noise.append(torch.stack((v, torch.as_tensor((start + end) / 2, dtype=F64))))
                weight.append(mass * (end - start))
    weight = torch.stack(weight)
    q = rows(case.at(leaves), len(weight))
    value = gt.expect(jumpy, q, gt.MeasureValued(), noise=torch.stack(noise).unsqueeze(0))
    agree((value * weight).sum(), expectation(case, leaves), leaves)


def test_two_counts_of_one_row_are_moved_one_at_a_time():
    """A table of pairs: all pairs of counts are enumerated."""
    table = normal(60, 60, seed=7)
    rate = torch.tensor([1.3, 0.6], dtype=F64, requires_grad=True)

    def f(z):
        a, b = z.to(torch.int64).clamp_max(59).unbind(-1)
        return table[a, b]

    (k, u, p), (m, v, r) = (cells(td.Poisson(x)) for x in rate.detach())
    pairs = torch.cartesian_prod(torch.arange(len(k)), torch.arange(len(m)))
    noise = torch.stack((u[pairs[:, 0]], v[pairs[:, 1]]), -1)
    weight = p[pairs[:, 0]] * r[pairs[:, 1]]
    q = td.Independent(td.Poisson(rate.expand(len(pairs), 2)), 1)
    value = gt.expect(f, q, gt.MeasureValued(), noise=noise.unsqueeze(0))
    got = (value * weight).sum()
    z = torch.stack((k[pairs[:, 0]], m[pairs[:, 1]]), -1)
    want = (td.Poisson(rate).log_prob(z).sum(-1).exp() * f(z)).sum()
    agree(got, want, {"rate": rate})


def test_a_move_of_no_weight_is_not_made():
    """A Binomial of no trials and a Bernoulli that cannot be 1: f is never asked beyond them."""

    def f(z):
        assert bool((z == 0).all())
        return torch.zeros_like(z)

    logits = torch.tensor(0.3, dtype=F64, requires_grad=True)
    value = gt.expect(f, td.Binomial(0, logits=logits), gt.MeasureValued(), samples=4)
    assert float(torch.autograd.grad(value, logits)[0]) == 0


# --- numbers at the edge


@each(COUNTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_uniform_and_dtype_gives_finite_counts_and_gradients(case, dtype):
    leaves = case.leaves(dtype)
    ends = torch.tensor([0.0, 2.0**-53, 1e-9, 0.5, 1 - 1e-9, 1 - 2.0**-53], dtype=F64)
    q = rows(case.at(leaves), len(ends))
    for estimator in (gt.Reinforce(), gt.MeasureValued()):
        shape = estimator.noise_shape(law_of(q).expand(1))
        noise = ends.reshape(1, -1, *[1] * (len(shape) - 2)).expand(shape).contiguous()
        seen = []

        def f(z, seen=seen):
            seen.append(z)
            return z.float().tanh()

        value = gt.expect(f, q, estimator, noise=noise)
        assert seen[0].dtype == dtype
        assert bool((seen[0] == seen[0].floor()).all())
        for gradient in torch.autograd.grad(value.sum(), list(leaves.values())):
            assert gradient.dtype == dtype
            assert gradient.isfinite().all()


def test_probabilities_of_zero_and_one_are_no_nan():
    p = torch.tensor([1.0, 1e-30, 0.5], requires_grad=True)
    for q in (td.Geometric(p), td.Binomial(3, p)):
        for estimator in (gt.Reinforce(), gt.MeasureValued()):
            value = gt.expect(lambda z: z.tanh(), q, estimator, samples=3)
            assert value.isfinite().all()
            assert not torch.autograd.grad(value.sum(), p)[0].isnan().any()


def test_the_score_is_that_of_the_count_before_it_is_rounded():
    rate = torch.tensor([1000.0], dtype=torch.bfloat16, requires_grad=True)
    u = torch.tensor([[0.7]], dtype=F64)
    value = gt.expect(
        lambda z: torch.ones_like(z).float(), td.Poisson(rate), gt.Reinforce(), noise=u
    )
    want = float(stats.poisson(1000.0).ppf(0.7)) / 1000.0 - 1.0
    assert float(torch.autograd.grad(value.sum(), rate)[0]) == pytest.approx(want, rel=0.01)


# --- what a law is made from


def test_probs_and_logits_are_those_that_were_given():
    for kind in (td.Geometric, lambda **p: td.Binomial(4, **p)):
        probs = torch.tensor(0.3, requires_grad=True)
        q = kind(probs=probs)
        assert q.logits.requires_grad  # torch derives it, and keeps it
        value = gt.expect(lambda z: z, q, gt.MeasureValued(), samples=3)
        assert torch.autograd.grad(value, probs)[0].isfinite()


# --- without a sum over the support


@pytest.mark.parametrize("n", [1, 2, 7, 30, 1000, 10**6, 10**9])
def test_the_tail_of_a_binomial_is_that_of_scipy(n):
    spread = torch.linspace(-9, 9, 37, dtype=F64)
    rare = 1.999 / (n + 1)
    for p in (1e-9, 1e-4, 0.1, 0.5, 0.8, 1 - 1e-6, rare, 1 - rare):
        logits = torch.logit(torch.tensor(p, dtype=F64))
        k = (n * p + spread * (n * p * (1 - p) + 0.1) ** 0.5).round().clamp(0, n - 1).unique()
        above, got = binomial_tail(k, torch.full_like(k, n), logits.expand_as(k))
        law = stats.binom(n, float(logits.sigmoid()))
        want = torch.where(above, *(torch.as_tensor(x(k.numpy())) for x in (law.sf, law.cdf)))
        some = want > 1e-250
        # p is rounded, and 1 - p with it.
        torch.testing.assert_close(got[some], want[some], rtol=1e-12 + 1e-15 * n, atol=0.0)
        assert bool((got[~some] < 1e-249).all())


@pytest.mark.parametrize("n", [101, 5000, 10**7])
def test_a_binomial_of_many_trials_is_drawn_from_where_its_tail_says(n):
    u = torch.cat((uniform(200), torch.tensor([1e-12, 1 - 1e-12, 1 - 2.0**-53], dtype=F64)))
    for p in (1e-9, 0.2, 0.5, 0.97):
        z, _ = gt.as_distribution(td.Binomial(n, torch.full((203,), p, dtype=F64))).draw(u)
        law = stats.binom(n, p)
        assert bool((torch.as_tensor(law.cdf(z.numpy() - 1)) <= u + 1e-9).all())
        assert bool((torch.as_tensor(law.cdf(z.numpy())) >= u - 1e-9).all())
        assert bool((torch.as_tensor(law.sf(z.numpy()))[200:] <= 1.000001 * (1 - u[200:])).all())


def test_many_trials_take_no_more_memory_than_few():
    """One number for each of a thousand million trials would be eight gigabytes a variable."""
    q = td.Binomial(10**9, torch.full((2,), 0.4, dtype=F64, requires_grad=True))
    for estimator in (gt.RLOO(), gt.MeasureValued()):
        value = gt.expect(lambda z: z / 1e9, q, estimator, samples=2)
        assert float((value.detach() - 0.4).abs().max()) < 1e-3


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
def test_a_compiled_binomial_draws_what_an_eager_one_draws(compiler):
    noise, counts = uniform(2, 5, 2, seed=4), torch.tensor([0.0, 1, 7, 40, 3000], dtype=F64)

    def loss(logits):
        q = td.Binomial(counts, logits=logits, validate_args=False)
        return gt.expect(torch.sin, q, gt.MeasureValued(), samples=2, noise=noise)

    results = []
    for run in (loss, compiler(loss)):
        logits = normal(5).requires_grad_()
        value = run(logits)
        results.append((value, *torch.autograd.grad(value.sum(), logits)))
    for a, b in zip(*results, strict=True):
        close(a, b, 1e-12)


def test_vmap_of_grad_takes_a_count_for_each():
    noise, counts = uniform(3, 2, seed=4), torch.tensor([4.0, 300.0, 1.0], dtype=F64)

    def loss(logits, n, u):
        q = td.Binomial(n, logits=logits, validate_args=False)
        return gt.expect(torch.sin, q, gt.RLOO(), samples=2, noise=u)

    got = torch.func.vmap(torch.func.grad(loss))(normal(3), counts, noise)
    for k, logits in enumerate(normal(3)):
        leaf = logits.clone().requires_grad_()
        close(got[k], torch.autograd.grad(loss(leaf, counts[k], noise[k]), leaf)[0], 1e-12)


def test_a_rate_of_zero_draws_nothing_and_has_the_score_of_nothing():
    rate = torch.zeros(3, requires_grad=True)
    value = gt.expect(lambda z: z + 1, td.Poisson(rate), gt.Reinforce())
    assert torch.autograd.grad(value.sum(), rate)[0].tolist() == [-1.0] * 3


@pytest.mark.parametrize(
    "kind",
    [
        lambda x: td.Poisson(x, validate_args=False),
        lambda x: td.Binomial(5, logits=x, validate_args=False),
        lambda x: td.Binomial(500, logits=x, validate_args=False),
        lambda x: td.Geometric(logits=x, validate_args=False),
    ],
)
def test_a_parameter_that_is_no_number_draws_none(kind):
    """Where torch was told not to look; the rows beside it are as they would be."""
    x, u = torch.tensor([0.7, torch.nan], dtype=F64), uniform(2)
    z, _ = law_of(kind(x)).draw(u)
    assert z.isnan().tolist() == [False, True]
    assert z[0] == law_of(kind(x[:1])).draw(u[:1])[0]
