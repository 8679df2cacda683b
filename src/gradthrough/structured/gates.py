"""Hard Concrete: gates that are exactly 0, exactly 1 or between, with a pathwise gradient."""

import math

import torch
from torch import Tensor

from .._errors import DomainError, UnsoundLogitsError, UnsupportedError
from .._types import FLOATS, compute_dtype
from ..estimators.checks import check_positive
from ..kernels.checks import check_content
from .checks import draw


def hard_concrete(
    log_alpha: Tensor,
    *,
    beta: float = 2 / 3,
    gamma: float = -0.1,
    zeta: float = 1.1,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    r"""Draw Hard Concrete gates: a stretched binary Concrete variable, clipped to [0, 1].

    ``s = sigmoid((logit u + log alpha) / beta)``, ``z = min(1, max(0, s (zeta - gamma) + gamma))``.
    Backward it is differentiated as it stands: the derivative is 0 where z is clipped, so a closed
    gate is moved by `hard_concrete_penalty` alone. Biased for an objective of 0-1 gates.

    Args:
        log_alpha: any shape, one gate each; -inf closes a gate for good.
        beta: temperature, above 0.
        gamma: lower end of the stretched interval, below 0.
        zeta: its upper end, above 1.
        generator: source of the noise.
        noise: float64 uniforms in [0, 1), shape of log_alpha, instead.

    Returns:
        Gates in [0, 1], shape and dtype of log_alpha. (In bfloat16 and float16 gates next to 1 are
        rounded to it.)

    Raises:
        DomainError: NaN or +inf, beta, gamma or zeta outside their range.
        UnsupportedError: log_alpha or noise of another dtype.
        ShapeError: noise of another shape.

    Example:
        >>> import torch, gradthrough as gt
        >>> log_alpha = torch.zeros(1000, requires_grad=True)
        >>> gates = gt.structured.hard_concrete(log_alpha)
        >>> loss = gates.mean() + 0.1 * gt.structured.hard_concrete_penalty(log_alpha).mean()
        >>> loss.backward()

    Reference:
        Louizos, Welling, Kingma, ICLR 2018, arXiv:1712.01312.
    """
    x = _checked(log_alpha, beta, gamma, zeta)
    u = draw(tuple(log_alpha.shape), log_alpha, generator, noise)
    logistic = (u.log() - torch.log1p(-u)).to(x.dtype)
    s = torch.sigmoid((logistic + x) / beta)
    return (s * (zeta - gamma) + gamma).clamp(0.0, 1.0).to(log_alpha.dtype)


def hard_concrete_penalty(
    log_alpha: Tensor, *, beta: float = 2 / 3, gamma: float = -0.1, zeta: float = 1.1
) -> Tensor:
    r"""Return how probably each gate is not 0: its sum is the expected number of open gates.

    ``P(z != 0) = sigmoid(log alpha - beta log(-gamma / zeta))``.

    Args:
        log_alpha: any shape, one gate each; -inf closes a gate for good.
        beta: temperature, above 0.
        gamma: lower end of the stretched interval, below 0.
        zeta: its upper end, above 1.

    Returns:
        Shape and dtype of log_alpha, differentiable in it.

    Raises:
        DomainError: NaN or +inf, beta, gamma or zeta outside their range.
        UnsupportedError: log_alpha of another dtype.

    Example:
        >>> import torch, gradthrough as gt
        >>> gt.structured.hard_concrete_penalty(torch.zeros(1))
        tensor([0.8318])

    Reference:
        Louizos, Welling, Kingma, ICLR 2018, arXiv:1712.01312.
    """
    x = _checked(log_alpha, beta, gamma, zeta)
    return torch.sigmoid(x - beta * math.log(-gamma / zeta)).to(log_alpha.dtype)


def hard_concrete_open(
    log_alpha: Tensor, *, beta: float = 2 / 3, gamma: float = -0.1, zeta: float = 1.1
) -> Tensor:
    r"""Return how probably each gate is exactly 1.

    ``P(z = 1) = sigmoid(log alpha - beta log((1 - gamma) / (zeta - 1)))``.

    Args:
        log_alpha: any shape, one gate each; -inf closes a gate for good.
        beta: temperature, above 0.
        gamma: lower end of the stretched interval, below 0.
        zeta: its upper end, above 1.

    Returns:
        Shape and dtype of log_alpha, differentiable in it.

    Raises:
        DomainError: NaN or +inf, beta, gamma or zeta outside their range.
        UnsupportedError: log_alpha of another dtype.

    Example:
        >>> import torch, gradthrough as gt
        >>> gt.structured.hard_concrete_open(torch.zeros(1))
        tensor([0.1682])

    Reference:
        Louizos, Welling, Kingma, ICLR 2018, arXiv:1712.01312.
    """
    x = _checked(log_alpha, beta, gamma, zeta)
    return torch.sigmoid(x - beta * math.log((1 - gamma) / (zeta - 1))).to(log_alpha.dtype)


def hard_concrete_gate(log_alpha: Tensor, *, gamma: float = -0.1, zeta: float = 1.1) -> Tensor:
    r"""Return the gates for test time, without noise.

    ``min(1, max(0, sigmoid(log alpha) (zeta - gamma) + gamma))``, as the paper has it; it is not
    the mean of `hard_concrete`.

    Args:
        log_alpha: any shape, one gate each; -inf closes a gate for good.
        gamma: lower end of the stretched interval, below 0.
        zeta: its upper end, above 1.

    Returns:
        Gates in [0, 1], shape and dtype of log_alpha.

    Raises:
        DomainError: NaN or +inf, gamma or zeta outside their range.
        UnsupportedError: log_alpha of another dtype.

    Example:
        >>> import torch, gradthrough as gt
        >>> gt.structured.hard_concrete_gate(torch.tensor([-5.0, 0.0, 5.0]))
        tensor([0.0000, 0.5000, 1.0000])

    Reference:
        Louizos, Welling, Kingma, ICLR 2018, arXiv:1712.01312.
    """
    x = _checked(log_alpha, 1.0, gamma, zeta)
    return (torch.sigmoid(x) * (zeta - gamma) + gamma).clamp(0.0, 1.0).to(log_alpha.dtype)


def _checked(log_alpha: object, beta: object, gamma: float, zeta: float) -> Tensor:
    """Return log alpha in float32 or better, or say what cannot be."""
    if not isinstance(log_alpha, Tensor) or log_alpha.dtype not in FLOATS:
        came = getattr(log_alpha, "dtype", type(log_alpha).__name__)
        raise UnsupportedError(
            "log_alpha must be a float64, float32, bfloat16 or float16 tensor, but "
            f"{came} came. Convert it: log_alpha.float()."
        )
    check_positive("beta", beta)
    for name, end in (("gamma", gamma), ("zeta", zeta)):
        if isinstance(end, bool) or not isinstance(end, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UnsupportedError(f"{name} must be a number, but a {type(end).__name__} came.")
    if not (-math.inf < gamma < 0.0 and 1.0 < zeta < math.inf):
        raise DomainError(
            f"gamma must be below 0 and zeta above 1, or no gate would ever be exactly 0 or 1, but "
            f"gamma={gamma} and zeta={zeta}."
        )
    check_content(log_alpha, _check_sound)
    x = log_alpha.to(compute_dtype(log_alpha.dtype))
    return x.masked_fill(x.detach().isposinf(), torch.nan)


def _check_sound(x: Tensor) -> None:
    if bool((x.isnan() | x.isposinf()).any()):
        raise UnsoundLogitsError(
            f"log_alpha of shape {tuple(x.shape)} holds NaN or +inf. Wanted: finite numbers, or "
            "-inf for a gate that is closed for good. Look for an overflow upstream."
        )
