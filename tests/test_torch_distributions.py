"""The classes of gradthrough.distributions: torch's own, with an estimator's gradient."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributions as td

import gradthrough as gt
from problems import DISCRETE, F64, HARD, PATHWISE, VARIANTS, normal, refuses, uniform

INF = torch.inf
OURS = {
    "categorical": lambda logits, **options: gt.distributions.OneHotCategorical(logits, **options),
    "bernoulli": lambda logits, **options: gt.distributions.Bernoulli(logits=logits, **options),
}
TORCHS = {
    "categorical": lambda logits: td.OneHotCategorical(logits=logits),
    "bernoulli": lambda logits: td.Bernoulli(logits=logits),
}
LAWS = {"categorical": gt.Categorical, "bernoulli": gt.Bernoulli}
THETA = {"categorical": normal(4, 3, seed=1), "bernoulli": normal(4, seed=1)}
OTHER = {"categorical": normal(4, 3, seed=2), "bernoulli": normal(4, seed=2)}
MASKED = torch.tensor([[0.3, -INF, 1.1], [-INF, 0.4, -INF], [0.2, -0.5, 0.1]], dtype=F64)
DRAWING = [name for name in PATHWISE if name in HARD]
EXACT = [
    key
    for key in DRAWING
    if key in gt.ESTIMATORS
    and gt.ESTIMATORS[key].traits.exact_for != "none"
    and gt.ESTIMATORS[key].traits.noise == "variable"
]

# Dynamo does so itself, tracing an autograd.Function.
tracing = pytest.mark.filterwarnings("ignore:.*should not be instantiated")


@pytest.fixture(autouse=True)
def arguments_are_validated():
    """Undo what torch.compile does once it has been used: it turns the default off for good."""
    td.Distribution.set_default_validate_args(True)


families = pytest.mark.parametrize("family", ["categorical", "bernoulli"])
drawing = pytest.mark.parametrize("name", DRAWING)
dtypes = pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16, torch.float16])


def close(got, want, tolerance=1e-12):
    torch.testing.assert_close(got, want, rtol=0.0, atol=tolerance)


def leaf(x):
    return x.clone().requires_grad_()


def gradient(value, x):
    return torch.autograd.grad(value.sum(), x)[0]


def every_point(dist):
    """Each point of one variable, for each row: (points, *batch[, C])."""
    return dist.enumerate_support()


# --- the draw


@families
@drawing
def test_rsample_is_the_estimators_sample_on_the_same_noise(name, family):
    estimator = VARIANTS[name](LAWS[family](THETA[family]))
    ours, theirs = leaf(THETA[family]), leaf(THETA[family])
    law = LAWS[family](theirs)
    rows = law.class_logits().expand(20, *law.class_logits().shape)
    noise = uniform(*estimator.noise_shape(gt.Categorical(rows)), seed=5)
    z = OURS[family](ours, estimator=estimator).rsample((20,), noise=noise)
    want = law.from_classes(gt.sample(rows, estimator, noise=noise))
    curve = normal(*z.shape, seed=6)
    assert torch.equal(z, want)
    assert len(z.detach().unique(dim=0)) > 1
    got = gradient(curve * z, ours)
    assert got.abs().max() > 1e-3
    assert torch.equal(got, gradient(curve * want, theirs))


@families
@drawing
def test_sample_draws_the_numbers_of_rsample_without_a_gradient(name, family):
    theta = leaf(THETA[family])
    q = OURS[family](theta, estimator=VARIANTS[name](None))
    torch.manual_seed(3)
    with_gradient = q.rsample((6, 2))
    torch.manual_seed(3)
    without = q.sample((6, 2))
    assert q.has_rsample
    assert with_gradient.requires_grad
    assert not without.requires_grad
    assert without.shape == (6, 2, *theta.shape)
    assert torch.equal(with_gradient, without)
    assert bool(q.support.check(without).all())


@families
def test_a_generator_gives_the_draw(family):
    q = OURS[family](THETA[family])
    first, second = (q.rsample((5,), generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, second)


@families
@pytest.mark.parametrize("name", EXACT)
def test_the_mean_gradient_over_all_draws_is_exact(name, family):
    """Of a function for which the estimator says so, by the noise that draws each point."""
    estimator = gt.ESTIMATORS[name]()
    theta = leaf(THETA[family])
    q, law = OURS[family](theta, estimator=estimator), LAWS[family](theta)
    points = every_point(q)
    linear, square = normal(*theta.shape, seed=7), normal(*theta.shape, seed=8)

    def f(z):
        affine = linear * z
        curved = estimator.traits.exact_for != "affine"
        return (affine + square * z**2 if curved else affine).flatten(2).sum(-1)

    def rows(z):
        return f(z.unsqueeze(-1) if family == "bernoulli" else z)

    linear, square = (x.unsqueeze(-1) if family == "bernoulli" else x for x in (linear, square))
    weights = q.log_prob(points).exp().detach()
    z = q.rsample((len(points),), noise=law.noise_for(points))
    assert torch.equal(z.detach(), points)
    exact = gradient(q.log_prob(points).exp() * rows(points), theta)
    close(gradient(weights * rows(z), theta), exact)


@families
@pytest.mark.parametrize("key", DISCRETE)
def test_an_estimator_draws_hard_points_or_is_refused_with_a_remedy(key, family):
    traits = gt.ESTIMATORS[key].traits
    estimator = VARIANTS[key](LAWS[family](THETA[family]))
    if traits.pathwise and not traits.relaxed:
        OURS[family](THETA[family], estimator=estimator).rsample()
        return
    remedy = "StraightThroughGumbelSoftmax" if traits.relaxed else r"expect\("
    with refuses(gt.UnsupportedError, type(estimator).__name__, remedy):
        OURS[family](THETA[family], estimator=estimator)


@families
def test_a_class_or_a_name_is_no_estimator(family):
    for came in (gt.ReinMax, "reinmax"):
        with refuses(gt.UnsupportedError, "expected an estimator"):
            OURS[family](THETA[family], estimator=came)


def test_a_masked_class_is_never_drawn_and_gets_no_gradient():
    theta = leaf(MASKED)
    q = gt.distributions.OneHotCategorical(theta)
    z = q.rsample((200,))
    assert not bool((z * MASKED.isneginf()).any())
    got = gradient(z * normal(*z.shape, seed=9), theta)
    assert bool(got.isfinite().all())
    assert bool((got[MASKED.isneginf()] == 0).all())


# --- what an instance keeps


@families
@drawing
def test_the_estimator_survives_expansion_and_copies(name, family):
    estimator = VARIANTS[name](None)
    q = OURS[family](THETA[family], estimator=estimator, validate_args=False)
    wide = q.expand((5, 4))
    whole = td.Independent(wide, 1)
    for one in (wide, whole.expand((2, 5)).base_dist, copy.deepcopy(q), copy.copy(q)):
        assert one.estimator == estimator
        assert type(one) is type(q)
        assert one._validate_args is False
    assert pickle.loads(pickle.dumps(q)).estimator == estimator
    assert wide.batch_shape == (5, 4)
    assert wide.event_shape == q.event_shape
    assert whole.rsample((3,)).shape == (3, 5, *THETA[family].shape)
    assert whole.has_rsample
    assert torch.equal(wide.probs, q.probs.expand(5, *q.probs.shape))


@families
def test_expanded_rows_are_drawn_independently(family):
    q = OURS[family](torch.zeros_like(THETA[family][:1])).expand((64,))
    assert len(q.sample().unique(dim=0)) > 1


@families
def test_a_subclass_may_have_a_constructor_of_its_own_if_it_also_expands_itself(family):
    class Named(type(OURS[family](THETA[family]))):
        def __init__(self, logits):
            super().__init__(logits=logits)

    with pytest.raises(NotImplementedError, match="expand"):
        Named(THETA[family]).expand((2, 4))


@families
def test_a_second_backward_needs_no_retained_graph(family):
    theta = leaf(THETA[family])
    q = OURS[family](theta)
    z = every_point(q)
    for _ in range(2):
        gradient(q.log_prob(z) + q.entropy(), theta)


def test_what_other_code_reads_of_torchs_class_is_there():
    q = gt.distributions.OneHotCategorical(THETA["categorical"])
    close(q._categorical.probs, q.probs)
    close(q.logits.exp(), q.probs)
    assert q.param_shape == q._param.shape == (4, 3)
    assert q._new((2,)).dtype == F64


@families
def test_an_instance_says_what_it_is(family):
    said = repr(OURS[family](THETA[family], estimator=gt.ReinMax(tau=1.3)))
    assert "ReinMax(tau=1.3)" in said
    assert str(tuple(THETA[family].shape)) in said


# --- log-probability


@families
def test_log_prob_is_torchs_at_points_with_its_gradient_in_the_logits(family):
    ours, theirs = leaf(THETA[family]), leaf(THETA[family])
    q, reference = OURS[family](ours), TORCHS[family](theirs)
    z = every_point(q)
    got, want = q.log_prob(z), reference.log_prob(z)
    close(got, want)
    weights = normal(*got.shape, seed=3)
    close(gradient(weights * got, ours), gradient(weights * want, theirs))


@families
def test_log_prob_is_linear_in_the_value_with_a_gradient(family):
    q = OURS[family](THETA[family])
    z = every_point(q)[0].clone().requires_grad_()
    want = THETA[family] if family == "bernoulli" else THETA[family].log_softmax(-1)
    close(gradient(q.log_prob(z), z), want)


@families
def test_the_gradient_of_a_sample_goes_on_through_log_prob(family):
    """Straight-through is exact for what is affine, so d/dtheta E log p(z) comes out exactly."""
    theta = leaf(THETA[family])
    q = OURS[family](theta, estimator=gt.StraightThrough())
    p = OURS[family](OTHER[family])
    points = every_point(q)
    z = q.rsample((len(points),), noise=LAWS[family](theta).noise_for(points))
    weights = q.log_prob(points).exp()
    exact = gradient(weights * p.log_prob(points), theta)
    close(gradient(weights.detach() * p.log_prob(z), theta), exact)


@families
@dtypes
def test_extreme_logits_keep_finite_log_probs_and_gradients(dtype, family):
    pair = torch.tensor([200.0, -200.0], dtype=dtype)
    theta = leaf(pair if family == "bernoulli" else torch.stack((pair, -pair), -1) / 2)
    q = OURS[family](theta)
    z = every_point(q).clone().requires_grad_()
    log_p = q.log_prob(z)
    assert log_p.dtype == dtype
    close(log_p.double().sort(0).values, torch.tensor([[-200.0] * 2, [0.0] * 2], dtype=F64), 1e-9)
    for x in (theta, z):
        assert bool(torch.autograd.grad(log_p.sum(), x, retain_graph=True)[0].isfinite().all())


def test_a_small_probability_of_the_other_side_keeps_its_digits():
    q = gt.distributions.Bernoulli(logits=torch.tensor([20.0, 30.0]))
    close(q.log_prob(torch.ones(2)) * 1e9, torch.tensor([-2.0611537, -9.3576e-5]), 1e-6)


def test_masks_make_no_nan_in_log_probs_and_entropy():
    theta = leaf(MASKED)
    q = gt.distributions.OneHotCategorical(theta)
    z = every_point(q).clone().requires_grad_()
    log_p = q.log_prob(z)
    close(log_p.detach().exp().sum(0), torch.ones(3, dtype=F64))
    assert torch.equal(log_p.isneginf(), MASKED.T.isneginf())
    finite = log_p[log_p.isfinite()]
    for value in (log_p.exp(), finite, q.entropy(), q.mean, q.variance):
        got = torch.autograd.grad(value.sum(), theta, retain_graph=True)[0]
        assert bool(got.isfinite().all())
        assert bool((got[MASKED.isneginf()] == 0).all())
    assert bool(torch.autograd.grad(log_p.sum(), z)[0].isfinite().all())
    p = q.probs.detach()
    close(q.entropy(), -torch.xlogy(p, p).sum(-1))


def test_a_bernoulli_may_mask_its_one():
    theta = leaf(torch.tensor([-INF, 0.3], dtype=F64))
    q = gt.distributions.Bernoulli(logits=theta)
    got = q.log_prob(torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=F64))
    assert got[0, 0] == 0.0
    assert got[1, 0] == -INF
    assert bool(gradient(got[1:, 1:], theta).isfinite().all())
    assert bool((q.sample((100,))[:, 0] == 0).all())


# --- moments, support


@families
@dtypes
def test_moments_are_torchs(dtype, family):
    theta = THETA[family].to(dtype)
    q, reference = OURS[family](theta), TORCHS[family](theta.double())
    tolerance = 1e-12 if dtype == F64 else 3 * torch.finfo(dtype).eps
    for name in ("probs", "mean", "variance", "stddev", "logits"):
        got = getattr(q, name)
        assert got.dtype == dtype
        close(got.double(), getattr(reference, name), tolerance * 3)
    close(q.entropy().double(), reference.entropy(), tolerance * 3)
    assert torch.equal(q.mode.double(), reference.mode)
    assert torch.equal(q.enumerate_support().double(), reference.enumerate_support())
    assert q.enumerate_support(expand=False).shape == reference.enumerate_support(False).shape
    assert q.support is reference.support
    assert q.has_enumerate_support


def test_a_fair_coin_has_no_mode_as_in_torch():
    mode = gt.distributions.Bernoulli(logits=torch.tensor([0.0, 1.0, -1.0])).mode
    assert mode.isnan().tolist() == [True, False, False]
    assert mode[1:].tolist() == [1.0, 0.0]


def test_probabilities_serve_as_logits_do():
    p = THETA["categorical"].softmax(-1)
    q = gt.distributions.OneHotCategorical(probs=3.0 * p)
    close(q.probs, p)
    zero = leaf(torch.tensor([0.4, 0.0, 0.6], dtype=F64))
    q = gt.distributions.OneHotCategorical(probs=zero)
    assert bool(gradient(q.rsample((50,)).sum(0) * normal(3), zero).isfinite().all())
    assert bool((q.sample((50,))[:, 1] == 0).all())
    close(gt.distributions.Bernoulli(probs=p).probs, p)


# --- KL divergences


def brute_force(p, q, points):
    """E_p log p - log q, over the points that p can take."""
    weight, ratio = p.log_prob(points).exp(), p.log_prob(points) - q.log_prob(points)
    return torch.where(weight > 0, weight * torch.where(weight > 0, ratio, 0.0), 0.0).sum(0)


@families
@pytest.mark.parametrize("pair", ["ours ours", "ours torch", "torch ours"])
def test_kl_is_the_mean_log_ratio(pair, family):
    sides = [OURS if side == "ours" else TORCHS for side in pair.split()]
    theta, other = leaf(THETA[family]), leaf(OTHER[family])
    p, q = sides[0][family](theta), sides[1][family](other)
    got = td.kl_divergence(p, q)
    want = brute_force(p, q, every_point(p))
    close(got, want)
    whole = td.kl_divergence(td.Independent(p, 1), td.Independent(q, 1))
    close(whole, got.sum())
    for x in (theta, other):
        grads = [torch.autograd.grad(v.sum(), x, retain_graph=True)[0] for v in (got, want)]
        close(*grads)


@pytest.mark.parametrize("pair", ["ours ours", "ours torch", "torch ours"])
def test_kl_with_masks_is_the_mean_log_ratio_of_the_classes_left(pair):
    first, second = (OURS if side == "ours" else TORCHS for side in pair.split())
    theta = leaf(MASKED)
    other = leaf(OTHER["categorical"][:3].masked_fill(MASKED.isneginf(), -INF))
    got = td.kl_divergence(first["categorical"](theta), second["categorical"](other))
    x, y = leaf(MASKED), leaf(other.detach())
    want = torch.stack([kl_of_row(*row) for row in zip(x, y, strict=True)])
    close(got, want)
    close(gradient_of_both(got, theta, other), gradient_of_both(want, x, y))


def kl_of_row(x, y):
    kept = ~x.isneginf()
    log_p, log_q = x[kept].log_softmax(0), y[kept].log_softmax(0)
    return (log_p.exp() * (log_p - log_q)).sum()


def gradient_of_both(value, x, y):
    return torch.stack(torch.autograd.grad(value.sum(), (x, y)))


def test_torchs_own_kl_has_nan_gradients_with_masks():
    """The reason why ours stands in its place; if torch mends it, ours may go."""
    theta = leaf(MASKED)
    p, q = td.OneHotCategorical(logits=theta), td.OneHotCategorical(logits=MASKED)
    assert bool(gradient(td.kl_divergence(p, q), theta).isnan().any())


def test_kl_is_infinite_with_gradient_zero_where_a_needed_class_is_masked():
    theta, other = leaf(torch.zeros(2, 3, dtype=F64)), leaf(MASKED[:2])
    p, q = OURS["categorical"](theta), OURS["categorical"](other)
    got = td.kl_divergence(p, q)
    assert got.tolist() == [INF, INF]
    assert not bool(gradient_of_both(got, theta, other).any())


def test_kl_with_a_class_that_torch_rounds_to_zero_is_finite():
    far = td.OneHotCategorical(logits=torch.tensor([0.0, -200.0]))
    assert far.probs[1] == 0.0  # torch derives and keeps them
    got = td.kl_divergence(OURS["categorical"](torch.zeros(2)), far)
    close(got, torch.tensor(100.0 - 0.6931472), 1e-4)
    close(gt.as_distribution(far).logits, torch.tensor([0.0, -200.0]))
    zero = td.OneHotCategorical(probs=torch.tensor([1.0, 0.0]))
    assert zero.logits[1] > -20.0  # torch derives and keeps them
    close(gt.as_distribution(zero).logits, torch.tensor([0.0, -INF]), 1e-6)


def test_kl_broadcasts_and_refuses_what_does_not():
    p = OURS["categorical"](THETA["categorical"])
    assert td.kl_divergence(p, OURS["categorical"](torch.zeros(3, dtype=F64))).shape == (4,)
    with refuses(gt.ShapeError, "3 and 2"):
        td.kl_divergence(p, OURS["categorical"](torch.zeros(2, dtype=F64)))
    with refuses(gt.ShapeError, "broadcast"):
        td.kl_divergence(p, OURS["categorical"](torch.zeros(5, 3, dtype=F64)))


def test_only_the_import_of_the_package_adds_to_torchs_table():
    code = (
        "import torch.distributions.kl as kl; before = dict(kl._KL_REGISTRY)\n"
        "import gradthrough; print(kl._KL_REGISTRY == before)\n"
        "gradthrough.distributions\n"
        "print({k: kl._KL_REGISTRY[k] for k in before} == before)\n"
        "new = set(kl._KL_REGISTRY) - set(before)\n"
        "print(all(any('gradthrough' in t.__module__ for t in pair) for pair in new), len(new))"
    )
    root = str(Path(gt.__file__).parents[1])
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, env={"PYTHONPATH": root},
    )  # fmt: skip
    assert out.stdout.split() == ["True", "True", "True", "8"]


# --- arguments


@pytest.mark.parametrize("row", [[0.0, INF], [torch.nan, 0.0], [-INF, -INF]])
def test_rows_without_a_distribution_are_refused(row):
    x = torch.tensor([[0.0, 1.0], row])
    with refuses(gt.DomainError, "1 of 2 rows"):
        gt.distributions.OneHotCategorical(x)
    with refuses(gt.DomainError, "rows"):
        gt.distributions.OneHotCategorical(x, validate_args=False).rsample()
    if -INF not in row:
        with refuses(gt.DomainError, "rows"):
            gt.distributions.Bernoulli(logits=x)


@families
@pytest.mark.parametrize("door", ["log_prob", "entropy", "probs", "kl", "sample"])
def test_a_row_without_a_distribution_gives_no_number_even_where_arguments_are_not_validated(
    door, family
):
    q = OURS[family](torch.full_like(THETA[family], torch.nan), validate_args=False)
    p = OURS[family](THETA[family])
    doors = {
        "log_prob": lambda: q.log_prob(every_point(p)),
        "entropy": q.entropy,
        "probs": lambda: q.probs,
        "kl": lambda: td.kl_divergence(p, q),
        "sample": q.sample,
    }
    with refuses(gt.DomainError, "rows"):
        doors[door]()


def test_a_constant_that_logits_share_eats_no_digits():
    theta = THETA["categorical"].float()
    q = gt.distributions.OneHotCategorical(theta + 2.0**15)
    near = gt.distributions.OneHotCategorical((theta + 2.0**15) - 2.0**15)
    z = every_point(q)
    close(q.log_prob(z), near.log_prob(z), 1e-6)
    close(td.kl_divergence(q, near), torch.zeros(4), 1e-6)


@pytest.mark.parametrize("form", ["plain", "vmap", "grad"])
def test_arguments_are_checked_under_transforms(form):
    def value(x):
        return gt.distributions.OneHotCategorical(x).entropy().sum()

    call = {"plain": value, "vmap": torch.vmap(value), "grad": torch.func.grad(value)}[form]
    with refuses(gt.DomainError, "rows"):
        call(torch.tensor([[0.0, 1.0], [torch.nan, 0.0]]))


def test_probabilities_in_the_place_of_logits_are_refused():
    p = THETA["categorical"].softmax(-1)
    for given in (p, p.to(torch.bfloat16), torch.eye(3)):
        with refuses(gt.DomainError, "probs=", "logits="):
            gt.distributions.OneHotCategorical(given)
        gt.distributions.OneHotCategorical(logits=given)
    for fine in (torch.zeros(2, 3), torch.ones(2, 1), torch.zeros(0, 3), p[:2] * 2, p - 0.1):
        gt.distributions.OneHotCategorical(fine)
    with pytest.raises(TypeError):
        gt.distributions.OneHotCategorical(None, p)


@pytest.mark.parametrize("kind", ["OneHotCategorical", "Bernoulli"])
def test_one_parameter_is_taken(kind):
    make = getattr(gt.distributions, kind)
    x = torch.full((2,), 0.3)
    for options in ({}, {"logits": x, "probs": x}):
        with refuses(gt.ConfigError, "exactly one"):
            make(**options)
    with refuses(gt.ConfigError, "exactly one"):
        make(x, logits=x)


def test_a_bernoulli_takes_logits_by_position_as_all_of_ours_do():
    x = THETA["bernoulli"]
    by_position, by_name = gt.distributions.Bernoulli(x), gt.distributions.Bernoulli(logits=x)
    assert torch.equal(by_position.logits, by_name.logits)


@families
def test_values_are_checked_if_arguments_are(family):
    theta = THETA[family]
    z = every_point(OURS[family](theta))[0]
    for bad, kind in (
        (0.5 * torch.ones_like(z), gt.DomainError),
        (torch.full_like(z, torch.nan), gt.DomainError),
        (z[:3], gt.ShapeError),
        (z.tolist(), gt.UnsupportedError),
    ):
        with refuses(kind, "value must"):
            OURS[family](theta, validate_args=True).log_prob(bad)
    with refuses(gt.DomainError, "value must"):
        torch.vmap(OURS[family](theta[0]).log_prob)(0.5 * torch.ones_like(z))
    OURS[family](theta, validate_args=False).log_prob(0.5 * torch.ones_like(z))
    if family == "categorical":
        with refuses(gt.ShapeError, "ends"):
            OURS[family](theta).log_prob(z[:, :1])


@families
def test_validation_follows_torchs_default(family):
    before = td.Distribution._validate_args
    try:
        for default in (False, True):
            td.Distribution.set_default_validate_args(default)
            assert OURS[family](THETA[family])._validate_args is default
            assert OURS[family](THETA[family], validate_args=True)._validate_args is True
    finally:
        td.Distribution.set_default_validate_args(before)


# --- other doors of the library, transforms


@families
def test_the_library_takes_them_with_the_logits_that_were_given(family):
    theta = leaf(THETA[family] + 3.0)
    q = OURS[family](theta)
    assert gt.as_distribution(q).logits is theta
    event = gt.as_distribution(td.Independent(q, 1))
    assert event.logits is theta
    assert event.event_dims == 1
    wide = gt.as_distribution(q.expand((2, 4)))
    assert wide.logits.shape == (2, *theta.shape)
    f = lambda z: z.flatten(1).sum(-1)  # noqa: E731
    gt.expect(f, td.Independent(q, 1), gt.RLOO(), samples=4).backward()
    assert isinstance(q, {"categorical": td.OneHotCategorical, "bernoulli": td.Bernoulli}[family])


def elbo(family):
    """A scalar of logits and noise, through every door of the classes."""

    def value(theta, other, noise, **options):
        q, p = OURS[family](theta, **options), OURS[family](other, **options)
        z = q.rsample(noise=noise)
        whole = td.Independent(q, 1)
        return (
            (p.log_prob(z) - whole.log_prob(z)).sum()
            + z.square().sum()
            + td.kl_divergence(whole, td.Independent(p, 1))
            + q.entropy().sum()
            + q.variance.sum()
        )

    return value


@families
def test_vmap_of_grad(family):
    theta, other = (torch.stack((x, x.flip(0))) for x in (THETA[family], OTHER[family]))
    noise = uniform(2, 4, seed=3)
    got = torch.vmap(torch.func.grad(elbo(family)))(theta, other, noise)
    for i in range(2):
        x = leaf(theta[i])
        close(got[i], gradient(elbo(family)(x, other[i], noise[i]), x))


@tracing
@families
@pytest.mark.parametrize("validate", [False, True])
def test_the_whole_graph_compiles(compiler, family, validate):
    theta, other, noise = THETA[family], OTHER[family], uniform(4, seed=3)
    x, y = leaf(theta), leaf(theta)
    got = compiler(elbo(family))(x, other, noise, validate_args=validate)
    want = elbo(family)(y, other, noise)
    close(got, want)
    close(gradient(got, x), gradient(want, y))


@tracing
@families
def test_the_global_noise_compiles(compiler, family):
    def draw(theta):
        return OURS[family](theta, validate_args=False).rsample((50,))

    z = compiler(draw)(leaf(THETA[family]))
    assert bool(((z == 0) | (z == 1)).all())
    assert z.requires_grad


@families
def test_autocast_changes_nothing(family):
    theta, other, noise = THETA[family].float(), OTHER[family].float(), uniform(4, seed=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = elbo(family)(theta, other, noise)
    assert torch.equal(got, elbo(family)(theta, other, noise))


@families
@dtypes
def test_every_dtype_draws_and_differentiates(dtype, family):
    theta = leaf(THETA[family].to(dtype))
    q = OURS[family](theta)
    z = q.rsample((3,))
    got = gradient(
        q.log_prob(z) + td.kl_divergence(q, OURS[family](OTHER[family].to(dtype))), theta
    )
    assert z.dtype == got.dtype == q.log_prob(z).dtype == dtype
    assert bool(got.isfinite().all())


@families
def test_empty_batches(family):
    q = OURS[family](THETA[family][:0])
    z = q.rsample((2,))
    assert z.shape == (2, 0, *q.event_shape)
    assert q.log_prob(z).shape == td.kl_divergence(q, q).expand(2, 0).shape == (2, 0)
    assert OURS[family](THETA[family]).rsample((0,)).shape == (0, *THETA[family].shape)


def test_a_bare_row_is_one_variable():
    q = gt.distributions.OneHotCategorical(torch.zeros(3))
    assert q.batch_shape == ()
    assert q.rsample().shape == (3,)
    assert q.log_prob(q.sample()).shape == ()
