"""torch.compile(fullgraph=True): the numbers of eager code, and its own noise."""

import shutil
from dataclasses import fields

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch.func import grad, vmap

import gradthrough as gt
from problems import (
    ANY,
    DISCRETE,
    F64,
    PATHWISE,
    VARIANTS,
    family_of,
    normal,
    problem,
    samples_for,
    select,
    uniform,
)

SLOPE = normal(3, seed=48)


def close(got, want, tolerance=1e-10):
    torch.testing.assert_close(got, want, rtol=0.0, atol=tolerance)


# torch's own tracer makes an instance of every autograd.Function that it meets.
INSIDE_TORCH = pytest.mark.filterwarnings("ignore:.*should not be instantiated")
pytestmark = [pytest.mark.slow, INSIDE_TORCH]


def traced_apart(name):
    """Whether a variant may be traced on another way than its estimator by default."""
    one = VARIANTS[name](ANY)
    options = [(getattr(one, f.name), getattr(type(one)(), f.name)) for f in fields(one)]
    return any(
        x is not default and (isinstance(x, bool) or not isinstance(x, int | float))
        for x, default in options
    )


SLOW = select(lambda e: e.traits.noise == "variable+seed" and e.k > 10)
COMPILED = [name for name in VARIANTS if name in gt.ESTIMATORS or traced_apart(name)]
COMPILED += select(lambda e: e.traits.noise == "variable+seed")
COMPILED = [name for name in dict.fromkeys(COMPILED) if name not in SLOW]


def setting(name):
    """A problem, leaf logits, an estimator and its number of samples."""
    p = problem(family_of(name))
    x = normal(6, *p.logits.shape).requires_grad_()
    estimator = VARIANTS[name](p.dist(x))
    return p, x, estimator, samples_for(estimator, 2)


READS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
}


def recording():
    """A backend, and the graphs that it is given, forward and backward."""
    graphs = []

    def keep(module, inputs):
        graphs.append(module.graph)
        return make_boxed_func(module.forward)

    return aot_autograd(fw_compiler=keep, bw_compiler=keep), graphs


def waits(graphs):
    """The nodes whose number the host would have to read, or has to send."""
    for node in (node for graph in graphs for node in graph.nodes):
        value = node.meta.get("val")
        if node.target in READS or node.op == "get_attr" or isinstance(value, torch.SymInt):
            yield f"{node.name}: {node.target}"


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_code_equals_eager_code_in_one_graph_that_never_waits(name, compiler):
    p, x, estimator, n = setting(name)
    noise = uniform(*estimator.noise_shape(p.dist(x).expand(n)))
    w = normal(x[0].numel(), seed=52).requires_grad_()

    def loss(x, u):
        f = lambda z: p.cubic(z) * (p.flat(z) @ w).sin()  # noqa: E731
        return gt.expect(f, p.dist(x), estimator, samples=n, noise=u).sum()

    def results(call, x, u):
        value = call(x, u)
        return value.detach(), *torch.autograd.grad(value, (x, w))

    backend, graphs = recording()
    compiled = compiler(loss, backend)
    for got, want in zip(results(compiled, x, noise), results(loss, x, noise), strict=True):
        close(got, want, 1e-12)
    other = normal(*x.shape, seed=53).requires_grad_(), uniform(*noise.shape, seed=53)
    with torch.compiler.set_stance("fail_on_recompile"):
        again = results(compiled, *other)
    for got, want in zip(again, results(loss, *other), strict=True):
        close(got, want, 1e-12)
    assert len(graphs) == 2
    if estimator.traits.pathwise or name == "rloo":
        assert not list(waits(graphs))


@pytest.mark.parametrize("name", [n for n in COMPILED if n in PATHWISE or n == "rloo"])
def test_compiled_code_draws_the_noise_of_eager_code(name, compiler):
    """Where a graph is run as it is. Inductor has random numbers of its own."""
    p, x, estimator, n = setting(name)
    loss = lambda x: gt.expect(p.cubic, p.dist(x), estimator, samples=n).sum()  # noqa: E731

    def results(call, seed):
        torch.manual_seed(seed)
        value = call(x)
        return value.detach(), *torch.autograd.grad(value, x)

    compiled = compiler(loss, "eager")
    got = results(compiled, 1)
    with torch.compiler.set_stance("fail_on_recompile"):
        again = results(compiled, 2)
    for one, seed in ((got, 1), (again, 2)):
        for value, want in zip(one, results(loss, seed), strict=True):
            close(value, want, 1e-12)
    assert not torch.equal(got[0], again[0])


@pytest.mark.parametrize("name", COMPILED)
def test_per_example_gradients_within_compiled_code(name, compiler):
    """They are lost in the first stage of the compiler, or not at all."""
    p, x, _, n = setting(name)
    one = p.dist(x[0])
    estimator = VARIANTS[name](one)
    noise = torch.stack([uniform(*estimator.noise_shape(one.expand(n)), seed=i) for i in range(6)])

    def loss(x, u):
        f = lambda z: p.cubic(z[:, None])[:, 0]  # noqa: E731
        return gt.expect(f, p.dist(x), estimator, samples=n, noise=u)

    call = vmap(grad(loss))
    close(compiler(call, "eager")(x.detach(), noise), call(x.detach(), noise), 1e-12)


KINDS = {VARIANTS[name](ANY).traits.noise: name for name in COMPILED}


