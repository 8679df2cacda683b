"""Gumbel-Softmax (soft) and straight-through Gumbel-Softmax (hard)."""

import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._errors import BackendError, DomainError, UnsupportedError
from .._random import gumbels, uniforms
from .._types import Backend, compute_dtype
from ..kernels.checks import check_content, check_rows, check_uniforms
from ..kernels.dispatch import launch
from ..kernels.eager import AbstractKernel, SoftGumbelSoftmax
from ..kernels.eager import GumbelSoftmax as HardGumbelSoftmax
from ..laws.base import check_noise
from .base import DISCRETE, Traits
from .checks import Scalar, check_logits, check_temperature, for_kernel
from .pathwise import AbstractLaunched, AbstractPathwise, sample


@dataclass(frozen=True)
class GumbelSoftmax(AbstractLaunched):
    """Gumbel-Softmax, also called Concrete: a soft sample.

    ``S = softmax((theta + G) / tau)``; backward ``J(S) g / tau``. f is evaluated at the soft
    point: the value estimates E f(S) and the gradient is unbiased for that, not for E f(D).

    Args:
        tau: temperature, > 0.

    Raises:
        DomainError: tau is not finite and above 0.

    Example:
        >>> import torch, gradthrough as gt
        >>> f = lambda z: (z * torch.tensor([1.0, 2.0, 4.0])).sum(-1) ** 2
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> gt.expect(f, logits, gt.GumbelSoftmax(tau=0.5)).sum().backward()
        >>> logits.grad.shape
        torch.Size([5, 3])

    Reference:
        Jang, Gu, Poole, ICLR 2017, arXiv:1611.01144; Maddison, Mnih, Teh, ICLR 2017,
        arXiv:1611.00712.
    """

    tau: Scalar = 1.0

    traits: ClassVar[Traits] = Traits(
        unbiased=False,
        families=DISCRETE,
        reference="Jang et al., ICLR 2017, arXiv:1611.01144",
        noise="class",
        pathwise=True,
        relaxed=True,
        needs_relaxed_points=True,
        many_draws=True,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "tau", check_temperature("tau", self.tau))

    @property
    def kernel(self) -> AbstractKernel:
        """The sample's law and surrogate."""
        return SoftGumbelSoftmax(for_kernel(self.tau))

    def form(self, *, hard: bool) -> AbstractPathwise:
        """Return itself, or the hard form of the same draw."""
        return StraightThroughGumbelSoftmax(self.tau) if hard else self


@dataclass(frozen=True)
class StraightThroughGumbelSoftmax(AbstractLaunched):
    """Straight-Through Gumbel-Softmax (STGS): a hard sample, the Jacobian of the soft one.

    ``D = argmax(theta + G)``; backward ``J(S) g / tau`` with S = softmax((theta + G) / tau), the
    same G.

    Args:
        tau: temperature, > 0. Small: less bias, variance like 1/tau.

    Raises:
        DomainError: tau is not finite and above 0.

    Example:
        >>> import torch, gradthrough as gt
        >>> f = lambda z: (z * torch.tensor([1.0, 2.0, 4.0])).sum(-1) ** 2
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> gt.expect(f, logits, gt.StraightThroughGumbelSoftmax(tau=0.5)).sum().backward()
        >>> logits.grad.shape
        torch.Size([5, 3])

    Reference:
        Jang, Gu, Poole, ICLR 2017, arXiv:1611.01144.
    """

    tau: Scalar = 1.0

    traits: ClassVar[Traits] = Traits(
        unbiased=False,
        families=DISCRETE,
        reference="Jang et al., ICLR 2017, arXiv:1611.01144",
        noise="class",
        pathwise=True,
        many_draws=True,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "tau", check_temperature("tau", self.tau))

    @property
    def kernel(self) -> AbstractKernel:
        """The sample's law and surrogate."""
        return HardGumbelSoftmax(for_kernel(self.tau))

    def form(self, *, hard: bool) -> AbstractPathwise:
        """Return itself, or the soft form of the same draw."""
        return self if hard else GumbelSoftmax(self.tau)


