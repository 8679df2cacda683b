"""Equations between score-function estimators, and from their papers, on given noise."""

import math
from itertools import permutations, product

import pytest
import torch

import gradthrough as gt
from enumerations import coins, joint_table
from problems import (
    F64,
    bend,
    draws,
    exact,
    mean,
    normal,
    points_of,
    probabilities,
    problem,
    uniform,
    wave,
)

ROWS = 40
BITS = problem("bernoulli", variables=3)
CLASSES = problem("categorical", variables=2, classes=4)
PHI, THETA = normal(ROWS, 3, seed=21), normal(ROWS, 2, 4, seed=22)
P = PHI.sigmoid()
BITS_LAW, CLASSES_LAW = BITS.dist(PHI), CLASSES.dist(THETA)
BOTH = pytest.mark.parametrize(("p", "q"), [(BITS, BITS_LAW), (CLASSES, CLASSES_LAW)])


def close(got, want, tolerance=1e-12):
    torch.testing.assert_close(got, want, rtol=0.0, atol=tolerance)


def estimate(estimator, q, f, noise, samples):
    """(values, gradients), one for each row."""
    leaf = q.logits.clone().requires_grad_()
    value = gt.expect(f, q.with_logits(leaf), estimator, samples=samples, noise=noise)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def gradient(estimator, q, f, noise, samples):
    return estimate(estimator, q, f, noise, samples)[1]


def noise_of(estimator, q, samples, seed=0):
    return uniform(*estimator.noise_shape(q.expand(samples)), seed=seed)


def points(estimator, q, noise, samples):
    return estimator.draw(q.expand(samples), noise).points


def races(e):
    """Uniforms whose exponentials are e."""
    return -torch.expm1(-e)


# --- antithetic pairs


def middle_of_cell(u):
    """The middle of the cell of u between 0, p, 1 - p and 1."""
    low, high = torch.minimum(P, 1 - P), torch.maximum(P, 1 - P)
    last = torch.where(u < high, (low + high) / 2, (high + 1) / 2)
    return torch.where(u < low, low / 2, last)


def rarer_first(u):
    """Uniforms that hit the rarer value where u hits a one, or 1 - u a zero."""
    return torch.where(P <= 0.5, u, 1 - u)


@pytest.mark.parametrize("samples", [1, 3])
def test_disarm_is_the_mean_of_arm_given_the_pair(samples):
    """ARM is linear in u: its mean over the cell is its value at the middle."""
    u = uniform(samples, ROWS, 3)
    got = gradient(gt.DisARM(), BITS_LAW, BITS.lookup, u, samples)
    close(got, gradient(gt.ARM(), BITS_LAW, BITS.lookup, middle_of_cell(u), samples))


def test_arm_of_a_pair_is_the_difference_times_the_centred_uniform():
    u = uniform(1, ROWS, 3)
    b, b_tilde = (u > 1 - P).to(F64), (u < P).to(F64)
    gap = (BITS.lookup(b) - BITS.lookup(b_tilde)).unsqueeze(-1)
    close(gradient(gt.ARM(), BITS_LAW, BITS.lookup, u, 1), (gap * (u - 0.5))[0])


def test_arms_of_two_samples_is_disarm_on_the_same_pair():
    u = uniform(1, ROWS, 3)
    v = rarer_first(u)
    noise = races(torch.cat((1 - v, v)))  # hits where v < s, and where 1 - v < s
    pair = points(gt.DisARM(), BITS_LAW, u, 1)
    assert torch.equal(points(gt.ARMS(), BITS_LAW, noise, 2), pair)
    close(
        gradient(gt.ARMS(), BITS_LAW, BITS.lookup, noise, 2),
        gradient(gt.DisARM(), BITS_LAW, BITS.lookup, u, 1),
    )


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("p", [0.03, 0.3, 0.5, 0.62, 0.9])
def test_samples_of_arms_have_the_law_and_the_pair_frequency_of_the_paper(p, n):
    noise, weight = coins(min(p, 1 - p), n)
    q = gt.Bernoulli(torch.full((len(weight),), math.log(p / (1 - p)), dtype=F64))
    b = points(gt.ARMS(), q, noise.T, n)
    root = 1 / (n - 1)
    if p < 0.5:
        rho = max(0.0, 2 * p**root - 1) ** (n - 1)
    else:
        rho = 2 * p - 1 + max(0.0, 2 * (1 - p) ** root - 1) ** (n - 1)
    close((b * weight).sum(-1), torch.full((n,), p, dtype=F64))
    both = ((b.unsqueeze(0) * b.unsqueeze(1)) * weight).sum(-1)
    close(both[~torch.eye(n, dtype=torch.bool)], torch.full((n * n - n,), rho, dtype=F64))


