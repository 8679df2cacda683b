"""Equations from the papers, that single estimators satisfy beyond the common laws."""

import math

import pytest
import torch
from scipy import integrate

import gradthrough as gt
from gradthrough._random import CounterExponentials
from gradthrough.kernels.eager import GappedStraightThrough as GappedKernel
from gradthrough.kernels.eager import Kept
from problems import (
    DISCRETE,
    F64,
    PATHWISE,
    VARIANTS,
    exact,
    mean,
    noise_for_rows,
    normal,
    plain,
    probabilities,
    problem,
    uniform,
)
from surrogates import gumbel, index_for, reference_sample

THETA = normal(40, 4, seed=11)
UPSTREAM = normal(40, 4, seed=12)


def close(got, want, tolerance=1e-12):
    torch.testing.assert_close(got, want, rtol=0.0, atol=tolerance)


def pull(sample, logits=THETA, upstream=UPSTREAM):
    """(sample, its vector-Jacobian product with the upstream gradient)."""
    leaf = logits.clone().requires_grad_()
    z = sample(leaf)
    return z.detach(), torch.autograd.grad(z, leaf, upstream)[0]


def jacobian(p, g):
    return p * (g - (p * g).sum(-1, keepdim=True))


def test_every_pathwise_class_has_a_reference():
    kinds = {type(VARIANTS[name](gt.Categorical(THETA))) for name in PATHWISE}
    assert kinds == {kind for kind in DISCRETE.values() if kind.traits.pathwise}


@pytest.mark.parametrize("name", PATHWISE)
def test_sample_and_gradient_are_those_of_the_published_surrogate(name):
    estimator = VARIANTS[name](gt.Categorical(THETA))
    noise = noise_for_rows(estimator, THETA)
    z, gradient = pull(lambda x: plain(estimator)(x, noise=noise))
    want_z, want = pull(lambda x: reference_sample(estimator, x, noise))
    close(z, want_z)
    close(gradient, want, 1e-10)
    if not estimator.traits.relaxed:
        assert bool(((z == 0) | (z == 1)).all())


@pytest.mark.parametrize("tau", [1.0, 1.3, 0.6])
def test_reinmax_closed_form_is_its_autograd_function(tau):
    """A7c = A7b: with tau, no factor 1/tau anywhere."""
    d, g = pull(lambda x: gt.reinmax(x, tau, noise=uniform(40)))
    pi, pi_tau = THETA.softmax(-1), (THETA / tau).softmax(-1)
    close(g, 2 * jacobian((d + pi_tau) / 2, UPSTREAM) - jacobian(pi, UPSTREAM) / 2)
    hit = (UPSTREAM * d).sum(-1, keepdim=True)
    middle = (UPSTREAM * pi_tau).sum(-1, keepdim=True)
    want = (pi_tau + d) * (UPSTREAM - (hit + middle) / 2) - jacobian(pi, UPSTREAM) / 2
    close(g, want)
    if tau == 1.0:
        centred = (hit - (UPSTREAM * pi).sum(-1, keepdim=True)) * (d - pi)
        close(g, (jacobian(pi, UPSTREAM) + centred) / 2)


@pytest.mark.parametrize("name", ["st", "reinmax"])
def test_bernoulli_scalar_forms(name):
    phi, g = normal(30, seed=1), normal(30, seed=2)
    leaf = phi.clone().requires_grad_()
    q = gt.Bernoulli(leaf)
    estimator = VARIANTS[name](q)
    noise = uniform(1, 30)
    b = estimator.draw(q.expand(1), noise).points[0].detach()
    value = gt.expect(lambda z: z * g, q, estimator, noise=noise)
    (got,) = torch.autograd.grad(value.sum(), leaf)
    p = phi.sigmoid()
    close(got, {"st": p * (1 - p) * g, "reinmax": g * (p * (1 - p) + (b - p) ** 2) / 2}[name])


