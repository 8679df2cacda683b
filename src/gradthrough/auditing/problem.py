"""What is audited: something whose gradient an estimator estimates, as often as one likes."""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .._errors import GradthroughError, UnsupportedError
from .._types import Objective
from ..estimators import RLOO, AbstractEstimator, LocalExpectation, Reinforce
from ..expect import admit, expect
from ..laws.base import Distribution
from ..laws.convert import as_discrete
from .support import enumerable, exact_gradient

Draws = Callable[[int, torch.Generator], Tensor]

_BASELINES = 16  # samples of RLOO as a reference
_LIMIT = 10**6  # evaluations of f for a row, in one draw of the local expectation


@dataclass(frozen=True)
class Unbiased:
    """A gradient without bias, whose mean may serve as the reference.

    Args:
        kind: of reference.
        draw: returns n independent gradients (n, D).
        cost: evaluations of f for each row and gradient.
        words: what it does.
    """

    kind: str
    draw: Draws
    cost: int
    words: str


RANDOM = (
    " f is random itself (dropout, say): there is no exact sum, and that noise is in all figures."
)


def same(first: object, second: object) -> bool:
    """Return whether two runs gave the same numbers, up to rounding."""
    if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
        return True  # what is wrong with them is said elsewhere
    return first.shape == second.shape and torch.allclose(
        first.double(), second.double(), rtol=1e-5, atol=0.0, equal_nan=True
    )


class AbstractProblem(abc.ABC):
    """A gradient of D numbers, of a batch mean.

    Attributes:
        dimensions: D.
        shape: of the gradient before it is flattened.
        rows: size of the batch.
        dtype: of the gradient.
        device: where it is.
        words: what it is, for the report.
    """

    dimensions: int
    shape: tuple[int, ...]
    rows: int
    dtype: torch.dtype
    device: torch.device
    words: str

    @abc.abstractmethod
    def samples(self, estimator: AbstractEstimator, evaluations: int) -> tuple[int, int]:
        """Return how many samples fit into so many evaluations a row, and how many they take."""

    @abc.abstractmethod
    def gradients(
        self, estimator: AbstractEstimator, samples: int, n: int, generator: torch.Generator
    ) -> Tensor:
        """Return n independent estimates of the gradient, (n, D)."""

    @abc.abstractmethod
    def forward(
        self, estimator: AbstractEstimator, samples: int, generator: torch.Generator
    ) -> Callable[[], object]:
        """Compute one value, and return what computes its gradient."""

    @abc.abstractmethod
    def exact(self) -> tuple[Tensor, int] | None:
        """Return the exact gradient, float64 (D,), and the points of a row; None if too many."""

    @property
    def caveat(self) -> str:
        """What a reference that is drawn has to be read with, a sentence or nothing."""
        return ""

    @property
    @abc.abstractmethod
    def laws(self) -> list[Distribution]:
        """The laws of its random choices."""

    def unbiased(self) -> list[Unbiased]:
        """Return what may stand in for the exact gradient, the best first, the cheapest last."""
        leg, rloo, n = LocalExpectation(limit=_LIMIT), RLOO(), _BASELINES
        cost = max(leg.evaluations(q, 1) for q in self.laws)
        found = [
            Unbiased(
                "score function",
                lambda count, generator: self.gradients(rloo, n, count, generator),
                n,
                f"RLOO with {n} samples",
            )
        ]
        if cost <= _LIMIT:
            words = "a sum over every class of each variable, with the others as drawn"
            draw: Draws = lambda count, generator: self.gradients(leg, 1, count, generator)  # noqa: E731
            found.insert(0, Unbiased("local expectation", draw, cost, words))
        return found

    def magnitude(self, generator: torch.Generator) -> float:
        """Return about how long f times the score is, 0 where that cannot be had."""
        try:
            found = self.gradients(Reinforce(), 1, 4, generator)
        except GradthroughError:
            return 0.0
        size = float(found.double().square().sum(-1).mean().sqrt())
        return size if math.isfinite(size) else 0.0

    @property
    def vectorised(self) -> bool:
        """Whether n estimates at once take n times the memory of one."""
        return True


def fitting(estimator: AbstractEstimator, dist: Distribution, evaluations: int) -> tuple[int, int]:
    """Return the most samples for which f is evaluated at most so often, and how often it is."""
    name, least = type(estimator).__name__, estimator.traits.min_samples
    pairs = 2 if getattr(estimator, "antithetic", False) else 1
    least = max(least, pairs)
    admit(dist, estimator, least)
    needed = estimator.evaluations(dist, least)
    if needed > evaluations:
        every = " (all of the support)" if estimator.traits.noise == "none" else ""
        raise UnsupportedError(
            f"{name} needs {needed:,} evaluations of f for each row{every}, more than the "
            f"{evaluations:,} that all are compared at."
        )
    if estimator.traits.noise == "none":
        return least, needed  # another sample changes nothing
    most = evaluations - evaluations % pairs
    while most > least and estimator.evaluations(dist, most) > evaluations:
        most -= pairs
    return most, estimator.evaluations(dist, most)


