"""The abstract distribution: a batch of rows, each a tuple of independent discrete variables."""

from __future__ import annotations

import abc
import math
from typing import Self

import torch
from torch import Tensor

from .._attach import attach
from .._errors import BackendError, ConfigError, DomainError, ShapeError, UnsupportedError
from .._random import noise_shape, uniforms
from .._types import FLOATS, NoiseKind, compute_dtype
from ..kernels.checks import check_content, check_rows
from ..kernels.dispatch import draw, interval_ends, probabilities
from .law import Law


def check_parameter(name: str, x: object, event_dims: object) -> Tensor:
    """Refuse what cannot be logits or probabilities, whatever the family."""
    if not isinstance(x, Tensor):
        raise UnsupportedError(
            f"{name} must be a torch.Tensor, but a {type(x).__name__} came. "
            f"Wrap it: torch.tensor({name}, dtype=torch.float32)."
        )
    if x.dtype not in FLOATS:
        raise UnsupportedError(
            f"{name} must be float64, float32, bfloat16 or float16, but are {x.dtype}. "
            f"Convert them: {name}.float()."
        )
    if isinstance(event_dims, bool) or not isinstance(event_dims, int) or event_dims < 0:
        raise DomainError(f"event_dims must be an int >= 0, but is {event_dims!r}.")
    return x


