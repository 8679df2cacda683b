"""Derivatives asked for in ways older than torch.func: dual levels, and batches of gradients."""

import pytest
import torch
from torch.autograd import forward_ad

import gradthrough as gt
from gradthrough.estimators.pathwise import AbstractLaunched
from problems import PATHWISE, VARIANTS, noise_for_rows, normal, plain

TWO = gt.Categorical(torch.zeros(1, 2))
LAUNCHED = [n for n in PATHWISE if isinstance(VARIANTS[n](TWO), AbstractLaunched)]


def problem(name, classes):
    x, tangent, slope = normal(3, 4, classes, seed=61)
    estimator = VARIANTS[name](gt.Categorical(x))
    noise = noise_for_rows(estimator, x, seed=62)
    return x, tangent, slope, lambda y: plain(estimator)(y, noise=noise)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 21])
@pytest.mark.parametrize("name", LAUNCHED)
def test_a_backward_below_a_dual_level_carries_the_tangent(name, classes, create_graph):
    x, tangent, slope, sample = problem(name, classes)
    gradient = torch.func.grad(lambda y: (sample(y) * slope).sum())
    want = torch.func.jvp(gradient, (x,), (tangent,))[1]
    leaf = x.clone().requires_grad_()
    with forward_ad.dual_level():
        z = sample(forward_ad.make_dual(leaf, tangent))
        (g,) = torch.autograd.grad((z * slope).sum(), leaf, create_graph=create_graph)
        got = forward_ad.unpack_dual(g).tangent
    torch.testing.assert_close(got, want, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 21])
@pytest.mark.parametrize("name", LAUNCHED)
def test_a_batch_of_gradients_is_each_of_them(name, classes, create_graph):
    x, _, _, sample = problem(name, classes)
    leaf = x.clone().requires_grad_()
    z = sample(leaf)
    many = normal(5, 4, classes, seed=63)

    def pull(g, **options):
        return torch.autograd.grad(z, leaf, g, create_graph=create_graph, **options)[0]

    got = pull(many, is_grads_batched=True, retain_graph=True)
    want = torch.stack([pull(g, retain_graph=True) for g in many])
    torch.testing.assert_close(got, want, rtol=0.0, atol=1e-12)
