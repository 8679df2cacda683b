"""torch.compile(fullgraph=True): the numbers of eager code, and its own noise."""

import shutil

import pytest
import torch

import gradthrough as gt
from problems import F64, VARIANTS, normal, problem, samples_for, select, uniform

SLOPE = normal(3, seed=48)


def close(got, want, tolerance=1e-10):
    torch.testing.assert_close(got, want, rtol=0.0, atol=tolerance)


# torch's own tracer makes an instance of every autograd.Function that it meets.
INSIDE_TORCH = pytest.mark.filterwarnings("ignore:.*should not be instantiated")
pytestmark = [pytest.mark.slow, INSIDE_TORCH]
MANY_INNER_DRAWS = select(lambda e: e.traits.noise == "variable+seed")  # 100 of them: slow
COMPILED = [name for name in gt.ESTIMATORS if name not in MANY_INNER_DRAWS]
COMPILED += ["gumbel_rao k", "reinmax tau", "st importance", "reinforce proposal"]
COMPILED += ["reinmax_rao tau", "reinmax_cv eta", "redge t1", "reindge covariance"]


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_code_equals_eager_code(name, compiler):
    p = problem()
    estimator = VARIANTS[name](p.dist(normal(6, 2, 3)))
    n = samples_for(estimator, 2)
    x = normal(6, 2, 3).requires_grad_()
    noise = uniform(*estimator.noise_shape(p.dist(x).expand(n)))

    def loss(x, u):
        return gt.expect(p.cubic, p.dist(x), estimator, samples=n, noise=u).sum()

    results = []
    for call in (loss, compiler(loss)):
        value = call(x, noise)
        results.append((value.detach(), torch.autograd.grad(value, x)[0]))
    close(results[1][0], results[0][0], 1e-12)
    close(results[1][1], results[0][1], 1e-12)


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
