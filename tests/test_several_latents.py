"""Programs with several latents: the surrogate losses of stochastic computation graphs.

Each loss is written out with stop-gradients and given the noise that the library was given.
"""

import pytest
import torch

import gradthrough as gt
from gradthrough.estimators.base import AbstractScore
from problems import (
    ANY,
    F64,
    PATHWISE,
    UNBIASED,
    VARIANTS,
    cells,
    draws,
    family_of,
    grid,
    normal,
    plain,
    points_of,
    probabilities,
    problem,
    samples_for,
    select,
    uniform,
)
from surrogates import index_for, surrogate

ROWS, C = 6, 3
H = torch.nn.Linear(C, C, dtype=F64)
COUPLING = normal(C, C, seed=21)
SLOPE = normal(C, seed=22)


def close(got, want, tolerance=1e-10):
    torch.testing.assert_close(got, want, rtol=0.0, atol=tolerance)


def loss_of(d1, d2):
    """Cubic and asymmetric in two points (..., C)."""
    return ((d1 @ COUPLING) * d2).sum(-1) ** 3 + d1 @ SLOPE - 2 * (d2 @ SLOPE) ** 2


def leaves():
    H.reset_parameters()
    with torch.no_grad():
        H.weight.copy_(normal(C, C, seed=24))
        H.bias.copy_(normal(C, seed=25))
    first, second = (normal(ROWS, C, seed=s).requires_grad_() for s in (1, 2))
    return first, second, (first, second, *H.parameters())


def gradients(loss, inputs):
    out = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(out, inputs, strict=True)]


def same(loss, want, inputs, tolerance=1e-10):
    for got, expected in zip(gradients(loss, inputs), want, strict=True):
        close(got, expected, tolerance)


def noises(estimator, *lead):
    shape = estimator.noise_shape(gt.Categorical(torch.zeros(*lead, ROWS, C)))
    return uniform(*shape, seed=1), uniform(*shape, seed=2)


def sample_of(estimator, theta, noise):
    """(the value of the sample, held constant; its surrogate, differentiable in theta)."""
    hot = torch.nn.functional.one_hot(index_for(estimator, theta, noise), C).to(F64)
    soft = surrogate(estimator, theta, hot, noise)
    return (soft if estimator.traits.relaxed else hot).detach(), soft


def slopes(d1, d2, total):
    """Stopped partial derivatives of the total loss in both points."""
    d1, d2 = d1.clone().requires_grad_(), d2.clone().requires_grad_()
    return torch.autograd.grad(total(d1, d2), (d1, d2))


def parallel_surrogate(estimator, theta1, theta2, u1, u2):
    """Sum over latents of stop(df/dD) . S: the pathwise loss for parallel latents."""
    (d1, s1), (d2, s2) = (sample_of(estimator, t, u) for t, u in ((theta1, u1), (theta2, u2)))
    g1, g2 = slopes(d1, d2, lambda a, b: loss_of(a, b).sum())
    return (g1 * s1).sum() + (g2 * s2).sum()


def cascade_surrogate(estimator, theta1, u1, u2):
    """The layer above sends dL2/dD1 + df/dD1, both stopped, to the layer below."""
    d1, s1 = sample_of(estimator, theta1, u1)
    below = d1.clone().requires_grad_()
    d2, s2 = sample_of(estimator, H(below), u2)
    g1, g2 = slopes(d1, d2, lambda a, b: loss_of(a, b).sum())
    layer2 = (g2 * s2).sum()
    (through,) = torch.autograd.grad(layer2, below, retain_graph=True)
    return layer2 + ((g1 + through) * s1).sum()


@pytest.mark.parametrize("name", PATHWISE)
def test_parallel_latents_pathwise(name):
    estimator = VARIANTS[name](gt.Categorical(torch.zeros(ROWS, C)))
    first, second, inputs = leaves()
    u1, u2 = noises(estimator)
    want = gradients(parallel_surrogate(estimator, first, second, u1, u2), inputs)
    draw = plain(estimator)
    plainly = loss_of(draw(first, noise=u1), draw(second, noise=u2))
    same(plainly.sum(), want, inputs)

    both = gt.Categorical(torch.stack((first, second), -2), event_dims=1)
    noise = torch.stack((u1, u2), 1).unsqueeze(0)
    jointly = gt.expect(lambda z: loss_of(z[..., 0, :], z[..., 1, :]), both, estimator, noise=noise)
    same(jointly.sum(), want, inputs)
    close(jointly, plainly)

    rollout = gt.Rollout(estimator)
    z1 = rollout.sample(rollout.expand(first), noise=u1[None])
    z2 = rollout.sample(rollout.expand(second), noise=u2[None])
    same(rollout.combine(loss_of(z1, z2)).sum(), want, inputs)


