"""The discrete laws, against torch.distributions and against enumeration."""

import pytest
import torch
import torch.distributions as td
from hypothesis import given, settings
from hypothesis import strategies as st

import gradthrough as gt
from problems import F64, FAMILIES, normal, problem, uniform

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)
LAWS = ["categorical", "bernoulli"]
FAMILY = pytest.mark.parametrize("family", LAWS)


def close(got, want, tolerance=1e-12):
    torch.testing.assert_close(got, want, rtol=0.0, atol=tolerance)


def law(family, event_dims, *, seed=0, batch=(2,), event=(3,), classes=4):
    shape = (*batch, *event, classes) if family == "categorical" else (*batch, *event)
    logits = normal(*shape, seed=seed)
    return FAMILIES[family](logits, event_dims=event_dims)


def torchs(q):
    """The same law of torch.distributions."""
    base = td.OneHotCategorical if q.family == "categorical" else td.Bernoulli
    return td.Independent(base(logits=q.logits), q.event_dims)


@FAMILY
@pytest.mark.parametrize("event_dims", [0, 1, 2])
def test_shapes_and_log_probabilities_are_torchs(family, event_dims):
    q = law(family, event_dims)
    other = torchs(q)
    assert q.batch_shape == tuple(other.batch_shape)
    z = other.sample((5,))
    assert tuple(q.event_shape) + ((4,) if family == "categorical" else ()) == other.event_shape
    close(q.log_prob(z), other.log_prob(z))
    close(q.log_prob(z[0]), other.log_prob(z[0]))
    close(q.entropy(), other.entropy())
    close(q.mode(), other.mode)
    p = other.base_dist.probs
    close(q.probs, p)


@FAMILY
@pytest.mark.parametrize("event_dims", [0, 1])
def test_kl_is_torchs_and_sums_over_the_event(family, event_dims):
    q, p = law(family, event_dims), law(family, event_dims, seed=9)
    close(q.kl(p), td.kl_divergence(torchs(q), torchs(p)))
    close(q.kl(q), torch.zeros(q.batch_shape, dtype=F64))


def test_kl_of_broadcasting_and_masked_laws():
    q = gt.Categorical(torch.tensor([[0.0, 1.0, -torch.inf], [0.5, 0.0, 1.0]], dtype=F64))
    prior = gt.Categorical(torch.tensor([0.2, -0.3, 0.1], dtype=F64))
    want = (q.probs * (q.probs.clamp_min(1e-300).log() - prior.probs.log())).sum(-1)
    close(q.kl(prior), want)
    back = prior.kl(gt.Categorical(q.logits[0]))
    assert back == torch.inf
    x = q.logits.clone().requires_grad_()
    for scalar in (gt.Categorical(x).kl(prior), gt.Categorical(x).entropy()):
        (gradient,) = torch.autograd.grad(scalar.sum(), x)
        assert gradient.isfinite().all()
        assert gradient[0, 2] == 0


@FAMILY
def test_the_score_is_the_derivative_of_the_log_probability(family):
    q = law(family, 1)
    z = torchs(q).sample()
    x = q.logits.clone().requires_grad_()
    (want,) = torch.autograd.grad(q.with_logits(x).log_prob(z).sum(), x)
    close(q.score(z), want)
    assert not q.with_logits(x).score(z).requires_grad


@FAMILY
def test_the_support_is_every_point_once(family):
    q = law(family, 1, batch=(), event=(3,))
    points = q.support()
    assert len(points) == q.support_size == (4 if family == "categorical" else 2) ** 3
    assert len(points.flatten(1).unique(dim=0)) == len(points)
    close(q.log_prob(points).exp().sum(), torch.tensor(1.0, dtype=F64))


@FAMILY
def test_a_row_without_variables_has_one_point(family):
    q = law(family, 1, batch=(4,), event=(0,))
    assert q.support_size == len(q.support()) == 1
    for estimator, n in ((gt.Enumerate(), 1), (gt.RLOO(), 2), (gt.ReinMax(), 1)):
        value = gt.expect(lambda z: z.flatten(2).sum(-1) + 1.0, q, estimator, samples=n)
        close(value, torch.ones(4, dtype=F64))


