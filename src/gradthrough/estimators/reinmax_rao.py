"""ReinMax-Rao: ReinMax with its first Jacobian smoothed by Gumbel-Rao."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._types import Backend
from ..kernels.eager import AbstractKernel
from ..kernels.eager import ReinMaxRao as Kernel
from ..kernels.inner import count_inner
from .base import DISCRETE, Traits
from .checks import Scalar, check_count, check_logits, check_temperature, for_kernel
from .pathwise import AbstractLaunched, sample


@dataclass(frozen=True)
class ReinMaxRao(AbstractLaunched):
    """ReinMax-Rao: Gumbel-Rao, at the middle of law and sample, in place of ReinMax's first term.

    ``D ~ softmax(theta)``; backward ``2/(K tau) sum_k J(softmax((theta_D + G_k)/tau)) g - 1/2
    J(pi) g`` with theta_D = log((pi + D)/2), the G_k drawn given that argmax(theta_D + G_k) = D
    and held constant. Unlike ReinMax it is not exact even for affine f. As tau grows the first term
    vanishes, and ``-1/2 J(pi) g`` remains. The inner draws are recomputed from a counter, in the
    backward: memory does not grow with K.

    Args:
        tau: temperature of the first term, > 0.
        k: number of inner draws, >= 1.

    Raises:
        DomainError: tau is not finite and above 0, k below 1.

    Example:
        >>> import torch, gradthrough as gt
        >>> f = lambda z: (z * torch.tensor([1.0, 2.0, 4.0])).sum(-1) ** 2
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> gt.expect(f, logits, gt.ReinMaxRao(tau=0.7, k=10)).sum().backward()
        >>> logits.grad.shape
        torch.Size([5, 3])

    Reference:
        Wang, Bui, 2026, arXiv:2603.08257.
    """

    tau: Scalar = 1.0
    k: int = 100

    traits: ClassVar[Traits] = Traits(
        unbiased=False,
        families=DISCRETE,
        reference="Wang, Bui, 2026, arXiv:2603.08257",
        noise="variable+seed",
        pathwise=True,
        many_draws=True,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "tau", check_temperature("tau", self.tau))
        check_count("k", self.k, 1)

    @property
    def kernel(self) -> AbstractKernel:
        """The sample's law and surrogate."""
        return Kernel(for_kernel(self.tau), self.k)


def reinmax_rao(
    logits: Tensor,
    tau: Scalar = 1.0,
    k: int = 100,
    *,
    dim: int = -1,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    inner: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    r"""Draw a one-hot sample with the ReinMax-Rao Jacobian.

    ``D ~ softmax(theta)``; backward ``2/(K tau) sum_k J(softmax((theta_D + G_k)/tau)) g - 1/2
    J(pi) g``, theta_D = log((pi + D)/2), the G_k drawn given D and held constant.

    Args:
        logits: any shape, classes along `dim`; -inf masks a class.
        tau: temperature of the first term, > 0.
        k: number of inner draws, >= 1. Time grows with it, memory does not.
        dim: the class dim.
        generator: source of the noise.
        noise: float64 uniforms in [0, 1) instead, (\*rows, 2) with rows the shape of the logits
            without `dim`: the uniform of the draw, and the seed of the row's counter.
        inner: Exp(1) draws (\*rows, K, C) instead of the counter, to prescribe the inner noise,
            as in ``gumbel_rao`` with (pi + D)/2 for pi.
        backend: "auto", or by name what shall run.

    Returns:
        Exact zeros and ones, shape and dtype of the logits.

    Raises:
        DomainError: NaN or +inf logits, a row with every class masked, tau not above 0, k < 1.
        ShapeError: no such dim, no class, noise of the wrong shape.
        UnsupportedError: logits that are not floating point.
        BackendError: generator or noise on another device, unknown backend.

    Example:
        >>> import torch, gradthrough as gt
        >>> z = gt.reinmax_rao(torch.zeros(2, 3, requires_grad=True), tau=0.7, k=10)
        >>> z.sum(-1).tolist()
        [1.0, 1.0]

    Reference:
        Wang, Bui, 2026, arXiv:2603.08257.
    """
    if inner is not None:
        k = count_inner(inner, check_logits(logits, dim).movedim(dim, -1))
    kernel = Kernel(for_kernel(tau), check_count("k", k, 1))
    return sample(
        kernel, logits, dim=dim, generator=generator, noise=noise, backend=backend, inner=inner
    )
