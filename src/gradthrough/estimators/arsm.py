"""ARSM: augment, REINFORCE, swap, merge."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._errors import UnsupportedError
from .._random import exponentials, gumbels
from .._types import compute_dtype
from ..kernels.dispatch import launch
from ..kernels.eager import GumbelSoftmax as Kernel
from ..kernels.softmax import centre, one_hot
from ..laws.base import Distribution
from .base import DISCRETE, AbstractEstimator, Draw, Estimate, Traits, learning_signal, send
from .checks import check_count


@dataclass(frozen=True)
class ARSM(AbstractEstimator):
    r"""ARSM: f at every swap of two entries of the noise. Unbiased for every f.

    With w uniform on the simplex, ``z = argmin_c w_c exp(-theta_c)`` is a sample. Let f^{cj} be f
    at the point made from w with entries c and j swapped, in all variables of a row at once, and
    C the number of classes that are not masked. Then component c of the gradient is
    ``sum_j (f^{cj} - 1/C sum_m f^{mj}) (1/C - w_j)``. f is evaluated C(C-1)/2 + 1 times for each
    sample: with one variable a row, `Enumerate` is exact and costs less. With two classes this is
    ARM.

    Args:
        limit: the largest number of evaluations for each row that is accepted, >= 1.

    Raises:
        UnsupportedError: more evaluations than `limit`.

    Example:
        >>> import torch, gradthrough as gt
        >>> f = lambda z: z.argmax(-1).float()  # no gradient of f is needed
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> gt.expect(f, logits, gt.ARSM()).sum().backward()
        >>> logits.grad.shape
        torch.Size([5, 3])

    Reference:
        Yin, Yue, Zhou, ICML 2019, arXiv:1905.01413.
    """

    limit: int = 10_000

    traits: ClassVar[Traits] = Traits(
        unbiased=True,
        families=DISCRETE,
        reference="Yin et al., ICML 2019, arXiv:1905.01413",
        exact_for="all",
        noise="class",
    )

    def __post_init__(self) -> None:
        check_count("limit", self.limit, 1)

    def evaluations(self, dist: Distribution, samples: int) -> int:
        """Return how often f is evaluated: once for each sample and each swap."""
        return samples * (1 + dist.classes * (dist.classes - 1) // 2)

    def draw(self, dist: Distribution, noise: Tensor) -> Draw:
        """Draw the samples, then the points of every swap."""
        wanted = self.evaluations(dist.row, noise.shape[0])
        if wanted > self.limit:
            raise UnsupportedError(
                f"ARSM would evaluate f at {wanted:,} points for each row ({dist.classes} "
                f"classes); its limit is {self.limit:,}. Raise limit=, or use an unbiased "
                "estimator that needs fewer: gradthrough.RLOO()."
            )
        logits = dist.class_logits().detach()
        z = launch(Kernel(1.0), logits, noise, given=False)
        x = centre(logits.to(compute_dtype(logits.dtype)))
        g = gumbels(noise, x.dtype)
        c = dist.classes
        swaps = _swaps(c, z.device)  # (M, C)
        permuted: Tensor = g.index_select(-1, swaps.flatten()).reshape(*g.shape[:-1], *swaps.shape)
        perturbed = x.unsqueeze(-2) + permuted
        swapped = torch.argmax(perturbed, -1)  # (N, *batch, *event, M)
        # An argmax of NaN is a class; an unsound row must stay NaN, as the sample is.
        points = one_hot(swapped.movedim(-1, 0), c, z.dtype) + 0.0 * z
        return Draw(dist.from_classes(torch.cat((z, points.flatten(0, 1)))), dist, (noise,))

    def combine(
        self, draws: Sequence[Draw], values: Tensor, point_gradients: Tensor | None = None
    ) -> Estimate:
        """Send the swaps' values, centred, weighted with the centred noise."""
        (one,) = draws
        (noise,) = one.aux
        dist, n, c = one.dist, noise.shape[0], one.dist.classes
        numbers = learning_signal(values)
        drawn, swapped = numbers[:n], numbers[n:].reshape(c * (c - 1) // 2, n, *numbers.shape[1:])
        # Every pair of classes looks its value up; a class swapped with itself is the sample.
        table = torch.cat((drawn.unsqueeze(0), swapped))[_pairs(c, values.device)]
        table = table.movedim((0, 1), (-2, -1))  # (N, *batch, C, C)
        table = table.reshape(*table.shape[:-2], *(1,) * dist.event_dims, c, c)
        alive = (dist.class_logits().detach() > -torch.inf).to(table.dtype)
        count = alive.sum(-1, keepdim=True)
        e = exponentials(noise, table.dtype) * alive
        centred = (1.0 / count - e / e.sum(-1, keepdim=True)) * alive
        mean = (table * alive.unsqueeze(-1)).sum(-2, keepdim=True) / count.unsqueeze(-1)
        gradient = ((table - mean) * centred.unsqueeze(-2)).sum(-1) * alive
        return send(one, values[:n].mean(0), dist.from_classes(gradient.mean(0)))


def _swaps(c: int, device: torch.device) -> Tensor:
    """Return, for each pair of classes, the classes in order with the two exchanged, (M, C)."""
    first, second = torch.triu_indices(c, c, 1, device=device).unbind()
    out = torch.arange(c, device=device).repeat(len(first), 1)
    row = torch.arange(len(first), device=device)
    out[row, first], out[row, second] = second, first
    return out


def _pairs(c: int, device: torch.device) -> Tensor:
    """Return where the value of each pair of classes is, (C, C): 0 is the sample itself."""
    first, second = torch.triu_indices(c, c, 1, device=device).unbind()
    out = torch.zeros(c, c, dtype=torch.int64, device=device)
    place = torch.arange(1, len(first) + 1, device=device)
    out[first, second] = place
    out[second, first] = place
    return out