@pytest.mark.parametrize("name", [name for kind, name in KINDS.items() if kind != "none"])
def test_compiled_code_draws_noise_of_every_kind(name, compiler):
    p, _, _, n = setting(name)
    x = normal(1, *p.logits.shape).expand(200, *p.logits.shape).clone().requires_grad_()

    def estimate(x):
        return gt.expect(p.cubic, p.dist(x), VARIANTS[name](p.dist(x)), samples=n)

    compiled = compiler(estimate)
    first, second = compiled(x), compiled(x)
    assert first.isfinite().all()
    assert len(first.unique()) > 1
    assert not torch.equal(first, second)
    assert torch.autograd.grad(first.sum(), x)[0].isfinite().all()


SLOPES = select(lambda e: e.traits.needs_point_gradients and not getattr(e, "control", None))


@pytest.mark.parametrize("name", [name for name in SLOPES if name in gt.ESTIMATORS])
def test_an_f_without_slope_is_refused_while_tracing(name, compiler):
    """The tracer tells the error as its own; eager code raises it."""
    p, x, estimator, n = setting(name)
    f = lambda z: p.cubic(z.detach())  # noqa: E731
    loss = lambda x: gt.expect(f, p.dist(x), estimator, samples=n).sum()  # noqa: E731
    with pytest.raises(RuntimeError, match=r"UnsupportedError.*needs the gradient of f"):
        compiler(loss)(x)
    with pytest.raises(gt.UnsupportedError, match="needs the gradient of f"):
        loss(x)


LEARN = [name for name in DISCRETE if VARIANTS[name](ANY).traits.scalars]


@pytest.mark.parametrize("name", LEARN)
def test_compiled_code_learns_the_same_but_for_a_temperature(name, compiler):
    p, x, estimator, n = setting(name)
    copy, owner = estimator.learned(p.dist(x))
    owner.double()
    noise = uniform(*copy.noise_shape(p.dist(x).expand(n)))

    def loss(x, u):
        out = gt.estimate(p.cubic, p.dist(x), copy, samples=n, noise=u)
        return out.value.sum(), out.tuning_loss

    names, parameters = zip(*owner.named_parameters(), strict=True)
    want, got = (
        torch.autograd.grad(call(x, noise)[1], parameters, allow_unused=True)
        for call in (loss, compiler(loss))
    )
    for which, one, other in zip(names, got, want, strict=True):
        if which.endswith("tau"):
            assert one is None or not one.any()
        else:
            close(one, other)


@pytest.mark.parametrize(("outer", "inner"), [("rebar", "rloo"), ("muprop", "reinmax")])
def test_compiled_code_nests(outer, inner, compiler):
    x, w = normal(5, 3).requires_grad_(), normal(3, 3, seed=53).requires_grad_()
    u, v = VARIANTS[outer](ANY), VARIANTS[inner](ANY)
    n, k = samples_for(u), samples_for(v)
    points = u.evaluations(gt.Categorical(x), n)
    first = uniform(*u.noise_shape(gt.Categorical(x).expand(n)), seed=1)
    rows = gt.Categorical(torch.zeros(points, 5, 3, dtype=F64))
    second = uniform(*v.noise_shape(rows.expand(k)), seed=2)

    def loss(x, w):
        def f(z1):
            inside = lambda z2: ((z1 * z2).sum(-1) + z2 @ SLOPE) ** 2  # noqa: E731
            return gt.expect(inside, z1 @ w, v, samples=k, noise=second)

        return gt.expect(f, x, u, samples=n, noise=first).sum()

    want = torch.autograd.grad(loss(x, w), (x, w))
    for one, other in zip(torch.autograd.grad(compiler(loss)(x, w), (x, w)), want, strict=True):
        close(one, other)


NEEDS_COMPILER = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="Inductor needs a C++ compiler"
)


@pytest.mark.parametrize(
    ("backend", "sample"),
    [
        pytest.param("inductor", gt.reinmax, marks=NEEDS_COMPILER),
        ("aot_eager", lambda x: gt.gumbel_softmax(x, hard=True)),
        ("aot_eager", lambda x: gt.gumbel_rao(x, 0.5, 3)),
        ("aot_eager", gt.redge),
        ("aot_eager", lambda x: gt.reindge(x, covariance=True)),
    ],
)
def test_compiled_code_draws_its_own_noise_and_poisons_unsound_rows(backend, sample, compiler):
    x = normal(400, 3).requires_grad_()
    compiled = compiler(lambda x: sample(x), backend)
    z, again = compiled(x), compiled(x)
    assert bool((z.sum(-1) == 1).all())
    assert not torch.equal(z, again)
    bad = x.detach().clone()
    bad[7, 0] = torch.nan
    bad.requires_grad_()
    z = compiled(bad)
    (gradient,) = torch.autograd.grad(z, bad, torch.ones_like(z) * SLOPE)
    for result in (z, gradient):
        assert result[7].isnan().all()
        assert result[8:].isfinite().all()


def test_compiled_code_with_a_learned_temperature(compiler):
    x = normal(5, 3).requires_grad_()
    tau = torch.tensor(0.7, dtype=F64, requires_grad=True)
    u = uniform(5, 3)
    loss = lambda x, tau, u: (gt.gumbel_softmax(x, tau, noise=u) @ SLOPE).square().sum()  # noqa: E731
    want = torch.autograd.grad(loss(x, tau, u), (x, tau))
    got = torch.autograd.grad(compiler(loss)(x, tau, u), (x, tau))
    close(got[0], want[0])
    close(got[1], want[1])
