"""Derivatives of higher order, torch.func, checkpointing, autocast, and what stays checked there.

A pathwise sample has the derivatives, to every order, of its surrogate with the draw held fixed.
"""

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

import gradthrough as gt
from gradthrough.kernels.dispatch import launch
from gradthrough.kernels.eager import ReinMax as ReinMaxKernel
from problems import (
    F64,
    PATHWISE,
    SCORE,
    UNBIASED,
    VARIANTS,
    exact,
    expectation,
    family_of,
    mean,
    noise_for_rows,
    normal,
    plain,
    problem,
    samples_for,
    uniform,
)
from surrogates import reference_sample

THETA = normal(3, 4, seed=41)
DIRECTION = normal(3, 4, seed=42)
WEIGHTS = normal(4, 4, seed=43)


def close(got, want, tolerance=1e-10):
    torch.testing.assert_close(got, want, rtol=0.0, atol=tolerance)


def curved(z):
    """A scalar of a sample (3, 4), curved enough for three derivatives."""
    return (((z @ WEIGHTS) * z).sum(-1) ** 2).sum() + z.sin().sum()


def pair(name):
    """(the library's, the reference's) scalar function of logits, on the same noise."""
    estimator = VARIANTS[name](gt.Categorical(THETA))
    noise = noise_for_rows(estimator, THETA)
    return (
        lambda x: curved(plain(estimator)(x, noise=noise)),
        lambda x: curved(reference_sample(estimator, x, noise)),
    )


def every(names):
    return pytest.mark.parametrize("name", names)


def repeatedly(function, order):
    """Sums of ever higher derivatives along one direction, by autograd with create_graph."""
    x = THETA.clone().requires_grad_()
    out, value = [], function(x)
    for _ in range(order):
        (gradient,) = torch.autograd.grad(value, x, create_graph=True)
        out.append(gradient.detach())
        value = (gradient * DIRECTION).sum()
    return out


@every(PATHWISE)
def test_derivatives_up_to_the_third(name):
    ours, reference = pair(name)
    for got, want in zip(repeatedly(ours, 3), repeatedly(reference, 3), strict=True):
        assert want.abs().max() > 1e-3
        close(got, want)


@every(PATHWISE)
@pytest.mark.parametrize("transform", [grad, jacrev, jacfwd, hessian, lambda f: jacrev(jacfwd(f))])
def test_functional_derivatives(name, transform):
    ours, reference = pair(name)
    close(transform(ours)(THETA), transform(reference)(THETA))


@every(PATHWISE)
def test_forward_mode_alone_and_over_reverse(name):
    ours, reference = pair(name)
    for order in (lambda f: f, grad):
        got, want = (jvp(order(f), (THETA,), (DIRECTION,)) for f in (ours, reference))
        close(got[0], want[0])
        close(got[1], want[1])


@every(PATHWISE)
def test_forward_mode_of_the_sample_itself(name):
    estimator = VARIANTS[name](gt.Categorical(THETA))
    noise = noise_for_rows(estimator, THETA)
    got = jvp(lambda x: plain(estimator)(x, noise=noise), (THETA,), (DIRECTION,))
    want = jvp(lambda x: reference_sample(estimator, x, noise), (THETA,), (DIRECTION,))
    close(got[0], want[0])
    close(got[1], want[1])


@pytest.mark.parametrize("family", ["categorical", "bernoulli"])
def test_enumerate_is_exact_to_second_order(family):
    p = problem(family)

    def ours(x):
        return gt.expect(p.lookup, p.dist(x[None]), gt.Enumerate()).sum()

    def total(x):
        return expectation(p, p.lookup, x)

    close(hessian(ours)(p.logits), hessian(total)(p.logits), 1e-12)
    x = p.logits.clone().requires_grad_()
    (first,) = torch.autograd.grad(ours(x), x, create_graph=True)
    close(first, exact(p, p.lookup)[1], 1e-12)
    (second,) = torch.autograd.grad(first.sum(), x)
    close(second, hessian(total)(p.logits).flatten(x.ndim).sum(-1), 1e-12)


def score_loss(name, p):
    """The estimate as a function of the logits, on fixed noise, for an f as rough as it may be."""
    dist = p.dist(p.logits[None])
    estimator = VARIANTS[name](dist)
    n = samples_for(estimator, 2)
    noise = uniform(*estimator.noise_shape(dist.expand(n)))
    f = p.cubic if estimator.traits.needs_point_gradients else p.lookup
    return lambda x: gt.expect(f, p.dist(x[None]), estimator, samples=n, noise=noise).sum()


@every(SCORE)
def test_forward_mode_of_a_score_function_is_its_gradient(name):
    p = problem(family_of(name))
    loss = score_loss(name, p)
    along = normal(*p.logits.shape, seed=44)
    value, tangent = jvp(loss, (p.logits,), (along,))
    close(value, loss(p.logits))
    close(tangent, (grad(loss)(p.logits) * along).sum())