def straight_through_gumbel_softmax(
    logits: Tensor,
    tau: Scalar = 1.0,
    *,
    dim: int = -1,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Draw a one-hot sample with the Jacobian of Gumbel-Softmax.

    ``D = argmax(theta + G)``; backward ``J(S) g / tau``, S = softmax((theta + G) / tau).

    Args:
        logits: any shape, classes along `dim`; -inf masks a class.
        tau: temperature, > 0.
        dim: the class dim.
        generator: source of the noise.
        noise: float64 uniforms in [0, 1), shape of the logits, instead.
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
        >>> z = gt.straight_through_gumbel_softmax(torch.zeros(2, 3, requires_grad=True), tau=0.5)
        >>> z.sum(-1).tolist()
        [1.0, 1.0]

    Reference:
        Jang, Gu, Poole, ICLR 2017, arXiv:1611.01144.
    """
    kernel = HardGumbelSoftmax(for_kernel(tau))
    return sample(kernel, logits, dim=dim, generator=generator, noise=noise, backend=backend)


def gumbel_softmax(
    logits: Tensor,
    tau: float | Tensor = 1.0,
    hard: bool = False,
    eps: float = 1e-10,
    dim: int = -1,
    *,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Draw a Gumbel-Softmax sample: every call of ``torch.nn.functional.gumbel_softmax`` works.

    ``S = softmax((theta + G) / tau)``, or with `hard` the one-hot argmax with the Jacobian of S.
    Unlike torch's, a hard sample is exactly 0 or 1, low precision computes in float32, masked
    classes are never drawn, and unsound logits raise.

    Args:
        logits: any shape, classes along `dim`; -inf masks a class.
        tau: temperature, > 0; a tensor that broadcasts with the logits may be learned.
        hard: return the one-hot sample.
        eps: without effect, as in torch.
        dim: the class dim.
        generator: source of the noise.
        noise: float64 uniforms in [0, 1), shape of the logits, instead.
        backend: "auto", or by name what shall run.

    Returns:
        Shape and dtype of the logits, sums to 1 along `dim`.

    Raises:
        DomainError: NaN or +inf logits, a row with every class masked, tau not above 0.
        ShapeError: no such dim, no class, noise of the wrong shape.
        UnsupportedError: logits that are not floating point.
        BackendError: generator or noise on another device, unknown backend.

    Example:
        >>> import torch, gradthrough as gt
        >>> gt.gumbel_softmax(torch.zeros(2, 3), tau=0.5, hard=True).sum(-1)
        tensor([1., 1.])

    Reference:
        Jang, Gu, Poole, ICLR 2017, arXiv:1611.01144; Maddison, Mnih, Teh, ICLR 2017,
        arXiv:1611.00712.
    """
    if eps != 1e-10:
        warnings.warn("`eps` has no effect, as in torch's own gumbel_softmax.", stacklevel=2)
    if getattr(logits, "ndim", None) == 0 and dim in (-1, 0):
        return gumbel_softmax(
            logits.unsqueeze(0), tau, hard, generator=generator, backend=backend,
            noise=noise if noise is None else noise.unsqueeze(0),
        ).squeeze(0)  # fmt: skip
    kind = HardGumbelSoftmax if hard else SoftGumbelSoftmax
    if isinstance(tau, Tensor):
        return _with_tensor_tau(logits, tau, kind, dim, generator, noise, backend)
    kernel = kind(for_kernel(tau))
    return sample(kernel, logits, dim=dim, generator=generator, noise=noise, backend=backend)


def _with_tensor_tau(
    logits: Tensor,
    tau: Tensor,
    kind: type[HardGumbelSoftmax],
    dim: int,
    generator: torch.Generator | None,
    noise: Tensor | None,
    backend: Backend,
) -> Tensor:
    """Divide by tau in the open, where autograd sees it; then relax at temperature 1."""
    check_logits(logits, dim)
    check_rows(logits.movedim(dim, -1))
    if tau.is_complex() or tau.dtype == torch.bool:
        raise UnsupportedError(f"tau must be real, but is {tau.dtype}.")
    if tau.device != logits.device:
        raise BackendError(
            f"tau lives on {tau.device}, but the logits on {logits.device}. "
            "Move it: tau.to(logits.device)."
        )
    check_content(tau, _check_tau)
    shape = tuple(logits.shape)
    if noise is None:
        u = uniforms(shape, logits.device, generator)
    else:
        u = check_noise(noise, shape, logits, generator)
        check_content(u, check_uniforms)
    x = logits.to(compute_dtype(logits.dtype))
    masked = x.isneginf()
    scaled = (x.masked_fill(masked, 0.0) + gumbels(u.detach(), x.dtype)) / tau.to(x.dtype)
    rows = scaled.masked_fill(masked, -torch.inf).movedim(dim, -1)
    # One Gumbel for all classes shifts a row and changes nothing: the noise is already in.
    still = torch.full(tuple(rows.shape), 0.5, dtype=torch.float64, device=rows.device)
    z = launch(kind(1.0), rows, still, given=False, backend=backend)
    return z.movedim(-1, dim).to(logits.dtype)


def _check_tau(tau: Tensor) -> None:
    if not bool(((tau > 0) & tau.isfinite()).all()):
        raise DomainError(
            "tau must be finite and above 0 throughout, but the tensor is not. Learn its "
            "logarithm, or clamp it."
        )
