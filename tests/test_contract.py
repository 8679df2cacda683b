"""What f and its users may not do silently: change points, couple derivatives, underflow."""

import pytest
import torch

import gradthrough as gt
from problems import SCORE, case, family_of, normal, problem, uniform

ONE_SAMPLE_EACH = [gt.RLOO(), gt.ARMS(), gt.DisARM(), gt.CARMS(), gt.SumAndSample(), gt.ARSM()]


def in_place(z):
    z *= 2
    return z.flatten(2).sum(-1)


@pytest.mark.parametrize("estimator", ONE_SAMPLE_EACH, ids=lambda e: type(e).__name__)
def test_an_f_that_changes_its_points_is_refused(estimator):
    q = gt.Bernoulli(torch.zeros(3, 2, requires_grad=True), event_dims=1)
    with pytest.raises(gt.UnsupportedError, match="in place"):
        gt.expect(in_place, q, estimator, samples=2)


def test_inside_a_transform_f_gets_points_of_its_own():
    noise = uniform(2, 1, 2)

    def loss(f):
        return lambda x: gt.expect(
            f, gt.Bernoulli(x, event_dims=1), gt.RLOO(), samples=2, noise=noise
        ).sum()

    x = torch.zeros(1, 2, dtype=torch.float64)
    want = torch.func.grad(loss(lambda z: 2 * z.flatten(2).sum(-1)))(x)
    torch.testing.assert_close(torch.func.grad(loss(in_place))(x), want, rtol=0, atol=1e-15)


def test_a_rollout_refuses_samples_that_were_changed():
    rollout = gt.Rollout(gt.RLOO(), samples=2)
    z = rollout.sample(rollout.expand(torch.zeros(5, 3)))
    z *= 2
    with pytest.raises(gt.UnsupportedError, match="in place"):
        rollout.combine(z.sum(-1))


def test_a_pathwise_sample_may_be_changed():
    logits = torch.zeros(5, 3, requires_grad=True)
    gt.expect(lambda z: z.mul_(2).sum(-1), logits, gt.ReinMax()).sum().backward()
    assert logits.grad is not None


@pytest.mark.parametrize("name", SCORE)
def test_a_derivative_in_the_logits_and_in_f_is_refused(name):
    family = family_of(name)
    p = problem(family)
    theta = p.logits.expand(4, *p.logits.shape).clone().requires_grad_()
    w = normal(p.linear.numel(), seed=9).requires_grad_()
    q, estimator, n, noise = case(
        name, theta, family=family, event_dims=int(family == "categorical")
    )
    value = gt.expect(lambda z: (p.flat(z) @ w) ** 2, q, estimator, samples=n, noise=noise)
    (first,) = torch.autograd.grad(value.sum(), theta, create_graph=True)
    with pytest.raises(gt.UnsupportedError, match="own derivative"):
        torch.autograd.grad(first.sum(), w, retain_graph=True)
    (other,) = torch.autograd.grad(value.sum(), w, create_graph=True)
    with pytest.raises(gt.UnsupportedError, match="own derivative"):
        torch.autograd.grad(other.sum(), theta, retain_graph=True)
    torch.autograd.grad(other.sum(), w)  # f may be differentiated as often as one likes


@pytest.mark.parametrize("estimator", [gt.SumAndSample(), gt.UnorderedSet()], ids=["sas", "set"])
@pytest.mark.parametrize(
    "q",
    [
        gt.Bernoulli(torch.zeros(1, 1200), event_dims=1),
        gt.Bernoulli(torch.full((50, 1100), 0.35), event_dims=1),
        gt.Categorical(torch.zeros(1, 128, 512), event_dims=1),
    ],
    ids=["bits", "subnormal", "classes"],
)
def test_a_point_whose_probability_underflows_is_possible(estimator, q):
    value = gt.expect(lambda z: 7.0 + 0.0 * z.flatten(2).sum(-1), q, estimator, samples=2)
    torch.testing.assert_close(value, torch.full_like(value, 7.0))


def test_a_rollout_keeps_the_tuning_loss_of_its_bound_estimator():
    c = torch.zeros((), requires_grad=True)
    bound = gt.Bound(gt.Reinforce(baseline=c))
    rollout = bound.rollout()
    z = rollout.sample(rollout.expand(torch.zeros(4, 3)))
    rollout.combine(z[..., 0] * 0 + 2.0)
    bound(lambda z: z[..., 0] * 0 + 1.0, torch.zeros(4, 3))
    assert float(bound.take_tuning_loss().detach()) == pytest.approx(5.0)
    assert bound.take_tuning_loss() is None