@pytest.mark.parametrize("name", PATHWISE)
def test_a_cascade_pathwise(name):
    estimator = VARIANTS[name](gt.Categorical(torch.zeros(ROWS, C)))
    first, _, inputs = leaves()
    u1, u2 = noises(estimator)
    want = gradients(cascade_surrogate(estimator, first, u1, u2), inputs)
    draw = plain(estimator)
    z1 = draw(first, noise=u1)
    plainly = loss_of(z1, draw(H(z1), noise=u2))
    same(plainly.sum(), want, inputs)

    def inner(z1):
        return gt.expect(lambda z2: loss_of(z1, z2), H(z1), estimator, noise=u2[None, None])

    same(gt.expect(inner, first, estimator, noise=u1[None]).sum(), want, inputs)
    rollout = gt.Rollout(estimator)
    z1 = rollout.sample(rollout.expand(first), noise=u1[None])
    z2 = rollout.sample(H(z1), noise=u2[None])
    same(rollout.combine(loss_of(z1, z2)).sum(), want, inputs)


def test_a_rollout_averages_its_samples():
    estimator = gt.ReinMax()
    first, _, inputs = leaves()
    u1, u2 = noises(estimator, 3)
    rollout = gt.Rollout(estimator, samples=3)
    z1 = rollout.sample(rollout.expand(first), noise=u1)
    got = rollout.combine(loss_of(z1, rollout.sample(H(z1), noise=u2)))
    loss = sum(cascade_surrogate(estimator, first, *u) for u in zip(u1, u2, strict=True)) / 3
    same(got.sum(), gradients(loss, inputs), inputs)


# --- score functions: stop(f - baseline) times the log-probability of all that was drawn


def log_prob(theta, d):
    return (theta.log_softmax(-1) * d).sum(-1)


def hot(theta, u):
    return torch.nn.functional.one_hot(index_for(gt.ReinMax(), theta, u), C).to(F64)


def signal(estimator, values):
    """f minus the baseline of an estimator, stopped; its mean over samples is 1/N sum."""
    values = values.detach()
    if estimator.traits.min_samples > 1:
        n = len(values)
        return values - (values.sum(0) - values) / (n - 1)
    c = estimator.baseline
    return values if c is None else values - c


SIMPLE = select(
    lambda e: (
        not e.traits.pathwise
        and e.traits.many_draws
        and e.evaluations(ANY, 2) == 2
        and not getattr(e, "antithetic", False)
        and getattr(e, "proposal", None) is None
        and not callable(getattr(e, "baseline", None))
    )
)


@pytest.mark.parametrize("cascade", [False, True])
@pytest.mark.parametrize("name", SIMPLE)
def test_score_functions_in_a_rollout(name, cascade):
    estimator = VARIANTS[name](None)
    first, second, inputs = leaves()
    n = samples_for(estimator, 3)
    u1, u2 = noises(estimator, n)
    rollout = gt.Rollout(estimator, samples=n)
    z1 = rollout.sample(rollout.expand(first), noise=u1)
    z2 = rollout.sample(H(z1) if cascade else rollout.expand(second), noise=u2)
    got = rollout.combine(loss_of(z1, z2))

    d1 = hot(first.expand(n, ROWS, C), u1)
    theta2 = H(d1) if cascade else second.expand(n, ROWS, C)
    d2 = hot(theta2, u2)
    values = loss_of(d1, d2)
    close(got, values.mean(0))
    loss = (signal(estimator, values) * (log_prob(first, d1) + log_prob(theta2, d2))).mean(0)
    want = gradients(loss.sum(), inputs)
    same(got.sum(), want, inputs)

    if not cascade:
        both = gt.Categorical(torch.stack((first, second), -2), event_dims=1)
        jointly = gt.expect(
            lambda z: loss_of(z[..., 0, :], z[..., 1, :]),
            both, estimator, samples=n, noise=torch.stack((u1, u2), -1),
        )  # fmt: skip
        same(jointly.sum(), want, inputs)


