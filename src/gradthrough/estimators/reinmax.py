"""ReinMax: second-order straight-through."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._types import Backend
from ..kernels.eager import AbstractKernel
from ..kernels.eager import ReinMax as Kernel
from .base import DISCRETE, Traits
from .checks import Scalar, check_temperature, for_kernel
from .pathwise import AbstractLaunched, sample


@dataclass(frozen=True)
class ReinMax(AbstractLaunched):
    """ReinMax: a hard sample with the Jacobian of Heun's rule, exact for quadratic f at tau = 1.

    ``D ~ softmax(theta)``; backward ``2 J((D + pi_tau)/2) g - 1/2 J(pi) g``. At tau = 1 this is
    ``1/2 [pi * (g - g.pi) + (g_D - g.pi)(D - pi)]``. There is no factor 1/tau.

    Args:
        tau: temperature of the point in the middle, > 0. Above 1 it trades bias for variance.

    Raises:
        DomainError: tau is not finite and above 0.

    Example:
        >>> import torch, gradthrough as gt
        >>> f = lambda z: (z * torch.tensor([1.0, 2.0, 4.0])).sum(-1) ** 2
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> gt.expect(f, logits, gt.ReinMax(tau=1.3)).sum().backward()
        >>> logits.grad.shape
        torch.Size([5, 3])

    Reference:
        Liu, Dong, Liu, Yu, Gao, NeurIPS 2023, arXiv:2304.08612.
    """

    tau: Scalar = 1.0

    traits: ClassVar[Traits] = Traits(
        unbiased=False,
        families=DISCRETE,
        reference="Liu et al., NeurIPS 2023, arXiv:2304.08612",
        exact_for="quadratic",
        pathwise=True,
        many_draws=True,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "tau", check_temperature("tau", self.tau))

    @property
    def kernel(self) -> AbstractKernel:
        """The sample's law and surrogate."""
        return Kernel(for_kernel(self.tau))


def reinmax(
    logits: Tensor,
    tau: Scalar = 1.0,
    *,
    dim: int = -1,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Draw a one-hot sample with the ReinMax Jacobian.

    ``D ~ softmax(theta)``; backward ``2 J((D + pi_tau)/2) g - 1/2 J(pi) g``, with
    pi_tau = softmax(theta / tau).

    Args:
        logits: any shape, classes along `dim`; -inf masks a class.
        tau: temperature, > 0.
        dim: the class dim.
        generator: source of the noise.
        noise: float64 uniforms in [0, 1), shape of the logits without `dim`, instead.
        backend: "auto", or by name what shall run.

    Returns:
        Exact zeros and ones, shape and dtype of the logits.

    Raises:
        DomainError: NaN or +inf logits, a row with every class masked, tau not above 0.
        ShapeError: no such dim, no class, noise of the wrong shape.
        UnsupportedError: logits that are not floating point.
        BackendError: generator or noise on another device, unknown backend.

    Example:
        >>> import torch, gradthrough as gt
        >>> z = gt.reinmax(torch.zeros(2, 3, requires_grad=True), tau=1.3)
        >>> z.sum(-1).tolist()
        [1.0, 1.0]

    Reference:
        Liu, Dong, Liu, Yu, Gao, NeurIPS 2023, arXiv:2304.08612.
    """
    kernel = Kernel(for_kernel(tau))
    return sample(kernel, logits, dim=dim, generator=generator, noise=noise, backend=backend)