class FunctionProblem(AbstractProblem):
    r"""The gradient of ``E f(z)``, averaged over the rows, in the logits of a law.

    Replicates are a dim in front of the batch, which f meets as more samples: it is called with
    points (N n, \*batch, \*event[, C]).

    Args:
        f: takes points (N, \*batch, \*event[, C]), returns values (N, \*batch).
        dist: Distribution, logits, or one of torch.distributions.
    """

    def __init__(self, f: Objective, dist: object) -> None:
        if not callable(f):
            raise UnsupportedError(
                f"f must be callable, but a {type(f).__name__} came. Pass a function of points (N, "
                "*batch, *event[, C]) that returns values (N, *batch)."
            )
        q = as_discrete(dist)
        self.f, self.dist = f, q.with_logits(q.logits.detach())
        logits = self.dist.logits
        self.dimensions, self.dtype, self.device = logits.numel(), logits.dtype, logits.device
        self.rows, self.shape = math.prod(q.batch_shape), tuple(logits.shape)
        if not self.dimensions:
            raise UnsupportedError(
                f"there is nothing to audit in logits of shape {tuple(logits.shape)}: they hold no "
                "number. Pass a batch with at least one row."
            )
        inner = math.prod(q.event_shape)
        many = f"{inner} {q.family} variables" if inner > 1 else f"one {q.family} variable"
        classes = f" of {q.classes} classes" if q.family == "categorical" else ""
        rows = f"{self.rows:,} rows" if self.rows > 1 else "one row"
        self.words = f"{rows}, each of {many}{classes}; gradient in {self.dimensions:,} logits"

    def samples(self, estimator: AbstractEstimator, evaluations: int) -> tuple[int, int]:
        """Return how many samples fit into so many evaluations a row, and how many they take."""
        return fitting(estimator, self.dist, evaluations)

    def gradients(
        self, estimator: AbstractEstimator, samples: int, n: int, generator: torch.Generator
    ) -> Tensor:
        """Return n independent estimates of the gradient, (n, D)."""
        try:
            leaf, value = self._value(estimator, samples, n, generator)
        except GradthroughError:  # its options may have the shape of the rows
            if n == 1:
                raise
            one = [self.gradients(estimator, samples, 1, generator) for _ in range(n)]
            return torch.cat(one)
        # Not in the dtype of the logits, where one part in so many rows is rounded or lost.
        return _slope(value, leaf).flatten(1).double() / self.rows

    def forward(
        self, estimator: AbstractEstimator, samples: int, generator: torch.Generator
    ) -> Callable[[], object]:
        """Compute one value, and return what computes its gradient."""
        leaf, value = self._value(estimator, samples, 1, generator)
        return lambda: _slope(value, leaf)

    def exact(self) -> tuple[Tensor, int] | None:
        """Return the exact gradient, float64 (D,), and the points of a row; None if too many."""
        if self.random or not enumerable(self.dist):
            return None
        return exact_gradient(self.f, self.dist), self.dist.support_size

    @functools.cached_property
    def random(self) -> bool:
        """Whether f gives another value at the same point: dropout, noise of its own."""
        with torch.no_grad():
            point = self.dist.mode().unsqueeze(0)
            first, second = self.f(point.clone()), self.f(point.clone())
        return not same(first, second)

    @property
    def caveat(self) -> str:
        """What a reference that is drawn has to be read with, a sentence or nothing."""
        return RANDOM if self.random else ""

    @property
    def laws(self) -> list[Distribution]:
        """The law."""
        return [self.dist]

    def _value(
        self, estimator: AbstractEstimator, samples: int, n: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the leaf (n, *logits) and the sum over n batches, which depends on it."""
        logits, batch = self.dist.logits, self.dist.batch_shape

        def repeated(points: Tensor) -> Tensor:
            values = self.f(points.flatten(0, 1))
            if values.shape != (points.shape[0] * n, *batch):
                return values  # the evaluator says what is wrong with it
            return values.reshape(-1, n, *batch)

        with torch.enable_grad():
            leaf = logits.expand(n, *logits.shape).clone().requires_grad_()
            f, q = repeated, self.dist.with_logits(leaf)
            if n == 1:
                f, q = self.f, self.dist.with_logits(leaf[0])
            value = expect(f, q, estimator, samples=samples, generator=generator)
            return leaf, value.sum()


def _slope(value: Tensor, leaf: Tensor) -> Tensor:
    """Return the gradient of a value, refusing one that does not depend on the leaf."""
    found = None
    if value.requires_grad:
        (found,) = torch.autograd.grad(value, leaf, allow_unused=True)
    if found is None:
        raise UnsupportedError(
            "the values of f do not depend differentiably on its points (an argmax, an index, a "
            "detach or a comparison in f?), so there is no gradient for this estimator to send."
        )
    return found
