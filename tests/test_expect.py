"""The doors around an estimator: estimate, fold, Bound, and the life of a Rollout."""

from dataclasses import replace

import pytest
import torch
from torch.func import grad

import gradthrough as gt
from gradthrough.estimators.base import AbstractEstimator
from problems import (
    ANY,
    F64,
    VARIANTS,
    cells,
    every,
    exact,
    expectation,
    family_of,
    grid,
    mean,
    normal,
    problem,
    samples_for,
    select,
    served,
    uniform,
)

X = normal(5, 2, 3, seed=81)
C = 3


def rows_for(name):
    """A problem of the family that an estimator serves, and five rows of logits."""
    p = problem(family_of(name))
    return p, normal(5, *p.logits.shape, seed=81)


def close(got, want, tolerance=1e-12):
    torch.testing.assert_close(got, want, rtol=0.0, atol=tolerance)


@every()
def test_expect_is_the_value_of_estimate(name):
    p, rows = rows_for(name)
    dist = p.dist(rows)
    estimator = VARIANTS[name](dist)
    n = samples_for(estimator)
    noise = uniform(*estimator.noise_shape(dist.expand(n)))
    out = gt.estimate(p.cubic, dist, estimator, samples=n, noise=noise)
    assert torch.equal(out.value, gt.expect(p.cubic, dist, estimator, samples=n, noise=noise))
    assert out.value.shape == (5,)


@every()
def test_fold_gives_f_one_leading_dim_and_its_rows_of_data(name):
    p, logits = rows_for(name)
    w, data = normal(logits[0].numel(), seed=82), normal(5, seed=83)
    w, data = w.requires_grad_(), data.requires_grad_()
    results = []

    def direct(z):
        return (z.flatten(2) @ w - data) ** 2

    def folding(z, row):
        assert z.shape[1:] == logits.shape[1:]
        assert z.shape[0] == len(row)
        return (z.flatten(1) @ w - row) ** 2

    for f in (direct, gt.fold(folding, data)):
        theta = logits.clone().requires_grad_()
        dist = p.dist(theta)
        estimator = VARIANTS[name](dist)
        n = samples_for(estimator, 2)
        noise = uniform(*estimator.noise_shape(dist.expand(n)))
        value = gt.expect(f, dist, estimator, samples=n, noise=noise)
        results.append((value, *torch.autograd.grad(value.sum(), (theta, w, data))))
    for got, want in zip(*results, strict=True):
        close(got, want)


def test_fold_refuses_data_of_other_rows():
    for data in (torch.zeros(4), torch.zeros(6, 2), torch.tensor(1.0)):
        folded = gt.fold(lambda z, x: z[:, 0, 0] + x.sum(), data)
        with pytest.raises(gt.ShapeError, match="5"):
            gt.expect(folded, gt.Categorical(X, event_dims=1), gt.ReinMax())


@every()
def test_a_bound_estimator_is_expect_with_its_settings(name):
    p, rows = rows_for(name)
    dist = p.dist(rows)
    estimator = VARIANTS[name](dist)
    n = samples_for(estimator, 2)
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    ex = gt.Bound(estimator, samples=n, generator=generators[0])
    want = gt.expect(p.cubic, dist, estimator, samples=n, generator=generators[1])
    assert torch.equal(ex(p.cubic, dist), want)
    assert ex.evaluations == 5 * estimator.evaluations(dist, n)
    ex(p.cubic, dist)
    assert ex.evaluations == 10 * estimator.evaluations(dist, n)
    assert ex.tuning_losses == []


def test_a_bound_estimator_keeps_tuning_losses_and_counts_its_rollouts():
    c = torch.zeros((), dtype=F64, requires_grad=True)
    ex = gt.Bound(gt.Reinforce(baseline=c), samples=3)
    ex(lambda z: z[..., 0], X[:, 0])
    (loss,) = ex.tuning_losses
    loss.backward()
    assert c.grad is not None
    rollout = ex.rollout()
    z = rollout.sample(rollout.expand(X[:, 0]))
    rollout.combine(z[..., 0])
    assert ex.evaluations == 2 * 3 * 5
    assert not gt.Bound(gt.ReinMax()).tuning_losses


@every()
def test_equal_rows_give_one_estimate_whether_or_not_they_are_known_to_be_equal(name):
    """What serves one latent may look at one row of an expanded law alone, and no further."""
    p, rows = rows_for(name)
    x = rows.requires_grad_()
    q = p.dist(x)
    estimator = VARIANTS[name](q)
    n = samples_for(estimator, 2)
    noise = uniform(*estimator.noise_shape(q.expand(n)))
    results = []
    for law in (q.expand(n), q.with_logits(x.unsqueeze(0).expand(n, *x.shape))):
        draw = estimator.draw(law, noise)
        values, slope = p.cubic(draw.points), None
        if draw.gradients != "none":
            points = draw.points.detach().requires_grad_()
            (slope,) = torch.autograd.grad(p.cubic(points).sum(), points)
        value = estimator.combine((draw,), values, slope).value
        results.append((value.detach(), torch.autograd.grad(value.sum(), x)[0]))
    for got, want in zip(*results, strict=True):
        close(got, want)
    assert torch.equal(x, rows)


