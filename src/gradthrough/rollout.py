"""Estimators for whole programs: several latents with one loss, and an estimator handed around."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._errors import ConfigError, ShapeError, UnsupportedError
from ._slope import in_transform
from ._types import Objective
from .estimators.base import AbstractEstimator, Draw, Estimate
from .estimators.pathwise import AbstractPathwise
from .expect import admit, ask, check_estimator, check_untouched, check_values, estimate, version_of
from .laws.convert import as_distribution


class Rollout:
    """Several latents, one loss: an estimator for a program that samples as it goes.

    Every row of the program runs `samples` times side by side, in a leading dim that
    `expand` adds to data; `sample` draws one point for each row; `combine` turns the values of
    the loss into the estimate, with its gradient sent to every latent on the way.

    Args:
        estimator: one with the trait ``many_draws``.
        samples: N, >= 1.
        generator: source of the noise.

    Raises:
        UnsupportedError: the estimator serves one latent only.

    Example:
        >>> import torch, gradthrough as gt
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> h = torch.nn.Linear(3, 3)
        >>> rollout = gt.Rollout(gt.RLOO(), samples=4)
        >>> z1 = rollout.sample(rollout.expand(logits))  # (4, 5, 3)
        >>> z2 = rollout.sample(h(z1))
        >>> rollout.combine((z1 * z2).sum(-1)).mean().backward()
    """

    def __init__(
        self,
        estimator: AbstractEstimator,
        *,
        samples: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        check_estimator(estimator, samples)
        if not estimator.traits.many_draws:
            raise UnsupportedError(
                f"{type(estimator).__name__} serves one latent at a time. Nest expect inside f "
                "instead, one for each latent."
            )
        self._estimator = estimator
        self._samples = samples
        self._generator = generator
        self._draws: list[Draw] = []
        self._versions: list[int] = []
        self.on_draw: Callable[[Any], None] = lambda dist: None
        self.on_values: Callable[[Tensor], None] = lambda values: None
        self.on_estimate: Callable[[Estimate], None] = lambda estimate: None

    def expand(self, x: Tensor) -> Tensor:
        r"""Return data (\*batch, ...) as (N, \*batch, ...), without a copy."""
        return x.unsqueeze(0).expand(self._samples, *x.shape)

    def sample(self, dist: object, *, noise: Tensor | None = None) -> Tensor:
        r"""Draw one point for each row of a distribution whose first dim is the samples.

        Args:
            dist: Distribution or logits (N, \*batch, \*event, C).
            noise: float64 uniforms instead of the generator's.

        Returns:
            Points (N, \*batch, \*event[, C]), with a graph for pathwise estimators.
        """
        q = admit(dist, self._estimator, self._samples)
        if not q.batch_shape or q.batch_shape[0] != self._samples:
            raise ShapeError(
                f"a rollout of {self._samples} samples needs logits whose first dim is "
                f"{self._samples}, but the rows are {q.batch_shape}. Pass data through "
                "rollout.expand first, or dist.expand(samples)."
            )
        generator = self._generator if noise is None else None
        draw = ask(self._estimator, q, generator, noise)
        if draw.points.shape[0] != self._samples:
            raise UnsupportedError(
                f"{self._estimator!r} asks for points besides its {self._samples} samples, which "
                "a rollout has no rows for. Nest expect inside f instead, one for each latent."
            )
        self.on_draw(q)
        self._draws.append(draw)
        if in_transform() and not draw.points.requires_grad:
            self._versions.append(0)
            return draw.points.clone()  # nobody counts versions there
        self._versions.append(version_of(draw.points))
        return draw.points

    def reset(self) -> None:
        """Forget what was sampled since the last `combine`: after a pass without a loss."""
        self._draws, self._versions = [], []

    def combine(self, values: Tensor) -> Tensor:
        r"""Turn values (N, \*batch) into the estimate (\*batch,)."""
        return self.estimate(values).value

    def estimate(self, values: Tensor) -> Estimate:
        """Like `combine`, with the tuning loss."""
        if not self._draws:
            raise ConfigError("nothing was sampled yet: call rollout.sample before combine.")
        first = self._draws[0]
        want, device = tuple(first.dist.batch_shape), first.points.device
        check_values(values, want, type(self._estimator).__name__, device)
        self.on_values(values)
        draws, versions = tuple(self._draws), tuple(self._versions)
        self.reset()  # the next loss starts afresh
        if not in_transform():
            for one, version in zip(draws, versions, strict=True):
                check_untouched(one.points, version)
        out = self._estimator.combine(draws, values)
        self.on_estimate(out)
        return out


class Bound:
    """An estimator bound to its settings, handed to code that says where it is used.

    Args:
        estimator: any of ``ESTIMATORS``.
        samples: N, >= 1.
        generator: source of the noise.

    Example:
        >>> import torch, gradthrough as gt
        >>> ex = gt.Bound(gt.ReinMax(), samples=2)
        >>> ex(lambda z: z[..., 0], torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    # Not a dataclass: code that converts the tensors inside a model's arguments takes those apart.
    def __init__(
        self,
        estimator: AbstractEstimator,
        samples: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        self.estimator = estimator
        self.samples = samples
        self.generator = generator
        self.tuning_losses: list[Tensor] = []
        self.evaluations = 0

    def __call__(self, f: Objective, dist: object) -> Tensor:
        """Return expect(f, dist), count its evaluations and keep a tuning loss."""
        q = as_distribution(dist)

        def counted(points: Tensor) -> Tensor:
            self.evaluations += points.shape[: len(q.batch_shape) + 1].numel()
            return f(points)

        out = estimate(counted, q, self.estimator, samples=self.samples, generator=self.generator)
        self._keep(out)
        return out.value

    def sample(self, logits: Tensor) -> Tensor:
        """Return one pathwise sample, shape of the logits."""
        if not isinstance(self.estimator, AbstractPathwise):
            raise UnsupportedError(
                f"{type(self.estimator).__name__} has no sample that carries a gradient: it needs "
                "the values of f, or another law. Use expect(f, dist) or expect.rollout()."
            )
        q = as_distribution(logits)
        return ask(self.estimator, q, self.generator, None).points

    def rollout(self) -> Rollout:
        """Return a Rollout of the bound estimator."""
        rollout = Rollout(self.estimator, samples=self.samples, generator=self.generator)
        rollout.on_values = self._count
        rollout.on_estimate = self._keep
        return rollout

    def take_tuning_loss(self) -> Tensor | None:
        """Return the sum of the tuning losses since the last call, None if there is none.

        For every step of an estimator that learns: what is not taken is kept, graph and all.
        """
        losses, self.tuning_losses = self.tuning_losses, []
        return torch.stack(losses).sum() if losses else None

    def _keep(self, out: Estimate) -> None:
        # One that was made inside a transform has no meaning outside of it.
        if out.tuning_loss is not None and not in_transform():
            self.tuning_losses.append(out.tuning_loss)

    def _count(self, values: Tensor) -> None:
        self.evaluations += values.numel()
