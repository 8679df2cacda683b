"""torch's OneHotCategorical with the gradient of an estimator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, cast

import torch
import torch.distributions as td
from torch import Tensor

from .._errors import ConfigError, DomainError
from ..estimators.base import AbstractEstimator
from ..kernels.checks import check_content
from ..laws.categorical import Categorical
from .base import AbstractSampled
from .log_probs import class_log_probs


class OneHotCategorical(AbstractSampled, td.OneHotCategorical):
    r"""torch's OneHotCategorical, whose ``rsample`` carries the gradient of an estimator.

    ``P(z = e_i) = exp(logits_i) / sum_j exp(logits_j)``. Where torch has it otherwise: the first
    argument by position is logits; a logit of -inf masks its class without NaN, here and in KL
    divergences; ``log_prob`` has a gradient in the value, which torch's loses.

    Args:
        scores: (\*batch, C), the logits by position.
        logits: (\*batch, C), unnormalised; -inf masks a class.
        probs: (\*batch, C) instead, >= 0, normalised here; 0 masks a class.
        estimator: one whose sample is hard and carries the gradient; by default
            `gradthrough.ReinMax`. ReDGE and ReinDGE sample a law that is only close to that of
            ``log_prob``.
        validate_args: whether to check logits and values, where the library checks content (see
            `gradthrough.set_validation`); by default as torch does.

    Raises:
        ConfigError: none or several of scores, logits and probs.
        DomainError: NaN or +inf logits, a row with every class masked, improper probs; scores that
            are probabilities, which is what torch's class takes in that place.
        UnsupportedError: the estimator's sample carries no gradient or is relaxed; not a tensor of
            floating point.
        ShapeError: no class.

    Example:
        >>> import torch, gradthrough as gt
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> q = gt.distributions.OneHotCategorical(logits, estimator=gt.ReinMax(tau=1.3))
        >>> z = q.rsample((7,))
        >>> z.shape, q.log_prob(z).shape
        (torch.Size([7, 5, 3]), torch.Size([7, 5]))
        >>> prior = torch.distributions.OneHotCategorical(logits=torch.zeros(3))
        >>> torch.distributions.kl_divergence(q, prior).shape
        torch.Size([5])
    """

    _wanted = " and one-hot along the last dim"

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
                "OneHotCategorical takes exactly one of scores, the logits by position, logits= "
                "and probs=."
            )
        law = Categorical(logits if scores is None else scores, probs=probs)
        self._start(law, estimator, validate_args)
        if scores is not None and self._validate_args:
            check_content(scores, _check_no_probs)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:  # noqa: ANN401
        r"""Return the distribution with other batch dims, drawn by the same estimator.

        Args:
            batch_shape: (\*batch), to which the present one broadcasts.
        """
        new = cast(Self, self._get_checked_instance(OneHotCategorical, _instance))
        return self._expanded(new, batch_shape)

    @property
    def logits(self) -> Tensor:
        r"""Log-probabilities (\*batch, C), the logits normalised."""
        return class_log_probs(self._law).to(self._law.logits.dtype)

    @property
    def mode(self) -> Tensor:
        """The most probable point."""
        return self._law.mode()

    @property
    def _categorical(self) -> td.Categorical:
        # What other code finds in torch's class.
        return td.Categorical(logits=self._law.logits, validate_args=False)


def _check_no_probs(scores: Tensor) -> None:
    classes = scores.shape[-1]
    if classes == 1 or scores.numel() == 0 or bool((scores < 0).any()):
        return
    tolerance = classes * torch.finfo(scores.dtype).eps
    if bool(((scores.double().sum(-1) - 1.0).abs() <= tolerance).all()):
        raise DomainError(
            "the first argument of OneHotCategorical is logits, but every row that came is >= 0 "
            "and sums to 1, as probabilities do, which torch's class takes there. Say which they "
            "are: probs=... or logits=..."
        )