MANY = select(lambda e: e.traits.many_draws and e.traits.unbiased)
MANY = [name for name in MANY if name in select(lambda e: e.evaluations(ANY, 2) == 2)]
MANY = [name for name in MANY if "proposal" not in name and "critic" not in name]
LAW = normal(C, 2, seed=84)


@every(MANY)
def test_a_rollout_of_a_cascade_is_exactly_unbiased(name):
    """Every draw of the first latent, with every draw of the second that it can lead to."""
    theta, h = normal(C, seed=85).requires_grad_(), LAW.clone().requires_grad_()
    table = normal(C, 2, seed=86)
    estimator = VARIANTS[name](None)
    n = samples_for(estimator, 2)
    mirrored = getattr(estimator, "antithetic", False)
    slots = n // 2 if mirrored else n
    first = cells(theta.detach().softmax(-1), mirrored)
    second = cells(LAW.softmax(-1), mirrored)
    columns = [first] * slots + [second] * slots
    u = grid([middle for middle, _ in columns]).T
    weight = grid([width for _, width in columns]).prod(-1)
    rollout = gt.Rollout(estimator, samples=n)
    z1 = rollout.sample(rollout.expand(theta.expand(len(weight), C)), noise=u[:slots])
    z2 = rollout.sample(z1 @ h, noise=u[slots:])
    value = rollout.combine(table[z1.argmax(-1), z2.argmax(-1)])
    want = (theta.softmax(-1)[:, None] * h.softmax(-1) * table).sum()
    close((value * weight).sum().detach(), want.detach())
    got = torch.autograd.grad((value * weight).sum(), (theta, h))
    for one, other in zip(got, torch.autograd.grad(want, (theta, h)), strict=True):
        close(one, other)


@every(["rloo", "reinmax"])
def test_a_rollout_does_not_mix_one_loss_with_the_next(name):
    """After combine, a rollout starts afresh or refuses; old draws never get new signals."""
    estimator = VARIANTS[name](None)
    n = samples_for(estimator)
    old, new = (normal(5, 3, seed=s).requires_grad_() for s in (87, 88))
    u = uniform(n, 5)

    def loss(rollout, theta):
        z = rollout.sample(rollout.expand(theta), noise=u)
        return rollout.combine((z @ normal(3)) ** 2).sum()

    (want,) = torch.autograd.grad(loss(gt.Rollout(estimator, samples=n), new), new)
    rollout = gt.Rollout(estimator, samples=n)
    loss(rollout, old)
    try:
        second = loss(rollout, new)
    except gt.GradthroughError:
        return
    second.backward()
    assert old.grad is None, "the second loss reached the latent of the first"
    close(new.grad, want)


def test_enumerate_needs_neither_samples_nor_noise():
    p = problem("bernoulli", variables=3)
    values = {
        float(gt.expect(p.lookup, p.dist(p.logits[None]), gt.Enumerate(), samples=n))
        for n in (1, 2, 7)
    }
    (value,) = values
    assert abs(value - float(expectation(p, p.lookup, p.logits))) < 1e-12


# --- tensors of the estimator's own


def test_a_proposal_gets_no_gradient():
    theta, other = (normal(4, 3, seed=s).requires_grad_() for s in (0, 1))
    estimator = gt.Reinforce(proposal=gt.Categorical(other))
    gt.expect(lambda z: z[..., 0], theta, estimator).sum().backward()
    assert other.grad is None
    assert theta.grad is not None


def tuned(baseline, theta, shift=3.0):
    return gt.estimate(
        lambda z: z[..., 0] + shift, theta, gt.Reinforce(baseline=baseline), samples=2
    )


def test_the_tuning_loss_reaches_the_baseline_and_the_value_does_not():
    theta, shift = normal(4, 3).requires_grad_(), torch.tensor(3.0, dtype=F64, requires_grad=True)
    c = torch.zeros((), dtype=F64, requires_grad=True)
    out = tuned(c, theta, shift)
    out.value.sum().backward()
    assert c.grad is None
    assert theta.grad is not None
    assert float(shift.grad) == 4.0
    theta.grad = shift.grad = None
    out.tuning_loss.backward()
    assert theta.grad is None
    assert shift.grad is None, "the tuning loss moved the parameters of f"
    close(c.grad, -2 * out.value.detach().mean())


def test_the_tuning_loss_of_a_network_on_the_logits_stops_at_the_network():
    theta = normal(4, 3).requires_grad_()
    network = torch.nn.Linear(3, 1, dtype=F64)
    out = tuned(lambda dist: network(dist.logits).squeeze(-1), theta)
    out.value.sum().backward()
    assert network.weight.grad is None
    theta.grad = None
    out.tuning_loss.backward()
    assert network.weight.grad is not None
    assert theta.grad is None, "the tuning loss moved the logits"


def test_without_a_learned_baseline_there_is_no_tuning_loss():
    theta = normal(4, 3).requires_grad_()
    assert tuned(0.7, theta).tuning_loss is None
    assert tuned(lambda dist: dist.logits.detach().sum(-1), theta).tuning_loss is None


