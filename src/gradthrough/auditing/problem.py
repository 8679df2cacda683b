"""What is audited: something whose gradient an estimator estimates, as often as one likes."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from .._errors import GradthroughError, UnsupportedError
from ..estimators import RLOO, AbstractEstimator, LocalExpectation, MeasureValued, Reinforce
from ..expect import admit
from ..laws.law import Law

Draws = Callable[[int, torch.Generator], Tensor]

_LIMIT = 10**6  # evaluations of f for a row, in one draw of a reference


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


# The kinds of reference that are drawn, the best first: (kind, estimator, samples, words).
_REFERENCES: list[tuple[str, AbstractEstimator, int, str]] = [
    (
        "local expectation",
        LocalExpectation(limit=_LIMIT),
        1,
        "a sum over every class of each variable, with the others as drawn",
    ),
    (
        "measure-valued",
        MeasureValued(),
        1,
        "differences of f at coupled samples, one variable after the other moved",
    ),
    ("score function", RLOO(), 16, "RLOO with 16 samples"),
]
KINDS = tuple(kind for kind, *_ in _REFERENCES)

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
    def laws(self) -> list[Law]:
        """The laws of its choices; a parameter that is asked about requires a gradient."""

    def unbiased(self) -> list[Unbiased]:
        """Return what may stand in for the exact gradient, the best first, the cheapest last."""
        return [
            Unbiased(
                kind,
                lambda count, generator, one=one, n=n: self.gradients(one, n, count, generator),
                cost,
                words,
            )
            for kind, one, n, words in _REFERENCES
            if (cost := self._cost(one, n)) is not None
        ]

    def _cost(self, one: AbstractEstimator, samples: int) -> int | None:
        """Return how often f is evaluated in a row of the largest law; None if out of reach."""
        try:
            for q in self.laws:
                one.check_law(admit(q, one, samples))
        except UnsupportedError:
            return None
        cost = max(one.evaluations(q, samples) for q in self.laws)
        return cost if cost <= _LIMIT else None

    def magnitude(self, generator: torch.Generator) -> float:
        """Return about how long f times the score is, or the like, 0 where that cannot be had."""
        for one in (Reinforce(), MeasureValued()):  # the law may lack a score
            with suppress(GradthroughError):
                found = self.gradients(one, 1, 4, generator)
                break
        else:
            return 0.0
        size = float(found.double().square().sum(-1).mean().sqrt())
        return size if math.isfinite(size) else 0.0

    @property
    def vectorised(self) -> bool:
        """Whether n estimates at once take n times the memory of one."""
        return True


def fitting(estimator: AbstractEstimator, dist: Law, evaluations: int) -> tuple[int, int]:
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
