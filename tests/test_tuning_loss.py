"""What trains an estimator's own tensors: whom it reaches, and that it is the variance."""

from dataclasses import fields

import pytest
import torch

import gradthrough as gt
from problems import ANY, F64, family_of, normal, problem, samples_for, uniform

LEARNERS = [
    key
    for key, kind in gt.ESTIMATORS.items()
    if kind.traits.scalars or kind.learned is not gt.AbstractEstimator.learned
]
LEARNED = {key: lambda key=key: gt.estimator(key) for key in LEARNERS} | {
    "relax black box": lambda: gt.Relax(gt.controls.Control((2, 3)), eta=0.0),
    "rebar small tau": lambda: gt.Rebar(eta=0.6, tau=0.3),
}
EACH = pytest.mark.parametrize("name", LEARNED)


class Setting:
    """A learned estimator with noise of its own, and an f with parameters."""

    def __init__(self, name):
        make = LEARNED[name]
        family = family_of(name) if name in gt.ESTIMATORS else "categorical"
        self.p = problem(family)
        self.logits = normal(5, *self.p.logits.shape, seed=31).requires_grad_()
        self.dist = self.p.dist(self.logits)
        torch.manual_seed(3)
        self.estimator, self.owner = make().learned(self.dist)
        self.owner.double()
        with torch.no_grad():  # away from where a network starts, which can be 0
            for i, x in enumerate(self.owner.parameters()):
                x += 0.1 * normal(*x.shape, seed=40 + i)
        self.samples = samples_for(self.estimator, 2)
        shape = self.estimator.noise_shape(self.dist.expand(self.samples))
        self.noise = uniform(*shape, seed=6)
        self.w = normal(self.p.linear.numel(), seed=32).requires_grad_()

    def f(self, z):
        x = self.p.flat(z)
        return self.p.cubic(z) + (x @ self.w).sin() + self.w.sum() ** 2

    def estimate(self):
        return gt.estimate(
            self.f, self.dist, self.estimator, samples=self.samples, noise=self.noise
        )

    def mean_square(self):
        """Of the gradient that the logits get."""
        (g,) = torch.autograd.grad(self.estimate().value.sum(), self.logits)
        return float(g.square().mean())


def test_every_estimator_with_something_to_learn_is_here():
    assert {"reinforce", "muprop", "rebar", "relax", "double_cv", "rodeo"} == set(LEARNERS)
    for key, kind in gt.ESTIMATORS.items():
        if key not in LEARNERS:
            with pytest.raises(gt.UnsupportedError, match="nothing to learn"):
                kind().learned(ANY)


@EACH
def test_the_tuning_loss_reaches_the_estimators_own_tensors_and_nothing_else(name):
    s = Setting(name)
    loss = s.estimate().tuning_loss
    own = list(s.owner.parameters())
    assert loss.shape == ()
    assert bool(loss.isfinite())
    got = torch.autograd.grad(loss, [*own, s.logits, s.w], allow_unused=True)
    for x, gradient in zip(own, got, strict=False):
        assert gradient is not None
        assert gradient.shape == x.shape
        assert bool(gradient.isfinite().all())
        assert bool((gradient != 0).any())
    assert got[len(own) :] == (None, None)


@EACH
def test_the_value_does_not_reach_the_estimators_own_tensors(name):
    s = Setting(name)
    own = list(s.owner.parameters())
    got = torch.autograd.grad(s.estimate().value.sum(), [s.w, *own], allow_unused=True)
    assert got[0] is not None
    assert got[1:] == (None,) * len(own)


@EACH
def test_backward_through_both_leaves_everybody_their_own(name):
    """One backward of value and tuning loss is two backwards."""
    s = Setting(name)
    everything = [*s.owner.parameters(), s.logits, s.w]
    out = s.estimate()
    (out.value.sum() + out.tuning_loss).backward()
    together = [x.grad for x in everything]
    for x in everything:
        x.grad = None
    out = s.estimate()
    out.value.sum().backward(retain_graph=True)
    out.tuning_loss.backward()
    for x, gradient in zip(everything, together, strict=True):
        torch.testing.assert_close(x.grad, gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in LEARNED if n != "reinforce"])
