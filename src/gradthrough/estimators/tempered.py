"""Kernels whose temperature is a tensor: another one for each row, or one that is learned.

In plain torch, with the graph of the surrogate held for autograd: a term softmax((theta + c) / tau)
has a derivative in tau, too, ``-J(p) log p / tau``. Of a soft sample that is the derivative of
E f(S). No law of a hard sample has tau in it, so that E f(D) has the derivative 0 in tau: there it
is the surrogate's alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from .._attach import substitute
from .._errors import BackendError, ShapeError, UnsupportedError
from .._types import compute_dtype
from ..kernels.checks import check_rows
from ..kernels.eager import AbstractKernel, Kept
from ..kernels.softmax import centre, one_hot
from ..laws.base import Distribution
from .base import AbstractEstimator

_E = TypeVar("_E", bound=AbstractEstimator)


def temperature_of(kernel: AbstractKernel) -> Tensor | None:
    """Return the temperature of a kernel where it is a tensor."""
    tau = getattr(kernel, "tau", None)
    return tau if isinstance(tau, Tensor) else None


def with_classes(estimator: _E, dist: Distribution) -> _E:
    """Return the estimator with a tau for the class logits, from one for the logits of a law."""
    tau = getattr(estimator, "tau", None)
    if not isinstance(tau, Tensor):
        return estimator
    lacking = dist.logits.ndim - tau.ndim
    pairs = zip(tau.shape, dist.logits.shape[max(lacking, 0) :], strict=lacking >= 0)
    if lacking < 0 or any(a not in (1, b) for a, b in pairs):
        raise ShapeError(
            f"tau of shape {tuple(tau.shape)} must broadcast with logits of shape "
            f"{tuple(dist.logits.shape)}, whose first dim is the samples. One for each row has a "
            "size of 1 in the dims behind the rows."
        )
    return dataclasses.replace(cast(Any, estimator), tau=dist.class_tensor(tau))


def spread_along(tau: Tensor, logits: Tensor, dim: int) -> Tensor:
    """Return a temperature for each row of logits whose classes are moved to the end, (..., 1)."""
    if tau.device != logits.device:
        raise BackendError(
            f"tau lives on {tau.device}, but the logits on {logits.device}. "
            "Move it: tau.to(logits.device)."
        )
    shape = (1,) * (logits.ndim - tau.ndim) + tuple(tau.shape)
    fits = len(shape) == logits.ndim and shape[dim] == 1
    if not fits or any(a not in (1, b) for a, b in zip(shape, logits.shape, strict=True)):
        one_each = list(logits.shape)
        one_each[dim] = 1
        raise ShapeError(
            f"tau of shape {tuple(tau.shape)} must broadcast with logits of shape "
            f"{tuple(logits.shape)}, and be the same for all classes: size 1 along dim {dim}. One "
            f"for each row has shape {tuple(one_each)}."
        )
    return tau.reshape(shape).movedim(dim, -1)


def launch_tempered(kernel: AbstractKernel, logits: Tensor, noise: Tensor) -> Tensor:
    r"""Run a kernel whose tau (\*rows or 1s, 1) is a tensor.

    Args:
        kernel: which sample, and which surrogate.
        logits: (\*rows, C).
        noise: uniforms as ``kernel.noise`` says.

    Returns:
        The sample (\*rows, C) in the dtype of the logits, with the graph of the surrogate.

    Raises:
        UnsupportedError: tau is learned, and the surrogate has no derivative in it.
    """
    tau = temperature_of(kernel)
    check_rows(logits)
    dtype = compute_dtype(logits.dtype)
    theta, tau = logits.to(dtype), cast(Tensor, tau).to(dtype)
    fixed = cast(AbstractKernel, dataclasses.replace(cast(Any, kernel), tau=tau.detach()))
    rows = centre(theta.detach())
    drawn = fixed.forward(rows, noise)
    kept = Kept(rows, drawn.chosen, noise, rows.new_empty(0), drawn.saved)
    surrogate, learns = torch.zeros_like(theta), False
    for p, weight, own in fixed.terms(kept):
        moves = isinstance(own, Tensor)  # pyright: ignore[reportUnnecessaryIsInstance]
        surrogate = surrogate + weight * _term(p, theta, tau if moves else own)
        learns |= moves
    if tau.requires_grad and not learns:
        raise UnsupportedError(
            f"{type(kernel).__name__} has no gradient in tau: tau moves the point that its "
            "surrogate is made at, which is held constant. Pass tau.detach(), or a number."
        )
    value = drawn.saved[0] if kernel.soft else one_hot(drawn.chosen, logits.shape[-1], dtype)
    return substitute(value.to(logits.dtype), surrogate.to(logits.dtype))


def _term(p: Tensor, theta: Tensor, tau: Tensor | float) -> Tensor:
    """Return softmax((theta + c) / tau) with the c for which it is p."""
    still = tau.detach() if isinstance(tau, Tensor) else tau
    gone = p == 0
    level = p.masked_fill(gone, 1.0).log() * still
    moved = theta.masked_fill(gone, 0.0)
    x = ((moved - moved.detach()) + level) / tau
    return x.masked_fill(gone, -torch.inf).softmax(-1)
