"""ReinMax-CV: ReinMax and a control variate of mean zero, from Gumbel-Rao at the middle."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._errors import UnsupportedError
from .._types import Backend
from ..kernels.eager import AbstractKernel
from ..kernels.eager import ReinMaxCV as Kernel
from ..kernels.inner import count_inner
from .base import DISCRETE, Traits
from .checks import (
    Scalar,
    check_count,
    check_logits,
    check_positive,
    check_scalar,
    check_temperature,
    for_kernel,
)
from .pathwise import AbstractLaunched, sample


@dataclass(frozen=True)
class ReinMaxCV(AbstractLaunched):
    """ReinMax-CV: ReinMax plus eta times Gumbel-Rao minus one more draw of what it averages.

    ``D ~ softmax(theta)``; backward ``R + eta [1/K sum_k J(S_k) - J(S_K)] g / tau_cv``, k = 0 to
    K - 1, with R that of ReinMax at tau, S_k = softmax((theta_D + G_k)/tau_cv), theta_D =
    log((pi + D)/2), and all K + 1 of the G_k drawn given that argmax(theta_D + G_k) = D, held
    constant. Given D the bracket has mean zero, so the mean is ReinMax's for every eta, K and
    tau_cv, and as exact.

    A last draw that did not know D would move the mean. One that does has a price: given D, R is
    not random, so the bracket is uncorrelated with it and only adds variance, ``(1 + 1/K) eta^2
    E Var[J(S) g / tau_cv | D]``. No eta beats eta = 0, which is ReinMax to the bit and as cheap.

    Args:
        tau: temperature of the point in the middle of ReinMax, > 0.
        k: number of inner draws that are averaged, >= 1.
        eta: weight of the bracket, finite.
        tau_cv: temperature of the bracket, > 0.

    Raises:
        DomainError: tau or tau_cv is not finite and above 0, k below 1, eta is not finite.
        UnsupportedError: eta is not a number.

    Example:
        >>> import torch, gradthrough as gt
        >>> f = lambda z: (z * torch.tensor([1.0, 2.0, 4.0])).sum(-1) ** 2
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> gt.expect(f, logits, gt.ReinMaxCV(k=10, eta=0.5)).sum().backward()
        >>> logits.grad.shape
        torch.Size([5, 3])

    Reference:
        Wang, Bui, 2026, arXiv:2603.08257.
    """

    tau: Scalar = 1.0
    k: int = 100
    eta: float = 1.0
    tau_cv: float = 1.0

    traits: ClassVar[Traits] = Traits(
        unbiased=False,
        families=DISCRETE,
        reference="Wang, Bui, 2026, arXiv:2603.08257",
        exact_for="quadratic",
        noise="variable+seed",
        pathwise=True,
        many_draws=True,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "tau", check_temperature("tau", self.tau))
        check_count("k", self.k, 1)
        object.__setattr__(self, "eta", _check_weight(self.eta))
        object.__setattr__(self, "tau_cv", check_positive("tau_cv", self.tau_cv))

    @property
    def kernel(self) -> AbstractKernel:
        """The sample's law and surrogate."""
        return Kernel(for_kernel(self.tau), self.k, self.eta, self.tau_cv)


def _check_weight(eta: object) -> float:
    if isinstance(eta, Tensor) and eta.numel() == 1 and not eta.requires_grad:
        eta = eta.item()
    number = check_scalar("eta", eta)
    if isinstance(number, Tensor):
        raise UnsupportedError(
            "eta must be a number, but a tensor that requires a gradient came: no gradient reaches "
            "it. Pass eta.item()."
        )
    return number


def reinmax_cv(
    logits: Tensor,
    tau: Scalar = 1.0,
    k: int = 100,
    eta: float = 1.0,
    tau_cv: float = 1.0,
    *,
    dim: int = -1,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    inner: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    r"""Draw a one-hot sample with the ReinMax-CV Jacobian.

    ``D ~ softmax(theta)``; backward ``R + eta [1/K sum_k J(S_k) - J(S_K)] g / tau_cv``, R that of
    ReinMax, S_k = softmax((theta_D + G_k)/tau_cv), theta_D = log((pi + D)/2), the K + 1 noises G_k
    drawn given D and held constant.

    Args:
        logits: any shape, classes along `dim`; -inf masks a class.
        tau: temperature of the point in the middle of ReinMax, > 0.
        k: number of inner draws that are averaged, >= 1. Time grows with it, memory does not.
        eta: weight of the bracket, finite; 0 is ReinMax.
        tau_cv: temperature of the bracket, > 0.
        dim: the class dim.
        generator: source of the noise.
        noise: float64 uniforms in [0, 1) instead, (\*rows, 2) with rows the shape of the logits
            without `dim`: the uniform of the draw, and the seed of the row's counter.
        inner: Exp(1) draws (\*rows, K + 1, C) instead of the counter, to prescribe the inner
            noise, as in ``gumbel_rao`` with (pi + D)/2 for pi. The last is the one more draw.
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
        >>> z = gt.reinmax_cv(torch.zeros(2, 3, requires_grad=True), k=10, eta=0.5)
        >>> z.sum(-1).tolist()
        [1.0, 1.0]

    Reference:
        Wang, Bui, 2026, arXiv:2603.08257.
    """
    if inner is not None:
        k = count_inner(inner, check_logits(logits, dim).movedim(dim, -1), extra=1)
    kernel = Kernel(
        for_kernel(tau),
        check_count("k", k, 1),
        _check_weight(eta),
        check_positive("tau_cv", tau_cv),
    )
    return sample(
        kernel, logits, dim=dim, generator=generator, noise=noise, backend=backend, inner=inner
    )
