"""Stand-ins for an estimator that run a program to learn where it makes its choices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from .._errors import ConfigError
from .._types import Objective
from ..estimators import RLOO, AbstractEstimator
from ..estimators.base import Draw, Estimate, Traits
from ..laws.base import Distribution
from ..laws.convert import as_discrete, as_distribution
from ..laws.law import Law
from ..rollout import Bound, Rollout
from .support import width


class _Plain(AbstractEstimator):
    """Plain samples, of any law, without a gradient."""

    traits: ClassVar[Traits] = Traits(
        unbiased=False,
        families=frozenset({"bernoulli", "categorical", "continuous", "count"}),
        reference="",
        many_draws=True,
    )

    def draw(self, dist: Law, noise: Tensor) -> Draw:
        """Draw samples."""
        points, inner = dist.draw(noise)
        return Draw(points, dist, inner=inner)

    def combine(
        self, draws: Sequence[Draw], values: Tensor, point_gradients: Tensor | None = None
    ) -> Estimate:
        """Average."""
        return Estimate(values.mean(0))


class Listener(Bound):
    """Runs the program once, with plain samples, and notes where it makes its choices."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__(_Plain(), 1, generator)
        self.laws: list[Law] = []
        self.functions: list[Objective] = []  # what is summed over, for the choices that say so
        self.sampled = self.rolled = False
        self.points: float = 0  # of a sum over all supports; nested ones multiply
        self.numbers: float = 0  # that those points hold
        self.values: list[Tensor] = []  # of the choices that lie in no other
        self._outer: float = 1
        self._depth = 0

    def __call__(self, f: Objective, dist: object) -> Tensor:
        """Return f at a plain sample, and note the law and f."""
        q = as_distribution(dist)
        self.laws.append(q)
        self.functions.append(f)
        before = self._outer
        endless = not isinstance(q, Distribution)  # no sum, but an integral or a series
        self._outer = before * (math.inf if endless else q.support_size)
        self.points += self._outer * math.prod(q.batch_shape)
        self.numbers += self._outer * math.prod(q.batch_shape) * (1 if endless else width(q))
        self._depth += 1
        value = super().__call__(f, q)
        self._outer, self._depth = before, self._depth - 1
        if not self._depth:
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
        super().__init__(_Plain())
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
) -> list[tuple[Objective, Law]]:
    """Return the f and the law of each choice that a program makes through ``expect(f, dist)``."""
    listener = Listener(generator)
    loss_fn(listener)
    if listener.sampled or listener.rolled:
        raise ConfigError("a program that samples has no f that its choices could be audited with.")
    return list(zip(listener.functions, listener.laws, strict=True))
