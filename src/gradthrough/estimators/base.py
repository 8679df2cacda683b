"""What an estimator is: traits, the ask / tell interface, and the two abstract kinds."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from .._attach import attach
from .._errors import ShapeError, UnsupportedError
from .._random import uniforms
from .._types import Gradients, NoiseKind, compute_dtype
from ..laws.base import Distribution

Exactness = Literal["none", "affine", "quadratic", "all"]

Served = Any
"""A `Law` of a family that the estimator serves: its traits say which, and its methods may say it
of their arguments. Most serve none but a `Distribution`."""


@dataclass(frozen=True)
class Traits:
    """What an estimator promises, as data: read by tests, audit, docs table and CLI."""

    unbiased: bool  # the mean gradient is exact for every f
    families: frozenset[str]
    reference: str
    exact_for: Exactness = "none"  # the richest f for which the mean is exact, at tau = 1
    noise: NoiseKind = "variable"
    min_samples: int = 1  # 2: leave-one-out
    pathwise: bool = False  # differentiates f at the sample, through the sample
    relaxed: bool = False  # the sample is soft: the value estimates E f(soft)
    approximate: bool = False  # the law that is sampled is only close to softmax(logits)
    needs_point_gradients: bool = False  # the evaluator hands in the gradient of f at points
    needs_relaxed_points: bool = False  # f must accept points off the corners
    many_draws: bool = False  # may serve several latents of one Rollout
    scalars: tuple[str, ...] = ()  # options that may be learned numbers: see `learned`


class Draw(NamedTuple):
    """Where f is wanted."""

    points: Tensor  # (M, *batch, *event[, C])
    dist: Served  # expanded over dim 0; its logits, or parameters, receive the gradient
    aux: tuple[Tensor, ...] = ()
    gradients: Gradients = "none"  # whether the gradient of f at the points is wanted
    inner: Tensor | None = None  # the points before rounding, where the law tells them apart


class Estimate(NamedTuple):
    """What follows from the values of f."""

    value: Tensor  # (*batch,); backward through it is the estimator
    tuning_loss: Tensor | None = None  # reaches the estimator's own tensors and nothing else


class AbstractEstimator(abc.ABC):
    """A value with a chosen gradient, in ask / tell form.

    `noise` makes the randomness, `draw` says where f is wanted, someone else evaluates f, and
    `combine` turns its values into the estimate.
    """

    traits: ClassVar[Traits]

    def noise_shape(self, dist: Served) -> tuple[int, ...]:
        """Return the shape of the noise for an expanded distribution."""
        return dist.noise_shape(self.traits.noise)

    def noise(self, dist: Served, *, generator: torch.Generator | None = None) -> Tensor:
        r"""Draw the noise for a distribution expanded to (samples, \*batch, ...)."""
        shape, device = self.noise_shape(dist), dist.device
        if self.traits.noise == "none":  # not even an empty draw: vmap refuses those
            return torch.zeros(shape, dtype=torch.float64, device=device)
        return uniforms(shape, device, generator)

    @abc.abstractmethod
    def draw(self, dist: Served, noise: Tensor) -> Draw:
        r"""Ask: turn noise into points, for a distribution expanded to (samples, \*batch, ...)."""

    @abc.abstractmethod
    def combine(
        self, draws: Sequence[Draw], values: Tensor, point_gradients: Tensor | None = None
    ) -> Estimate:
        r"""Tell: turn values (M, \*batch) at the points of the draws into the estimate.

        `point_gradients` has the shape of the points; None if the draw does not want them, and
        where no graph is recorded: then only the value of the estimate counts.
        """

    def check_law(self, dist: Served) -> None:  # noqa: B027 - most serve all laws of a family
        """Refuse a law of a family that is served, in whose parameters there is no gradient.

        Raises:
            UnsupportedError: with what to use instead.
        """

    def evaluations(self, dist: Served, samples: int) -> int:
        """Return how often f is evaluated for a distribution that is not expanded."""
        return samples

    def learned(self, dist: Served) -> tuple[Self, nn.Module]:
        """Return a copy whose learnable options are parameters, and the module that owns them.

        Numbers start from what the options are, modules that were given are taken as they are,
        and where there is none a fresh one is made. ``Estimate.tuning_loss`` trains them, with an
        optimizer of their own.

        Args:
            dist: a law like those to come, for the shapes of networks.

        Raises:
            UnsupportedError: the estimator has nothing to learn.
        """
        if not self.traits.scalars:
            raise UnsupportedError(f"{type(self).__name__} has nothing to learn: use it as it is.")
        return self._with_scalars(dist, self.traits.scalars)

    def _with_scalars(self, dist: Served, names: Sequence[str]) -> tuple[Self, nn.Module]:
        owner = nn.ParameterDict(
            {n: torch.tensor(float(getattr(self, n)), device=dist.device) for n in names}
        )
        return dataclasses.replace(self, **dict(owner.named_parameters())), owner  # pyright: ignore[reportArgumentType, reportUnknownVariableType]


class AbstractScore(AbstractEstimator):
    """The gradient is made from values of f and the score; f may be any program."""

    def check_law(self, dist: Served) -> None:
        """Refuse a law without a score."""
        dist.check_score()

    def draw(self, dist: Served, noise: Tensor) -> Draw:
        """Draw samples without a graph."""
        self.check_law(dist)
        points, inner = dist.draw(noise)
        return Draw(points, dist, inner=inner)


def send_score(draws: Sequence[Draw], values: Tensor, signal: Tensor) -> Tensor:
    """Average the values, with the mean of ``signal * score`` as gradient in all logits."""
    for one in draws:
        if tuple(one.dist.batch_shape) != tuple(values.shape):
            raise ShapeError(
                f"a latent of this program has rows {tuple(one.dist.batch_shape)}, but the values "
                f"have shape {tuple(values.shape)}. Every latent needs one row for each value: "
                "set its event_dims, and expand the data with rollout.expand."
            )
    if len(draws) == 1 and isinstance(draws[0].dist, Distribution) and draws[0].dist.expanded:
        row = draws[0].dist.row
        score = row.score(draws[0].points)
        gradient = (spread(signal, score.ndim - signal.ndim) * score).mean(0)
        return attach(values.mean(0), row.logits, gradient)
    for one in draws:
        points = one.points if one.inner is None else one.inner
        values = one.dist.attach_score(values, points, signal)
    return values.mean(0)


def send(draw: Draw, value: Tensor, gradient: Tensor) -> Estimate:
    r"""Attach the gradient of a whole estimate, shape of one row's logits, to a value (\*batch,).

    The gradient may carry the graph of the estimator's own tensors. Its mean square is then the
    tuning loss: for an unbiased estimator that is the variance, up to a constant.
    """
    tuning = gradient.square().mean() if gradient.requires_grad else None
    return Estimate(attach(value, draw.dist.row.logits, gradient), tuning)


def leave_one_out(x: Tensor) -> Tensor:
    """Return, for each entry of the first dim, the mean of the others, (N, ...)."""
    n = x.shape[0]
    return (x.sum(0) - x) / (n - 1)


def spread(x: Tensor, dims: int) -> Tensor:
    """Append dims of size 1, so that a number for each row meets the entries of the row."""
    return x.reshape(x.shape + (1,) * dims)


def total(x: Tensor, dims: int) -> Tensor:
    """Sum over the last dims, none of them if dims is 0."""
    return x.sum(tuple(range(x.ndim - dims, x.ndim))) if dims else x


def learning_signal(values: Tensor) -> Tensor:
    """Return the values as numbers, in float32 or better."""
    return values.detach().to(compute_dtype(values.dtype))


CATEGORICAL = frozenset({"categorical"})
DISCRETE = frozenset({"categorical", "bernoulli"})
ANY = frozenset({"categorical", "bernoulli", "continuous", "count"})
BERNOULLI = frozenset({"bernoulli"})