@every(SCORE)
def test_a_second_derivative_of_a_score_function_is_refused(name):
    p = problem(family_of(name))
    loss = score_loss(name, p)
    x = p.logits.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(x), x, create_graph=True)
    with pytest.raises(gt.UnsupportedError, match="second derivative"):
        first.sum().backward()


NESTED = {
    "hessian": hessian,
    "jacrev of jacrev": lambda f: jacrev(jacrev(f)),
    "jacrev of jacfwd": lambda f: jacrev(jacfwd(f)),
    "jacfwd of jacfwd": lambda f: jacfwd(jacfwd(f)),
}


@every(SCORE)
@pytest.mark.parametrize("transform", NESTED)
def test_a_second_derivative_of_a_score_function_is_refused_in_every_mode(name, transform):
    p = problem(family_of(name))
    with pytest.raises(gt.UnsupportedError, match="second derivative"):
        NESTED[transform](score_loss(name, p))(p.logits)


@every(VARIANTS)
def test_vmap_of_grad_is_a_loop(name):
    p = problem(family_of(name))
    logits = normal(5, *p.logits.shape, seed=45)
    estimator = VARIANTS[name](p.dist(logits[0]))
    n = samples_for(estimator, 2)
    shape = estimator.noise_shape(p.dist(logits[0]).expand(n))
    noise = torch.stack([uniform(*shape, seed=i) for i in range(5)])

    def loss(x, u):
        return gt.expect(
            lambda z: p.cubic(z[:, None])[:, 0], p.dist(x), estimator, samples=n, noise=u
        )

    got = vmap(grad(loss))(logits, noise)
    want = torch.stack([grad(loss)(x, u) for x, u in zip(logits, noise, strict=True)])
    close(got, want, 1e-12)
    x = logits.clone().requires_grad_()
    total = sum(loss(row, u) for row, u in zip(x, noise, strict=True))
    close(torch.autograd.grad(total, x)[0], want, 1e-12)


@every(VARIANTS)
def test_vmap_of_jvp_is_a_loop(name):
    p = problem(family_of(name))
    logits, along = (normal(4, *p.logits.shape, seed=s) for s in (45, 46))
    dist = p.dist(logits[0])
    estimator = VARIANTS[name](dist)
    n = samples_for(estimator, 2)
    noise = uniform(*estimator.noise_shape(dist.expand(n)))  # the same for every row

    def loss(x):
        return gt.expect(
            lambda z: p.cubic(z[:, None])[:, 0], p.dist(x), estimator, samples=n, noise=noise
        )

    value, tangent = vmap(lambda x, t: jvp(loss, (x,), (t,)))(logits, along)
    close(value, torch.stack([loss(x) for x in logits]), 1e-12)
    want = [(grad(loss)(x) * t).sum() for x, t in zip(logits, along, strict=True)]
    close(tangent, torch.stack(want), 1e-12)


@every(VARIANTS)
def test_parameters_of_f_get_the_same_gradient_from_every_transform(name):
    p = problem(family_of(name))
    logits, w = normal(5, *p.logits.shape, seed=45), normal(p.linear.numel(), seed=48)
    estimator = VARIANTS[name](p.dist(logits))
    n = samples_for(estimator, 2)
    noise = uniform(*estimator.noise_shape(p.dist(logits).expand(n)))

    def loss(w, x):
        f = lambda z: (p.flat(z) @ w) ** 3 + w.sum()  # noqa: E731
        return gt.expect(f, p.dist(x), estimator, samples=n, noise=noise)

    both = w.clone().requires_grad_(), logits.clone().requires_grad_()
    want = torch.autograd.grad(loss(*both).sum(), both)
    for got in (
        grad(lambda w, x: loss(w, x).sum(), argnums=(0, 1))(w, logits),
        [jacobian.sum(0) for jacobian in jacrev(loss, argnums=(0, 1))(w, logits)],
        [jacobian.sum(0) for jacobian in jacfwd(loss, argnums=(0, 1))(w, logits)],
    ):
        for one, other in zip(got, want, strict=True):
            close(one, other, 1e-12)
    alone = grad(lambda w: loss(w, logits).sum())(w)  # with logits that nobody differentiates
    close(alone, want[0], 1e-12)


@every(SCORE)
def test_vmap_of_a_score_function_draws_different_noise_for_each_row(name):
    p = problem(family_of(name))
    estimator = VARIANTS[name](p.dist(p.logits))
    n = samples_for(estimator)

    def loss(x):
        f = lambda z: p.cubic(z[:, None])[:, 0]  # noqa: E731
        return gt.expect(f, p.dist(x), estimator, samples=n)

    rows = p.logits.expand(64, *p.logits.shape).clone()
    assert len(vmap(loss, randomness="different")(rows).unique()) > 1
    assert vmap(grad(loss), randomness="different")(rows).isfinite().all()


