"""Local expectation gradients: every value of one variable, the others as they were drawn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._errors import UnsupportedError
from ..kernels.dispatch import draw, probabilities
from ..kernels.softmax import one_hot
from ..laws.base import Distribution
from .base import DISCRETE, AbstractEstimator, Draw, Estimate, Traits, learning_signal, send
from .checks import check_count


@dataclass(frozen=True)
class LocalExpectation(AbstractEstimator):
    r"""LEG, local expectation gradients: f at every single change of the sample. Unbiased.

    For variable i, with the others at their sampled values,
    ``sum_k pi_k f(e_k, z_{-i}) (e_k - pi)``. Exact for one variable; for m of them,
    1 + m (C - 1) evaluations for each sample: low variance at a cost that grows with m.

    Args:
        limit: the largest number of evaluations for each row that is accepted, >= 1.

    Raises:
        UnsupportedError: more evaluations than `limit`.

    Example:
        >>> import torch, gradthrough as gt
        >>> f = lambda z: (z.argmax(-1).sum(-1) > 1).float()  # no gradient of f is needed
        >>> logits = torch.zeros(5, 2, 3, requires_grad=True)
        >>> q = gt.Categorical(logits, event_dims=1)
        >>> gt.expect(f, q, gt.LocalExpectation()).sum().backward()
        >>> logits.grad.shape
        torch.Size([5, 2, 3])

    Reference:
        Titsias, Lazaro-Gredilla, NeurIPS 2015, arXiv:1503.01494; Tokui, Sato, ICML 2017.
    """

    limit: int = 100_000

    traits: ClassVar[Traits] = Traits(
        unbiased=True,
        families=DISCRETE,
        reference="Titsias, Lazaro-Gredilla, NeurIPS 2015, arXiv:1503.01494",
        exact_for="all",
    )

    def __post_init__(self) -> None:
        check_count("limit", self.limit, 1)

    def evaluations(self, dist: Distribution, samples: int) -> int:
        """Return how often f is evaluated: at each sample, and at all of its single changes."""
        return samples * (1 + math.prod(dist.event_shape) * (dist.classes - 1))

    def draw(self, dist: Distribution, noise: Tensor) -> Draw:
        """Draw the samples, then change one variable at a time to each other class."""
        row, n, c = dist.row, noise.shape[0], dist.classes
        wanted = self.evaluations(row, n)
        if wanted > self.limit:
            raise UnsupportedError(
                f"LocalExpectation would evaluate f at {wanted:,} points for each row (event shape "
                f"{row.event_shape}, {c} classes); its limit is {self.limit:,}. Raise limit=, or "
                "use an unbiased estimator that needs fewer: gradthrough.RLOO()."
            )
        z, index = draw(dist.class_logits(), noise, given=False)
        p = probabilities(row.class_logits().detach())
        lead, m = len(row.batch_shape), math.prod(row.event_shape)
        flat = p.reshape(*p.shape[:lead], m, c)
        code = index.reshape(n, *row.batch_shape, m)
        # The j-th other class of a variable is j places on; a masked one is left unchanged.
        shift = torch.arange(1, c, device=z.device)
        other = (code.unsqueeze(-1) + shift) % c  # (N, *batch, m, C - 1)
        possible = flat.expand(n, *flat.shape).gather(-1, other) > 0
        other = torch.where(possible, other, code.unsqueeze(-1))
        here = torch.eye(m, dtype=torch.bool, device=z.device).unsqueeze(-2)  # (m, 1, m)
        changed = torch.where(here, other.unsqueeze(-1), code[..., None, None, :])
        changed = changed.movedim((-3, -2), (0, 1)).flatten(0, 2)  # (m (C - 1) N, *batch, m)
        points = one_hot(changed, c, z.dtype).reshape(changed.shape[0], *z.shape[1:])
        points = points + 0.0 * p.to(z.dtype)  # an unsound row must not give a plausible point
        return Draw(dist.from_classes(torch.cat((z, points))), dist, (p, code))

    def combine(
        self, draws: Sequence[Draw], values: Tensor, point_gradients: Tensor | None = None
    ) -> Estimate:
        """Send, for each variable, the exact gradient given the others."""
        (one,) = draws
        p, code = one.aux
        dist, n, c = one.dist, code.shape[0], one.dist.classes
        m, numbers = code.shape[-1], learning_signal(values)
        changed = numbers[n:].reshape(m, c - 1, n, *numbers.shape[1:])
        changed = changed.movedim((0, 1), (-2, -1))  # (N, *batch, m, C - 1)
        drawn = numbers[:n, ..., None, None].expand(*code.shape, 1)
        shift = torch.arange(c, device=values.device)
        table = torch.cat((drawn, changed), -1)
        table = torch.zeros_like(table).scatter(-1, (code.unsqueeze(-1) + shift) % c, table)
        table = table.reshape(n, *p.shape)
        gradient = (p * (table - (p * table).sum(-1, keepdim=True))).mean(0)
        return send(one, values[:n].mean(0), dist.from_classes(gradient))
