"""What an estimator is: traits, the ask / tell interface, and the two abstract kinds."""

from __future__ import annotations

import abc
import dataclasses
import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from .._attach import attach
from .._errors import DomainError, ShapeError, UnsupportedError
from .._random import noise_shape, uniforms
from .._types import FLOATS, Backend, Gradients, NoiseKind, compute_dtype
from ..distributions.base import Distribution, check_noise
from ..kernels.dispatch import check_content, draw, launch
from ..kernels.eager import AbstractKernel

Exactness = Literal["none", "affine", "quadratic", "all"]


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
    dist: Distribution  # expanded over dim 0; its logits receive the gradient
    aux: tuple[Tensor, ...] = ()
    gradients: Gradients = "none"  # whether the gradient of f at the points is wanted


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

    def noise_shape(self, dist: Distribution) -> tuple[int, ...]:
        """Return the shape of the noise for an expanded distribution."""
        return noise_shape(self.traits.noise, dist.variables, dist.classes)

    def noise(self, dist: Distribution, *, generator: torch.Generator | None = None) -> Tensor:
        r"""Draw the noise for a distribution expanded to (samples, \*batch, ...)."""
        shape, device = self.noise_shape(dist), dist.logits.device
        if self.traits.noise == "none":  # not even an empty draw: vmap refuses those
            return torch.zeros(shape, dtype=torch.float64, device=device)
        return uniforms(shape, device, generator)

    @abc.abstractmethod
    def draw(self, dist: Distribution, noise: Tensor) -> Draw:
        r"""Ask: turn noise into points, for a distribution expanded to (samples, \*batch, ...)."""

    @abc.abstractmethod
    def combine(
        self, draws: Sequence[Draw], values: Tensor, point_gradients: Tensor | None = None
    ) -> Estimate:
        r"""Tell: turn values (M, \*batch) at the points of the draws into the estimate.

        `point_gradients` has the shape of the points; None if the draw does not want them, and
        where no graph is recorded: then only the value of the estimate counts.
        """

    def evaluations(self, dist: Distribution, samples: int) -> int:
        """Return how often f is evaluated for a distribution that is not expanded."""
        return samples

    def learned(self, dist: Distribution) -> tuple[Self, nn.Module]:
        """Return a copy whose learnable options are parameters, and the module that owns them.

        The parameters start from the options as they are. ``Estimate.tuning_loss`` trains them,
        with an optimizer of their own.

        Args:
            dist: a law like those to come, for the shapes of networks.

        Raises:
            UnsupportedError: the estimator has nothing to learn.
        """
        if not self.traits.scalars:
            raise UnsupportedError(f"{type(self).__name__} has nothing to learn.")
        return self._with_scalars(dist, self.traits.scalars)

    def _with_scalars(self, dist: Distribution, names: Sequence[str]) -> tuple[Self, nn.Module]:
        owner = nn.ParameterDict(
            {n: torch.tensor(float(getattr(self, n)), device=dist.logits.device) for n in names}
        )
        return dataclasses.replace(self, **dict(owner.named_parameters())), owner  # pyright: ignore[reportArgumentType, reportUnknownVariableType]


class AbstractPathwise(AbstractEstimator):
    """The sample itself carries the gradient; f must be differentiable in it."""

    @abc.abstractmethod
    def sample(self, logits: Tensor, noise: Tensor) -> Tensor:
        r"""Draw (\*rows, C) samples that carry their Jacobian, from logits of that shape."""

    def draw(self, dist: Distribution, noise: Tensor) -> Draw:
        """Draw samples that carry their Jacobian."""
        return Draw(dist.from_classes(self.sample(dist.class_logits(), noise)), dist)

    def combine(
        self, draws: Sequence[Draw], values: Tensor, point_gradients: Tensor | None = None
    ) -> Estimate:
        """Average; the graph of the values is the estimator."""
        if not _may_depend(values, [d.points for d in draws]):
            raise UnsupportedError(
                f"{type(self).__name__} differentiates f at the sample, but the values of f do "
                "not depend differentiably on it (an argmax, an index, a detach or a comparison "
                "in f? a latent that the loss does not use?). Make f differentiable in the one-hot "
                "point, use an estimator that needs values only, gradthrough.RLOO(), or draw an "
                "unused latent outside of the rollout, with dist.sample()."
            )
        return Estimate(values.mean(0))


