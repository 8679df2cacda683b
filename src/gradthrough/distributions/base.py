"""What the classes share: a law of ours beside an estimator, in the dress of torch."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, Self, cast

import torch
import torch.distributions as td
from torch import Tensor

from .._errors import DomainError, ShapeError, UnsupportedError
from ..estimators.base import AbstractEstimator
from ..estimators.pathwise import AbstractPathwise
from ..estimators.reinmax import ReinMax
from ..estimators.tempered import with_classes
from ..kernels.checks import check_content, check_rows
from ..laws.base import Distribution as Law
from ..sampling import check_pathwise
from ..sampling import sample as draw
from .log_probs import class_log_probs, weighted


class AbstractSampled(td.Distribution, abc.ABC):
    """A torch distribution over points of a law of ours, drawn by an estimator.

    Nothing that is computed is kept, so that each call has a graph of its own.

    Attributes:
        estimator: what draws.
    """

    has_rsample = True
    estimator: AbstractPathwise
    _law: Law

    def _fill(
        self, law: Law, estimator: AbstractPathwise, batch: Sequence[int], validate_args: bool
    ) -> None:
        """Set what an instance holds."""
        self._law, self.estimator = law, estimator
        event = law.logits.shape[len(law.variables) :]
        # Without torch's checks: ours say more, cover +inf, and wait for no device.
        td.Distribution.__init__(self, torch.Size(batch), event, validate_args=False)
        self._validate_args = validate_args

    def _start(
        self, law: Law, estimator: AbstractEstimator | None, validate_args: bool | None
    ) -> None:
        """Check the arguments of a constructor, and hold them."""
        validates = type(self)._validate_args if validate_args is None else validate_args
        one = ReinMax() if estimator is None else check_hard(estimator)
        self._fill(law, one, law.variables, bool(validates))
        if validates:
            check_rows(law.class_logits())

    def _expanded(self, new: Self, batch_shape: Sequence[int]) -> Self:
        """Fill a new instance with what this one holds, its logits expanded."""
        logits = self._law.logits.expand(*batch_shape, *self.event_shape)
        new._fill(self._law.with_logits(logits), self.estimator, batch_shape, self._validate_args)
        return new

    def _new(self, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        return self._param.new(*args, **kwargs)

    @property
    def _param(self) -> Tensor:
        return self._law.logits

    @property
    def param_shape(self) -> torch.Size:
        r"""Shape of the logits."""
        return self._law.logits.shape

    @property
    def probs(self) -> Tensor:
        """Probabilities, in the shape of the logits."""
        return cast(Tensor, cast(Any, self._law).probs)

    @property
    def mean(self) -> Tensor:
        """The probabilities."""
        return self.probs

    @property
    def variance(self) -> Tensor:
        """P (1 - P), entry by entry."""
        p = self.probs
        return p * (1.0 - p)

    def entropy(self) -> Tensor:
        r"""Return the entropy in nats, (\*batch); a masked class adds nothing to it."""
        return self._law.entropy()

    def rsample(
        self,
        sample_shape: Sequence[int] = (),
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        r"""Draw independent points that carry the estimator's gradient.

        Args:
            sample_shape: dims in front.
            generator: source of the noise; without it, the global one.
            noise: the noise instead, as `gradthrough.sample` takes it for logits of this shape.

        Returns:
            (\*sample_shape, \*batch[, C]), exactly 0 or 1.

        Raises:
            DomainError: a row of the logits has no distribution.
        """
        logits = self._law.class_logits()
        rows = logits.expand(*sample_shape, *logits.shape)
        one = with_classes(self.estimator, self._law)
        z = draw(rows, one, generator=generator, noise=noise)
        return self._law.from_classes(z)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        r"""Draw the points that `rsample` would draw, without a gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape).detach()

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Return the log-probability of points, differentiable in them and in the logits.

        At points it is that of torch. Between them it is linear, ``sum_c value_c log p_c``, so
        that the gradient of a sample goes on through it.

        Args:
            value: points (..., \*batch[, C]); shapes broadcast.

        Returns:
            (..., \*batch); -inf, with gradient zero, where a masked class was drawn.

        Raises:
            ShapeError: the points do not fit the distribution.
            DomainError: a value is no point, and arguments are validated; a row of the logits has
                no distribution.
        """
        if self._validate_args:
            self._validate_sample(value)
        log_p = class_log_probs(self._law)
        z = self._law.to_classes(value.to(log_p.dtype))
        return weighted(z, log_p).to(self._law.logits.dtype)

    def _validate_sample(self, value: object) -> None:
        if not isinstance(value, Tensor):
            raise UnsupportedError(
                f"value must be a torch.Tensor, but a {type(value).__name__} came. Wrap it."
            )
        want = (*self.batch_shape, *self.event_shape)
        try:
            torch.broadcast_shapes(value.shape, want)
            fits = value.shape[value.ndim - len(self.event_shape) :] == self.event_shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ShapeError(
                f"value must have a shape that broadcasts with batch and event, {want}, and ends "
                f"in the event, {tuple(self.event_shape)}, but has shape {tuple(value.shape)}."
            )
        check_content(value, self._check_points)

    def _check_points(self, value: Tensor) -> None:
        good = cast(Any, self.support).check(value)
        if not bool(good.all()):
            raise DomainError(
                f"value must hold points of {self!r}, exactly 0 or 1{self._wanted}, but "
                f"{int((~good).sum())} of {good.numel()} entries are none. A soft sample has no "
                "probability under a discrete law."
            )

    _wanted = ""

    def __repr__(self) -> str:
        shape = tuple(self._law.logits.shape)
        return f"{type(self).__name__}(logits={shape}, estimator={self.estimator})"


def check_hard(estimator: object) -> AbstractPathwise:
    """Refuse an estimator whose sample carries no gradient, or is no point of a discrete law."""
    one = check_pathwise(estimator)
    if one.traits.relaxed:
        raise UnsupportedError(
            f"{type(one).__name__} draws relaxed points, which have no probability under a "
            "discrete law. Take an estimator with a hard sample, "
            "gradthrough.StraightThroughGumbelSoftmax() say, or the relaxed law itself, "
            "torch.distributions.RelaxedOneHotCategorical."
        )
    return one
