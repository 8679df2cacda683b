"""The gradient of ``E f(z)`` in the parameters of a law, for a function of one's own."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .._errors import GradthroughError, UnsupportedError
from .._random import uniforms
from .._types import Objective
from ..estimators import AbstractEstimator
from ..expect import expect
from ..laws.base import Distribution
from ..laws.convert import as_distribution
from ..laws.law import Law
from .problem import RANDOM, AbstractProblem, fitting, same
from .support import enumerable, exact_gradient


class FunctionProblem(AbstractProblem):
    r"""The gradient of ``E f(z)``, averaged over the rows, in the parameters of a law.

    In those that require a gradient, if any does, or else in all of them.

    Replicates are a dim in front of the batch, which f meets as more samples: it is called with
    points (N n, \*batch, \*event[, C]).

    Args:
        f: takes points (N, \*batch, \*event[, C]), returns values (N, \*batch).
        dist: Law, logits, or one of torch.distributions.
    """

    def __init__(self, f: Objective, dist: object) -> None:
        if not callable(f):
            raise UnsupportedError(
                f"f must be callable, but a {type(f).__name__} came. Pass a function of points (N, "
                "*batch, *event[, C]) that returns values (N, *batch)."
            )
        q = as_distribution(dist)
        asked = [x.requires_grad for x in q.parameters]
        self._asked = asked if any(asked) else [True] * len(asked)
        self.f, self.dist = f, q.detached()
        *some, last = [n for n, a in zip(q.names, self._asked, strict=True) if a]
        names = f"{', '.join(some)} and {last}" if some else last
        chosen = self._chosen(q.parameters)
        self.dimensions, self.device = sum(x.numel() for x in chosen), q.device
        self.dtype = max((x.dtype for x in chosen), key=lambda dtype: torch.finfo(dtype).eps)
        self.shape = tuple(chosen[0].shape) if len(chosen) == 1 else (self.dimensions,)
        self.rows = math.prod(q.batch_shape)
        if not self.dimensions:
            shapes = " and ".join(str(tuple(x.shape)) for x in chosen)
            raise UnsupportedError(
                f"there is nothing to audit in {names} of shape {shapes}: they hold no "
                "number. Pass a batch with at least one row."
            )
        numbers = names if isinstance(q, Distribution) else f"numbers of {names}"
        inner = math.prod(q.event_shape)
        kind = q.family if isinstance(q, Distribution) else type(q).__name__
        many = f"{inner} {kind} variables" if inner > 1 else f"one {kind} variable"
        classes = (
            f" of {q.classes} classes"
            if isinstance(q, Distribution) and q.family == "categorical"
            else ""
        )
        rows = f"{self.rows:,} rows, each" if self.rows > 1 else "one row"
        self.words = f"{rows} of {many}{classes}; gradient in {self.dimensions:,} {numbers}"

    def samples(self, estimator: AbstractEstimator, evaluations: int) -> tuple[int, int]:
        """Return how many samples fit into so many evaluations a row, and how many they take."""
        return fitting(estimator, self.dist, evaluations)

    def gradients(
        self, estimator: AbstractEstimator, samples: int, n: int, generator: torch.Generator
    ) -> Tensor:
        """Return n independent estimates of the gradient, (n, D)."""
        try:
            leaves, value = self._value(estimator, samples, n, generator)
        except GradthroughError:  # its options may have the shape of the rows
            if n == 1:
                raise
            one = [self.gradients(estimator, samples, 1, generator) for _ in range(n)]
            return torch.cat(one)
        # Not in the dtype of the parameters, where one part in so many rows is rounded or lost.
        return _slope(value, leaves) / self.rows

    def forward(
        self, estimator: AbstractEstimator, samples: int, generator: torch.Generator
    ) -> Callable[[], object]:
        """Compute one value, and return what computes its gradient."""
        leaves, value = self._value(estimator, samples, 1, generator)
        return lambda: _slope(value, leaves)

    def exact(self) -> tuple[Tensor, int] | None:
        """Return the exact gradient, float64 (D,), and the points of a row; None if too many."""
        q = self.dist
        if self.random or not isinstance(q, Distribution) or not enumerable(q):
            return None
        return exact_gradient(self.f, q), q.support_size

    @functools.cached_property
    def random(self) -> bool:
        """Whether f gives another value at the same point: dropout, noise of its own."""
        with torch.no_grad():
            q = self.dist.expand(1)
            u = uniforms(q.noise_shape("variable"), self.device, torch.Generator(self.device))
            point, _ = q.draw(u)
            first, second = self.f(point.clone()), self.f(point.clone())
        return not same(first, second)

    @property
    def caveat(self) -> str:
        """What a reference that is drawn has to be read with, a sentence or nothing."""
        return RANDOM if self.random else ""

    @property
    def laws(self) -> list[Law]:
        """The law."""
        parameters = zip(self.dist.parameters, self._asked, strict=True)
        return [self.dist.with_parameters(*(x.clone().requires_grad_(a) for x, a in parameters))]

    def _value(
        self, estimator: AbstractEstimator, samples: int, n: int, generator: torch.Generator
    ) -> tuple[list[Tensor], Tensor]:
        """Return leaves, each (n, *parameter), and the sum over n batches that they lead to."""
        batch = self.dist.batch_shape

        def repeated(points: Tensor) -> Tensor:
            values = self.f(points.flatten(0, 1))
            if values.shape != (points.shape[0] * n, *batch):
                return values  # the evaluator says what is wrong with it
            return values.reshape(-1, n, *batch)

        with torch.enable_grad():
            leaves = [
                x.expand(n, *x.shape).clone().requires_grad_(asked)
                for x, asked in zip(self.dist.parameters, self._asked, strict=True)
            ]
            alone = n == 1
            q = self.dist.with_parameters(*(x[0] if alone else x for x in leaves))
            f = self.f if alone else repeated
            value = expect(f, q, estimator, samples=samples, generator=generator)
            return self._chosen(leaves), value.sum()

    def _chosen(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Return those of the parameters that are asked about."""
        return [x for x, asked in zip(parameters, self._asked, strict=True) if asked]


def _slope(value: Tensor, leaves: Sequence[Tensor]) -> Tensor:
    """Return the gradients in leaves (n, ...), float64 (n, D), refusing one without a graph."""
    found: Sequence[Tensor | None] = [None]
    if value.requires_grad:
        found = torch.autograd.grad(value, leaves, allow_unused=True)
    if all(x is None for x in found):
        raise UnsupportedError(
            "the values of f do not depend differentiably on its points (an argmax, an index, a "
            "detach or a comparison in f?), so there is no gradient for this estimator to send."
        )
    parts = zip(found, leaves, strict=True)
    return torch.cat(
        [(torch.zeros_like(x) if g is None else g).reshape(len(x), -1).double() for g, x in parts],
        1,
    )