def test_arsm_of_two_classes_is_arm():
    u = uniform(2, ROWS, 3)
    noise = races(torch.stack((u, 1 - u), -1))
    close(
        gradient(gt.ARSM(), BITS_LAW, BITS.lookup, noise, 2),
        gradient(gt.ARM(), BITS_LAW, BITS.lookup, u, 2),
    )


@pytest.mark.parametrize("kind", ["iw", "sb", "tree"])
def test_coupled_samples_of_two_classes_are_disarm(kind):
    u = uniform(2, ROWS, 3)
    close(
        gradient(gt.Coupled(kind), BITS_LAW, BITS.lookup, rarer_first(u).unsqueeze(-1), 2),
        gradient(gt.DisARM(), BITS_LAW, BITS.lookup, u, 2),
    )


@pytest.mark.parametrize("n", [2, 4])
def test_carms_of_two_classes_is_arms(n):
    noise = uniform(n, ROWS, 3)
    one, other = gt.CARMS(), gt.ARMS()
    assert torch.equal(
        points(one, BITS_LAW, noise.unsqueeze(-1), n), points(other, BITS_LAW, noise, n)
    )
    close(
        gradient(one, BITS_LAW, BITS.lookup, noise.unsqueeze(-1), n),
        gradient(other, BITS_LAW, BITS.lookup, noise, n),
    )


@BOTH
def test_carms_of_two_samples_is_coupled_by_importance(p, q):
    u = noise_of(gt.Coupled("iw"), q, 1)
    noise = races(torch.cat((1 - u, u)))
    pair = points(gt.Coupled("iw"), q, u, 1)
    assert torch.equal(points(gt.CARMS(), q, noise, 2), pair)
    close(
        gradient(gt.CARMS(), q, p.lookup, noise, 2),
        gradient(gt.Coupled("iw"), q, p.lookup, u, 1),
    )


@BOTH
def test_carms_of_independent_samples_is_rloo(p, q):
    noise = noise_of(gt.CARMS("independent"), q, 4)
    z = points(gt.CARMS("independent"), q, noise, 4)
    close(
        gradient(gt.CARMS("independent"), q, p.lookup, noise, 4),
        gradient(gt.RLOO(), q, p.lookup, q.noise_for(z), 4),
    )


# --- Taylor expansions


def pure(p):
    """Affine in each variable, without products."""
    return lambda z: 0.3 + p.flat(z) @ p.linear


def per_row(p, q, f):
    return torch.stack([exact(p._replace(logits=row), f)[1] for row in q.logits])


@BOTH
def test_muprop_has_no_variance_for_affine_f(p, q):
    want = per_row(p, q, pure(p))
    for seed in range(3):
        noise = uniform(2, *q.variables, seed=seed)
        close(gradient(gt.MuProp(), q, pure(p), noise, 2), want)


@pytest.mark.parametrize("samples", [2, 4])
def test_double_cv_has_no_variance_for_affine_f(samples):
    want = per_row(BITS, BITS_LAW, pure(BITS))
    for seed in range(3):
        noise = uniform(samples, ROWS, 3, seed=seed)
        close(gradient(gt.DoubleCV(), BITS_LAW, pure(BITS), noise, samples), want)


@pytest.mark.parametrize(
    "estimator",
    [gt.DoubleCV(alpha=0.0), gt.Rodeo(alpha=0.0, beta=0.0), gt.VarGrad()],
    ids=lambda e: type(e).__name__,
)
def test_without_control_variates_what_is_left_is_rloo(estimator):
    noise = uniform(3, ROWS, 3)
    got = estimate(estimator, BITS_LAW, BITS.cubic, noise, 3)
    want = estimate(gt.RLOO(), BITS_LAW, BITS.cubic, noise, 3)
    for a, b in zip(got, want, strict=True):
        close(a, b)


