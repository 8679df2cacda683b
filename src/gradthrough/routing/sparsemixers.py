"""SparseMixer and its second version: the multiplier of an expert as a quadrature."""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .._attach import substitute
from .._errors import DomainError, UnsupportedError
from .._random import uniforms
from .._types import compute_dtype
from ..estimators.checks import check_count, check_logits, check_switch
from ..kernels.checks import check_content, check_rows
from ..kernels.dispatch import draw
from ..laws.base import check_noise


class Routed(NamedTuple):
    r"""Which experts run, and what their outputs are multiplied with.

    Args:
        multiplier: (\*batch, k), with the gradient of the logits.
        index: int64 (\*batch, k), the experts; those of one row differ.
    """

    multiplier: Tensor
    index: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]


@dataclass(frozen=True)
class _Quadrature:
    """f(1) - f(0) from slopes at 1 and, with probability 1 - full, at `low`.

    `gain` is what the gradient of p_D is multiplied with.
    """

    low: float
    full: float
    gain: float


_MIDPOINT = _Quadrature(low=1 / 2, full=1 / 2, gain=2.0)
_HEUN = _Quadrature(low=1 / 3, full=1 / 4, gain=1.0)


def sparsemixer(
    logits: Tensor,
    *,
    eps: float | None = 0.1,
    training: bool = True,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Routed:
    r"""Draw one expert for each row, and the multiplier of its output (SparseMixer).

    Experts far below the best are left out: those with ``(max - theta_i) / max(|theta_i|, max) > 2
    eps``. Of the others, ``D ~ p = softmax(theta)``, and the multiplier is ``p_D (1/2 + m/2)`` with
    m = 1 if D is the best expert, else m ~ Bernoulli(1/2). Backward: ``2 h p_D (D - p)``, h the
    gradient in the multiplier.

    With f_i(a) the loss if expert i runs and a multiplies its output, and f_i(0) the same for all
    i, this is the gradient of ``sum_i p_i f_i(p_i)``; the midpoint rule gives what the p_i in front
    moves. In the mean the term of an expert below the best is exact for f_i quadratic, that of the
    best one for f_i affine.

    In the paper the output is also multiplied with a learnable omega that starts at 1: an ordinary
    factor, which the caller keeps; ``gt.nn.Router`` has it.

    Args:
        logits: (\*batch, N), one for each expert; -inf masks one.
        eps: how far below the best an expert may be, >= 0; None: none is left out. The test is one
            of scale, so a number added to all logits moves it.
        training: draw; else the best expert runs with multiplier p_D, whose derivative is its own.
        generator: source of the noise.
        noise: float64 uniforms (\*batch, 1, 2) instead: the first draws D, the second m. Not looked
            at unless `training`.

    Returns:
        The multiplier (\*batch, 1) in the dtype of the logits, computed in float32 or better, and
        the expert (\*batch, 1).

    Raises:
        DomainError: NaN or +inf logits, a row with every expert masked, eps below 0.
        ShapeError: no expert, noise of the wrong shape.
        UnsupportedError: logits that are not floating point.
        BackendError: generator or noise on another device.

    Example:
        >>> import torch
        >>> from gradthrough.routing import sparsemixer
        >>> logits = torch.tensor([[0.0, 2.0, -1.0]], requires_grad=True)
        >>> out = sparsemixer(logits, training=False)
        >>> out.index.tolist(), out.multiplier.shape
        ([[1]], torch.Size([1, 1]))

    Reference:
        Liu, Gao, Chen, 2023, arXiv:2310.00811.
    """
    return _route(logits, _MIDPOINT, 1, eps, training, generator, noise)


def sparsemixer_v2(
    logits: Tensor,
    *,
    top: int = 1,
    eps: float | None = 0.1,
    training: bool = True,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Routed:
    r"""Draw `top` experts for each row, and the multipliers of their outputs (SparseMixer-v2).

    Experts far below the best are left out: those with ``(max - theta_i) / max(|theta_i|, max) > 2
    eps``. Of the others, ``D ~ p = softmax(theta)``, and the multiplier is ``p_D (1/3 + 2m/3)``,
    m = 1 if D is the best expert, else m ~ Bernoulli(1/4). Backward: ``h p_D (D - p)``, h the
    gradient in the multiplier. For each further expert the ones before are masked, and all of it is
    done again: another best, another p.

    With f_i(a) the loss if expert i runs and a multiplies its output, and f_i(0) the same for all
    i, this is ``sum_i f_i(p_i) dp_i``: the gradient of E f_D in the law of D, without what p_D
    moves as a multiplier. In the mean the term of an expert below the best is exact for f_i cubic,
    since ``f(1) - f(0) = f'(1)/4 + 3 f'(1/3)/4``; that of the best one for f_i affine.

    Args:
        logits: (\*batch, N), one for each expert; -inf masks one.
        top: how many experts run, from 1 to N.
        eps: how far below the best an expert may be, >= 0; None: none is left out. The test is one
            of scale, so a number added to all logits moves it.
        training: draw; else the best experts run with multiplier p_D.
        generator: source of the noise.
        noise: float64 uniforms (\*batch, top, 2) instead: of each pair the first draws D, the
            second m. Not looked at unless `training`.

    Returns:
        The multipliers (\*batch, top) in the dtype of the logits, computed in float32 or better,
        and the experts (\*batch, top).

    Raises:
        DomainError: NaN or +inf logits, a row with fewer than `top` experts that are not masked,
            eps below 0, top out of range.
        ShapeError: no expert, noise of the wrong shape.
        UnsupportedError: logits that are not floating point.
        BackendError: generator or noise on another device.

    Example:
        >>> import torch
        >>> from gradthrough.routing import sparsemixer_v2
        >>> logits = torch.randn(4, 8, requires_grad=True)
        >>> x, experts = torch.randn(4, 5), torch.randn(8, 5, 3)
        >>> multiplier, index = sparsemixer_v2(logits)
        >>> y = multiplier * torch.stack([row @ experts[i] for row, (i,) in zip(x, index)])
        >>> y.square().sum().backward()
        >>> bool(logits.grad.sum(-1).abs().max() < 1e-5)
        True

    Reference:
        Liu et al., GRIN: GRadient-INformed MoE, 2024, arXiv:2409.12136.
    """
    return _route(logits, _HEUN, top, eps, training, generator, noise)


def _route(
    logits: Tensor,
    rule: _Quadrature,
    top: int,
    eps: float | None,
    training: bool,
    generator: torch.Generator | None,
    noise: Tensor | None,
) -> Routed:
    check_logits(logits, -1)
    check_top(top, logits.shape[-1])
    eps = check_eps(eps)
    shape = (*logits.shape[:-1], top, 2)
    u: Tensor | None = None
    if check_switch("training", training):
        given = noise is not None
        u = check_noise(noise, shape, logits, generator) if given else None
        u = uniforms(shape, logits.device, generator) if u is None else u
    if top > 1:  # of a single one, the draw itself says what is wrong
        check_content(logits, partial(_check_left, top))
    x = logits.to(compute_dtype(logits.dtype))
    found: list[tuple[Tensor, Tensor]] = []
    for j in range(top):
        pair = None if u is None else u[..., j, :]
        found.append(_choose(x, rule, eps, pair, given=noise is not None))
        if j + 1 < top:
            x = x.scatter(-1, found[-1][1], -torch.inf)
    multipliers, indices = zip(*found, strict=True)
    return Routed(torch.cat(multipliers, -1).to(logits.dtype), torch.cat(indices, -1))


def check_top(top: object, experts: int) -> int:
    """Return how many experts run, else say what came."""
    count = check_count("top", top, 1)
    if count > experts:
        raise DomainError(
            f"top is {top}, but there are {experts} experts. Take a top of at most that many."
        )
    return count


def _check_left(top: int, logits: Tensor) -> None:
    left = (logits != -torch.inf).sum(-1)
    # A row without any is refused where it is drawn, as one with NaN is.
    if short := int(((left > 0) & (left < top)).sum()):
        raise DomainError(
            f"top is {top}, but {short} of {left.numel()} rows have fewer experts that are not "
            "masked (-inf). Take a smaller top, or mask fewer experts."
        )


def check_eps(eps: object) -> float | None:
    """Return a number >= 0 or None, else say what came."""
    if eps is None:
        return None
    if isinstance(eps, bool) or not isinstance(eps, numbers.Real):
        raise UnsupportedError(f"eps must be a number or None, but a {type(eps).__name__} came.")
    if not float(eps) >= 0.0:
        raise DomainError(f"eps must be at least 0, but is {eps}. For no threshold: eps=None.")
    return float(eps)


def _choose(
    x: Tensor, rule: _Quadrature, eps: float | None, u: Tensor | None, *, given: bool
) -> tuple[Tensor, Tensor]:
    r"""Return multiplier and expert, (\*batch, 1) each, for logits (\*batch, N)."""
    held = x.detach()
    best = held.argmax(-1, keepdim=True)
    kept = x if eps is None else x.masked_fill(_far_below(held, eps), -torch.inf)
    if u is None:
        check_rows(x)
        return kept.softmax(-1).gather(-1, best), best
    index = draw(kept, u[..., 0], given=given)[1].unsqueeze(-1)
    p = kept.softmax(-1).gather(-1, index)
    whole = (index == best) | (u[..., 1:] < rule.full)
    # m moves the value and not the slope: that is the quadrature.
    return substitute(torch.where(whole, p, rule.low * p), rule.gain * p), index


def _far_below(x: Tensor, eps: float) -> Tensor:
    """Return which experts are left out; a masked one is not, which changes nothing."""
    top = x.amax(-1, keepdim=True)
    # Multiplied out: the quotient is 0/0 where all logits are 0.
    return top - x > 2.0 * eps * torch.maximum(x.abs(), top)
