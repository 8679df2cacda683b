"""The balance of experts: a loss that keeps a router from sending every row to the same few."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .._errors import DomainError, ShapeError, UnsupportedError
from .._types import FLOATS, compute_dtype
from ..kernels.checks import check_content


def load_balance(probs: Tensor, index: Tensor) -> Tensor:
    r"""Tell how unevenly experts are used: a loss that is 1 where all are used alike.

    ``N sum_i pbar_i f_i``, with pbar the mean of the probabilities over all rows and f_i the share
    of the draws that went to expert i. The gradient goes to the probabilities alone.

    Args:
        probs: (\*batch, N), softmax of the router's logits, no expert left out.
        index: int64 (\*batch, k), the experts that run.

    Returns:
        A number without dims, from 0 to N, in float32 or better; 0 for no rows.

    Raises:
        ShapeError: shapes that do not belong together.
        DomainError: an expert that there is not.
        UnsupportedError: another dtype.

    Example:
        >>> import torch
        >>> from gradthrough.routing import load_balance
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2]])
        >>> round(load_balance(probs, torch.tensor([[0], [0]])).item(), 6)
        1.7
        >>> round(load_balance(probs, torch.tensor([[0], [1]])).item(), 6)
        1.0

    Reference:
        Fedus, Zoph, Shazeer, JMLR 2022, arXiv:2101.03961.
    """
    _check_use(probs, index)
    experts = probs.shape[-1]
    p = probs.to(compute_dtype(probs.dtype)).reshape(-1, experts)
    chosen = index.reshape(-1)
    zeros = torch.zeros(experts, dtype=torch.int64, device=index.device)
    counts = zeros.scatter_add(0, chosen, torch.ones_like(chosen))
    share = counts.to(p.dtype) / max(chosen.numel(), 1)
    return experts * (p.sum(0) / max(p.shape[0], 1) * share).sum()


def _check_use(probs: Tensor, index: Tensor) -> None:
    if probs.dtype not in FLOATS or index.dtype != torch.int64:
        raise UnsupportedError(
            f"probs must be floating point and index int64, but are {probs.dtype} and "
            f"{index.dtype}."
        )
    if not probs.ndim or not probs.shape[-1] or probs.shape[:-1] != index.shape[:-1]:
        raise ShapeError(
            f"probs must have shape (*batch, N) and index (*batch, k), but have "
            f"{tuple(probs.shape)} and {tuple(index.shape)}. For one expert each, pass "
            "index.unsqueeze(-1)."
        )
    check_content(index, partial(_check_index, probs.shape[-1]))


def _check_index(experts: int, index: Tensor) -> None:
    if index.numel() and not bool(((index >= 0) & (index < experts)).all()):
        raise DomainError(
            f"index must lie between 0 and {experts - 1}, but runs from {int(index.min())} to "
            f"{int(index.max())}. probs needs one column for each expert."
        )
