"""The doors around an estimator: estimate, fold, Bound, and the life of a Rollout."""

import pytest
import torch

import gradthrough as gt
from problems import (
    ANY,
    F64,
    VARIANTS,
    cells,
    every,
    expectation,
    family_of,
    grid,
    normal,
    problem,
    samples_for,
    select,
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