def test_importance_weights_give_the_first_order_rule_around_the_uniform_baseline():
    p = problem(variables=1, classes=4)
    points = torch.eye(4, dtype=F64).requires_grad_()
    (slopes,) = torch.autograd.grad(p.cubic(points.reshape(1, 4, 1, 4)).sum(), points)
    want = jacobian(p.logits.softmax(-1), slopes).mean(0, keepdim=True)
    close(mean("st importance", p, p.cubic).gradient, want)
    plainly = jacobian(p.logits.softmax(-1), slopes)
    weighted = (p.logits.softmax(-1).T * plainly).sum(0, keepdim=True)
    close(mean("st", p, p.cubic).gradient, weighted)


def test_reinmax_is_heuns_rule_for_every_f():
    p = problem(variables=1, classes=4)
    points = torch.eye(4, dtype=F64).requires_grad_()
    (slopes,) = torch.autograd.grad(p.cubic(points.reshape(1, 4, 1, 4)).sum(), points)
    pi = p.logits.softmax(-1)[0]
    want = torch.zeros(4, dtype=F64)
    for i in range(4):
        for j in range(4):
            step = torch.eye(4, dtype=F64)[i] - torch.eye(4, dtype=F64)[j]
            rise = (slopes[i] + slopes[j]) @ step / 2
            want += pi[j] * rise * pi[i] * (torch.eye(4, dtype=F64)[i] - pi)
    close(mean("reinmax", p, p.cubic).gradient[0], want)


def test_gumbel_rao_with_the_inner_noise_of_an_stgs_draw_is_that_draw():
    tau, u = 0.7, uniform(40, 4)
    z, want = pull(lambda x: gt.straight_through_gumbel_softmax(x, tau, noise=u))
    x = THETA + gumbel(u)
    total = THETA.exp().sum(-1, keepdim=True)
    top = (x * z).sum(-1, keepdim=True)
    hot = total * (-top).exp()
    others = THETA.exp() * ((-x).exp() - (-top).exp())
    inner = torch.where(z > 0, hot, others).unsqueeze(-2)
    draw = gt.Categorical(THETA).noise_for(z)
    noise = torch.stack((draw, uniform(40)), -1)
    same, got = pull(lambda x: gt.gumbel_rao(x, tau, k=1, noise=noise, inner=inner))
    close(same, z)
    close(got, want, 1e-10)


def test_gumbel_rao_inner_draws_come_from_the_counter():
    noise = uniform(40, 2)
    counter = CounterExponentials(noise[:, 1], 4, F64)
    inner = torch.stack([counter(k) for k in range(5)], -2)
    by_counter = pull(lambda x: gt.gumbel_rao(x, 0.5, 5, noise=noise))
    by_hand = pull(lambda x: gt.gumbel_rao(x, 0.5, noise=noise, inner=inner))
    assert torch.equal(by_counter[1], by_hand[1])
    fewer = pull(lambda x: gt.gumbel_rao(x, 0.5, 4, noise=noise))
    assert not torch.equal(by_counter[1], fewer[1])


def test_the_memory_of_gumbel_rao_does_not_grow_with_its_inner_draws():
    kept = []
    for k in (1, 400):
        sizes = []

        def pack(x, sizes=sizes):
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            z = gt.gumbel_rao(THETA.clone().requires_grad_(), k=k)
        assert z.requires_grad
        kept.append(sum(sizes))
    assert kept[0] == kept[1]


@pytest.mark.parametrize("name", PATHWISE)
def test_a_sample_keeps_no_noise_of_the_size_of_the_logits(name):
    x = normal(40, 30, seed=13, dtype=torch.float32).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        plain(VARIANTS[name](gt.Categorical(x)))(x)
    assert sum(t.numel() for t in kept if t.dtype == F64) <= 2 * 40


@pytest.mark.parametrize("name", PATHWISE)
def test_the_backward_can_run_twice_and_the_sample_be_written_to(name):
    estimator = VARIANTS[name](gt.Categorical(THETA))
    noise = noise_for_rows(estimator, THETA)
    leaf = THETA.clone().requires_grad_()
    z = plain(estimator)(leaf, noise=noise)
    first, second = (torch.autograd.grad(z, leaf, UPSTREAM, retain_graph=True)[0] for _ in "ab")
    assert torch.equal(first, second)
    z.mul_(UPSTREAM)
    close(torch.autograd.grad(z.sum(), leaf)[0], first)


