"""A backward that is told to recompute the forward uses what the forward drew."""

import shutil
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch._functorch import config
from torch.autograd.graph import region_activation_memory_budget
from torch.func import grad, vmap
from torch.utils.checkpoint import checkpoint

import gradthrough as gt
from gradthrough._random import uniforms
from problems import normal

pytestmark = [
    pytest.mark.slow,
    # torch's own tracer makes an instance of every autograd.Function that it meets.
    pytest.mark.filterwarnings("ignore:.*should not be instantiated"),
]
NEEDS_COMPILER = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="Inductor needs a C++ compiler"
)
SETTINGS = {
    "budget 0": lambda: config.patch(activation_memory_budget=0.0),
    "budget 0.5": lambda: config.patch(activation_memory_budget=0.5),
    "aggressive": lambda: config.patch(aggressive_recomputation=True),
    "no allowlist": lambda: config.patch(ban_recompute_not_in_allowlist=False),
}
SAMPLES = {
    "reinmax": gt.reinmax,
    "straight_through": gt.straight_through,
    "gumbel_softmax": lambda x: gt.gumbel_softmax(x, hard=True),
    "gumbel_rao": lambda x: gt.gumbel_rao(x, 0.5, 3),
}


def logits(rows=60):
    return normal(rows, 3, seed=7).requires_grad_()


def score(z):
    """A loss whose gradient in z is one at another class than the drawn one, else zero."""
    return (z * z.detach().roll(1, -1)).sum()


def agrees(name, x, z, gradient):
    """Return, row by row, whether the gradient of `score` is that of the sample z."""
    x, z = x.detach(), z.detach()
    g = z.roll(1, -1)
    if name in ("reinmax", "straight_through"):
        p = x.softmax(-1)
        pull = lambda q: q * (g - (q * g).sum(-1, keepdim=True))  # noqa: E731
        want = 2 * pull((p + z) / 2) - pull(p) / 2 if name == "reinmax" else pull(p)
        return (gradient - want).abs().amax(-1) < 1e-12
    # Of a softmax y it is -y_j y_i / tau at i other than j, where g is one: least where y is
    # largest, which is at the class drawn.
    return gradient.argmin(-1) == z.argmax(-1)


def gradients(call, *leaves):
    """Return the sample, and the gradients, after other numbers have been drawn."""
    for x in leaves:
        x.grad = None
    value, z = call(*leaves)
    torch.rand(7)
    value.backward()  # a reentrant checkpoint knows no torch.autograd.grad
    return z, [x.grad for x in leaves]


def scored(sample):
    def loss(x):
        z = sample(x)
        return score(z), z

    return loss


@NEEDS_COMPILER
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_backward_of_inductor_uses_the_draws_of_the_forward(setting, compiler):
    names = [n for n in SAMPLES if n != "gumbel_rao" or setting == "budget 0"]  # slow to build

    def loss(*leaves):
        samples = [SAMPLES[name](x) for name, x in zip(names, leaves, strict=True)]
        return sum(map(score, samples)), samples

    leaves = [logits() for _ in names]
    with SETTINGS[setting]():
        samples, results = gradients(compiler(loss, "inductor"), *leaves)
    for name, x, z, g in zip(names, leaves, samples, results, strict=True):
        assert agrees(name, x, z, g).all(), name
    assert not torch.equal(samples[0], samples[1])


@NEEDS_COMPILER
@pytest.mark.parametrize("setting", [*SETTINGS, "region"])
def test_a_bare_draw_is_that_of_eager_code(setting, compiler):
    """So cheap that the backward draws it again under every setting, if it is let."""

    def loss(x):
        z = x * uniforms(tuple(x.shape), x.device, None)
        return z.sin().sum(), z

    def within(x):
        with region_activation_memory_budget(0.0):
            return loss(x)

    x = logits()
    with SETTINGS.get(setting, nullcontext)():
        compiled = compiler(within if setting == "region" else loss, "inductor")
        for seed in (1, 2):
            torch.manual_seed(seed)
            z, (g,) = gradients(compiled, x)
            torch.manual_seed(seed)
            want_z, (want_g,) = gradients(loss, x)
            assert torch.equal(z, want_z)
            torch.testing.assert_close(g, want_g, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("traced", [False, True])
def test_a_checkpoint(traced, name, reentrant, compiler):
    loss, x = scored(SAMPLES[name]), logits()
    call = lambda x: checkpoint(loss, x, use_reentrant=reentrant)  # noqa: E731
    z, (g,) = gradients(compiler(call) if traced else call, x)
    assert agrees(name, x, z, g).all()


@NEEDS_COMPILER
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("setting", [nullcontext, SETTINGS["budget 0"]], ids=["free", "budget 0"])
def test_a_checkpoint_that_inductor_builds(setting, reentrant, compiler):
    loss, x = scored(gt.reinmax), logits()
    with setting():
        compiled = compiler(lambda x: checkpoint(loss, x, use_reentrant=reentrant), "inductor")
        z, (g,) = gradients(compiled, x)
    assert agrees("reinmax", x, z, g).all()


def test_graphs_with_no_backward_to_split_off(compiler):
    """A transform within the graph, and no gradient asked for."""
    loss, x = scored(gt.reinmax), logits()
    with SETTINGS["budget 0"]():
        each = compiler(vmap(grad(loss, has_aux=True), randomness="different"))
        g, z = each(x.detach())
        assert compiler(gt.reinmax)(x.detach()).sum() == len(x)
        with torch.no_grad():
            assert compiler(gt.reinmax)(x).sum() == len(x)
    assert agrees("reinmax", x, z, g).all()
    assert len(z.argmax(-1).unique()) > 1


@NEEDS_COMPILER
def test_the_sample_of_torch_is_drawn_anew(compiler):
    """Why the draw needs care. When this fails torch has learned it, and the test can go."""
    x = logits()
    with SETTINGS["budget 0"]():
        loss = scored(lambda x: F.gumbel_softmax(x, hard=True))
        z, (g,) = gradients(compiler(loss, "inductor"), x)
    assert not agrees("gumbel_softmax", x, z, g).all()
