"""Stand-ins for an estimator that run a program to learn where it makes its choices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .._errors import ConfigError
from .._types import Objective
from ..estimators import RLOO, Reinforce
from ..laws.base import Distribution
from ..laws.convert import as_discrete
from ..rollout import Bound, Rollout
from .support import width


class Listener(Bound):
    """Runs the program once, with plain samples, and notes where it makes its choices."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__(Reinforce(), 1, generator)
        self.laws: list[Distribution] = []
        self.functions: list[Objective] = []  # what is summed over, for the choices that say so
        self.sampled = self.rolled = False
        self.points = 0  # of a sum over all supports; nested ones multiply
        self.numbers = 0  # that those points hold
        self.values: list[Tensor] = []  # of the choices that lie in no other
        self._outer = 1

    def __call__(self, f: Objective, dist: object) -> Tensor:
        """Return f at a plain sample, and note the law and f."""
        q = as_discrete(dist)
        self.laws.append(q)
        self.functions.append(f)
        before = self._outer
        self._outer = before * q.support_size
        self.points += self._outer * math.prod(q.batch_shape)
        self.numbers += self._outer * math.prod(q.batch_shape) * width(q)
        value = super().__call__(f, q)
        self._outer = before
        if before == 1:
            self.values.append(value.detach())
        return value

    def sample(self, logits: Tensor) -> Tensor:
        """Return a plain sample, and note the law."""
        q = as_discrete(logits)
        self.laws.append(q)
        self.sampled = True
        return q.with_logits(q.logits.detach()).sample(generator=self.generator)

    def rollout(self) -> Rollout:
        """Return a rollout whose laws are noted."""
        self.rolled = True
        rollout = super().rollout()
        rollout.on_draw = lambda q: self.laws.append(q.row)
        return rollout


class Replayed(Bound):
    """Runs the program on values that are given in place of expectations."""

    def __init__(self, values: Iterable[Tensor]) -> None:
        super().__init__(Reinforce())
        self._values = iter(values)

    def __call__(self, f: Objective, dist: object) -> Tensor:
        """Return the next of the values."""
        return next(self._values)


class Scored(Bound):
    """Plain samples, with the log-probability of all of them: for REINFORCE of whole programs."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__(RLOO(), 2, generator)
        self.log_probs: list[Tensor] = []

    def sample(self, logits: Tensor) -> Tensor:
        """Return a plain sample, and keep its log-probability."""
        q = as_discrete(logits)
        z = q.with_logits(q.logits.detach()).sample(generator=self.generator)
        self.log_probs.append(q.log_prob(z))
        return z


def sites(
    loss_fn: Callable[[Bound], Tensor], generator: torch.Generator
) -> list[tuple[Objective, Distribution]]:
    """Return the f and the law of each choice that a program makes through ``expect(f, dist)``."""
    listener = Listener(generator)
    loss_fn(listener)
    if listener.sampled or listener.rolled:
        raise ConfigError("a program that samples has no f that its choices could be audited with.")
    return list(zip(listener.functions, listener.laws, strict=True))