def quadrature(phi, tau, low, high):
    """Integrate s(1-s)/tau over L ~ Logistic between low and high, s = sigma((phi+L)/tau)."""

    def integrand(noise):
        s = 1 / (1 + math.exp(-(phi + noise) / tau))
        density = 1 / (2 + math.exp(-noise) + math.exp(noise))
        return s * (1 - s) / tau * density

    return integrate.quad(integrand, low, high, epsabs=1e-13, limit=200)[0]


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_the_means_of_gumbel_rao_and_stgs_by_quadrature(tau):
    phi, size = 0.4, 20_000
    logits = torch.tensor([[phi, 0.0]], dtype=F64)
    slope = torch.tensor([[1.0, 0.0]], dtype=F64)
    v = (torch.arange(size, dtype=F64) + 0.5) / size
    ratio = torch.stack((v, 1.0 - v), -1)  # of two exponentials, its quantiles
    p = 1 / (1 + math.exp(-phi))
    means = []
    for drawn, prob, span in ((0, p, (-phi, 40.0)), (1, 1 - p, (-40.0, -phi))):
        noise = torch.tensor([[p / 2 if drawn == 0 else (1 + p) / 2, 0.5]], dtype=F64)
        z, got = pull(
            lambda x, noise=noise: gt.gumbel_rao(x, tau, noise=noise, inner=ratio[None]),
            logits, slope,
        )  # fmt: skip
        assert int(z.argmax()) == drawn
        want = quadrature(phi, tau, *span) / prob
        close(got[0, 0], torch.tensor(want, dtype=F64), 1e-7)
        means.append(prob * got[0, 0])
    rows = logits.expand(size, 2)
    by_stgs = pull(
        lambda x: gt.straight_through_gumbel_softmax(x, tau, noise=-torch.expm1(-ratio)),
        rows, slope.expand(size, 2),
    )[1].mean(0)[0]  # fmt: skip
    close(by_stgs, sum(means), 1e-7)
    close(by_stgs, torch.tensor(quadrature(phi, tau, -40.0, 40.0), dtype=F64), 1e-7)


@pytest.mark.parametrize("tau", [1.0, 0.5])
@pytest.mark.parametrize("gap", [1.0, 0.3, "p"])
def test_gst_lifts_the_drawn_class_and_keeps_the_gap(gap, tau):
    kernel = GappedKernel(tau, gap)
    noise = uniform(40)
    centred = THETA - THETA.amax(-1, keepdim=True)
    drawn = kernel.forward(centred, noise)
    kept = Kept(centred, drawn.chosen, noise, noise.new_zeros(0), drawn.saved)
    ((soft, weight, at),) = kernel.terms(kept)
    assert (weight, at) == (1.0, tau)
    assert torch.equal(soft.argmax(-1), drawn.chosen)
    assert torch.equal(drawn.chosen, index_for(gt.ReinMax(), THETA, noise))
    hit = drawn.chosen.unsqueeze(-1)
    x = tau * soft.log()
    rest = x.scatter(-1, hit, -torch.inf).amax(-1)
    lead = x.gather(-1, hit).squeeze(-1) - rest
    pi = THETA.softmax(-1).gather(-1, hit).squeeze(-1)
    want = -(1 - pi).log() / pi if gap == "p" else torch.full_like(pi, gap)
    slack = 1e-4 if gap == "p" else 1e-12  # the guard of 1e-5 against pi = 1
    assert bool((lead >= want * (1 - slack) - 1e-12).all())
    runner_up = THETA.scatter(-1, hit, -torch.inf).amax(-1)
    pushed = THETA.amax(-1) - runner_up < want * (1 - slack)
    assert int(pushed.sum()) >= 10
    close(lead[pushed], want[pushed], 1e-4 * float(want.max()) if gap == "p" else 1e-12)


