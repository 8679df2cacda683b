"""Sums of exponentials, and clocks that ring, in log space."""

import torch
from torch import Tensor

LOW = -1e30
"""Stands for log 0 where -inf would make a derivative NaN. Sums of 2^20 of them are finite."""


def log_ring(y: Tensor) -> Tensor:
    """Return log(1 - exp(-exp(y))), how probably a clock of log-rate y rings in unit time."""
    tiny = y < -40.0  # there it is y, to the last digit
    y_safe = y.clamp(-40.0, 5.0)  # and from 5 on it is 0
    return torch.where(tiny, y, torch.log(-torch.expm1(-y_safe.exp())))


def add(x: Tensor, y: Tensor) -> Tensor:
    """Return log(exp x + exp y). torch.logaddexp has no second derivative far apart."""
    return torch.stack((x, y), -1).logsumexp(-1)


def from_here_on(x: Tensor) -> Tensor:
    """Return log sum_{j >= i} exp x_j for each i, by doubling: log k steps."""
    step = 1
    while step < x.shape[-1]:
        later = torch.nn.functional.pad(x[..., step:], (0, step), value=LOW)
        x = add(x, later)
        step *= 2
    return x


def apart(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logits at the index, whether all are allowed, and log sum exp of the others."""
    x = x.expand(*index.shape[:-1], x.shape[-1])
    masked = x.detach().isneginf()
    x = x.masked_fill(masked, LOW)
    possible = ~masked.gather(-1, index).any(-1)
    return x.gather(-1, index), possible, x.scatter(-1, index, LOW).logsumexp(-1)
