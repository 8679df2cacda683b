"""ReDGE and ReinDGE: a few steps of a diffusion whose denoiser is a softmax of the logits."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._attach import substitute
from .._errors import DomainError
from .._random import normals
from .._types import compute_dtype
from ..kernels.checks import check_content, check_rows, check_uniforms
from ..kernels.diffusion import LEAST_NOISE, diffuse, softmax
from ..kernels.dispatch import draw
from ..kernels.softmax import centre
from .base import DISCRETE, Traits
from .checks import check_count, check_positive, check_switch
from .pathwise import AbstractPathwise, sample_along


@dataclass(frozen=True)
class ReDGE(AbstractPathwise):
    r"""ReDGE: a hard sample with the Jacobian of a short diffusion that ends near a corner.

    A point that is noised as ``x_t = alpha_t D + sigma_t eps`` has the posterior mean ``x0(x_t) =
    softmax(theta + alpha_t x_t / sigma_t^2)``. From x_{n-1} = eps ~ N(0, I), steps ``x_{t-1} =
    alpha_{t-1} x0(x_t) + sigma_{t-1} (x_t - alpha_t x0(x_t)) / sigma_t`` lead to x_1, s = x0(x_1)
    and ``D ~ s``; backward ``(ds/dtheta)^T g`` through the whole chain. alpha runs from 1 - t1 at
    t = 1 to 1e-4 at t = n - 1, and sigma = 1 - alpha.

    With `covariance` the noise has mean and variance of the sample, eps ~ N(pi, V) with V =
    max(pi (1 - pi), 0.1) class by class, and ``x0(x_t) = softmax(theta + (alpha_t (x_t - sigma_t
    pi) - alpha_t^2 / 2) / (V sigma_t^2))``; pi and V keep their gradient.

    The law that is sampled, E s, is only close to softmax(theta), the closer the larger t1 and,
    from 3 on, the more steps: the value estimates E f under that law. At t1 = 1 it is exact and
    this is Straight-Through.

    Args:
        steps: n, number of levels of noise with the clean one, >= 2; n - 1 softmaxes, whose graph
            is kept.
        t1: sigma at the last step, in [1e-6, 1]: small, s is nearly hard, and
            the variance grows as with a small temperature, sooner with `covariance` (from about
            0.1 down). Far below that the chain has no gradient left.
        covariance: match mean and variance of the noise to the sample.

    Raises:
        DomainError: steps below 2, t1 outside of [1e-6, 1].

    Example:
        >>> import torch, gradthrough as gt
        >>> f = lambda z: (z * torch.tensor([1.0, 2.0, 4.0])).sum(-1) ** 2
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> gt.expect(f, logits, gt.ReDGE(steps=5, t1=0.5)).sum().backward()
        >>> logits.grad.shape
        torch.Size([5, 3])

    Reference:
        Gourevitch, Durmus, Moulines, Olsson, Janati, 2026, arXiv:2601.00781.
    """

    steps: int = 5
    t1: float = 0.5
    covariance: bool = True

    traits: ClassVar[Traits] = Traits(
        unbiased=False,
        families=DISCRETE,
        reference="Gourevitch et al., 2026, arXiv:2601.00781",
        noise="class+variable",
        pathwise=True,
        approximate=True,
        many_draws=True,
    )

    def __post_init__(self) -> None:
        check_count("steps", self.steps, 2)
        object.__setattr__(self, "t1", _check_t1(self.t1))
        check_switch("covariance", self.covariance)

    def sample(self, logits: Tensor, noise: Tensor, given: bool = False) -> Tensor:
        r"""Draw (\*rows, C) samples that carry their Jacobian, from logits of that shape."""
        theta, eps = _start(logits, noise, given)
        s = softmax(theta + diffuse(theta, eps, self.steps, self.t1, self.covariance))
        return substitute(_drawn(s, noise).to(logits.dtype), s.to(logits.dtype))


@dataclass(frozen=True)
class ReinDGE(AbstractPathwise):
    r"""ReinDGE: ReDGE whose last denoiser is differentiated like ReinMax.

    D ~ s at the end of the chain of ReDGE. Backward: the gradient of s through x_1 (and pi and V),
    with theta held constant in the last denoiser, plus ``1/2 [J(s) g + (g.(D - s)) (D - s)]``, the
    ReinMax rule at s, for the theta that stands there.

    The law that is sampled, E s, is only close to softmax(theta), the closer the larger t1 and,
    from 3 on, the more steps: the value estimates E f under that law. At t1 = 1 it is exact and
    this is ReinMax.

    Args:
        steps: n, number of levels of noise with the clean one, >= 2; n - 1 softmaxes, whose graph
            is kept.
        t1: sigma at the last step, in [1e-6, 1].
        covariance: match mean and variance of the noise to the sample.

    Raises:
        DomainError: steps below 2, t1 outside of [1e-6, 1].

    Example:
        >>> import torch, gradthrough as gt
        >>> f = lambda z: (z * torch.tensor([1.0, 2.0, 4.0])).sum(-1) ** 2
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> gt.expect(f, logits, gt.ReinDGE(steps=5, t1=0.8)).sum().backward()
        >>> logits.grad.shape
        torch.Size([5, 3])

    Reference:
        Gourevitch, Durmus, Moulines, Olsson, Janati, 2026, arXiv:2601.00781.
    """

    steps: int = 5
    t1: float = 0.5
    covariance: bool = False

    traits: ClassVar[Traits] = Traits(
        unbiased=False,
        families=DISCRETE,
        reference="Gourevitch et al., 2026, arXiv:2601.00781",
        noise="class+variable",
        pathwise=True,
        approximate=True,
        many_draws=True,
    )

    def __post_init__(self) -> None:
        check_count("steps", self.steps, 2)
        object.__setattr__(self, "t1", _check_t1(self.t1))
        check_switch("covariance", self.covariance)

    def sample(self, logits: Tensor, noise: Tensor, given: bool = False) -> Tensor:
        r"""Draw (\*rows, C) samples that carry their Jacobian, from logits of that shape."""
        theta, eps = _start(logits, noise, given)
        shift = diffuse(theta, eps, self.steps, self.t1, self.covariance)
        path = softmax(theta.detach() + shift)
        s = path.detach()
        hot = _drawn(s, noise)
        direct = 2.0 * _tilt((hot + s) * 0.5, theta) - 0.5 * _tilt(s, theta)
        return substitute(hot.to(logits.dtype), (path + direct).to(logits.dtype))


def _start(logits: Tensor, noise: Tensor, given: bool) -> tuple[Tensor, Tensor]:
    """Return the centred logits, in float32 or better, and the normals of the chain."""
    if given:
        check_content(noise, check_uniforms)
    check_rows(logits)
    theta = centre(logits.to(compute_dtype(logits.dtype)))
    return theta, normals(noise[..., :-1].detach(), theta.dtype)


def _drawn(s: Tensor, noise: Tensor) -> Tensor:
    """Draw D ~ s, NaN in an unsound row."""
    return draw(s.detach().log(), noise[..., -1].detach(), given=False)[0]


def _tilt(p: Tensor, theta: Tensor) -> Tensor:
    """Return softmax(theta + c), the constant c such that its value is p."""
    # Not theta - theta.detach(), which is NaN where a class is masked.
    weight = p * substitute(torch.zeros_like(p), theta).exp()
    return weight / weight.sum(-1, keepdim=True)


def _check_t1(t1: object) -> float:
    number = check_positive("t1", t1)
    if not LEAST_NOISE <= number <= 1.0:
        raise DomainError(f"t1 must be in [{LEAST_NOISE}, 1], but is {number}.")
    return number


def redge(
    logits: Tensor,
    steps: int = 5,
    t1: float = 0.5,
    covariance: bool = True,
    *,
    dim: int = -1,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    r"""Draw a one-hot sample with the ReDGE Jacobian.

    A diffusion of n - 1 steps with the denoiser ``softmax(theta + alpha_t x_t / sigma_t^2)`` ends
    at s; ``D ~ s``, backward ``(ds/dtheta)^T g``. The law of D is only close to softmax(theta).

    Args:
        logits: any shape, classes along `dim`; -inf masks a class.
        steps: n, number of levels of noise with the clean one, >= 2.
        t1: sigma at the last step, in [1e-6, 1].
        covariance: match mean and variance of the noise to the sample.
        dim: the class dim.
        generator: source of the noise.
        noise: float64 uniforms in [0, 1) instead, (\*rows, C + 1) with rows the shape of the
            logits without `dim`: one for the normal of each class, and that of the draw.

    Returns:
        Exact zeros and ones, shape and dtype of the logits.

    Raises:
        DomainError: NaN or +inf logits, a row with every class masked, steps below 2, t1 outside
            of [1e-6, 1].
        ShapeError: no such dim, no class, noise of the wrong shape.
        UnsupportedError: logits that are not floating point.
        BackendError: generator or noise on another device.

    Example:
        >>> import torch, gradthrough as gt
        >>> z = gt.redge(torch.zeros(2, 3, requires_grad=True), steps=5, t1=0.5)
        >>> z.sum(-1).tolist()
        [1.0, 1.0]

    Reference:
        Gourevitch, Durmus, Moulines, Olsson, Janati, 2026, arXiv:2601.00781.
    """
    run = ReDGE(steps, t1, covariance).sample
    return sample_along("class+variable", run, logits, dim=dim, generator=generator, noise=noise)


def reindge(
    logits: Tensor,
    steps: int = 5,
    t1: float = 0.5,
    covariance: bool = False,
    *,
    dim: int = -1,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    r"""Draw a one-hot sample with the ReinDGE Jacobian.

    ``D ~ s`` as in ``redge``; backward through x_1 with theta constant in the last denoiser, plus
    ``1/2 [J(s) g + (g.(D - s)) (D - s)]``. The law of D is only close to softmax(theta).

    Args:
        logits: any shape, classes along `dim`; -inf masks a class.
        steps: n, number of levels of noise with the clean one, >= 2.
        t1: sigma at the last step, in [1e-6, 1].
        covariance: match mean and variance of the noise to the sample.
        dim: the class dim.
        generator: source of the noise.
        noise: float64 uniforms in [0, 1) instead, (\*rows, C + 1) with rows the shape of the
            logits without `dim`: one for the normal of each class, and that of the draw.

    Returns:
        Exact zeros and ones, shape and dtype of the logits.

    Raises:
        DomainError: NaN or +inf logits, a row with every class masked, steps below 2, t1 outside
            of [1e-6, 1].
        ShapeError: no such dim, no class, noise of the wrong shape.
        UnsupportedError: logits that are not floating point.
        BackendError: generator or noise on another device.

    Example:
        >>> import torch, gradthrough as gt
        >>> z = gt.reindge(torch.zeros(2, 3, requires_grad=True), steps=5, t1=0.8)
        >>> z.sum(-1).tolist()
        [1.0, 1.0]

    Reference:
        Gourevitch, Durmus, Moulines, Olsson, Janati, 2026, arXiv:2601.00781.
    """
    run = ReinDGE(steps, t1, covariance).sample
    return sample_along("class+variable", run, logits, dim=dim, generator=generator, noise=noise)