@pytest.mark.parametrize("name", SIMPLE)
def test_score_functions_nested(name):
    estimator = VARIANTS[name](None)
    first, _, inputs = leaves()
    n, k = samples_for(estimator, 2), samples_for(estimator, 3)
    u1, u2 = uniform(n, ROWS, seed=1), uniform(k, n, ROWS, seed=2)

    def inner(z1):
        return gt.expect(
            lambda z2: loss_of(z1.expand_as(z2), z2), H(z1), estimator, samples=k, noise=u2
        )

    got = gt.expect(inner, first, estimator, samples=n, noise=u1)
    d1 = hot(first.expand(n, ROWS, C), u1)
    d2 = hot(H(d1).expand(k, n, ROWS, C), u2)
    values = loss_of(d1.expand_as(d2), d2)
    below = (signal(estimator, values) * log_prob(H(d1), d2)).mean((0, 1))
    above = (signal(estimator, values.mean(0)) * log_prob(first, d1)).mean(0)
    same(got.sum(), gradients((below + above).sum(), inputs), inputs)


def test_a_rollout_of_bernoullis_and_categoricals():
    """Two latents of different families under one loss, against enumeration."""
    first, phi = normal(C, seed=3).requires_grad_(), normal(2, seed=4).requires_grad_()
    table = normal(C, 2, 2, seed=5)
    rows = C * 4
    codes = torch.cartesian_prod(torch.arange(C), torch.arange(2), torch.arange(2))
    b = (codes[:, 1:] == 0).to(F64)
    q1 = gt.Categorical(first.expand(1, rows, C))
    q2 = gt.Bernoulli(phi.expand(1, rows, 2), event_dims=1)
    rollout = gt.Rollout(gt.Reinforce())
    z1 = rollout.sample(q1, noise=q1.noise_for(torch.eye(C, dtype=F64)[codes[:, 0]][None]))
    z2 = rollout.sample(q2, noise=q2.noise_for(b[None]))
    pick = z1.argmax(-1), 1 - z2[..., 0].long(), 1 - z2[..., 1].long()
    value = rollout.combine(table[pick])
    p, r = first.softmax(-1), probabilities("bernoulli", phi)
    weight = p[codes[:, 0]] * r[0, codes[:, 1]] * r[1, codes[:, 2]]
    assert torch.equal(z2[0], b)
    total = (weight * table[tuple(codes.T)]).sum()
    want = gradients(total, (first, phi))
    same((value * weight.detach()).sum(), want, (first, phi))


# --- nesting: exact wherever both parts are

MIXTURE = probabilities("categorical", normal(C, 2, seed=32))
BENT = normal(C + 2, C + 2, seed=31)


def law_of_second(z1):
    """Logits of two classes whose probabilities are linear in z1: E f is as smooth as f in z1."""
    return (z1 @ MIXTURE).log()


def bent(z1, z2):
    """Quadratic in each of two one-hot points."""
    x = torch.cat((z1.expand(*z2.shape[:-1], C), z2), -1)
    return ((x @ BENT) * x).sum(-1)


def drawn(estimator):
    return int(estimator.traits.noise != "none")


# Those that draw every sample by a uniform of its own, whatever the law of each row is.
SEPARATE = select(
    lambda e: (
        e.traits.unbiased
        and "categorical" in e.traits.families
        and (isinstance(e, AbstractScore) or not drawn(e))
        and getattr(e, "proposal", None) is None
        and not callable(getattr(e, "baseline", None))
    )
)
PAIRS = [(a, b) for a in (*SEPARATE, "reinmax") for b in (*SEPARATE, "reinmax")]