@FAMILY
def test_samples_are_exact_points_and_follow_the_noise(family):
    q = law(family, 1, batch=(50,))
    noise = uniform(50, 3)
    z = q.sample(noise=noise)
    assert bool(((z == 0) | (z == 1)).all())
    assert not z.requires_grad
    first = torch.stack((q.probs, 1 - q.probs), -1) if family == "bernoulli" else q.probs
    index = (first.cumsum(-1)[..., :-1] <= noise.unsqueeze(-1)).sum(-1)
    close(z, (index == 0).to(F64) if family == "bernoulli" else torch.eye(4, dtype=F64)[index])
    generator = [torch.Generator().manual_seed(s) for s in (3, 3, 4)]
    a, b, c = (q.sample(generator=g) for g in generator)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@FAMILY
def test_expand_adds_rows_without_a_copy(family):
    q = law(family, 1)
    rows = q.expand(1000)
    assert rows.batch_shape == (1000, 2)
    assert rows.logits.stride(0) == 0
    assert rows.logits.data_ptr() == q.logits.data_ptr()


@given(
    st.lists(st.floats(-30.0, 30.0), min_size=1, max_size=6),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
@SETTINGS
def test_noise_for_a_point_draws_that_point(scores, dtype):
    q = gt.Categorical(torch.tensor([scores], dtype=dtype))
    for index in (q.probs > 0).nonzero()[:, 1].tolist():
        z = torch.eye(len(scores), dtype=dtype)[index].unsqueeze(0)
        if float(q.log_prob(z)) < -30.0:  # its interval can vanish on the grid of float64
            continue
        assert torch.equal(q.sample(noise=q.noise_for(z)), z)


@pytest.mark.parametrize("classes", [9, 30, 300, 1009])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_noise_for_a_rare_class_between_common_ones_draws_it(dtype, classes):
    p = normal(40, classes).exp()
    p[:, 4] = 1e-9 * p.sum(-1)
    q = gt.Categorical(p.log().to(dtype))
    z = torch.eye(classes, dtype=dtype)[4].expand(40, classes)
    assert int((q.sample(noise=q.noise_for(z)) != z).any(-1).sum()) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_probabilities_come_back_as_given(dtype):
    p = torch.tensor([[0.2, 0.0, 0.5, 0.3], [1.0, 0.0, 0.0, 0.0]], dtype=dtype)
    q = gt.Categorical(probs=p)
    assert q.probs.dtype == dtype
    torch.testing.assert_close(q.probs, p, rtol=4 * torch.finfo(dtype).eps, atol=0.0)
    scaled = gt.Categorical(probs=3 * p)
    torch.testing.assert_close(scaled.probs, p, rtol=8 * torch.finfo(dtype).eps, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("p", [0.5, 0.9, 0.1, 2e-3, 1e-9])
def test_a_bernoulli_keeps_small_probabilities(dtype, p):
    probs = torch.tensor([p], dtype=dtype)
    if not bool(probs > 0):
        pytest.skip("rounds to 0 in this dtype")
    got = gt.Bernoulli(probs=probs).probs.double()
    # The logit is stored in the dtype of the probabilities: that rounding, and no more.
    slack = torch.finfo(dtype).eps * (4 + 2 * abs(float(probs.double().logit())))
    torch.testing.assert_close(got, probs.double(), rtol=slack, atol=0.0)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_a_saturated_bernoulli_is_finite_and_nearly_certain(p):
    probs = torch.tensor([p], dtype=torch.float32, requires_grad=True)
    q = gt.Bernoulli(probs=probs)
    assert q.logits.isfinite().all()
    assert abs(float(q.probs.detach()) - p) < 1e-6
    value = gt.expect(lambda b: b * 2.0, q, gt.Enumerate())
    assert torch.autograd.grad(value.sum(), probs)[0].isfinite().all()


def test_gradients_reach_probabilities():
    p = torch.tensor([0.2, 0.0, 0.5, 0.3], dtype=F64, requires_grad=True)
    values = normal(4, seed=3)
    got = gt.expect(lambda z: z @ values, gt.Categorical(probs=p[None]), gt.Enumerate())
    close(got[0], (p * values).sum() / p.sum())
    (gradient,) = torch.autograd.grad(got.sum(), p)
    want = (values - got.detach()) / p.sum().detach()
    want[1] = 0.0  # a class of probability 0 is masked, and stays so
    close(gradient, want)
    b = torch.tensor([0.3], dtype=F64, requires_grad=True)
    exact = gt.expect(lambda z: z * 5.0, gt.Bernoulli(probs=b), gt.Enumerate())
    close(torch.autograd.grad(exact.sum(), b)[0], torch.tensor([5.0], dtype=F64))


TORCHS = {
    "categorical": td.Categorical,
    "one-hot": td.OneHotCategorical,
    "one-hot straight-through": td.OneHotCategoricalStraightThrough,
    "bernoulli": td.Bernoulli,
}


@pytest.mark.parametrize("kind", TORCHS)
@pytest.mark.parametrize("parameter", ["logits", "probs"])
@pytest.mark.parametrize("how", ["as made", "touched", "expanded"])
def test_torch_distributions_convert_with_their_graph(kind, parameter, how):
    p = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.0, 0.4]], dtype=F64)
    logits = p.logit() if kind == "bernoulli" else p.log()
    x = (p if parameter == "probs" else logits).clone().requires_grad_()
    base = TORCHS[kind](**{parameter: x})
    if how != "as made":  # torch fills in the other parameter when it is looked at
        assert base.logits.shape == base.probs.shape
    if how == "expanded":
        base = base.expand(base.batch_shape)
    q = gt.as_distribution(base)
    assert q.family == ("bernoulli" if kind == "bernoulli" else "categorical")
    assert gt.as_distribution(q) is q
    got = q.probs
    torch.testing.assert_close(got, p.detach(), rtol=1e-9, atol=1e-15)
    if kind != "bernoulli":
        assert got[1, 1] == 0, "a class of probability 0 became possible"
    assert torch.autograd.grad(got[0, 0], x)[0].abs().max() > 0