@pytest.mark.parametrize("baseline", ["geometric", "arithmetic"])
def test_vimco_with_impossible_points_has_finite_gradients(baseline):
    logits = torch.zeros(200, 3, requires_grad=True, dtype=torch.float64)
    log_p = torch.tensor([0.0, -torch.inf, -torch.inf], dtype=torch.float64)

    def log_weights(z):
        return torch.where(z > 0, log_p, 0.0).sum(-1) - gt.Categorical(logits).log_prob(z)

    bound = gt.vimco(log_weights, logits, 3, baseline=baseline)
    bound[bound.isfinite()].sum().backward()
    assert bound.isneginf().any()
    assert bound.isfinite().any()
    assert logits.grad.isfinite().all()
    assert logits.grad[bound.isfinite()].abs().amax() > 0


def test_a_critic_does_not_train_what_made_its_input():
    x = torch.randn(5, 7, requires_grad=True)
    critic = gt.controls.Critic(7)
    out = gt.estimate(lambda z: z[..., 0], torch.zeros(5, 3), gt.Reinforce(baseline=critic(x)))
    out.tuning_loss.backward()
    assert x.grad is None
    assert any(p.grad is not None for p in critic.parameters())


def test_arsm_says_when_it_would_ask_too_often():
    with pytest.raises(gt.UnsupportedError, match="499,501 points"):
        gt.expect(lambda z: z[..., 0], torch.zeros(1, 1000), gt.ARSM())


def test_a_pathwise_rollout_notices_a_latent_that_is_not_used():
    logits = torch.zeros(5, 3, requires_grad=True)
    rollout = gt.Rollout(gt.ReinMax())
    first, second = (rollout.sample(rollout.expand(logits)) for _ in range(2))
    rollout.combine((first * second).sum(-1))
    first, _ = (rollout.sample(rollout.expand(logits)) for _ in range(2))
    with pytest.raises(gt.UnsupportedError, match="a latent that the loss does not use"):
        rollout.combine(first[..., 0])


def test_vimco_refuses_mixed_derivatives():
    logits = torch.zeros(4, 3, requires_grad=True)
    w = torch.ones(3, requires_grad=True)
    bound = gt.vimco(lambda z: (z @ w) ** 2 - gt.Categorical(logits).log_prob(z), logits, 2)
    (first,) = torch.autograd.grad(bound.sum(), logits, create_graph=True)
    with pytest.raises(gt.UnsupportedError, match="own derivative"):
        torch.autograd.grad(first.square().sum(), w)


def test_inside_a_transform_a_rollout_keeps_points_of_its_own():
    def loss(change):
        def run(x):
            rollout = gt.Rollout(gt.RLOO(), samples=2)
            z = rollout.sample(rollout.expand(x), noise=uniform(2, 4))
            return rollout.combine(change(z) @ torch.arange(3.0, dtype=x.dtype)).sum()

        return run

    x = torch.zeros(4, 3, dtype=torch.float64)
    want = torch.func.grad(loss(lambda z: 2 * z))(x)
    torch.testing.assert_close(torch.func.grad(loss(lambda z: z.mul_(2)))(x), want)


def test_a_bound_estimator_forgets_tuning_losses_of_a_transform():
    c = torch.zeros((), requires_grad=True)
    bound = gt.Bound(gt.Reinforce(baseline=c))
    f = lambda z: z[..., 0] + 1.0  # noqa: E731
    torch.func.vmap(lambda x: bound(f, x).sum(), randomness="different")(torch.zeros(5, 4, 3))
    assert bound.take_tuning_loss() is None


def test_learned_keeps_the_modules_that_were_given():
    q = gt.Bernoulli(torch.zeros(5, 3), event_dims=1)
    control = gt.controls.Control((3,))
    surrogate, critic = gt.controls.Surrogate(), gt.controls.Critic(3)
    assert gt.Relax(control, eta=0.0).learned(q)[0].control is control
    assert gt.Rodeo(surrogate=surrogate).learned(q)[0].surrogate is surrogate
    assert gt.Reinforce(baseline=critic).learned(q)[1] is critic
    assert gt.Reinforce(baseline=5.0).learned(q)[1].mean == 5.0
    with pytest.raises(gt.UnsupportedError, match="baseline is 'self_critical'"):
        gt.Reinforce(baseline="self_critical").learned(q)
