"""Activation checkpointing draws once more in the recompute, unless it is told what was drawn."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import gradthrough as gt
from problems import VARIANTS, every, family_of, normal, problem, samples_for, uniform

W = torch.linspace(-1.0, 1.0, 300, dtype=torch.float64).reshape(100, 3)


def gradient(draw, **options):
    """Return the gradient of a nonlinear loss of a checkpointed sample, and the sample."""
    x = torch.zeros(100, 3, dtype=torch.float64, requires_grad=True)
    samples = []

    def block(logits):
        z = draw(logits)
        samples.append(z.detach())
        return (z * W).sum(-1).exp() * z[:, 0]

    out = checkpoint(block, x, use_reentrant=False, **options) if options else block(x)
    out.sum().backward()
    return x.grad, samples


def seeded():
    return torch.Generator().manual_seed(3)


def test_given_noise_is_the_same_in_the_recompute():
    noise = torch.rand(100, dtype=torch.float64, generator=seeded())
    draw = lambda logits: gt.reinmax(logits, noise=noise)  # noqa: E731
    want, _ = gradient(draw)
    got, samples = gradient(draw, preserve_rng_state=True)
    assert len(samples) == 2
    assert torch.equal(got, want)


@every()
@pytest.mark.parametrize("reentrant", [False, True])
def test_every_estimator_recomputes_the_same_from_given_noise(name, reentrant):
    """Also where f is differentiated at points inside of what is recomputed."""
    p = problem(family_of(name))
    x = normal(6, *p.logits.shape).requires_grad_()
    w = normal(p.linear.numel(), seed=4).requires_grad_()
    estimator = VARIANTS[name](p.dist(x))
    n = samples_for(estimator, 2)
    noise = uniform(*estimator.noise_shape(p.dist(x).expand(n)))

    def block(x, w):
        f = lambda z: (p.flat(z) @ w) ** 3  # noqa: E731
        return gt.expect(f, p.dist(x), estimator, samples=n, noise=noise).sum()

    want = torch.autograd.grad(block(x, w), (x, w))
    checkpoint(block, x, w, use_reentrant=reentrant).backward()
    assert torch.equal(x.grad, want[0])
    assert torch.equal(w.grad, want[1])


def test_preserve_makes_a_generator_repeat_itself_and_go_on():
    g, h = seeded(), seeded()
    want, _ = gradient(lambda logits: gt.reinmax(logits, generator=g))
    got, samples = gradient(
        lambda logits: gt.reinmax(logits, generator=h), context_fn=gt.preserve(h)
    )
    assert torch.equal(samples[0], samples[1])
    assert torch.equal(got, want)
    assert torch.equal(g.get_state(), h.get_state())


def test_without_it_a_generator_draws_anew():
    g = seeded()
    _, samples = gradient(lambda logits: gt.reinmax(logits, generator=g), preserve_rng_state=True)
    assert not torch.equal(samples[0], samples[1])


@pytest.mark.parametrize("times", [2, 3])
def test_several_checkpoints_keep_their_states_apart(times):
    g, h = seeded(), seeded()

    def loss(generator, wrap):
        x = torch.zeros(100, 3, dtype=torch.float64, requires_grad=True)
        block = lambda y: gt.reinmax(y, generator=generator)  # noqa: E731
        zs = [wrap(block, x) for _ in range(times)]
        torch.stack([(z * W).sum(-1).exp() for z in zs]).prod(0).sum().backward()
        return x.grad

    want = loss(g, lambda block, x: block(x))
    got = loss(
        h, lambda block, x: checkpoint(block, x, use_reentrant=False, context_fn=gt.preserve(h))
    )
    assert torch.equal(got, want)
