"""The relaxed and straight-through distributions of torch and Pyro, whose rsample is replaced."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.distributions as td
from torch import Tensor

from .active import Attribute, responsible

_ONE = torch.Size()
_RELAXED = "pyro.distributions.relaxed_straight_through"


def patches() -> list[Attribute]:
    """Return what replaces them; Pyro's if Pyro is loaded."""
    found = [
        Attribute(td.OneHotCategoricalStraightThrough, "rsample", _straight_through),
        Attribute(td.RelaxedOneHotCategorical, "rsample", _relaxed(hard=False)),
    ]
    pyro: Any = sys.modules.get(_RELAXED)
    if pyro is not None:
        one = pyro.RelaxedOneHotCategoricalStraightThrough
        found.append(Attribute(one, "rsample", _relaxed(hard=True)))
        found.append(Attribute(one, "log_prob", _log_prob))
    return found


def _straight_through(stock: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @wraps(stock)
    def rsample(self: Any, sample_shape: Any = _ONE) -> Tensor:
        swap = responsible()
        if swap is None:
            return stock(self, sample_shape)
        return swap.draw(_rows(self, self.logits, sample_shape), hard=True)

    return rsample


def _relaxed(*, hard: bool) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    def make(stock: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @wraps(stock)
        def rsample(self: Any, sample_shape: Any = _ONE) -> Tensor:
            swap = responsible()
            if swap is None:
                return stock(self, sample_shape)
            rows = _rows(self, self.logits, sample_shape)
            return swap.draw(rows, hard=hard, tau=self.temperature)

        return rsample

    return make


def _log_prob(stock: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Pyro's takes the relaxed point that a sample came from; a swapped one came from none."""

    @wraps(stock)
    def log_prob(self: Any, value: Tensor) -> Tensor:
        if hasattr(value, "_unquantize") or responsible() is None:
            return stock(self, value)
        log_probs = self.logits - self.logits.logsumexp(-1, keepdim=True)
        return (value * log_probs.masked_fill(log_probs.isneginf() & (value == 0), 0.0)).sum(-1)

    return log_prob


def _rows(law: Any, logits: Tensor, sample_shape: Any) -> Tensor:
    return logits.expand(law._extended_shape(torch.Size(sample_shape)))
