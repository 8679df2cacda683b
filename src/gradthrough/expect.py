"""expect: the place where f is evaluated."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._errors import BackendError, ShapeError, UnsupportedError
from ._slope import in_transform, value_and_slope
from ._types import Objective
from .estimators.base import AbstractEstimator, Draw, Estimate
from .estimators.checks import check_count
from .kernels.checks import check_content, check_uniforms
from .laws.base import check_noise
from .laws.convert import as_distribution
from .laws.law import Law


def expect(
    f: Objective,
    dist: object,
    estimator: AbstractEstimator,
    *,
    samples: int = 1,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    r"""Estimate E f(z), with the gradient that the estimator chooses.

    Forward: the mean of f over the drawn samples, weighted where the estimator says so. Backward:
    the estimator's gradient to the logits, and the gradient of that value to whatever f uses.

    Args:
        f: takes points (N, \*batch, \*event[, C]), returns values (N, \*batch). Each value must
            depend on its own point alone: if rows of the batch act on one another (batch
            normalisation, negatives from the batch), they belong into one row's event, with
            event_dims. Some estimators ask for more points than N. f leaves its points unchanged.
        dist: Law, logits (\*batch, C), or one of torch.distributions: see `as_distribution`.
        estimator: any of ``ESTIMATORS``.
        samples: N, how many samples for each row, >= 1.
        generator: source of the noise.
        noise: the noise itself, of shape ``estimator.noise_shape(dist.expand(samples))``, float64
            uniforms in [0, 1), instead of a generator.

    Returns:
        (\*batch,).

    Raises:
        ShapeError: f returns another shape than (N, \*batch); noise of the wrong shape.
        DomainError: unsound logits, too few samples, tau and the like.
        UnsupportedError: a dtype, a family or an f that the estimator cannot serve.
        ConfigError: both noise and generator.

    Example:
        >>> import torch, gradthrough as gt
        >>> logits = torch.zeros(32, 4, 8, requires_grad=True)
        >>> q = gt.Categorical(logits, event_dims=1)
        >>> f = lambda z: z[..., 0].sum(-1) ** 2  # (N, 32, 4, 8) -> (N, 32)
        >>> gt.expect(f, q, gt.RLOO(), samples=4).mean().backward()
    """
    return estimate(f, dist, estimator, samples=samples, generator=generator, noise=noise).value


def estimate(
    f: Objective,
    dist: object,
    estimator: AbstractEstimator,
    *,
    samples: int = 1,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Estimate:
    r"""Like `expect`, but return the whole Estimate: the value and the tuning loss.

    ``tuning_loss`` trains the estimator's own tensors (a learned baseline) and reaches nothing
    else; dropping it is always valid. Inside ``torch.func`` transforms it may be None unless one of
    them is what the transform differentiates.

    Args:
        f: takes points (N, \*batch, \*event[, C]), returns values (N, \*batch).
        dist: Law, logits (\*batch, C), or one of torch.distributions: see `as_distribution`.
        estimator: any of ``ESTIMATORS``.
        samples: N, how many samples for each row, >= 1.
        generator: source of the noise.
        noise: the noise itself instead.

    Returns:
        Estimate(value (\*batch,), tuning_loss, a scalar or None).

    Raises:
        ShapeError, DomainError, UnsupportedError, ConfigError: as `expect`.

    Example:
        >>> import torch, gradthrough as gt
        >>> c = torch.zeros((), requires_grad=True)
        >>> f = lambda z: z[..., 0] + 3
        >>> value, tuning_loss = gt.estimate(f, torch.zeros(5, 2), gt.Reinforce(baseline=c))
        >>> tuning_loss.backward()
        >>> bool(c.grad < 0)
        True
    """
    q = admit(dist, estimator, samples)
    draw = ask(estimator, q.expand(samples), generator, noise)
    return estimator.combine(*evaluate(f, draw, type(estimator).__name__))


def check_estimator(estimator: object, samples: object) -> AbstractEstimator:
    """Return the estimator, if it is one, and takes so many samples."""
    if not isinstance(estimator, AbstractEstimator):
        hint = ""
        if isinstance(estimator, type) and issubclass(estimator, AbstractEstimator):
            hint = f" Instantiate it: {estimator.__name__}()."
        elif isinstance(estimator, str):
            hint = f" Build it: gradthrough.estimator({estimator!r})."
        raise UnsupportedError(f"expected an estimator, but {estimator!r} came.{hint}")
    check_count("samples", samples, estimator.traits.min_samples)
    return estimator


def admit(dist: object, estimator: object, samples: object) -> Law:
    """Return the distribution, if the estimator serves it with so many samples."""
    one = check_estimator(estimator, samples)
    q = as_distribution(dist)
    if q.family not in one.traits.families:
        served = sorted(one.traits.families)
        raise UnsupportedError(
            f"{type(one).__name__} serves {', '.join(served)}, but the distribution is {q.family}."
            f" {_remedy(one, q.family)}, or use an estimator of every law, such as "
            "gradthrough.RLOO()."
        )
    return q


def _remedy(estimator: AbstractEstimator, family: str) -> str:
    """Return what to do where an estimator does not serve a family of laws."""
    if family == "continuous":
        return "Take gradthrough.Pathwise()"
    if family == "count":
        return "Take gradthrough.MeasureValued()"
    discrete = sorted(estimator.traits.families & {"bernoulli", "categorical"})
    if discrete:
        return f"Pass gradthrough.{discrete[0].capitalize()}(logits)"
    return "Take one for classes, such as gradthrough.ReinMax()"


def ask(
    estimator: AbstractEstimator,
    rows: Law,
    generator: torch.Generator | None,
    noise: Tensor | None,
) -> Draw:
    """Draw noise, or check the noise that was given, and ask the estimator for its points."""
    if noise is None:
        u = estimator.noise(rows, generator=generator)
    else:
        u = check_noise(
            noise, estimator.noise_shape(rows), rows.parameters[0], generator, rows.names[0]
        )
        check_content(u, check_uniforms)
    return estimator.draw(rows, u)


def evaluate(f: object, draw: Draw, name: str) -> tuple[tuple[Draw], Tensor, Tensor | None]:
    """Evaluate f at the points of a draw, with its gradient there if the draw wants that.

    Without a graph to record (torch.no_grad) there is nothing to attach a gradient to, and the
    gradient of f is None. A draw that wants to differentiate once more gets its points back as
    the leaf that values and gradient were computed from.
    """
    if not callable(f):
        raise UnsupportedError(f"f must be callable, but a {type(f).__name__} came.")
    points = draw.points
    want = (points.shape[0], *draw.dist.batch_shape[1:])
    called = f" f is called with points of shape {tuple(points.shape)};"

    def checked(x: Tensor) -> Tensor:
        values = f(x)
        check_values(values, want, name, x.device, called)
        return values  # pyright: ignore[reportReturnType]

    if draw.gradients == "none" or not torch.is_grad_enabled():
        if in_transform():  # where nobody counts versions
            untouched = points if points.requires_grad else points.clone()
            return (draw,), checked(untouched), None
        version = version_of(points)
        values = checked(points)
        if draw.dist.requires_grad:  # else the points are not looked at again
            check_untouched(points, version)
        return (draw,), values, None
    graph = draw.gradients == "graph" and not in_transform()
    if graph:
        points = points.detach().requires_grad_()
        draw = draw._replace(points=points)
    values, slope = value_and_slope(checked, points, graph=graph)
    if slope is None:
        raise UnsupportedError(
            f"{name} needs the gradient of f at its points, but the values of f do not depend "
            "differentiably on them (an argmax, an index, a detach or a comparison in f?). Make f "
            "differentiable in the point, or use an estimator that needs values only, such as "
            "gradthrough.RLOO()."
        )
    return (draw,), values, slope


def version_of(points: Tensor) -> int:
    """Return how often points were changed in place; in inference mode nobody counts."""
    return 0 if points.is_inference() else points._version


def check_untouched(points: Tensor, version: int) -> None:
    """Refuse an f that changed its points: the score is taken there afterwards."""
    if version_of(points) != version and not points.requires_grad:
        raise UnsupportedError(
            "f changed its points in place, and the estimator needs them as they were. Write "
            "z = 2 * z instead of z *= 2, or start f with z = z.clone()."
        )


def check_values(
    values: object, want: tuple[int, ...], name: str, device: torch.device, called: str = ""
) -> None:
    """Refuse values that are not one floating-point number for each point."""
    if not isinstance(values, Tensor):
        raise UnsupportedError(
            f"f must return a tensor of shape {want}, but returned a {type(values).__name__}."
        )
    if tuple(values.shape) != want:
        raise ShapeError(
            f"{name} needs values of shape {want}, one per sample and example, but f returned "
            f"{tuple(values.shape)}.{called} if it takes one leading dim, wrap it: "
            "gradthrough.fold(f). If f sums over dims that belong together, say so: "
            "gradthrough.Categorical(logits, event_dims=1)."
        )
    if values.device != device:
        raise BackendError(
            f"f returned values on {values.device}, but its points live on {device}. "
            "Move the values there: values.to(points.device)."
        )
    if not values.is_floating_point():
        raise UnsupportedError(
            f"f must return floating-point values, but returned {values.dtype}. Convert them: "
            "values.float()."
        )


def fold(f: Callable[..., Tensor], *data: Tensor) -> Objective:
    r"""Wrap an f that takes one leading dim, so that it takes (N, batch).

    Args:
        f: takes points (M, \*event[, C]) and, for each of `data`, rows (M, ...); returns (M,).
        data: tensors (batch, ...) that f needs beside the points, repeated for each sample.

    Returns:
        An f that takes points (N, batch, \*event[, C]) and returns (N, batch).

    Raises:
        ShapeError: points without both a sample and a batch dim, or f does not keep its rows.

    Example:
        >>> import torch, gradthrough as gt
        >>> decoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32, 1))
        >>> f = gt.fold(lambda z, x: (decoder(z).squeeze(-1) - x) ** 2, torch.zeros(5))
        >>> gt.expect(f, gt.Categorical(torch.zeros(5, 4, 8), event_dims=1), gt.ReinMax()).shape
        torch.Size([5])
    """

    def folded(points: Tensor) -> Tensor:
        if points.ndim < 2:
            raise ShapeError(
                f"fold needs points (N, batch, ...), but they have shape {tuple(points.shape)}: "
                "the logits have no batch dim to fold."
            )
        n, b = points.shape[:2]
        for x in data:
            if x.shape[:1] != (b,):
                raise ShapeError(
                    f"fold got data of shape {tuple(x.shape)}, but the points {tuple(points.shape)}"
                    f" have a batch of {b}: each tensor needs one row for each of them."
                )
        rows = [x.unsqueeze(0).expand(n, *x.shape).flatten(0, 1) for x in data]
        values = f(points.flatten(0, 1), *rows)
        if not isinstance(values, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UnsupportedError(
                f"f must return a tensor of shape ({n * b},), but returned a "
                f"{type(values).__name__}."
            )
        if values.shape != (n * b,):
            raise ShapeError(
                f"the folded f was called with {n * b} rows and must return as many values, but "
                f"returned shape {tuple(values.shape)}."
            )
        return values.reshape(n, b)

    return folded
