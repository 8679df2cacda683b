"""The Bernoulli distribution over zeros and ones."""

from typing import ClassVar, Self

import torch
from torch import Tensor

from .._errors import ConfigError, ShapeError
from .._types import compute_dtype
from ..kernels.checks import check_content, check_rows
from .base import Distribution, check_parameter
from .categorical import check_probs
from .law import Move


class Bernoulli(Distribution):
    r"""Independent Bernoulli variables; points are 0 or 1.

    ``P(b = 1) = sigmoid(logits)``. Estimators of the categorical kind see it as two classes with
    logits (logits, 0), of which the first is b = 1.

    Args:
        logits: (\*batch, \*event).
        probs: (\*batch, \*event) instead, in [0, 1]; 0 and 1 are moved by the least step inward
            that keeps the logit finite.
        event_dims: how many trailing dims are seen jointly by f. 0: every entry is a row.

    Raises:
        ShapeError: fewer dims than event_dims.
        UnsupportedError: not a tensor of float64, float32, bfloat16 or float16.
        DomainError: probabilities outside [0, 1].

    Example:
        >>> import torch, gradthrough as gt
        >>> q = gt.Bernoulli(torch.zeros(32, 200), event_dims=1)
        >>> q.batch_shape, q.event_shape, q.sample().shape
        ((32,), (200,), torch.Size([32, 200]))
    """

    family: ClassVar[str] = "bernoulli"
    moved: ClassVar[tuple[int, ...]] = (0,)

    def __init__(
        self,
        logits: Tensor | None = None,
        *,
        probs: Tensor | None = None,
        event_dims: int = 0,
    ) -> None:
        if (logits is None) == (probs is None):
            raise ConfigError("Bernoulli takes exactly one of logits and probs=.")
        name = "logits" if probs is None else "probs"
        x = check_parameter(name, logits if probs is None else probs, event_dims)
        if x.ndim < event_dims:
            raise ShapeError(
                f"{name} must have shape (*batch, *event) with {event_dims} event dims, but have "
                f"shape {tuple(x.shape)}."
            )
        self.logits = x if probs is None else _logit(x)
        self.event_dims = event_dims

    def __repr__(self) -> str:
        return f"Bernoulli(logits={tuple(self.logits.shape)}, event_dims={self.event_dims})"

    @property
    def variables(self) -> tuple[int, ...]:
        r"""Shape of the variables, (\*batch, \*event)."""
        return tuple(self.logits.shape)

    @property
    def classes(self) -> int:
        """How many values one variable can take: 2."""
        return 2

    @property
    def probs(self) -> Tensor:
        r"""P(b = 1), (\*batch, \*event)."""
        return self._log_probs()[..., 0].exp().to(self.logits.dtype)

    def entropy(self) -> Tensor:
        r"""Return the entropy in nats, (\*batch): digits of the rarer value are kept."""
        logits = self.class_logits()
        check_rows(logits)
        x = self.logits.to(compute_dtype(self.logits.dtype))
        far = torch.where(x < 0, x, -x)  # -|x|, with the curvature at 0
        finite = far.masked_fill(far.isneginf(), 0.0)
        own = torch.log1p(far.exp()) - finite * far.sigmoid()
        return self._sum_event(own).to(self.logits.dtype)

    def class_logits(self) -> Tensor:
        r"""Return the logits of b = 1 and b = 0, (\*batch, \*event, 2)."""
        return torch.stack((self.logits, torch.zeros_like(self.logits)), -1)

    def class_tensor(self, x: Tensor) -> Tensor:
        """Return what broadcasts with the logits with a dim of classes behind."""
        return x.unsqueeze(-1)

    def from_classes(self, z: Tensor) -> Tensor:
        """Return the first class of (..., 2)."""
        return z[..., 0]

    def to_classes(self, z: Tensor) -> Tensor:
        """Return (b, 1 - b), (..., 2)."""
        return torch.stack((z, 1.0 - z), -1)

    def class_gradient(self, gradient: Tensor) -> Tensor:
        """Return (gradient, 0), (..., 2): a point is the first class."""
        return torch.stack((gradient, torch.zeros_like(gradient)), -1)

    def with_logits(self, logits: Tensor) -> Self:
        """Return the same law with other logits."""
        return type(self)(logits, event_dims=self.event_dims)

    def score(self, z: Tensor) -> Tensor:
        """Return b - sigmoid(logits)."""
        x = self.logits.detach().to(compute_dtype(self.logits.dtype))
        return z.detach().to(x.dtype) - x.sigmoid()

    def moves(self, noise: Tensor) -> tuple[Tensor, list[Move]]:
        """Return b, and 1 - b: d E f / d logit is p (1 - p) (f(1) - f(0))."""
        b, _ = self.draw(noise)
        x = self.logits.detach().to(compute_dtype(self.logits.dtype))
        weight = (1.0 - 2.0 * b.to(x.dtype)) * x.sigmoid() * (-x).sigmoid()
        return b, [Move(weight, 1.0 - b)]


def _logit(probs: Tensor) -> Tensor:
    check_content(probs, lambda x: check_probs(x, 1.0))
    p = probs.to(compute_dtype(probs.dtype))
    # A sigmoid that saturated to exactly 0 or 1 would give an infinite logit and a NaN gradient;
    # small probabilities keep all their digits.
    eps = torch.finfo(p.dtype)
    p = p.clamp(eps.tiny, 1.0 - eps.eps / 2)
    return (p.log() - torch.log1p(-p)).to(probs.dtype)