def test_vargrad_of_categoricals_is_rloo():
    noise = uniform(3, ROWS, 2)
    close(
        gradient(gt.VarGrad(), CLASSES_LAW, CLASSES.lookup, noise, 3),
        gradient(gt.RLOO(), CLASSES_LAW, CLASSES.lookup, noise, 3),
    )


def test_the_log_variance_loss_has_the_gradient_of_rloo():
    noise, log_p = uniform(3, ROWS, 2), CLASSES.lookup
    leaf = THETA.clone().requires_grad_()
    q = CLASSES.dist(leaf)
    loss = gt.vargrad(lambda z: q.log_prob(z) - log_p(z), q, 3, noise=noise)
    got = torch.autograd.grad(loss.sum(), leaf)[0]
    ratio = lambda z: CLASSES_LAW.log_prob(z) - log_p(z)  # noqa: E731
    close(got, gradient(gt.RLOO(), CLASSES_LAW, ratio, noise, 3))
    z = CLASSES_LAW.expand(3).sample(noise=noise)
    close(loss.detach(), ratio(z).var(0) / 2)


# --- Stein operators


@pytest.mark.parametrize("surrogate", [None, bend], ids=["slope", "network"])
@pytest.mark.parametrize("scales", [(1.0, 0.0), (0.0, 1.0)], ids=["A h", "A (h s)"])
@pytest.mark.parametrize("samples", [2, 3])
def test_what_rodeo_adds_has_mean_zero(surrogate, scales, samples):
    rodeo = gt.Rodeo(*scales, surrogate=surrogate)
    added = [mean(one, BITS, BITS.cubic, samples).gradient for one in (rodeo, gt.Rodeo(0.0, 0.0))]
    close(*added, 1e-14)


@pytest.mark.parametrize("surrogate", [None, bend], ids=["slope", "network"])
@pytest.mark.parametrize("samples", [2, 3])
def test_rodeo_is_the_formula_of_the_paper_with_a_sum_over_every_flip(surrogate, samples):
    """Naively: the operator asks h, and h times the score, at each of d flips."""
    alpha, beta, noise = 0.7, -0.4, uniform(samples, 1, 3)
    p = P[0]
    q = BITS.dist(PHI[:1])
    x = points(gt.RLOO(), q, noise, samples).requires_grad_()
    f = BITS.cubic(x)
    (slope,) = torch.autograd.grad(f.sum(), x)
    x, f, slope = x.detach()[:, 0], f.detach()[:, 0], slope[:, 0]
    network = surrogate or (lambda pair: pair[..., :1].expand_as(pair))

    def h(k, y):
        others = [j for j in range(samples) if j != k]
        pairs = [torch.stack((slope[j] @ (y - p), f[j] + slope[j] @ (p - x[j]))) for j in others]
        return sum(network(pair) for pair in pairs) / len(others)

    def operator(function, y):
        flips = [torch.where(torch.arange(3) == i, 1 - y, y) for i in range(3)]
        rates = torch.where(y == 1, 1 - p, p)
        return sum(r * (function(z) - function(y)) for r, z in zip(rates, flips, strict=True))

    want = torch.zeros(3, dtype=F64)
    for k in range(samples):
        others = [j for j in range(samples) if j != k]
        baseline = sum(f[j] + alpha * operator(lambda y, j=j: h(j, y)[0], x[j]) for j in others)
        want += (f[k] - baseline / len(others)) * (x[k] - p)
        want += beta * operator(lambda y, k=k: h(k, y)[1] * (y - p), x[k])
    rodeo = gt.Rodeo(alpha, beta, surrogate)
    close(gradient(rodeo, q, BITS.cubic, noise, samples)[0], want / samples)


def test_a_fresh_surrogate_is_the_slope():
    noise = uniform(3, ROWS, 3)
    fresh = gt.Rodeo(surrogate=gt.controls.Surrogate().double())
    close(
        gradient(fresh, BITS_LAW, BITS.cubic, noise, 3),
        gradient(gt.Rodeo(), BITS_LAW, BITS.cubic, noise, 3),
    )


