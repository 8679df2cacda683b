"""Noise that is drawn before the step: for steps that no generator can enter.

A transform (`torch.func.vmap`) and a compiled graph take tensors, not generators. So a trial of the
step notes which noise it asks for; from then on it is drawn outside, in the order and from the
generator of an ordinary step, and handed in: the draws are the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Never

import torch
from torch import Tensor, nn

from .._errors import ConfigError
from .._types import Objective
from ..estimators import AbstractEstimator
from ..expect import expect
from ..laws.convert import as_distribution
from ..laws.law import Law
from ..rollout import Bound, Rollout
from .task import AbstractTask


class _OnlyExpect(Bound):
    """A bound estimator for tasks that call it, and do no more with it."""

    def sample(self, logits: Tensor) -> Tensor:
        """Refuse."""
        _refuse("sample")

    def rollout(self) -> Rollout:
        """Refuse."""
        _refuse("rollout")


def _refuse(name: str) -> Never:
    raise ConfigError(
        f"the task uses expect.{name}(), whose noise cannot be drawn ahead. Train without --seeds "
        "and --compile."
    )


class _Noting(_OnlyExpect):
    """Notes the rows for which noise is wanted."""

    def __init__(
        self, estimator: AbstractEstimator, samples: int, generator: torch.Generator
    ) -> None:
        super().__init__(estimator, samples, generator)
        self.rows: list[Law] = []

    def __call__(self, f: Objective, dist: object) -> Tensor:
        """Return what `Bound` does."""
        # Of the law only the shape counts, and the graph of its parameters must not be kept.
        self.rows.append(as_distribution(dist).detached().expand(self.samples))
        return super().__call__(f, dist)


class Given(_OnlyExpect):
    """A bound estimator that takes its noise from a list.

    Args:
        estimator: any of ``ESTIMATORS``.
        samples: N, >= 1.
        noise: of each call, in order, as ``estimator.noise_shape`` has it.
    """

    def __init__(self, estimator: AbstractEstimator, samples: int, noise: Sequence[Tensor]) -> None:
        super().__init__(estimator, samples)
        self._noise = noise
        self._at = 0

    def __call__(self, f: Objective, dist: object) -> Tensor:
        """Return expect(f, dist) with the next noise."""
        noise = self._noise[self._at]
        self._at += 1
        return expect(f, dist, self.estimator, samples=self.samples, noise=noise)


class NoisePlan:
    """Which noise a step wants, for each shape of a batch.

    Args:
        task: whose losses.
        model: of the task, for the trials; its weights stay as they are.
        estimator: whose noise.
        samples: N, >= 1.
    """

    def __init__(
        self, task: AbstractTask, model: nn.Module, estimator: AbstractEstimator, samples: int
    ) -> None:
        self._task, self._model = task, model
        self._estimator, self._samples = estimator, samples
        self._known: dict[torch.Size, tuple[tuple[Law, ...], int]] = {}

    def draw(self, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return the noise of a step on a batch (B, ...), one tensor for each call of `expect`."""
        rows, _ = self._of(batch)
        return tuple(self._estimator.noise(one, generator=generator) for one in rows)

    def evaluations(self, batch: Tensor) -> int:
        """Return how often a step on a batch evaluates f."""
        return self._of(batch)[1]

    def _of(self, batch: Tensor) -> tuple[tuple[Law, ...], int]:
        found = self._known.get(batch.shape)
        if found is None:
            trial = _Noting(self._estimator, self._samples, torch.Generator(batch.device))
            with torch.no_grad():
                self._task.losses(self._model, batch, trial)
            found = self._known[batch.shape] = tuple(trial.rows), trial.evaluations
        return found