def _may_depend(values: Tensor, points: Sequence[Tensor]) -> bool:
    """Return False where the graph of the values is known not to lead to some of the points."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return True
    if any(_has_tangent(x) for x in points if x.grad_fn is None) and not _has_tangent(values):
        return False
    wanted: set[object] = {x.grad_fn for x in points if x.grad_fn is not None}
    seen: set[object] = set()
    todo = [values.grad_fn]
    while todo and wanted:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            wanted.discard(node)
            todo += [parent for parent, _ in node.next_functions]
    return not wanted


def _has_tangent(x: Tensor) -> bool:
    """Return whether forward mode follows a tensor."""
    tangent: Tensor | None = forward_ad.unpack_dual(x).tangent
    return tangent is not None


class AbstractLaunched(AbstractPathwise):
    """A pathwise estimator whose sample and Jacobian are a kernel's."""

    @property
    @abc.abstractmethod
    def kernel(self) -> AbstractKernel:
        """The sample's law and surrogate."""

    def sample(self, logits: Tensor, noise: Tensor) -> Tensor:
        r"""Draw (\*rows, C) samples that carry their Jacobian, from logits of that shape."""
        return launch(self.kernel, logits, noise)[0]


class AbstractScore(AbstractEstimator):
    """The gradient is made from values of f and the score; f may be any program."""

    def draw(self, dist: Distribution, noise: Tensor) -> Draw:
        """Draw samples without a graph."""
        logits = dist.class_logits()
        if dist.expanded:  # equal rows have one softmax and one cdf
            logits = dist.row.class_logits().unsqueeze(0)
        z, _ = draw(logits, noise)
        return Draw(dist.from_classes(z), dist)


def send_score(draws: Sequence[Draw], values: Tensor, signal: Tensor) -> Tensor:
    """Average the values, with the mean of ``signal * score`` as gradient in all logits."""
    if len(draws) == 1 and draws[0].dist.expanded and draws[0].points.shape[0] == len(values):
        (one,) = draws
        score = one.dist.row.score(one.points)
        gradient = (spread(signal, score.ndim - signal.ndim) * score).mean(0)
        return attach(values.mean(0), one.dist.row.logits, gradient)
    for one in draws:
        logits = one.dist.logits
        if tuple(one.dist.batch_shape) != tuple(values.shape):
            raise ShapeError(
                f"a latent of this program has rows {tuple(one.dist.batch_shape)}, but the values "
                f"have shape {tuple(values.shape)}. Every latent needs one row for each value: "
                "set its event_dims, and expand the data with rollout.expand."
            )
        weight = signal.reshape(signal.shape + (1,) * (logits.ndim - signal.ndim))
        values = attach(values, logits, weight * one.dist.score(one.points))
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


def check_positive(name: str, value: object) -> float:
    """Return a finite number above 0, else say what came."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.requires_grad:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UnsupportedError(f"{name} must be a number, but a {type(value).__name__} came.")
    number = float(value)
    if not math.isfinite(number) or number <= 0:
        raise DomainError(f"{name} must be finite and above 0, but is {number}.")
    return number


Scalar = float | Tensor


def _check_finite(name: str, value: Tensor) -> None:
    if not bool(value.isfinite().all()):
        raise DomainError(f"{name} must be finite, but is {value.detach().reshape(()).item()}.")


def check_scalar(name: str, value: object, *, positive: bool = False) -> Scalar:
    """Return a finite number, or the tensor of one number, as it is: it may be learned."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or not value.is_floating_point():
            raise UnsupportedError(
                f"{name} must be a number or a floating-point tensor of one number, but a "
                f"{value.dtype} tensor of shape {tuple(value.shape)} came."
            )
        check_content(value, partial(_check_finite, name))
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UnsupportedError(
            f"{name} must be a number or a tensor of one number, but a {type(value).__name__} came."
        )
    number = float(value)
    if not math.isfinite(number) or (positive and number <= 0):
        raise DomainError(
            f"{name} must be finite{' and above 0' if positive else ''}, but is {number}."
        )
    return number


