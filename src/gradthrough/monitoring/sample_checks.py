"""Whether a sample is what a straight-through line should make, and whether a loss can use it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import torch
import torch.distributions as td
from torch import Tensor

from .._errors import ShapeError, UnsupportedError
from .._types import compute_dtype
from ..laws.base import Distribution
from .illnesses import Symptom

_MANY = 16  # variables: so many surrogates that are indefinite do not all point back by chance


def check_points(z: object, q: Distribution) -> Tensor:
    """Refuse what cannot be samples of q."""
    if not isinstance(z, Tensor) or not z.is_floating_point():
        came = z.dtype if isinstance(z, Tensor) else type(z).__name__
        raise UnsupportedError(
            f"z must be a floating-point tensor, one-hot for a categorical, but {came} came. Make "
            "indices one-hot: torch.nn.functional.one_hot(z, classes).to(logits.dtype)."
        )
    want = tuple(q.logits.shape)
    if tuple(z.shape[z.ndim - len(want) :]) != want:
        raise ShapeError(
            f"z must end in the shape of the logits, {want}, but has shape {tuple(z.shape)}. Pass "
            "the sample as it was drawn, not flattened."
        )
    return z


def distance(z: Tensor, q: Distribution) -> float:
    """Return how far the farthest entry of z is from that of the nearest point of q."""
    if not z.numel():
        return 0.0
    x = z.detach().to(compute_dtype(z.dtype))
    if q.family == "bernoulli":
        near = (x > 0.5).to(x.dtype)
    else:
        near = torch.zeros_like(x).scatter(-1, x.argmax(-1, keepdim=True), 1.0)
    return float((x - near).abs().amax())


def of_value(z: Tensor, q: Distribution, *, training: bool) -> Iterator[Symptom]:
    """Say whether a sample that should be hard is soft."""
    far = distance(z, q)
    if far <= 16 * torch.finfo(z.dtype).eps:  # hard - soft + soft is hard up to rounding
        return
    if training:
        yield Symptom(
            "soft_value",
            far,
            f"the sample is soft: an entry is {far:.2g} away from 0 or 1. A straight-through "
            "sample has the hard value and the soft gradient: hard + (soft - soft.detach()). With "
            "the two exchanged, soft + (hard - hard.detach()), the network trains on points that "
            "it never meets later.",
        )
    else:
        yield Symptom(
            "soft_at_evaluation",
            far,
            f"the model is evaluated on soft samples: an entry is {far:.2g} away from 0 or 1. What "
            "is measured is the relaxation, not the discrete model. Draw hard samples there: "
            "q.sample(), or a hard estimator such as StraightThroughGumbelSoftmax().",
        )


def of_loss(loss: Tensor, z: Tensor, q: Distribution) -> Iterator[Symptom]:
    """Say whether a loss that was made from z teaches the logits anything; its graph is kept."""
    yield from of_slope(_gradient(loss, z, torch.ones_like(loss)), q)


def _gradient(y: Tensor, x: Tensor, v: Tensor) -> Tensor | None:
    if not y.requires_grad:
        return None
    found: list[Tensor | None] = list(
        torch.autograd.grad([y], [x], [v], retain_graph=True, allow_unused=True)
    )
    return found[0]


def of_slope(gradient: Tensor | None, q: Distribution) -> Iterator[Symptom]:
    """Say whether dL/dz, of the shape of z, teaches the logits anything."""
    if gradient is None or not bool(gradient.any()):
        yield Symptom(
            "unused_sample",
            0.0,
            "the loss does not depend on the sample: dL/dz is 0. Check that z itself, not a "
            "detached or rounded copy of it, goes into the loss.",
        )
        return
    if q.family != "categorical" or q.classes < 2:
        return
    x = gradient.detach().to(compute_dtype(gradient.dtype))
    masked = q.logits.detach().isneginf().expand(x.shape)
    x = x.masked_fill(masked, 0.0)
    mean = x.sum(-1, keepdim=True) / (~masked).sum(-1, keepdim=True).clamp(min=1)
    ratio = float((x - mean).masked_fill(masked, 0.0).abs().amax() / x.abs().amax())
    if ratio <= 16 * torch.finfo(gradient.dtype).eps:
        yield Symptom(
            "sum_trap",
            ratio,
            f"dL/dz is the same for every class, up to {ratio:.2g} of it, and the classes of z sum "
            "to one: the loss does not change with the sample, and the gradient of the logits is "
            "0. Look for z.sum(-1) or z.mean(-1), or for weights that are equal over the classes.",
        )


def logits_of(q: object, law: Distribution) -> Tensor | None:
    """Return the logits that z can be a function of; None if they are not known.

    Those of one of torch's may be a copy, beside which z was made.
    """
    while isinstance(q, td.Independent):
        q = cast(object, q.base_dist)
    if not isinstance(q, td.Distribution):
        return law.logits
    found: object = vars(getattr(q, "_categorical", q)).get("logits")
    return found if isinstance(found, Tensor) else None


def of_jacobian(z: Tensor, logits: Tensor, q: Distribution, tau: float) -> Iterator[Symptom]:
    """Say whether the gradient of z in the logits of q can be that of a straight-through line.

    With J the Jacobian of z, and v a fixed direction, ``J^T v`` is held against that of
    softmax(logits / tau), which has ``v^T J v >= 0``; a tau of NaN is unknown.
    """
    v = torch.arange(logits.numel(), device=z.device).reshape(logits.shape)
    v = (2.4 * v.to(compute_dtype(z.dtype))).cos().to(z.dtype)  # no two classes alike, no noise
    slope = _gradient(z, logits, v.expand(z.shape))
    if slope is None:
        if logits is q.logits:
            yield _no_gradient("the sample has no gradient in the logits")
        return
    v = v.to(compute_dtype(z.dtype))
    pulled = slope.to(v.dtype) / (z.numel() // logits.numel())  # samples in front are summed over
    want = _of_softmax(v, q, 1.0 if math.isnan(tau) else tau)
    scale = _size(want)
    if scale <= 1e-6 * _size(v):  # a saturated law has no slope to compare with
        return
    if not bool(pulled.any()):
        yield _no_gradient("the gradient of the sample in the logits is 0")
        return
    factor = float((pulled * want).sum() / want.square().sum())
    close = max(1e-4, 8 * torch.finfo(z.dtype).eps)
    multiple = v.numel() > 2 and _size(pulled - factor * want) <= close * abs(factor) * scale
    each = (v * pulled).sum(-1) if q.family == "categorical" else v * pulled
    backward = float(each.amax()) <= 1e-3 * float(each.abs().amax())
    if (multiple and factor < 0) or (backward and each.numel() >= _MANY):
        yield _reversed(float(each.sum() / (v * want).sum()))
    elif multiple and abs(factor - 2.0) <= 2 * close and _tells(q, tau):
        yield _doubled(factor)


def _tells(q: Distribution, tau: float) -> bool:
    """Whether a factor of the Jacobian cannot be that of another temperature."""
    x = q.logits.detach()
    flat = x[~x.isneginf()]
    return not math.isnan(tau) and (tau == 1.0 or bool(flat.amax() > flat.amin()))


def _size(x: Tensor) -> float:
    return math.sqrt(float(x.square().sum()))


def _of_softmax(v: Tensor, q: Distribution, tau: float) -> Tensor:
    x = q.logits.detach().to(v.dtype) / tau
    if q.family == "bernoulli":
        return v * x.sigmoid() * (-x).sigmoid() / tau
    p = x.softmax(-1)
    return p * (v - (p * v).sum(-1, keepdim=True)) / tau


def _no_gradient(why: str) -> Symptom:
    return Symptom(
        "no_gradient",
        0.0,
        f"{why}. argmax and one_hot cut it, and in hard - soft + soft it cancels. Write hard + "
        "(soft - soft.detach()); if it is so already, tau may be so small that every soft sample "
        "is saturated, or these are not the logits that the sample was made from.",
    )


def _reversed(share: float) -> Symptom:
    return Symptom(
        "reversed_gradient",
        share,
        f"the gradient of the sample points the wrong way: along a test direction it is "
        f"{share:.2g} times that of softmax(logits / tau), and against it in every row. hard - "
        "soft + soft.detach() does that. Write hard + (soft - soft.detach()).",
    )


def _doubled(factor: float) -> Symptom:
    return Symptom(
        "doubled_gradient",
        factor,
        f"the gradient of the sample is {factor:.3g} times that of softmax(logits / tau): it "
        "counts twice. hard + (soft - soft.detach()) does that if hard already carries a gradient. "
        "Detach it: hard.detach() + (soft - soft.detach()).",
    )
