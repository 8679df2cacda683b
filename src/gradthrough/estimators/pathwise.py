"""Estimators whose sample carries the gradient, and the doors to their plain functions."""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._errors import UnsupportedError
from .._random import Stream, noise_shape, uniforms
from .._types import Backend, NoiseKind
from ..kernels.checks import check_content, check_uniforms
from ..kernels.dispatch import launch
from ..kernels.eager import AbstractKernel
from ..laws.base import Distribution, check_noise
from .base import AbstractEstimator, Draw, Estimate
from .checks import check_logits
from .tempered import launch_tempered, spread_along, temperature_of, with_classes


class AbstractPathwise(AbstractEstimator):
    """The sample itself carries the gradient; f must be differentiable in it."""

    @abc.abstractmethod
    def sample(self, logits: Tensor, noise: Tensor) -> Tensor:
        r"""Draw (\*rows, C) samples that carry their Jacobian, from logits of that shape."""

    def form(self, *, hard: bool) -> "AbstractPathwise":
        """Return the estimator with a hard sample, or with a soft one.

        Raises:
            UnsupportedError: it has the other one alone.
        """
        if hard != self.traits.relaxed:
            return self
        have, want = ("soft", "hard") if hard else ("hard", "soft")
        other = "StraightThroughGumbelSoftmax" if hard else "GumbelSoftmax"
        raise UnsupportedError(
            f"{type(self).__name__} has a {have} sample alone, but a {want} one is asked for. Take "
            f"an estimator that has it, such as gradthrough.{other}()."
        )

    def draw(self, dist: Distribution, noise: Tensor) -> Draw:
        """Draw samples that carry their Jacobian."""
        one = with_classes(self, dist)
        return Draw(dist.from_classes(one.sample(dist.class_logits(), noise)), dist)

    def combine(
        self, draws: Sequence[Draw], values: Tensor, point_gradients: Tensor | None = None
    ) -> Estimate:
        """Average; the graph of the values is the estimator."""
        return average(type(self).__name__, draws, values)


def average(name: str, draws: Sequence[Draw], values: Tensor) -> Estimate:
    """Return the mean of values whose graph is the estimator, if it leads to every sample."""
    if not _may_depend(values, [d.points for d in draws]):
        raise UnsupportedError(
            f"{name} differentiates f at the sample, but the values of f do not depend "
            "differentiably on it (an argmax, an index, a detach or a comparison in f? a latent "
            "that the loss does not use?). Make f differentiable in the point, use an estimator "
            "that needs values only, gradthrough.RLOO(), or draw an unused latent outside of the "
            "rollout, with dist.sample()."
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

    def check_classes(self, classes: int) -> None:
        """Refuse a number of classes that the estimator cannot serve."""

    def sample(self, logits: Tensor, noise: Tensor) -> Tensor:
        r"""Draw (\*rows, C) samples that carry their Jacobian, from logits of that shape."""
        self.check_classes(logits.shape[-1])
        return run_kernel(self.kernel, logits, noise, given=False, dim=-1)


def run_kernel(
    kernel: AbstractKernel,
    rows: Tensor,
    noise: Tensor | Stream,
    *,
    given: bool,
    dim: int,
    backend: Backend = "auto",
    inner: Tensor | None = None,
) -> Tensor:
    """Run a kernel on rows, whose classes stood along `dim`."""
    tau = temperature_of(kernel)
    if tau is None:
        return launch(kernel, rows, noise, inner=inner, given=given, backend=backend)
    if inner is not None or backend not in ("auto", "eager"):
        raise UnsupportedError(
            "a tau that is a tensor is served by plain torch, without inner= or another backend."
        )
    if given:
        check_content(noise, check_uniforms)  # pyright: ignore[reportArgumentType] - no stream
    tau = spread_along(tau, rows.movedim(-1, dim), dim)
    moved: Any = kernel  # a dataclass, like every kernel with a temperature
    u = noise.all() if isinstance(noise, Stream) else noise
    return launch_tempered(dataclasses.replace(moved, tau=tau), rows, u)


def sample_along(
    kind: NoiseKind,
    run: Callable[[Tensor, Any, bool], Tensor],
    logits: Tensor,
    *,
    dim: int,
    generator: torch.Generator | None,
    noise: Tensor | None,
    draw: Callable[..., Any] = uniforms,
) -> Tensor:
    """Run (rows of logits, noise, whether it was given) -> samples along any dim of bare logits.

    The noise is that given, or what `draw` makes of (shape, device, generator).
    """
    check_logits(logits, dim)
    last = dim in (-1, logits.ndim - 1)  # then spare the graph two views
    rows = logits if last else logits.movedim(dim, -1)
    shape = noise_shape(kind, tuple(rows.shape[:-1]), rows.shape[-1])
    if noise is None and kind == "class" and not last:  # where torch draws it
        u = uniforms(tuple(logits.shape), logits.device, generator).movedim(dim, -1)
    elif noise is None:
        u = draw(shape, logits.device, generator)
    elif kind == "class":
        u = check_noise(noise, tuple(logits.shape), logits, generator)
        u = u if last else u.movedim(dim, -1)
    else:
        u = check_noise(noise, shape, logits, generator)
    z = run(rows, u, noise is not None)
    return z if last else z.movedim(-1, dim)


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

    def run(rows: Tensor, u: Tensor | Stream, given: bool) -> Tensor:
        return run_kernel(kernel, rows, u, given=given, dim=dim, backend=backend, inner=inner)

    # A stream pays where there is one number for each class.
    draw = Stream if kernel.noise == "class" else uniforms
    return sample_along(
        kernel.noise, run, logits, dim=dim, generator=generator, noise=noise, draw=draw
    )