@every(PATHWISE)
def test_vmap_over_any_dim_of_the_function_form(name):
    estimator = VARIANTS[name](gt.Categorical(THETA))
    stack = normal(3, 7, 4, seed=46)
    noise = noise_for_rows(estimator, stack.movedim(1, 0))
    got = vmap(lambda x, u: plain(estimator)(x, noise=u), in_dims=(1, 0), out_dims=1)(stack, noise)
    want = plain(estimator)(stack.movedim(1, 0), noise=noise).movedim(0, 1)
    close(got, want, 1e-15)
    one = vmap(lambda u: plain(estimator)(stack[:, 0], noise=u))(noise)  # the noise alone
    close(one, plain(estimator)(stack[:, :1].movedim(1, 0).expand(7, 3, 4), noise=noise), 1e-15)


def test_vmap_over_an_inner_dim_of_the_kernel():
    """The function forms move the mapped dim to the front before the kernel sees it."""
    stack, u = normal(5, 7, 4, seed=46), uniform(5, 7)
    upstream = normal(5, 7, 4, seed=47)

    def both(x, u, g):
        z, back = vjp(lambda x: launch(ReinMaxKernel(1.3), x, u), x)
        return z, back(g)[0]

    got = vmap(both, in_dims=1, out_dims=1)(stack, u, upstream)
    for one, want in zip(got, both(stack, u, upstream), strict=True):
        close(one, want, 1e-15)


@every(PATHWISE)
def test_vmap_draws_different_noise_for_each_row(name):
    estimator = VARIANTS[name](gt.Categorical(THETA))
    rows = torch.zeros(64, 4, dtype=F64)
    z = vmap(plain(estimator), randomness="different")(rows)
    assert len(z.unique(dim=0)) >= 4
    gradient = vmap(grad(lambda x: curved(plain(estimator)(x)[None])), randomness="different")(rows)
    assert gradient.isfinite().all()


@every(PATHWISE)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_with_given_noise_recomputes_the_same_sample(name, reentrant):
    estimator = VARIANTS[name](gt.Categorical(THETA))
    noise, seen = noise_for_rows(estimator, THETA), []

    def body(x):
        z = plain(estimator)(x, noise=noise)
        seen.append(z.detach())
        return curved(z)

    x = THETA.clone().requires_grad_()
    (want,) = torch.autograd.grad(body(x), x)
    checkpoint(body, x, use_reentrant=reentrant).backward()
    assert torch.equal(seen[1], seen[2])
    assert torch.equal(x.grad, want)


@every(VARIANTS)
def test_autocast_changes_nothing(name):
    p = problem(family_of(name))
    x = normal(6, *p.logits.shape, seed=51, dtype=torch.float32).requires_grad_()
    dist = p.dist(x)
    estimator = VARIANTS[name](dist)
    n = samples_for(estimator)
    noise = uniform(*estimator.noise_shape(dist.expand(n)))
    table = p.linear.float()

    def gradient():
        out = gt.expect(
            lambda z: ((z.flatten(2) * table).sum(-1)) ** 2, dist, estimator, samples=n, noise=noise
        )
        return torch.autograd.grad(out.sum(), x)[0]

    want = gradient()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = gradient()
    assert torch.equal(got, want)


@every(VARIANTS)
def test_without_grad_mode_there_is_a_value_and_no_graph(name):
    p = problem(family_of(name))
    dist = p.dist(normal(6, *p.logits.shape).requires_grad_())
    estimator = VARIANTS[name](dist)
    n = samples_for(estimator, 2)
    noise = uniform(*estimator.noise_shape(dist.expand(n)))
    want = gt.expect(p.cubic, dist, estimator, samples=n, noise=noise)
    assert want.requires_grad
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            out = gt.estimate(p.cubic, dist, estimator, samples=n, noise=noise)
        assert torch.equal(out.value, want)
        assert not out.value.requires_grad
        assert out.tuning_loss is None


def test_unbiased_under_vmap_over_the_draws():
    """The mean over draws, taken by vmap instead of by a batch dim, is exact too."""
    p = problem(variables=1, classes=3)
    want = exact(p, p.lookup)[1]
    assert set(UNBIASED) >= {"rloo"}
    close(mean("rloo", p, p.lookup).gradient, want, 1e-12)
    pi = p.logits.softmax(-1)[0]
    noise = torch.cartesian_prod(*[pi.cumsum(0) - pi / 2] * 2)[..., None]
    weight = torch.cartesian_prod(pi, pi).prod(-1)

    def loss(u):
        return lambda x: gt.expect(
            lambda z: p.lookup(z[:, None])[:, 0], p.dist(x), gt.RLOO(), samples=2, noise=u
        )

    each = vmap(lambda u: grad(loss(u))(p.logits))(noise)
    close((weight[:, None, None] * each).sum(0), want, 1e-12)