class Distribution(Law):
    """A law over points, with one row for each entry of the batch.

    Attributes:
        logits: the parameter that receives gradients.
        event_dims: how many dims in front of the class dim are variables that f sees jointly.
    """

    logits: Tensor

    @property
    @abc.abstractmethod
    def classes(self) -> int:
        """How many values one variable can take."""

    @property
    def support_size(self) -> int:
        """How many points one row can take."""
        return self.classes ** math.prod(self.event_shape)

    @abc.abstractmethod
    def class_logits(self) -> Tensor:
        r"""Return the logits as those of a categorical, (\*batch, \*event, C)."""

    def class_tensor(self, x: Tensor) -> Tensor:
        """Return what broadcasts with the logits so that it broadcasts with the `class_logits`."""
        return x

    @abc.abstractmethod
    def from_classes(self, z: Tensor) -> Tensor:
        """Turn points of the categorical form (..., C) into points of this family."""

    @abc.abstractmethod
    def to_classes(self, z: Tensor) -> Tensor:
        """Turn points of this family into points of the categorical form (..., C)."""

    @abc.abstractmethod
    def with_logits(self, logits: Tensor) -> Self:
        """Return the same law with other logits."""

    @abc.abstractmethod
    def score(self, z: Tensor) -> Tensor:
        """Return d log_prob(z) / d logits, without a graph, in float32 or better."""

    @abc.abstractmethod
    def class_gradient(self, gradient: Tensor) -> Tensor:
        """Turn a gradient in points of this family into one in points of the categorical form."""

    @property
    def parameters(self) -> tuple[Tensor]:
        """The logits."""
        return (self.logits,)

    def with_parameters(self, *parameters: Tensor) -> Self:
        """Return the same law with other logits."""
        return self.with_logits(*parameters)

    def noise_shape(self, kind: NoiseKind) -> tuple[int, ...]:
        """Return the shape of the uniforms for an estimator whose noise is of a kind."""
        return noise_shape(kind, self.variables, self.classes)

    def draw(self, noise: Tensor) -> tuple[Tensor, None]:
        """Return points without a graph; they are exact."""
        # Equal rows have one softmax and one cdf.
        logits = self.row.class_logits().unsqueeze(0) if self.expanded else self.class_logits()
        return self.from_classes(draw(logits, noise, given=False)[0]), None  # checked at the door

    def attach_score(self, values: Tensor, points: Tensor, signal: Tensor) -> Tensor:
        """Return the values, with ``signal * score`` as their gradient in the logits."""
        score = self.score(points)
        weight = signal.reshape(signal.shape + (1,) * (score.ndim - signal.ndim))
        return attach(values, self.logits, weight * score)

    def _log_probs(self) -> Tensor:
        logits = self.class_logits()
        check_rows(logits)
        x = logits.to(compute_dtype(logits.dtype))
        x = x - x.detach().amax(-1, keepdim=True)  # first: a common constant would eat the bits
        return x - x.logsumexp(-1, keepdim=True)

    def log_prob(self, z: Tensor) -> Tensor:
        r"""Return the log-probability of points.

        Args:
            z: points (..., \*batch, \*event[, C]); leading dims broadcast.

        Returns:
            (..., \*batch), differentiable in the logits. -inf where a class is masked.

        Raises:
            ShapeError: the points do not end in the shape of the distribution.
            DomainError: a row of the logits has no distribution.
        """
        points = self._check_points(z)
        out = self.precise_log_prob(points)
        check_content(self.to_classes(points), _check_one_hot)  # after the logits, if both are bad
        return out.to(self.logits.dtype)

    def precise_log_prob(self, z: Tensor) -> Tensor:
        """Like `log_prob`, in float32 or better whatever the dtype of the logits."""
        log_probs = self._log_probs()
        index = self.to_classes(z).argmax(-1, keepdim=True)
        lead = index.ndim - log_probs.ndim
        full = log_probs.expand(*index.shape[: max(lead, 0)], *log_probs.shape)
        return self._sum_event(full.gather(-1, index).squeeze(-1))

    def entropy(self) -> Tensor:
        r"""Return the entropy in nats, (\*batch)."""
        log_probs = self._log_probs()
        safe = log_probs.masked_fill(log_probs.isneginf(), 0.0)
        return self._sum_event(-(log_probs.exp() * safe).sum(-1)).to(self.logits.dtype)

    def kl(self, other: Distribution) -> Tensor:
        r"""Return KL(self || other) in nats, (\*batch); shapes broadcast.

        Args:
            other: a distribution of the same family, number of classes and event dims.
        """
        if other.family != self.family or other.event_dims != self.event_dims:
            raise UnsupportedError(
                f"KL needs two laws of one kind, but got {self.family} with event_dims="
                f"{self.event_dims} and {other.family} with event_dims={other.event_dims}."
            )
        if other.classes != self.classes:
            raise ShapeError(
                f"KL needs equal numbers of classes, but got {self.classes} and {other.classes}."
            )
        try:
            torch.broadcast_shapes(self.variables, other.variables)
        except RuntimeError:
            raise ShapeError(
                f"KL needs variables that broadcast, but got {self.variables} and "
                f"{other.variables}."
            ) from None
        p, q = self._log_probs(), other._log_probs()
        masked = p.isneginf()
        gap = p.masked_fill(masked, 0.0) - q.masked_fill(masked, 0.0)
        return self._sum_event((p.exp() * gap).sum(-1)).to(self.logits.dtype)

    def mode(self) -> Tensor:
        r"""Return the most probable point, (\*batch, \*event[, C])."""
        logits = self.class_logits().detach()
        best = logits.argmax(-1, keepdim=True)
        # The argmax of an unsound row is a class like any other; its point must not be.
        zeros = (0.0 * probabilities(logits)).to(logits.dtype)
        return self.from_classes(zeros.scatter_add(-1, best, torch.ones_like(zeros)))

    def sample(
        self, *, generator: torch.Generator | None = None, noise: Tensor | None = None
    ) -> Tensor:
        r"""Draw one point a row, without a gradient.

        Args:
            generator: source of the noise.
            noise: float64 uniforms in [0, 1) of shape (\*batch, \*event) instead.

        Returns:
            Points (\*batch, \*event[, C]), exactly 0 or 1.
        """
        logits = self.class_logits()
        if noise is None:
            u = uniforms(self.variables, logits.device, generator)
        else:
            u = check_noise(noise, self.variables, logits, generator)
        return self.from_classes(draw(logits, u)[0])

    def noise_for(self, z: Tensor) -> Tensor:
        r"""Return a uniform for each variable that draws the points z: tests enumerate with it.

        Args:
            z: points (..., \*batch, \*event[, C]), of positive probability.

        Returns:
            Float64 (..., \*batch, \*event), the middle of the interval that draws z.
        """
        z = self._check_points(z)
        ends = interval_ends(self.class_logits().detach())
        index = self.to_classes(z).argmax(-1, keepdim=True)
        lead = index.ndim - ends.ndim
        check_content(self.to_classes(z), _check_one_hot)
        starts = torch.nn.functional.pad(ends[..., :-1], (1, 0))
        middle = ((starts + ends) / 2.0).expand(*index.shape[: max(lead, 0)], *ends.shape)
        return middle.gather(-1, index).squeeze(-1)

    def support(self) -> Tensor:
        r"""Return every point of one row, (support_size, \*event[, C])."""
        m = math.prod(self.event_shape)
        device = self.logits.device
        codes = torch.arange(self.support_size, device=device).unsqueeze(-1)
        places = self.classes ** torch.arange(m - 1, -1, -1, device=device)
        digits = (codes // places % self.classes).reshape(self.support_size, *self.event_shape)
        z = torch.zeros(*digits.shape, self.classes, dtype=self.logits.dtype, device=device)
        return self.from_classes(z.scatter(-1, digits.unsqueeze(-1), 1.0))

    def _check_points(self, z: object) -> Tensor:
        if not isinstance(z, Tensor):
            raise UnsupportedError(
                f"points must be a torch.Tensor, but a {type(z).__name__} came. Wrap them."
            )
        want = self.logits.shape
        if z.ndim < len(want) or z.shape[z.ndim - len(want) :] != want:
            raise ShapeError(
                f"points must end in the shape of the logits, {tuple(want)}, but have shape "
                f"{tuple(z.shape)}."
            )
        return z.to(self.logits.dtype)


def _check_one_hot(z: Tensor) -> None:
    if not bool((((z == 0) | (z == 1)).all(-1) & (z.sum(-1) == 1)).all()):
        raise DomainError(
            "points must be exactly 0 or 1, and one-hot along the class dim of a categorical, but "
            "some are not. A soft sample has no probability under a discrete law."
        )


def check_noise(
    noise: object,
    shape: tuple[int, ...],
    logits: Tensor,
    generator: torch.Generator | None = None,
    name: str = "logits",
) -> Tensor:
    """Refuse noise of the wrong type, shape, dtype or device."""
    if generator is not None:
        raise ConfigError("noise= and generator= both came. Pass one: the noise is the draw.")
    if not isinstance(noise, Tensor) or noise.dtype != torch.float64:
        came = noise.dtype if isinstance(noise, Tensor) else type(noise).__name__
        raise UnsupportedError(
            f"noise must be a float64 tensor of uniforms in [0, 1), but {came} came. Draw it: "
            f"torch.rand({shape}, dtype=torch.float64)."
        )
    if tuple(noise.shape) != shape:
        raise ShapeError(
            f"noise must have shape {shape} for {name} of shape {tuple(logits.shape)}, but has "
            f"{tuple(noise.shape)}."
        )
    if noise.device != logits.device:
        raise BackendError(
            f"noise lives on {noise.device}, but the {name} on {logits.device}. "
            f"Move it: noise.to({name}.device)."
        )
    return noise
