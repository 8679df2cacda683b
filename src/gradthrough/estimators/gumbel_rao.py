"""Gumbel-Rao: straight-through Gumbel-Softmax, averaged over the noise that fits the sample."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .._errors import ConfigError, UnsupportedError
from .._types import Backend
from ..kernels.eager import AbstractKernel, ExactGumbelRao
from ..kernels.eager import GumbelRao as Kernel
from ..kernels.inner import count_inner
from .base import DISCRETE, Traits
from .checks import Scalar, check_count, check_logits, check_switch, check_temperature, for_kernel
from .pathwise import AbstractLaunched, sample


@dataclass(frozen=True)
class GumbelRao(AbstractLaunched):
    """Gumbel-Rao with K inner draws (GR-MCK): the mean of STGS, with less variance.

    ``D ~ softmax(theta)``; backward ``1/(K tau) sum_k J(softmax((theta + G_k)/tau)) g``, the G_k
    drawn given that argmax(theta + G_k) = D and held constant. The inner draws are recomputed
    from a counter, in the backward: memory does not grow with K.

    Args:
        tau: temperature, > 0.
        k: number of inner draws, >= 1. Or, for two classes, "exact": the mean over all inner
            noise, by a quadrature of 77 nodes whose error is below 1e-7 of the largest possible
            value for tau from 0.02 up; what K draws tend to.
        qmc: spread the inner draws evenly (a randomly shifted lattice, folded), rather than
            independently. Each has the same law, so the estimator has the same mean.

    Raises:
        DomainError: tau not above 0, k below 1.
        ConfigError: k="exact" together with qmc.
        UnsupportedError: k="exact" for other than two classes.

    Example:
        >>> import torch, gradthrough as gt
        >>> f = lambda z: (z * torch.tensor([1.0, 2.0, 4.0])).sum(-1) ** 2
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> gt.expect(f, logits, gt.GumbelRao(tau=0.5, k=10)).sum().backward()
        >>> logits.grad.shape
        torch.Size([5, 3])

    Reference:
        Paulus, Maddison, Krause, ICLR 2021, arXiv:2010.04838.
    """

    tau: Scalar = 1.0
    k: int | Literal["exact"] = 100
    qmc: bool = False

    traits: ClassVar[Traits] = Traits(
        unbiased=False,
        families=DISCRETE,
        reference="Paulus et al., ICLR 2021, arXiv:2010.04838",
        noise="variable+seed",
        pathwise=True,
        many_draws=True,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "tau", check_temperature("tau", self.tau))
        _kernel(for_kernel(self.tau), self.k, self.qmc)

    @property
    def kernel(self) -> AbstractKernel:
        """The sample's law and surrogate."""
        return _kernel(for_kernel(self.tau), self.k, self.qmc)

    def check_classes(self, classes: int) -> None:
        """Refuse other than two classes where all inner noise is integrated over."""
        _check_classes(self.k, classes)


def _kernel(tau: float, k: object, qmc: object) -> AbstractKernel:
    check_switch("qmc", qmc)
    if k != "exact":
        return Kernel(tau, check_count("k", k, 1), bool(qmc))
    if qmc:
        raise ConfigError('k="exact" draws no inner noise, so qmc=True says nothing. Drop one.')
    return ExactGumbelRao(tau)


def _check_classes(k: object, classes: int) -> None:
    if k == "exact" and classes != 2:
        raise UnsupportedError(
            f'k="exact" is for two classes, but the logits have {classes}. Give a number of inner '
            "draws, k=100 say, and qmc=True for less noise from as many."
        )


def gumbel_rao(
    logits: Tensor,
    tau: Scalar = 1.0,
    k: int | Literal["exact"] = 100,
    *,
    qmc: bool = False,
    dim: int = -1,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    inner: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    r"""Draw a one-hot sample with the Gumbel-Rao Jacobian.

    ``D ~ softmax(theta)``; backward ``1/(K tau) sum_k J(softmax((theta + G_k)/tau)) g``, the G_k
    drawn given D and held constant.

    Args:
        logits: any shape, classes along `dim`; -inf masks a class.
        tau: temperature, > 0.
        k: number of inner draws, >= 1. Time grows with it, memory does not. Or, for two classes,
            "exact": the mean over all inner noise.
        qmc: spread the inner draws evenly, rather than independently.
        dim: the class dim.
        generator: source of the noise.
        noise: float64 uniforms in [0, 1) instead, (\*rows, 2) with rows the shape of the logits
            without `dim`: the uniform of the draw, and the seed of the row's counter.
        inner: Exp(1) draws (\*rows, K, C) instead of the counter, to prescribe the inner noise:
            X_D = -log E_D, X_i = -log(E_i / pi_i + E_D) are the perturbed log-probabilities.
        backend: "auto", or by name what shall run.

    Returns:
        Exact zeros and ones, shape and dtype of the logits.

    Raises:
        DomainError: NaN or +inf logits, a row with every class masked, tau not above 0, k < 1.
        ShapeError: no such dim, no class, noise of the wrong shape.
        UnsupportedError: logits that are not floating point, k="exact" for other than two classes.
        ConfigError: k="exact" together with qmc or inner, or qmc with inner.
        BackendError: generator or noise on another device, unknown backend.

    Example:
        >>> import torch, gradthrough as gt
        >>> z = gt.gumbel_rao(torch.zeros(2, 3, requires_grad=True), tau=0.5, k=10)
        >>> z.sum(-1).tolist()
        [1.0, 1.0]

    Reference:
        Paulus, Maddison, Krause, ICLR 2021, arXiv:2010.04838.
    """
    rows = check_logits(logits, dim).movedim(dim, -1)
    if inner is not None:
        if qmc or k == "exact":
            raise ConfigError('inner= prescribes the inner draws: drop qmc and k="exact".')
        k = count_inner(inner, rows)
    _check_classes(k, rows.shape[-1])
    kernel = _kernel(for_kernel(tau), k, qmc)
    return sample(
        kernel, logits, dim=dim, generator=generator, noise=noise, backend=backend, inner=inner
    )
