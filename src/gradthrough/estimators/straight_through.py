"""Straight-Through, with and without importance weights."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._types import Backend
from ..kernels.eager import AbstractKernel
from ..kernels.eager import StraightThrough as Kernel
from .base import DISCRETE, Traits
from .checks import Scalar, check_switch, check_temperature, for_kernel
from .pathwise import AbstractLaunched, sample


@dataclass(frozen=True)
class StraightThrough(AbstractLaunched):
    """Straight-Through: a hard sample with the Jacobian of softmax(theta / tau).

    ``D ~ softmax(theta)``; backward ``J(pi_tau) g / tau`` with J(p) = diag(p) - p p^T. With
    `importance`, that times ``1 / (N pi_D)``, N the number of classes that are not masked: the
    first-order rule around the uniform baseline, whose variance is unbounded as pi_D goes to 0.

    Args:
        tau: temperature of the Jacobian, > 0; the sample is always drawn at temperature 1.
        importance: weight by 1 / (N pi_D).

    Raises:
        DomainError: tau is not finite and above 0.

    Example:
        >>> import torch, gradthrough as gt
        >>> f = lambda z: (z * torch.tensor([1.0, 2.0, 4.0])).sum(-1)
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> gt.expect(f, logits, gt.StraightThrough()).sum().backward()
        >>> logits.grad.shape
        torch.Size([5, 3])

    Reference:
        Bengio, Leonard, Courville, 2013, arXiv:1308.3432; importance weights: Gregor et al.,
        ICML 2014, arXiv:1310.8499.
    """

    tau: Scalar = 1.0
    importance: bool = False

    traits: ClassVar[Traits] = Traits(
        unbiased=False,
        families=DISCRETE,
        reference="Bengio et al., 2013, arXiv:1308.3432",
        exact_for="affine",
        pathwise=True,
        many_draws=True,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "tau", check_temperature("tau", self.tau))
        check_switch("importance", self.importance)

    @property
    def kernel(self) -> AbstractKernel:
        """The sample's law and surrogate."""
        return Kernel(for_kernel(self.tau), self.importance)


def straight_through(
    logits: Tensor,
    tau: Scalar = 1.0,
    *,
    importance: bool = False,
    dim: int = -1,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Draw a one-hot sample with the Straight-Through Jacobian.

    ``D ~ softmax(theta)``; backward ``J(softmax(theta / tau)) g / tau``, with `importance` times
    ``1 / (N pi_D)``.

    Args:
        logits: any shape, classes along `dim`; -inf masks a class.
        tau: temperature of the Jacobian, > 0.
        importance: weight by 1 / (N pi_D).
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
        >>> z = gt.straight_through(torch.zeros(2, 3, requires_grad=True), tau=1.3)
        >>> z.sum(-1).tolist()
        [1.0, 1.0]

    Reference:
        Bengio, Leonard, Courville, 2013, arXiv:1308.3432.
    """
    kernel = Kernel(for_kernel(tau), check_switch("importance", importance))
    return sample(kernel, logits, dim=dim, generator=generator, noise=noise, backend=backend)