def scalar_like(value: Scalar, x: Tensor) -> Tensor:
    """Return a number as a tensor of no dims, of the dtype and device of x, with its graph."""
    return torch.as_tensor(value, dtype=x.dtype, device=x.device).reshape(())


def check_count(name: str, value: object, least: int) -> int:
    """Return an int of at least `least`, else say what came."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise UnsupportedError(f"{name} must be an int, but a {type(value).__name__} came.")
    if value < least:
        raise DomainError(f"{name} must be at least {least}, but is {value}.")
    return value


def check_switch(name: str, value: object) -> bool:
    """Return a bool, else say what came."""
    if not isinstance(value, bool):
        raise UnsupportedError(f"{name} must be True or False, but is {value!r}.")
    return value


def check_logits(logits: object, dim: object) -> Tensor:
    """Refuse what a plain pathwise function cannot take."""
    if not isinstance(logits, Tensor):
        raise UnsupportedError(
            f"logits must be a torch.Tensor, but a {type(logits).__name__} came."
        )
    if logits.dtype not in FLOATS:
        raise UnsupportedError(
            f"logits must be float64, float32, bfloat16 or float16, but are {logits.dtype}. "
            "Convert them: logits.float()."
        )
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise UnsupportedError(f"dim must be an int, but a {type(dim).__name__} came.")
    if not -logits.ndim <= dim < logits.ndim:
        raise ShapeError(
            f"dim={dim} does not exist: logits have shape {tuple(logits.shape)}, with the classes "
            "along one of its dims."
        )
    if logits.shape[dim] == 0:
        raise ShapeError(f"logits of shape {tuple(logits.shape)} have no class along dim={dim}.")
    return logits


def sample_along(
    kind: NoiseKind,
    run: Callable[[Tensor, Tensor, bool], Tensor],
    logits: Tensor,
    *,
    dim: int,
    generator: torch.Generator | None,
    noise: Tensor | None,
) -> Tensor:
    """Run (rows of logits, noise, whether it was given) -> samples along any dim of bare logits."""
    check_logits(logits, dim)
    rows = logits.movedim(dim, -1)
    shape = noise_shape(kind, tuple(rows.shape[:-1]), rows.shape[-1])
    if noise is None:
        u = uniforms(shape, logits.device, generator)
    elif kind == "class":
        u = check_noise(noise, tuple(logits.shape), logits, generator).movedim(dim, -1)
    else:
        u = check_noise(noise, shape, logits, generator)
    return run(rows, u, noise is not None).movedim(-1, dim)


def sample(
    kernel: AbstractKernel,
    logits: Tensor,
    *,
    dim: int,
    generator: torch.Generator | None,
    noise: Tensor | None,
    backend: Backend,
    inner: Tensor | None = None,
) -> Tensor:
    """Run a kernel along any dim of bare logits: the body of every function with a kernel."""

    def run(rows: Tensor, u: Tensor, given: bool) -> Tensor:
        return launch(kernel, rows, u, inner=inner, given=given, backend=backend)[0]

    return sample_along(kernel.noise, run, logits, dim=dim, generator=generator, noise=noise)


CATEGORICAL = frozenset({"categorical"})
DISCRETE = frozenset({"categorical", "bernoulli"})
BERNOULLI = frozenset({"bernoulli"})
