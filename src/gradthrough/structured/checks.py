"""What every function here does first: checks, log-probabilities, uniforms."""

import torch
from torch import Tensor

from .._errors import BackendError, DomainError, ShapeError, UnsupportedError
from .._random import uniforms
from .._types import compute_dtype
from ..estimators.checks import check_count, check_logits
from ..kernels.checks import check_content, check_rows, check_uniforms
from ..kernels.softmax import centre
from ..laws.base import check_noise


def check_choice(logits: object, k: object) -> tuple[Tensor, int]:
    r"""Refuse logits (\*batch, n) and a k of which the one cannot serve the other."""
    checked = check_logits(logits, -1)
    size, n = check_count("k", k, 1), checked.shape[-1]
    if size > n:
        raise DomainError(
            f"k={size} of {n} classes cannot be chosen: logits of shape {tuple(checked.shape)} "
            "have the classes along the last dim. Take a k of at most that many."
        )
    return checked, size


def sound_rows(logits: Tensor, k: int) -> Tensor:
    """Return the rows, shifted so that their maximum is 0, in float32 or better.

    A row without k allowed classes raises; unchecked it becomes NaN.
    """
    check_rows(logits)
    if k > 1:
        check_content(logits, lambda x: _check_allowed(x, k))
    x = centre(logits.to(compute_dtype(logits.dtype)))
    if k == 1:
        return x
    return x.masked_fill((x.detach() > -torch.inf).sum(-1, keepdim=True) < k, torch.nan)


def log_probabilities(logits: Tensor, k: int) -> Tensor:
    """Return the log-probabilities of the classes, checked as in `sound_rows`."""
    x = sound_rows(logits, k)
    return x - x.logsumexp(-1, keepdim=True)


def draw(
    shape: tuple[int, ...],
    logits: Tensor,
    generator: torch.Generator | None,
    noise: Tensor | None,
) -> Tensor:
    """Return uniforms of a shape: those that are given, or new ones."""
    if noise is None:
        return uniforms(shape, logits.device, generator)
    u = check_noise(noise, shape, logits, generator)
    check_content(u, check_uniforms)
    return u


def check_index(name: str, index: object, logits: Tensor) -> Tensor:
    r"""Refuse what does not name different classes (..., \*batch, k) of logits (\*batch, n)."""
    if not isinstance(index, Tensor) or index.dtype != torch.int64:
        came = getattr(index, "dtype", type(index).__name__)
        raise UnsupportedError(
            f"{name} must be an int64 tensor of classes, but {came} came. Convert it: "
            "torch.as_tensor(...).long()."
        )
    if index.device != logits.device:
        raise BackendError(
            f"{name} lives on {index.device}, but the logits on {logits.device}. Move it: "
            f"{name}.to(logits.device)."
        )
    n, k = logits.shape[-1], index.shape[-1] if index.ndim else 0
    batch = tuple(logits.shape[:-1])
    lead = tuple(index.shape[:-1])
    if not 1 <= k <= n or lead[len(lead) - len(batch) :] != batch or len(lead) < len(batch):
        raise ShapeError(
            f"{name} must have shape (..., {', '.join(map(str, (*batch, 'k')))}) with k from 1 to "
            f"{n} for logits of shape {tuple(logits.shape)}, but has {tuple(index.shape)}."
        )
    check_content(index, lambda x: _check_different(name, x, n))
    return index


def _check_allowed(x: Tensor, k: int) -> None:
    allowed = (x > -torch.inf).sum(-1)
    if bool((allowed < k).any()):
        raise DomainError(
            f"k={k} classes are wanted, but {int((allowed < k).sum())} of {allowed.numel()} rows "
            f"of the logits have fewer that are not masked (-inf), one {int(allowed.min())}. Take "
            "a smaller k, or leave these rows out."
        )


def _check_different(name: str, index: Tensor, n: int) -> None:
    if bool(((index < 0) | (index >= n)).any()):
        raise DomainError(
            f"{name} must name classes from 0 to {n - 1}, but runs from {int(index.min())} to "
            f"{int(index.max())}."
        )
    ordered = index.sort(-1)[0]
    if bool((ordered[..., 1:] == ordered[..., :-1]).any()):
        raise DomainError(f"{name} names a class twice in a row. Each class can be drawn once.")
