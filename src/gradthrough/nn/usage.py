"""How often codes are used: counts that fade, on one device or over all ranks."""

from __future__ import annotations

import numbers

import torch
from torch import Tensor, distributed

from .._errors import DomainError, ShapeError, UnsupportedError
from .._types import compute_dtype
from ..kernels.checks import check_content
from .checks import check_positions

_ONE = 2**16  # a use, in the units of counts that fade


def check_decay(decay: object) -> float:
    """Return a number in [0, 1), else say what came."""
    if isinstance(decay, bool) or not isinstance(decay, numbers.Real):
        raise UnsupportedError(f"decay must be a number, but a {type(decay).__name__} came.")
    number = float(decay)
    if not 0.0 <= number < 1.0:
        raise DomainError(f"decay must be in [0, 1), but is {number}.")
    return number


def check_codes(codes: object, counts: Tensor) -> None:
    r"""Refuse what are no codes (\*batch, G) of codebooks that have counts (G, V)."""
    groups, size = counts.shape
    if not isinstance(codes, Tensor) or codes.dtype != torch.int64:
        came = getattr(codes, "dtype", type(codes).__name__)
        raise UnsupportedError(f"codes must be an int64 tensor, but {came} came.")
    if codes.ndim < 1 or codes.shape[-1] != groups:
        raise ShapeError(
            f"codes must have shape (*batch, {groups}), one for each group, but have "
            f"{tuple(codes.shape)}."
        )

    def check(x: Tensor) -> None:
        if not bool(((x >= 0) & (x < size)).all()):
            raise DomainError(
                f"codes must lie between 0 and {size - 1}, but run from {int(x.min())} to "
                f"{int(x.max())}. Leave padding out with mask=, and give it any code."
            )

    check_content(codes, check)


def counted(codes: Tensor, mask: Tensor | None, size: int) -> Tensor:
    r"""Return how often each code is among (\*batch, G), of the positions of a mask: (G, V)."""
    if mask is not None:
        check_positions(mask, tuple(codes.shape[:-1]), codes)
    groups = codes.shape[-1]
    rows = codes.reshape(-1, groups).t()
    weight = torch.ones_like(rows) if mask is None else mask.reshape(1, -1).expand_as(rows).long()
    # Unlike bincount, this does not wait for the device to learn how large the result is.
    zeros = torch.zeros(groups, size, dtype=torch.int64, device=codes.device)
    return zeros.scatter_add(1, rows, weight)


def everywhere(found: Tensor, group: distributed.ProcessGroup | None) -> Tensor:
    """Sum counts over the ranks, where there are several."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(found, group=group)
    return found


def faded(counts: Tensor, decay: float, found: Tensor) -> Tensor:
    """Return decay * counts + found, in the units of the counts."""
    # Rounded down, so that a code that is never used again ends at 0.
    return (counts.float() * decay).to(torch.int64) + found * _ONE


def shares(counts: Tensor) -> Tensor:
    """Return each group's counts as shares of 1, (G, V), float32; NaN where there are none."""
    x = counts.float()
    return x / x.sum(-1, keepdim=True)


def mean_softmax(logits: Tensor, mask: Tensor | None) -> Tensor:
    r"""Return the mean of softmax(logits) (\*batch, G, V) over the positions of a mask, (G, V)."""
    p = logits.to(compute_dtype(logits.dtype)).softmax(-1).reshape(-1, *logits.shape[-2:])
    if mask is None:
        return p.sum(0) / max(len(p), 1)
    weight = check_positions(mask, tuple(logits.shape[:-2]), logits).reshape(-1, 1, 1)
    return (p * weight).sum(0) / weight.sum().clamp_min(1)


def entropy(p: Tensor) -> Tensor:
    """Return the entropy in nats along the last dim."""
    # Clamped, so that a share that is 0 has a finite slope.
    return -(p * p.clamp_min(torch.finfo(p.dtype).tiny).log()).sum(-1)
