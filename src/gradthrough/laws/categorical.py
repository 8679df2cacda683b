"""The categorical distribution over one-hot points."""

from typing import ClassVar, Self

import torch
from torch import Tensor

from .._errors import ConfigError, DomainError, ShapeError
from ..kernels.checks import check_content
from ..kernels.dispatch import probabilities
from .base import Distribution, check_parameter


class Categorical(Distribution):
    r"""Independent categorical variables; points are one-hot.

    ``P(z = e_i) = exp(logits_i) / sum_j exp(logits_j)`` for each variable, and the joint law of a
    row is the product over its event dims.

    Args:
        logits: (\*batch, \*event, C), unnormalised; -inf masks a class.
        probs: (\*batch, \*event, C) instead, >= 0, normalised here; 0 masks a class.
        event_dims: how many dims in front of C are seen jointly by f. 0: every entry is a row.

    Raises:
        ShapeError: too few dims, or no class.
        UnsupportedError: not a tensor of float64, float32, bfloat16 or float16.
        DomainError: probabilities that are negative or not finite, or a row without any.

    Example:
        >>> import torch, gradthrough as gt
        >>> q = gt.Categorical(torch.zeros(32, 4, 8), event_dims=1)  # 4 variables of 8 classes
        >>> q.batch_shape, q.event_shape, q.classes
        ((32,), (4,), 8)
        >>> q.log_prob(q.sample()).shape
        torch.Size([32])
    """

    family: ClassVar[str] = "categorical"

    def __init__(
        self,
        logits: Tensor | None = None,
        *,
        probs: Tensor | None = None,
        event_dims: int = 0,
    ) -> None:
        if (logits is None) == (probs is None):
            raise ConfigError("Categorical takes exactly one of logits and probs=.")
        name = "logits" if probs is None else "probs"
        x = check_parameter(name, logits if probs is None else probs, event_dims)
        if x.ndim < 1 + event_dims or x.shape[-1] < 1:
            raise ShapeError(
                f"{name} must have shape (*batch, *event, C) with C >= 1 and {event_dims} event "
                f"dims, but have shape {tuple(x.shape)}."
            )
        self.logits = x if probs is None else _log(x)
        self.event_dims = event_dims

    def __repr__(self) -> str:
        return f"Categorical(logits={tuple(self.logits.shape)}, event_dims={self.event_dims})"

    @property
    def variables(self) -> tuple[int, ...]:
        r"""Shape of the variables, (\*batch, \*event)."""
        return tuple(self.logits.shape[:-1])

    @property
    def classes(self) -> int:
        """How many values one variable can take."""
        return self.logits.shape[-1]

    @property
    def probs(self) -> Tensor:
        r"""Probabilities (\*batch, \*event, C)."""
        return self._log_probs().exp().to(self.logits.dtype)

    def class_logits(self) -> Tensor:
        """Return the logits."""
        return self.logits

    def from_classes(self, z: Tensor) -> Tensor:
        """Return z."""
        return z

    def to_classes(self, z: Tensor) -> Tensor:
        """Return z."""
        return z

    def class_gradient(self, gradient: Tensor) -> Tensor:
        """Return the gradient."""
        return gradient

    def with_logits(self, logits: Tensor) -> Self:
        """Return the same law with other logits."""
        return type(self)(logits, event_dims=self.event_dims)

    def score(self, z: Tensor) -> Tensor:
        """Return z - softmax(logits)."""
        p = probabilities(self.logits.detach())
        return z.detach().to(p.dtype) - p


def _log(probs: Tensor) -> Tensor:
    check_content(probs, check_probs)
    # Not log(0) with its infinite slope: a class of probability 0 is masked and gets no gradient.
    empty = probs == 0
    return probs.masked_fill(empty, 1.0).log().masked_fill(empty, -torch.inf)


def check_probs(probs: Tensor, upper: float = torch.inf) -> None:
    """Refuse negative, NaN and infinite probabilities."""
    good = (probs >= 0) & (probs <= upper) & probs.isfinite()
    if not bool(good.all()):
        raise DomainError(
            f"probs must be finite and in [0, {'1' if upper == 1 else 'inf'}], but "
            f"{int((~good).sum())} of {probs.numel()} entries are not. "
            "Unnormalised scores go to logits=."
        )
