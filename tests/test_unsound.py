"""Rows of logits that are no distribution: refused, or NaN in sample and gradient."""

import pytest
import torch
from torch.func import grad, jvp, vmap

import gradthrough as gt
from problems import (
    F64,
    PATHWISE,
    SERVED,
    VARIANTS,
    case,
    law,
    noise_for_rows,
    normal,
    plain,
)

SLOPE = normal(4, seed=48)

TRANSFORMS = {
    "none": lambda f: f,
    "autograd": lambda f: lambda x: torch.autograd.grad(f(x.requires_grad_()).sum(), x)[0],
    "grad": grad,
    "vmap": vmap,
    "vmap of grad": lambda f: vmap(grad(f)),
    "jvp": lambda f: lambda x: jvp(f, (x,), (torch.ones_like(x),)),
}


def unsound(value, transform):
    """Logits with one bad row, in the shape the transform asks for."""
    rows = normal(3, 4, seed=47)
    rows[1] = torch.tensor([0.0, value, 0.0, 0.0]) if value == value and value > 0 else value
    return rows[:, None] if "vmap" in transform else rows


# A Bernoulli whose logit is -inf is 0 for certain.
UNSOUND = [
    (name, family, value)
    for name, family in SERVED
    for value in (torch.nan, torch.inf, -torch.inf)
    if value != -torch.inf or family == "categorical"
]


@pytest.mark.parametrize(("name", "family", "value"), UNSOUND)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_an_unsound_row_raises_under_every_transform(name, family, transform, value):
    shape = (1, 4) if "vmap" in transform else (3, 4)
    _, estimator, n, noise = case(name, torch.zeros(shape, dtype=F64), family)

    def loss(x):
        q = law(name, x, family)
        return gt.expect(lambda z: (z @ SLOPE) ** 2, q, estimator, samples=n, noise=noise).sum()

    with pytest.raises(gt.DomainError, match="rows have no distribution"):
        TRANSFORMS[transform](loss)(unsound(value, transform))


@pytest.mark.parametrize(("name", "family", "value"), UNSOUND)
def test_unchecked_an_unsound_row_is_nan_and_the_others_are_not(name, family, value):
    """A variable alone, if it is unsound; its whole row, where f sees several at once."""
    x = unsound(value, "none").requires_grad_()
    _, estimator, n, noise = case(name, torch.zeros(3, 4, dtype=F64), family)
    gt.set_validation(False)
    q = law(name, x, family)
    points = estimator.draw(q.expand(n), noise).points.detach()
    out = gt.expect(lambda z: (z @ SLOPE) ** 2, q, estimator, samples=n, noise=noise)
    gradient = torch.autograd.grad(out.sum(), x)[0]
    if getattr(estimator, "proposal", None) is None:  # whose law is another, and sound
        wrong = ~x[1].isfinite() | torch.tensor(family == "categorical")
        assert points[:, 1, wrong].isnan().all()
    assert points[:, ::2].isfinite().all()
    assert out.isnan().tolist() == [False, True, False]
    assert gradient[1].isnan().all()
    assert gradient[::2].isfinite().all()


@pytest.mark.parametrize("name", PATHWISE)
@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_unchecked_an_unsound_row_gives_a_nan_sample_and_gradient(name, classes, value):
    logits = normal(3, classes, seed=49)
    logits[1, 0] = value
    estimator = VARIANTS[name](gt.Categorical(logits))
    noise = noise_for_rows(estimator, logits)
    gt.set_validation(False)
    x = logits.requires_grad_()
    z = plain(estimator)(x, noise=noise)
    gradient = torch.autograd.grad(z, x, normal(3, classes, seed=50))[0]
    for result in (z, gradient):
        assert result[1].isnan().all()
        assert result[::2].isfinite().all()