def test_gst_p_gap_is_the_conditional_mean_of_the_gumbel_gap():
    """E[top - runner-up | D], by quadrature: -log(1 - pi_D) / pi_D."""
    logits = THETA[:1]
    pi = logits.softmax(-1)[0]
    for d in range(4):
        odds = float(pi[d] / (1 - pi[d]))
        # The gap T = logistic + log odds given T > 0; its mean is the integral of P(T > t).
        tail = integrate.quad(lambda t, odds=odds: 1 / (1 + math.exp(t) / odds), 0, 60)[0]
        want = torch.tensor(tail / float(pi[d]), dtype=F64)
        close(-(1 - pi[d]).log() / pi[d], want, 1e-8)


def test_rloo_with_two_samples_is_half_the_difference():
    f = normal(4, seed=3)
    leaf = THETA.clone().requires_grad_()
    noise = uniform(2, 40)
    z = gt.Categorical(THETA).expand(2).sample(noise=noise)
    value = gt.expect(lambda z: z @ f, leaf, gt.RLOO(), samples=2, noise=noise)
    (got,) = torch.autograd.grad(value.sum(), leaf)
    values = z @ f
    close(got, (values[0] - values[1]).unsqueeze(-1) * (z[0] - z[1]) / 2)


def test_rloo_is_reinforce_with_the_mean_of_the_others():
    f, noise = normal(4, seed=3), uniform(3, 40)
    z = gt.Categorical(THETA).expand(3).sample(noise=noise)
    values = z @ f
    others = (values.sum(0) - values) / 2
    gradients = []
    for estimator in (gt.RLOO(), gt.Reinforce(baseline=others)):
        leaf = THETA.clone().requires_grad_()
        value = gt.expect(lambda z: z @ f, leaf, estimator, samples=3, noise=noise)
        gradients.append(torch.autograd.grad(value.sum(), leaf)[0])
    close(*gradients)


def test_the_best_baseline_leaves_no_variance_for_a_constant_f():
    leaf = THETA.clone().requires_grad_()
    value = gt.expect(lambda z: z.sum(-1) * 0.7, leaf, gt.Reinforce(baseline=0.7))
    close(torch.autograd.grad(value.sum(), leaf)[0], torch.zeros(40, 4, dtype=F64))


def test_antithetic_draws_mirror_the_uniforms():
    q = gt.Categorical(THETA)
    noise = uniform(3, 40)
    points = gt.Reinforce(antithetic=True).draw(q.expand(6), noise).points
    mirrored = gt.Categorical(THETA).expand(3).sample(noise=1.0 - noise)
    close(points, torch.cat((q.expand(3).sample(noise=noise), mirrored)))


def test_a_proposal_weighs_value_and_gradient():
    p = problem(variables=1, classes=4)
    got = mean("reinforce proposal", p, p.lookup)
    value, gradient = exact(p, p.lookup)
    close(got.value, value.detach())
    close(got.gradient, gradient)
    q = gt.Categorical(p.logits)
    other = gt.Categorical(torch.zeros(1, 4, dtype=F64))
    noise = torch.tensor([[0.3]], dtype=F64)  # class 1 under the proposal
    ones = gt.expect(lambda z: z.sum(-1), q, gt.Reinforce(proposal=other), noise=noise)
    close(ones, 4 * probabilities("categorical", p.logits)[:, 1])


@pytest.mark.parametrize("family", ["categorical", "bernoulli"])
def test_a_proposal_may_be_given_as_logits(family):
    p = problem(family)
    law = p.dist(normal(*p.logits.shape, seed=4))
    noise = uniform(1, 2)
    values = [
        gt.expect(
            p.lookup, p.dist(p.logits[None]), gt.Reinforce(proposal=proposal), noise=noise[:, None]
        )
        for proposal in (law.with_logits(law.logits[None]), law.logits[None])
    ]
    close(*values)


def test_small_tau_moves_the_mean_of_stgs_to_that_of_reinmax():
    p = problem(variables=1, classes=2, seed=7)
    want = mean("reinmax", p, p.cubic).gradient
    gaps = []
    for tau in (1.0, 0.3, 0.1, 0.03):
        estimator = gt.StraightThroughGumbelSoftmax(tau=tau)
        gaps.append(float((mean(estimator, p, p.cubic).gradient - want).abs().max()))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.1 * gaps[0]