# --- relaxations


@BOTH
@pytest.mark.parametrize(
    "estimator",
    [gt.Relax(lambda z: 0 * z.flatten(2).sum(-1), eta=0.0), gt.Rebar(eta=0.0)],
    ids=lambda e: type(e).__name__,
)
def test_without_control_variate_what_is_left_is_reinforce(p, q, estimator):
    noise = noise_of(estimator, q, 3)
    z = points(estimator, q, noise, 3)[:3]
    got = estimate(estimator, q, p.lookup, noise, 3)
    want = estimate(gt.Reinforce(), q, p.lookup, q.noise_for(z), 3)
    for a, b in zip(got, want, strict=True):
        close(a, b)


@BOTH
@pytest.mark.parametrize("tau", [0.3, 1.0])
def test_relax_without_a_control_or_with_f_as_control_is_rebar(p, q, tau):
    noise = noise_of(gt.Rebar(), q, 3)
    want = estimate(gt.Rebar(eta=1.0, tau=tau), q, p.cubic, noise, 3)
    for one in (gt.Relax(eta=1.0, tau=tau), gt.Relax(p.cubic, eta=0.0, tau=tau)):
        for a, b in zip(estimate(one, q, p.cubic, noise, 3), want, strict=True):
            close(a, b)


def test_rebar_is_linear_in_its_control_variate():
    noise = noise_of(gt.Rebar(), CLASSES_LAW, 2)
    control, f = wave(CLASSES_LAW), CLASSES.cubic
    f_and_control, half, alone = (
        gradient(one, CLASSES_LAW, f, noise, 2)
        for one in (gt.Relax(control, eta=0.5), gt.Rebar(eta=0.5), gt.Relax(control, eta=0.0))
    )
    plain = gradient(gt.Rebar(eta=0.0), CLASSES_LAW, f, noise, 2)
    close(f_and_control - plain, half + alone - 2 * plain)


@pytest.mark.parametrize("tau", [0.4, 1.0, 2.0])
def test_the_second_relaxation_has_the_conditional_law_of_the_first(tau):
    """Of two classes, as quantiles: z at p v has the cdf, given its class, of z~ at v."""
    v, p0 = uniform(ROWS, seed=3), P[:, 0]
    q = gt.Categorical(torch.stack((PHI[:, 0], torch.zeros(ROWS, dtype=F64)), -1))
    first = torch.cat((p0 * v, p0 + (1 - p0) * (1 - v)))  # class 0, then class 1
    v, both = v.repeat(2), q.with_logits(q.logits.repeat(2, 1))
    first = torch.stack((first, 1 - first), -1)
    second = torch.where((torch.arange(2 * ROWS) < ROWS)[:, None], torch.stack((v, 1 - v), -1),
                         torch.stack((1 - v, v), -1))  # fmt: skip
    noise = races(torch.stack((first, second), -1)).unsqueeze(0)
    b, z, tied = points(gt.Rebar(tau=tau), both, noise, 1)
    assert torch.equal(b[:, 0] == 1, torch.arange(2 * ROWS) < ROWS)
    close(tied, z)


# --- baselines


@BOTH
def test_the_self_critical_baseline_is_f_at_the_mode(p, q):
    noise = uniform(2, *q.variables)
    critical = p.lookup(q.mode().unsqueeze(0))
    close(
        gradient(gt.Reinforce(baseline="self_critical"), q, p.lookup, noise, 2),
        gradient(gt.Reinforce(baseline=critical), q, p.lookup, noise, 2),
    )


@BOTH
def test_a_variance_divides_by_its_root_unless_that_is_below_one(p, q):
    noise = uniform(2, *q.variables)
    plain = gradient(gt.Reinforce(baseline=0.3), q, p.lookup, noise, 2)
    rows = torch.linspace(0.1, 9.0, ROWS, dtype=F64)
    for v in (0.25, 1.0, 4.0, torch.tensor(9.0, dtype=F64), rows, lambda q: rows):
        got = gradient(gt.Reinforce(baseline=0.3, variance=v), q, p.lookup, noise, 2)
        number = torch.as_tensor(v(q) if callable(v) else v, dtype=F64)
        root = number.expand(ROWS).clamp_min(1).sqrt()
        close(got, plain / root.reshape(ROWS, *(1,) * (plain.ndim - 1)))


