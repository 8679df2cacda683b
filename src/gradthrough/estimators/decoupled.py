"""Decoupled Straight-Through: one temperature for the sample, another for the Jacobian."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._types import Backend
from ..kernels.eager import AbstractKernel
from ..kernels.eager import DecoupledStraightThrough as Kernel
from .base import DISCRETE, Traits
from .checks import check_positive
from .pathwise import AbstractLaunched, sample


@dataclass(frozen=True)
class DecoupledStraightThrough(AbstractLaunched):
    """Decoupled Straight-Through: sample and Jacobian at temperatures of their own.

    ``D ~ softmax(theta / tau_forward)``; backward ``J(softmax(theta / tau_backward)) g /
    tau_backward``. The forward temperature divides the logits before the draw: applied after
    Gumbel noise, an argmax would not see it. With tau_forward other than 1 the law that is sampled
    is another, and so is the objective: the value estimates E f under softmax(theta /
    tau_forward). With tau_forward = 1 this is Straight-Through at tau_backward.

    Args:
        tau_forward: temperature of the sample, > 0.
        tau_backward: temperature of the Jacobian, > 0.

    Raises:
        DomainError: a temperature is not finite and above 0.

    Example:
        >>> import torch, gradthrough as gt
        >>> f = lambda z: (z * torch.tensor([1.0, 2.0, 4.0])).sum(-1)
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> estimator = gt.DecoupledStraightThrough(tau_forward=0.5, tau_backward=1.5)
        >>> gt.expect(f, logits, estimator).sum().backward()
        >>> logits.grad.shape
        torch.Size([5, 3])

    Reference:
        Shah, Yan, Mozer, Liu, 2024, arXiv:2410.13331.
    """

    tau_forward: float = 1.0
    tau_backward: float = 1.0

    traits: ClassVar[Traits] = Traits(
        unbiased=False,
        families=DISCRETE,
        reference="Shah et al., 2024, arXiv:2410.13331",
        exact_for="affine",
        pathwise=True,
        many_draws=True,
    )

    def __post_init__(self) -> None:
        for name in ("tau_forward", "tau_backward"):
            object.__setattr__(self, name, check_positive(name, getattr(self, name)))

    @property
    def kernel(self) -> AbstractKernel:
        """The sample's law and surrogate."""
        return Kernel(self.tau_forward, self.tau_backward)


def decoupled_straight_through(
    logits: Tensor,
    tau_forward: float = 1.0,
    tau_backward: float = 1.0,
    *,
    dim: int = -1,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Draw a one-hot sample at one temperature, with the Jacobian of softmax at another.

    ``D ~ softmax(theta / tau_forward)``; backward ``J(softmax(theta / tau_backward)) g /
    tau_backward``. With tau_forward other than 1 the law that is sampled, and so the objective, is
    another.

    Args:
        logits: any shape, classes along `dim`; -inf masks a class.
        tau_forward: temperature of the sample, > 0.
        tau_backward: temperature of the Jacobian, > 0.
        dim: the class dim.
        generator: source of the noise.
        noise: float64 uniforms in [0, 1), shape of the logits without `dim`, instead.
        backend: "auto", or by name what shall run.

    Returns:
        Exact zeros and ones, shape and dtype of the logits.

    Raises:
        DomainError: NaN or +inf logits, a row with every class masked, a temperature not above 0.
        ShapeError: no such dim, no class, noise of the wrong shape.
        UnsupportedError: logits that are not floating point.
        BackendError: generator or noise on another device, unknown backend.

    Example:
        >>> import torch, gradthrough as gt
        >>> logits = torch.zeros(2, 3, requires_grad=True)
        >>> z = gt.decoupled_straight_through(logits, tau_forward=0.5, tau_backward=1.5)
        >>> z.sum(-1).tolist()
        [1.0, 1.0]

    Reference:
        Shah, Yan, Mozer, Liu, 2024, arXiv:2410.13331.
    """
    kernel = Kernel(
        check_positive("tau_forward", tau_forward), check_positive("tau_backward", tau_backward)
    )
    return sample(kernel, logits, dim=dim, generator=generator, noise=noise, backend=backend)
