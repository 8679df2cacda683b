"""What expect and the estimators need of any law: rows, noise, points, and a score."""

from __future__ import annotations

import abc
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from .._attach import attach
from .._types import NoiseKind


class Move(NamedTuple):
    """A term of a measure-valued derivative: ``weight * (f(where) - f(sample))``.

    The sum of the means of those of one parameter is the derivative of E f in it, variable by
    variable.
    """

    weight: Tensor  # (N, *batch, *event)
    where: Tensor  # (N, *batch, *event), points


class Law(abc.ABC):
    """A law over points, with one row for each entry of the batch.

    `Distribution` is the discrete kind. Others are made from ``torch.distributions``, see
    `as_distribution`: of the family "continuous", or "count" for the whole numbers.

    Attributes:
        family: the kind; an estimator's traits name those that it serves.
        event_dims: how many trailing dims of the batch are variables that f sees jointly.
    """

    family: ClassVar[str]
    names: ClassVar[tuple[str, ...]] = ("logits",)  # of the parameters
    moved: ClassVar[tuple[int, ...]] = ()  # which parameter each of the `moves` is for
    event_dims: int
    _row: Law | None = None

    @property
    @abc.abstractmethod
    def variables(self) -> tuple[int, ...]:
        r"""Shape of the variables, (\*batch, \*event)."""

    @property
    @abc.abstractmethod
    def parameters(self) -> tuple[Tensor, ...]:
        """The tensors that receive gradients, of the shape of the variables or longer."""

    @abc.abstractmethod
    def with_parameters(self, *parameters: Tensor) -> Self:
        """Return the same law with other parameters."""

    @abc.abstractmethod
    def noise_shape(self, kind: NoiseKind) -> tuple[int, ...]:
        """Return the shape of the uniforms for an estimator whose noise is of a kind."""

    @abc.abstractmethod
    def draw(self, noise: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return points without a graph, and them again before rounding, if that differs."""

    @abc.abstractmethod
    def precise_log_prob(self, z: Tensor) -> Tensor:
        r"""Return the log-density (..., \*batch) of points before rounding, float32 or better."""

    def moves_noise_shape(self) -> tuple[int, ...]:
        """Return the shape of the uniforms that `moves` takes."""
        return self.noise_shape("variable")

    def moves(self, noise: Tensor) -> tuple[Tensor, list[Move]]:
        """Return samples, and the terms of the measure-valued derivative, one for each `moved`."""
        raise NotImplementedError

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the rows."""
        return self.variables[: len(self.variables) - self.event_dims]

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of the variables of one row."""
        return self.variables[len(self.variables) - self.event_dims :]

    @property
    def requires_grad(self) -> bool:
        """Whether a parameter requires a gradient."""
        return any(x.requires_grad for x in self.parameters)

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return self.parameters[0].device

    def detached(self) -> Self:
        """Return the law without the graph of its parameters."""
        return self.with_parameters(*(x.detach() for x in self.parameters))

    def expand(self, n: int) -> Self:
        """Return the law with a new dim of n equal rows in front; nothing is copied."""
        out = self.with_parameters(*(x.unsqueeze(0).expand(n, *x.shape) for x in self.parameters))
        out._row = self
        return out

    @property
    def expanded(self) -> bool:
        """Whether the first dim is known to hold equal rows: see `expand`."""
        return self._row is not None

    @property
    def row(self) -> Self:
        """The law that was expanded: all entries of the first dim are equal to it."""
        if self._row is None:
            return self.with_parameters(*(x[0] for x in self.parameters))
        return self._row  # pyright: ignore[reportReturnType]

    def attach_score(self, values: Tensor, points: Tensor, signal: Tensor) -> Tensor:
        r"""Return the values, with ``signal * score`` as their gradient in the parameters.

        Args:
            values: (N, \*batch).
            points: what the values belong to, before rounding.
            signal: (N, \*batch).
        """
        return attach(values, self.precise_log_prob(points.detach()), signal)

    def check_score(self) -> None:  # noqa: B027 - most laws have one
        """Refuse a law without a score."""

    def _sum_event(self, x: Tensor) -> Tensor:
        dims = tuple(range(x.ndim - self.event_dims, x.ndim))
        return x.sum(dims) if dims else x
