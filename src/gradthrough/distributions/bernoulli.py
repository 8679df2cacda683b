"""torch's Bernoulli with the gradient of an estimator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, cast

import torch
import torch.distributions as td
from torch import Tensor

from .._errors import ConfigError
from ..estimators.base import AbstractEstimator
from ..laws.bernoulli import Bernoulli as Law
from .base import AbstractSampled


class Bernoulli(AbstractSampled, td.Bernoulli):  # pyright: ignore[reportIncompatibleVariableOverride]
    r"""torch's Bernoulli, whose ``rsample`` carries the gradient of an estimator.

    ``P(b = 1) = sigmoid(logits)``. Estimators see two classes with logits (logits, 0), of which
    the first is b = 1. A logit of -inf masks b = 1.

    Args:
        scores: (\*batch), the logits by position; torch's class takes probabilities there.
        logits: (\*batch).
        probs: (\*batch) instead, in [0, 1]; 0 and 1 are moved by the least step inward that keeps
            the logit finite.
        estimator: one whose sample is hard and carries the gradient; by default
            `gradthrough.ReinMax`. ReDGE and ReinDGE sample a law that is only close to that of
            ``log_prob``.
        validate_args: whether to check logits and values, where the library checks content (see
            `gradthrough.set_validation`); by default as torch does.

    Raises:
        ConfigError: none or several of scores, logits and probs.
        DomainError: NaN or +inf logits, probs outside of [0, 1].
        UnsupportedError: the estimator's sample carries no gradient or is relaxed; not a tensor of
            floating point.

    Example:
        >>> import torch, gradthrough as gt
        >>> logits = torch.zeros(5, requires_grad=True)
        >>> q = gt.distributions.Bernoulli(logits, estimator=gt.ReinMax())
        >>> b = q.rsample((7,))
        >>> b.shape, q.log_prob(b).shape
        (torch.Size([7, 5]), torch.Size([7, 5]))
    """

    def __init__(
        self,
        scores: Tensor | None = None,
        /,
        *,
        logits: Tensor | None = None,
        probs: Tensor | None = None,
        estimator: AbstractEstimator | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if sum(x is not None for x in (scores, logits, probs)) != 1:
            raise ConfigError(
                "Bernoulli takes exactly one of scores, the logits by position, logits= and probs=."
            )
        law = Law(logits if scores is None else scores, probs=probs)
        self._start(law, estimator, validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:  # noqa: ANN401
        r"""Return the distribution with other batch dims, drawn by the same estimator.

        Args:
            batch_shape: (\*batch), to which the present one broadcasts.
        """
        new = cast(Self, self._get_checked_instance(Bernoulli, _instance))
        return self._expanded(new, batch_shape)

    @property
    def logits(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        r"""Log-odds of b = 1, (\*batch)."""
        return self._law.logits

    @property
    def mode(self) -> Tensor:
        """The more probable of 0 and 1; NaN, as in torch, where they are equally so."""
        return torch.where(self.logits == 0, torch.nan, self._law.mode())

    @property
    def _natural_params(self) -> tuple[Tensor]:
        return (self.logits,)