def test_the_moving_average_moves_by_its_decay():
    c = gt.controls.MovingAverage(0.75).double()
    optimizer, want = c.optimizer(decay=0.8), 0.75
    for seed in range(5):
        noise = uniform(3, ROWS, 3, seed=seed)
        out = gt.estimate(BITS.lookup, BITS_LAW, gt.Reinforce(baseline=c), samples=3, noise=noise)
        optimizer.zero_grad()
        out.tuning_loss.backward()
        optimizer.step()
        want = 0.8 * want + 0.2 * float(BITS.lookup(points(gt.RLOO(), BITS_LAW, noise, 3)).mean())
        close(c.mean.detach(), torch.tensor(want, dtype=F64))


# --- without replacement, and every change of one variable


@pytest.mark.parametrize("k", [8, 9, 100])
def test_the_sum_over_the_support_has_no_variance(k):
    q = BITS_LAW
    want = per_row(BITS, q, BITS.lookup)
    for seed in range(3):
        noise = uniform(2, ROWS, 3, seed=seed)
        close(gradient(gt.SumAndSample(k=k), q, BITS.lookup, noise, 2), want)


def test_a_set_that_is_the_support_is_exact():
    q = gt.Categorical(THETA[:, 0])
    p = problem(variables=1, classes=4)
    f = lambda z: p.lookup(z.unsqueeze(-2))  # noqa: E731
    want = torch.stack([exact(p._replace(logits=row[None]), p.lookup)[1][0] for row in q.logits])
    for n in (4, 5, 6):
        close(gradient(gt.UnorderedSet(), q, f, uniform(n, ROWS), n), want)


def set_probability(table, chosen, without=()):
    """Of drawing a set without replacement, in any order, from what others leave."""
    total = 0.0
    for order in permutations(chosen):
        left, mass = 1.0 - sum(table[s] for s in without), 1.0
        for s in order:
            mass, left = mass * table[s] / left, left - table[s]
        total += mass
    return total


def weights_of(table, chosen):
    """p(s) R(S, s) for each s, and p(s') R(S without s, s') for each pair, by k! orders."""
    whole = set_probability(table, chosen)
    first = {
        s: table[s] * set_probability(table, [t for t in chosen if t != s], [s]) / whole
        for s in chosen
    }
    second = {
        (s, t): table[t]
        * set_probability(table, [r for r in chosen if r not in (s, t)], [s, t])
        / set_probability(table, [r for r in chosen if r != s], [s])
        for s in chosen
        for t in chosen
        if s != t
    }
    return first, second


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize(("variables", "classes"), [(1, 6), (2, 3)])
def test_the_unordered_set_is_the_formula_over_all_orders(n, variables, classes):
    p = problem(variables=variables, classes=classes)
    probs = probabilities("categorical", p.logits)
    table = joint_table(probs)
    places = classes ** torch.arange(variables)
    for seed in range(4):
        noise = uniform(n, variables, seed=seed)
        codes = points(gt.UnorderedSet(), p.dist(p.logits), noise, n).argmax(-1)
        chosen = [tuple(code) for code in codes.tolist()]
        assert len(set(chosen)) == n
        lookup = p.table.clone().requires_grad_()
        theta = p.logits.clone().requires_grad_()
        value = gt.expect(
            lambda z, t=lookup: t[(z.argmax(-1) * places).sum(-1)],
            p.dist(theta), gt.UnorderedSet(), samples=n, noise=noise,
        )  # fmt: skip
        weight, got = torch.autograd.grad(value, (lookup, theta))
        first, second = weights_of(table, chosen)
        f = {s: float(p.table[sum(int(k * m) for k, m in zip(s, places, strict=True))])
             for s in chosen}  # fmt: skip
        want = torch.zeros_like(probs)
        for s in chosen:
            others = sum(second[s, t] * f[t] for t in chosen if t != s)
            score = points_of("categorical", torch.tensor(s), classes) - probs
            want += first[s] * (f[s] - table[s] * f[s] - others) * score
        close(weight.sum(), torch.ones((), dtype=F64))
        close(weight[(codes * places).sum(-1)], torch.tensor([first[s] for s in chosen], dtype=F64))
        close(got, want)