def test_the_tuning_loss_is_the_mean_square_of_the_gradient_and_so_is_its_slope(name):
    """For every number, and along a direction of every network, against a difference."""
    s = Setting(name)
    loss = s.estimate().tuning_loss
    assert float(loss.detach()) == pytest.approx(s.mean_square(), rel=1e-12)
    own = dict(s.owner.named_parameters())
    slopes = torch.autograd.grad(loss, list(own.values()))
    for i, (x, slope) in enumerate(zip(own.values(), slopes, strict=True)):
        along, step, ends = normal(*x.shape, seed=50 + i), 1e-5, []
        for sign in (1, -1):
            with torch.no_grad():
                x += sign * step * along
            ends.append(s.mean_square())
            with torch.no_grad():
                x -= sign * step * along
        want = (ends[0] - ends[1]) / (2 * step)
        assert float((slope * along).sum()) == pytest.approx(want, rel=1e-5, abs=1e-9 * ends[0])


@pytest.mark.parametrize("name", [n for n in LEARNERS if n not in ("reinforce", "relax")])
def test_learning_starts_from_the_estimator_as_it_is(name):
    s = Setting(name)
    one = gt.estimator(name)
    learned, owner = one.learned(s.dist)
    assert {f.name for f in fields(learned) if isinstance(getattr(learned, f.name), torch.Tensor)}
    owner.double()
    gradients = []
    for estimator in (one, learned):
        value = gt.expect(s.f, s.dist, estimator, samples=s.samples, noise=s.noise)
        gradients.append(torch.autograd.grad(value.sum(), s.logits)[0])
    torch.testing.assert_close(*gradients, rtol=0.0, atol=1e-12)


def test_a_learned_temperature_that_fell_too_far_can_come_back():
    s = Setting("rebar")
    tau = torch.tensor(0.001, dtype=F64, requires_grad=True)
    gradients, losses = [], []
    for t in (tau, 0.01):
        s.estimator = gt.Rebar(tau=t)
        out = s.estimate()
        gradients.append(torch.autograd.grad(out.value.sum(), s.logits)[0])
        losses.append(out.tuning_loss)
    torch.testing.assert_close(*gradients, rtol=0.0, atol=1e-12)
    (slope,) = torch.autograd.grad(losses[0], tau)
    assert bool(slope.isfinite())
    assert losses[1] is None


@EACH
def test_without_a_graph_the_value_is_the_same(name):
    s = Setting(name)
    with torch.no_grad():
        value = s.estimate().value
    assert torch.equal(value, s.estimate().value.detach())


@pytest.mark.parametrize("option", ["baseline", "variance"])
def test_baseline_and_variance_are_trained_on_their_squared_errors(option):
    p = problem("bernoulli")
    dist, noise = p.dist(normal(5, 2, seed=31)), uniform(3, 5, 2)
    f = p.lookup(gt.RLOO().draw(dist.expand(3), noise).points)
    c = normal(5, seed=33).requires_grad_()
    out = gt.estimate(p.lookup, dist, gt.Reinforce(**{option: c}), samples=3, noise=noise)
    error = f - c if option == "baseline" else c - f.square()
    torch.testing.assert_close(out.tuning_loss, error.square().mean(), rtol=0.0, atol=1e-12)
    both = gt.Reinforce(baseline=c, variance=c)
    out = gt.estimate(p.lookup, dist, both, samples=3, noise=noise)
    want = (f - c).square().mean() + (c - (f - c.detach()).square()).square().mean()
    (got,), (slope,) = (torch.autograd.grad(x, c) for x in (out.tuning_loss, want))
    torch.testing.assert_close(got, slope, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("family", ["categorical", "bernoulli"])
def test_adam_on_the_tuning_loss_lowers_the_mean_square(family):
    """A few steps on fixed noise: descent, nothing about the law."""
    p = problem(family)
    dist = p.dist(normal(64, *p.logits.shape, seed=31).requires_grad_())
    for key in LEARNERS:
        if key == "reinforce" or family not in gt.ESTIMATORS[key].traits.families:
            continue
        torch.manual_seed(3)
        estimator, owner = gt.estimator(key).learned(dist)
        n = samples_for(estimator)
        noise = uniform(*estimator.noise_shape(dist.expand(n)))
        optimizer = torch.optim.Adam(owner.parameters(), lr=0.01)
        losses = []
        for _ in range(20):
            loss = gt.estimate(p.cubic, dist, estimator, samples=n, noise=noise).tuning_loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < losses[0]