# --- what an estimator can learn


def learner(name, p, logits):
    """(a copy that learns, the module that owns what it learns, in float64); None if nothing."""
    q = p.dist(logits)
    one = VARIANTS[name](q)
    fixed = not isinstance(getattr(one, "baseline", None), float | None)
    if fixed or (type(one).learned is AbstractEstimator.learned and not one.traits.scalars):
        with pytest.raises(gt.UnsupportedError, match=f"{type(one).__name__} has nothing to learn"):
            one.learned(q)
        return None
    copy, owner = one.learned(q)
    assert type(copy) is type(one)
    for option in one.traits.scalars:
        was, now = getattr(one, option), getattr(copy, option)
        assert was == now or torch.isclose(now, torch.tensor(was)), "starts from the option"
    return copy, owner.double()


@served()
def test_a_copy_that_learns_stays_unbiased(name, family):
    p = problem(family, variables=1, classes=2, seed=7)
    found = learner(name, p, p.logits[None])
    if found is None or getattr(found[0], "proposal", None) is not None:  # made for these rows
        return
    copy, owner = found
    for module in owner.modules():
        for child, layer in module.named_children():
            if isinstance(layer, torch.nn.LeakyReLU):  # no quadrature is exact across its kink
                setattr(module, child, torch.nn.Tanh())
    with torch.no_grad():
        for i, parameter in enumerate(owner.parameters()):
            parameter += 0.1 * normal(*parameter.shape, seed=60 + i)
    got = mean(copy, p, p.cubic)
    want_value, want = exact(p, p.cubic)
    close(got.value, want_value.detach())
    close(got.gradient, want)


@served()
def test_the_tuning_loss_trains_the_copy_and_nothing_else(name, family):
    p = problem(family)
    logits = normal(5, *p.logits.shape, seed=81).requires_grad_()
    found = learner(name, p, logits)
    if found is None:
        return
    copy, owner = found
    parameters = list(owner.parameters())
    w = p.linear.clone().requires_grad_()
    n = samples_for(copy, 2)
    noise = uniform(*copy.noise_shape(p.dist(logits).expand(n)))

    def run():
        f = lambda z: (p.flat(z) @ w) ** 3 + w.sum()  # noqa: E731
        return gt.estimate(f, p.dist(logits), copy, samples=n, noise=noise)

    out = run()
    for one in torch.autograd.grad(
        out.value.sum(), parameters, allow_unused=True, retain_graph=True
    ):
        assert one is None, "the value moved what tunes it"
    gradients = torch.autograd.grad(
        out.tuning_loss, (*parameters, w, logits), allow_unused=True, materialize_grads=False
    )
    *own, of_f, of_logits = gradients
    assert of_f is None, "the tuning loss moved the parameters of f"
    assert of_logits is None, "the tuning loss moved the logits"
    size = sum(g.square().sum() for g in own)
    assert size > 0
    with torch.no_grad():
        for parameter, g in zip(parameters, own, strict=True):
            parameter -= 1e-4 * out.tuning_loss / size * g
    assert run().tuning_loss < out.tuning_loss


SCALARS = [(name, option) for name in VARIANTS for option in VARIANTS[name](ANY).traits.scalars]


@pytest.mark.parametrize(("name", "option"), SCALARS)
def test_inside_a_transform_the_same_is_learned_but_for_a_temperature(name, option):
    """A part of the gradient in a temperature goes through f and would be missing: it is 0."""
    p, logits = rows_for(name)
    estimator = VARIANTS[name](p.dist(logits))
    n = samples_for(estimator, 2)
    noise = uniform(*estimator.noise_shape(p.dist(logits).expand(n)))

    def loss(scalar):
        one = replace(estimator, **{option: scalar})
        out = gt.estimate(p.cubic, p.dist(logits), one, samples=n, noise=noise).tuning_loss
        return torch.zeros_like(scalar) if out is None else out  # nothing that needs a gradient

    x = torch.tensor(0.8, dtype=F64, requires_grad=True)
    (want,) = torch.autograd.grad(loss(x), x)
    assert want != 0
    close(grad(loss)(x.detach()), torch.zeros_like(want) if option == "tau" else want)


def test_a_pathwise_rollout_refuses_a_latent_that_the_values_do_not_see():
    w = normal(3)
    rollout = gt.Rollout(gt.ReinMax(), samples=2)
    theta = normal(5, 3, seed=4).requires_grad_()
    z1, z2 = (rollout.sample(rollout.expand(theta)) for _ in range(2))
    with pytest.raises(gt.UnsupportedError, match="argmax"):
        rollout.combine((z1 @ w) * z2.argmax(-1))


def test_reset_forgets_what_was_sampled():
    rollout = gt.Rollout(gt.RLOO(), samples=2)
    old, new = (normal(5, 3, seed=s).requires_grad_() for s in (5, 6))
    rollout.sample(rollout.expand(old))
    rollout.reset()
    z = rollout.sample(rollout.expand(new))
    rollout.combine((z @ normal(3)) ** 2).sum().backward()
    assert old.grad is None
    assert new.grad is not None
