"""Gapped Straight-Through: the Gumbel noise of STGS replaced by what it is for."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .._errors import ConfigError
from .._types import Backend
from ..kernels.eager import AbstractKernel
from ..kernels.eager import GappedStraightThrough as Kernel
from .base import DISCRETE, Traits
from .checks import Scalar, check_positive, check_temperature, for_kernel
from .pathwise import AbstractLaunched, sample


@dataclass(frozen=True)
class GappedStraightThrough(AbstractLaunched):
    """Gapped Straight-Through (GST): a deterministic perturbation that makes D the winner.

    ``D ~ softmax(theta)``; backward ``J(S) g / tau`` with S = softmax((theta + m1 - m2) / tau),
    m1 = (max theta - theta_D) D and m2 = relu(theta - max theta + gap)(1 - D), both constant.

    Args:
        tau: temperature, > 0.
        gap: by how much D leads, > 0 (1.0: GST-1.0); or "p", the conditional mean of the gap
            under Gumbel noise, -log(1 - pi_D) / pi_D (GST-p).

    Raises:
        DomainError: tau or gap not above 0.
        ConfigError: gap is another word than "p".

    Example:
        >>> import torch, gradthrough as gt
        >>> f = lambda z: (z * torch.tensor([1.0, 2.0, 4.0])).sum(-1) ** 2
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> gt.expect(f, logits, gt.GappedStraightThrough(tau=0.5, gap="p")).sum().backward()
        >>> logits.grad.shape
        torch.Size([5, 3])

    Reference:
        Fan, Chi, Rudnicky, Ramadge, ICML 2022, arXiv:2206.07235.
    """

    tau: Scalar = 1.0
    gap: float | Literal["p"] = 1.0

    traits: ClassVar[Traits] = Traits(
        unbiased=False,
        families=DISCRETE,
        reference="Fan et al., ICML 2022, arXiv:2206.07235",
        pathwise=True,
        many_draws=True,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "tau", check_temperature("tau", self.tau))
        object.__setattr__(self, "gap", _check_gap(self.gap))

    @property
    def kernel(self) -> AbstractKernel:
        """The sample's law and surrogate."""
        return Kernel(for_kernel(self.tau), self.gap)


def _check_gap(gap: object) -> float | Literal["p"]:
    if gap == "p":
        return "p"
    if isinstance(gap, str):
        raise ConfigError(f"gap must be a number above 0 or 'p', but is {gap!r}.")
    return check_positive("gap", gap)


def gapped_straight_through(
    logits: Tensor,
    tau: Scalar = 1.0,
    gap: float | Literal["p"] = 1.0,
    *,
    dim: int = -1,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Draw a one-hot sample with the Gapped Straight-Through Jacobian.

    ``D ~ softmax(theta)``; backward ``J(S) g / tau``, S = softmax((theta + m1 - m2) / tau) with
    class D lifted to the maximum and every other class at least `gap` below it.

    Args:
        logits: any shape, classes along `dim`; -inf masks a class.
        tau: temperature, > 0.
        gap: > 0, or "p" for -log(1 - pi_D) / pi_D.
        dim: the class dim.
        generator: source of the noise.
        noise: float64 uniforms in [0, 1), shape of the logits without `dim`, instead.
        backend: "auto", or by name what shall run.

    Returns:
        Exact zeros and ones, shape and dtype of the logits.

    Raises:
        DomainError: NaN or +inf logits, a row with every class masked, tau or gap not above 0.
        ShapeError: no such dim, no class, noise of the wrong shape.
        UnsupportedError: logits that are not floating point.
        ConfigError: gap is another word than "p".
        BackendError: generator or noise on another device, unknown backend.

    Example:
        >>> import torch, gradthrough as gt
        >>> z = gt.gapped_straight_through(torch.zeros(2, 3, requires_grad=True), tau=0.5)
        >>> z.sum(-1).tolist()
        [1.0, 1.0]

    Reference:
        Fan, Chi, Rudnicky, Ramadge, ICML 2022, arXiv:2206.07235.
    """
    kernel = Kernel(for_kernel(tau), _check_gap(gap))
    return sample(kernel, logits, dim=dim, generator=generator, noise=noise, backend=backend)