@pytest.mark.parametrize(("outer", "inner"), PAIRS)
def test_nested_pairs_are_exact(outer, inner):
    """Every outer draw with every inner draw, as one batch of rows."""
    theta = normal(C, seed=33).requires_grad_()
    out, inn = VARIANTS[outer](None), VARIANTS[inner](None)
    n, k = samples_for(out), samples_for(inn)
    law = theta.detach().softmax(-1)
    first = cells(law, mirrored=getattr(out, "antithetic", False))
    laws = torch.cat((MIXTURE, (law @ MIXTURE)[None]))  # after each class, and after their mean
    second = cells(laws, mirrored=getattr(inn, "antithetic", False))
    points = out.evaluations(gt.Categorical(torch.zeros(C)), n)
    slots = out.noise_shape(gt.Categorical(torch.zeros(n, C)))[0] * drawn(out)
    inner_slots = (
        inn.noise_shape(gt.Categorical(torch.zeros(k, points, 2)))[0] * points * drawn(inn)
    )
    columns = [first] * slots + [second] * inner_slots
    if columns:
        u = grid([middle for middle, _ in columns]).T
        weight = grid([width for _, width in columns]).prod(-1)
    else:
        u, weight = torch.zeros(0, 1, dtype=F64), torch.ones(1, dtype=F64)
    u1 = u[:slots] if slots else None
    u2 = u[slots:].reshape(-1, points, len(weight)) if inner_slots else None

    def nested(z1):
        return gt.expect(lambda z2: bent(z1, z2), law_of_second(z1), inn, samples=k, noise=u2)

    value = gt.expect(nested, theta.expand(len(weight), C), out, samples=n, noise=u1)
    pi = theta.softmax(-1)
    table = bent(torch.eye(C, dtype=F64)[:, None], torch.eye(2, dtype=F64).expand(C, 2, 2))
    want = (pi[:, None] * MIXTURE * table).sum()
    close((value * weight).sum(), want, 1e-12)
    same((value * weight).sum(), gradients(want, (theta,)), (theta,), 1e-12)


def interplay(z1, z2):
    """Cubic in two points (..., D): entries of one alone, and of both together."""
    x = torch.cat((z1.expand(*z2.shape[:-1], z1.shape[-1]), z2), -1)
    d = x.shape[-1]
    return ((x @ normal(d, d, seed=34)) * x).sum(-1) + (x @ normal(d, seed=35)) ** 3


def entries(p, z):
    """The entries of a point, (..., D)."""
    return z.flatten(-2) if p.family == "categorical" else z


def noise_and_law(name, p):
    """Samples, all noise of a problem's one row (N, M, ...), and its probabilities (M,)."""
    one = VARIANTS[name](p.dist(p.logits))
    n = samples_for(one)
    return n, *draws(one, p.dist(p.logits), n)


PROPOSED = select(lambda e: getattr(e, "proposal", None) is not None)
EXACT = [name for name in UNBIASED if name not in PROPOSED]
SLOPED = select(lambda e: e.traits.needs_point_gradients and e.traits.needs_relaxed_points)
MIXED = [(a, "rloo") for a in EXACT] + [("rloo", b) for b in EXACT]
FEW = [name for name in SLOPED if VARIANTS[name](ANY).traits.noise == "variable"]  # few draws
MIXED += [(a, b) for a in SLOPED for b in SLOPED if a in FEW or b in FEW]


@pytest.mark.parametrize(("outer", "inner"), MIXED)
def test_nested_pairs_are_exact_for_noise_in_common(outer, inner):
    """Every outer draw with every inner draw, which all points of one outer draw share."""
    p = problem(family_of(outer), variables=1, classes=2, seed=40)
    r = problem(family_of(inner), variables=1, classes=2, seed=50)
    theta, phi = (x.logits.clone().requires_grad_() for x in (p, r))
    (n, u1, w1), (k, u2, w2) = noise_and_law(outer, p), noise_and_law(inner, r)
    rows = (len(w1), len(w2))
    if u1 is not None:
        u1 = u1.unsqueeze(2).expand(-1, *rows, *u1.shape[2:])

    def nested(z1):
        q = r.dist(phi.expand(len(z1), *rows, *phi.shape))
        u = u2 if u2 is None else u2[:, None, None].expand(-1, len(z1), *rows, *u2.shape[2:])
        f = lambda z2: interplay(entries(p, z1), entries(r, z2))  # noqa: E731
        return gt.expect(f, q, VARIANTS[inner](q), samples=k, noise=u)

    q = p.dist(theta.expand(*rows, *theta.shape))
    value = gt.expect(nested, q, VARIANTS[outer](q), samples=n, noise=u1)
    got = (w1[:, None] * w2 * value).sum()
    corners = [points_of(x.family, torch.arange(2)[:, None], 2) for x in (p, r)]
    first, second = (entries(x, z) for x, z in zip((p, r), corners, strict=True))
    table = interplay(first[:, None], second.expand(2, *second.shape))
    pi, rho = probabilities(p.family, theta)[0], probabilities(r.family, phi)[0]
    want = (pi[:, None] * rho * table).sum()
    close(got, want, 1e-12)
    same(got, gradients(want, (theta, phi)), (theta, phi), 1e-12)