def test_independent_turns_batch_dims_into_event_dims():
    base = td.OneHotCategorical(logits=normal(5, 3, 2, 4))
    once = gt.as_distribution(td.Independent(base, 1))
    assert (once.batch_shape, once.event_shape, once.classes) == ((5, 3), (2,), 4)
    twice = gt.as_distribution(td.Independent(td.Independent(base, 1), 1))
    assert (twice.batch_shape, twice.event_shape) == ((5,), (3, 2))


def test_bare_logits_are_a_categorical_without_event():
    q = gt.as_distribution(normal(5, 3))
    assert (q.family, q.batch_shape, q.event_shape, q.classes) == ("categorical", (5,), (), 3)


@FAMILY
def test_the_value_of_expect_is_the_same_for_torchs_law(family):
    p = problem(family)
    ours = p.dist(p.logits[None])
    for q in (ours, torchs(ours)):
        close(gt.expect(p.lookup, q, gt.Enumerate()), gt.expect(p.lookup, ours, gt.Enumerate()))


@pytest.mark.parametrize("x", [-50.0, -17.0, -1.0, 0.0, 1.0, 17.0, 50.0])
def test_the_entropy_of_a_coin_keeps_its_digits_on_both_sides(x):
    def found(dtype):
        logits = torch.tensor(x, dtype=dtype, requires_grad=True)
        value = gt.Bernoulli(logits).entropy()
        (slope,) = torch.autograd.grad(value, logits, create_graph=True)
        (bend,) = torch.autograd.grad(slope, logits)
        return torch.stack((value, slope, bend)).detach().double()

    torch.testing.assert_close(found(torch.float32), found(torch.float64), rtol=1e-5, atol=0)
    p = torch.tensor(x, dtype=torch.float64).sigmoid()
    assert found(torch.float64)[1] == pytest.approx(float(-x * p * (1 - p)), rel=1e-6)