@pytest.mark.parametrize("family", ["categorical", "bernoulli"])
def test_local_expectations_of_one_variable_are_exact(family):
    p = problem(family, variables=1, classes=4)
    q = p.dist(THETA[:, :1] if family == "categorical" else PHI[:, :1])
    close(
        gradient(gt.LocalExpectation(), q, p.lookup, uniform(1, ROWS, 1), 1),
        per_row(p, q, p.lookup),
    )


# --- the bound of several samples


def log_weight(p, z, theta):
    """Some l = log p(z) - log q(z), with its graph."""
    return p.lookup(z) - (z * theta.log_softmax(-1)).sum((-2, -1))


def exact_bound(p, theta, k):
    """E log 1/K sum w over every tuple of K samples."""
    probs = probabilities("categorical", theta)
    total = torch.zeros((), dtype=F64)
    support = list(product(range(theta.shape[-1]), repeat=len(theta)))
    z = points_of("categorical", torch.tensor(support), theta.shape[-1])
    log_q = (z * probs.log()).sum((-2, -1))
    log_w = log_weight(p, z.unsqueeze(0), theta)[0]
    for chosen in product(range(len(support)), repeat=k):
        index = list(chosen)
        total = total + log_q[index].sum().exp() * (log_w[index].logsumexp(0) - math.log(k))
    return total


@pytest.mark.parametrize("baseline", ["geometric", "arithmetic"])
@pytest.mark.parametrize("k", [2, 3])
def test_vimco_is_unbiased_for_the_bound(baseline, k):
    p = problem(variables=2, classes=2) if k == 3 else problem()
    theta = p.logits.clone().requires_grad_()
    noise, weight = draws(gt.RLOO(), p.dist(theta), k)
    rows = theta.expand(len(weight), *theta.shape)
    value = gt.vimco(
        lambda z: log_weight(p, z, theta), p.dist(rows), k, baseline=baseline, noise=noise
    )
    (got,) = torch.autograd.grad((value * weight).sum(), theta)
    want = exact_bound(p, theta, k)
    close((value * weight).sum(), want)
    close(got, torch.autograd.grad(want, theta)[0])


@pytest.mark.parametrize("baseline", ["geometric", "arithmetic"])
def test_a_constant_in_the_log_weights_does_not_change_the_signal_of_vimco(baseline):
    noise = uniform(4, ROWS, 2)
    gradients = []
    for constant in (0.0, 50.0):
        leaf = THETA.clone().requires_grad_()
        value = gt.vimco(
            lambda z, c=constant: CLASSES.lookup(z) + c,
            CLASSES.dist(leaf), 4, baseline=baseline, noise=noise,
        )  # fmt: skip
        gradients.append(torch.autograd.grad(value.sum(), leaf)[0])
    close(*gradients)
    assert gradients[0].abs().max() > 1e-2


def test_the_baselines_of_vimco_are_those_of_the_paper():
    noise = uniform(4, 1, 2)
    q = CLASSES.dist(THETA[:1])
    z = points(gt.RLOO(), q, noise, 4)
    values = CLASSES.lookup(z)[:, 0].tolist()
    for baseline in ("geometric", "arithmetic"):
        leaf = THETA[:1].clone().requires_grad_()
        value = gt.vimco(CLASSES.lookup, CLASSES.dist(leaf), 4, baseline=baseline, noise=noise)
        (got,) = torch.autograd.grad(value.sum(), leaf)
        whole, want = sum(math.exp(x) for x in values), torch.zeros(2, 4, dtype=F64)
        for k in range(4):
            others = [x for j, x in enumerate(values) if j != k]
            stand_in = (
                math.exp(sum(others) / 3)
                if baseline == "geometric"
                else sum(math.exp(x) for x in others) / 3
            )
            signal = math.log(whole / 4) - math.log((sum(map(math.exp, others)) + stand_in) / 4)
            want += signal * (z[k, 0] - THETA[0].softmax(-1))
        close(got[0], want)
