"""expect: the place where f is evaluated."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._errors import BackendError, ConfigError, ShapeError, UnsupportedError
from ._types import Objective
from .distributions.base import Distribution, check_noise
from .distributions.convert import as_distribution
from .estimators.base import AbstractEstimator, AbstractPathwise, Draw, Estimate, check_count


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
        f: takes points (N, \*batch, \*event[, C]), returns values (N, \*batch).
        dist: Distribution, logits (\*batch, C), or one of torch.distributions.
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
    else; dropping it is always valid.

    Args:
        f: takes points (N, \*batch, \*event[, C]), returns values (N, \*batch).
        dist: Distribution, logits (\*batch, C), or one of torch.distributions.
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
    q = _admit(dist, estimator, samples)
    draw = _ask(estimator, q.expand(samples), generator, noise)
    values = _evaluate(f, draw.points, tuple(draw.dist.batch_shape), type(estimator).__name__)
    return estimator.combine((draw,), values)


def _admit(dist: object, estimator: object, samples: object) -> Distribution:
    if not isinstance(estimator, AbstractEstimator):
        hint = ""
        if isinstance(estimator, type) and issubclass(estimator, AbstractEstimator):
            hint = f" Instantiate it: {estimator.__name__}()."
        elif isinstance(estimator, str):
            hint = f" Build it: gradthrough.estimator({estimator!r})."
        raise UnsupportedError(f"expected an estimator, but {estimator!r} came.{hint}")
    check_count("samples", samples, estimator.traits.min_samples)
    q = as_distribution(dist)
    if q.family not in estimator.traits.families:
        raise UnsupportedError(
            f"{type(estimator).__name__} serves {', '.join(sorted(estimator.traits.families))}, "
            f"but the distribution is {q.family}."
        )
    return q


def _ask(
    estimator: AbstractEstimator,
    rows: Distribution,
    generator: torch.Generator | None,
    noise: Tensor | None,
) -> Draw:
    if noise is None:
        u = estimator.noise(rows, generator=generator)
    else:
        u = check_noise(noise, estimator.noise_shape(rows), rows.logits, generator)
    return estimator.draw(rows, u)


def _evaluate(f: object, points: Tensor, want: tuple[int, ...], name: str) -> Tensor:
    if not callable(f):
        raise UnsupportedError(f"f must be callable, but a {type(f).__name__} came.")
    values = f(points)
    _check_values(
        values,
        want,
        name,
        points.device,
        f" f is called with points of shape {tuple(points.shape)};",
    )
    return values  # pyright: ignore[reportReturnType]


def _check_values(
    values: object, want: tuple[int, ...], name: str, device: torch.device, called: str = ""
) -> None:
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
        _admit(torch.zeros(1, 1), estimator, samples)
        if not estimator.traits.many_draws:
            raise UnsupportedError(
                f"{type(estimator).__name__} serves one latent at a time. Nest expect inside f "
                "instead, one for each latent."
            )
        self._estimator = estimator
        self._samples = samples
        self._generator = generator
        self._draws: list[Draw] = []
        self.on_values: Callable[[Tensor], None] = lambda values: None

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
        q = _admit(dist, self._estimator, self._samples)
        if not q.batch_shape or q.batch_shape[0] != self._samples:
            raise ShapeError(
                f"a rollout of {self._samples} samples needs logits whose first dim is "
                f"{self._samples}, but the rows are {q.batch_shape}. Pass data through "
                "rollout.expand first, or dist.expand(samples)."
            )
        generator = self._generator if noise is None else None
        draw = _ask(self._estimator, q, generator, noise)
        self._draws.append(draw)
        return draw.points

    def reset(self) -> None:
        """Forget what was sampled since the last `combine`: after a pass without a loss."""
        self._draws = []

    def combine(self, values: Tensor) -> Tensor:
        r"""Turn values (N, \*batch) into the estimate (\*batch,)."""
        return self.estimate(values).value

    def estimate(self, values: Tensor) -> Estimate:
        """Like `combine`, with the tuning loss."""
        if not self._draws:
            raise ConfigError("nothing was sampled yet: call rollout.sample before combine.")
        first = self._draws[0]
        want, device = tuple(first.dist.batch_shape), first.points.device
        _check_values(values, want, type(self._estimator).__name__, device)
        self.on_values(values)
        draws, self._draws = tuple(self._draws), []  # the next loss starts afresh
        return self._estimator.combine(draws, values)


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
        if out.tuning_loss is not None:
            self.tuning_losses.append(out.tuning_loss)
        return out.value

    def sample(self, logits: Tensor) -> Tensor:
        """Return one pathwise sample, shape of the logits."""
        if not isinstance(self.estimator, AbstractPathwise):
            raise UnsupportedError(
                f"{type(self.estimator).__name__} has no sample that carries a gradient: it needs "
                "the values of f. Use expect(f, dist) or expect.rollout()."
            )
        q = as_distribution(logits)
        return _ask(self.estimator, q, self.generator, None).points

    def rollout(self) -> Rollout:
        """Return a Rollout of the bound estimator."""
        rollout = Rollout(self.estimator, samples=self.samples, generator=self.generator)
        rollout.on_values = self._count
        return rollout

    def _count(self, values: Tensor) -> None:
        self.evaluations += values.numel()
