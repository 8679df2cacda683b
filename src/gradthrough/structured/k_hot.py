"""Relaxed top-k: a soft k-hot point, and a hard one with its Jacobian."""

import torch
from torch import Tensor

from .._attach import substitute
from .._random import gumbels
from ..estimators.checks import check_positive
from ..kernels.softmax import centre
from .checks import check_choice, draw, sound_rows


def relaxed_k_hot(
    logits: Tensor,
    k: int,
    tau: float = 1.0,
    *,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    r"""Draw a soft k-hot point: the top k of perturbed logits, with softmax in place of argmax.

    With ``a_1 = logits + G`` for Gumbel noise G, k times ``p_j = softmax(a_j / tau)`` and
    ``a_(j+1) = a_j + log(1 - p_j)``; the point is the sum of the p_j. As tau goes to 0 it becomes
    the k-hot point of `gumbel_top_k`. Time and the memory of the graph are O(n k).

    The entries are at least 0 and sum to k, but one can exceed 1. A step pushes the largest a_j
    down by about its lead over the next, divided by tau; where that lead is less than tau times the
    distance to what should be picked later, the same class is picked again. That is common when
    logits are far apart and tau is not small; `simple` has no such points.

    Args:
        logits: (\*batch, n); -inf masks a class.
        k: from 1 to n.
        tau: temperature, above 0.
        generator: source of the noise.
        noise: float64 uniforms (\*batch, n) in [0, 1) instead.

    Returns:
        Shape and dtype of the logits, differentiable in them to every order. Biased for an
        objective of hard points.

    Raises:
        DomainError: k outside 1 to n, a row with fewer than k allowed classes, NaN or +inf, tau
            not above 0.
        UnsupportedError: logits or noise of another dtype.
        ShapeError: noise of another shape.

    Example:
        >>> import torch, gradthrough as gt
        >>> z = gt.structured.relaxed_k_hot(torch.zeros(5, 8), 3, tau=0.5)
        >>> z.sum(-1)
        tensor([3.0000, 3.0000, 3.0000, 3.0000, 3.0000])

    Reference:
        Xie, Ermon, IJCAI 2019, arXiv:1901.10517.
    """
    logits, k = check_choice(logits, k)
    tau = check_positive("tau", tau)
    perturbed = _perturbed(logits, k, generator, noise)
    return _relax(perturbed, k, tau).to(logits.dtype)


def straight_through_k_hot(
    logits: Tensor,
    k: int,
    tau: float = 1.0,
    *,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    r"""Draw a hard k-hot point, k classes without replacement, with a relaxed Jacobian.

    Forward the classes of `gumbel_top_k` for the same noise, exactly 0 or 1; backward the Jacobian
    of `relaxed_k_hot` at that noise. Biased.

    Args:
        logits: (\*batch, n); -inf masks a class.
        k: from 1 to n.
        tau: temperature of the Jacobian, above 0.
        generator: source of the noise.
        noise: float64 uniforms (\*batch, n) in [0, 1) instead.

    Returns:
        Shape and dtype of the logits.

    Raises:
        DomainError: k outside 1 to n, a row with fewer than k allowed classes, NaN or +inf, tau
            not above 0.
        UnsupportedError: logits or noise of another dtype.
        ShapeError: noise of another shape.

    Example:
        >>> import torch, gradthrough as gt
        >>> logits = torch.zeros(5, 8, requires_grad=True)
        >>> z = gt.structured.straight_through_k_hot(logits, 3, tau=0.5)
        >>> z.sum(-1).tolist()
        [3.0, 3.0, 3.0, 3.0, 3.0]
        >>> (z * torch.arange(8.0)).sum().backward()

    Reference:
        Xie, Ermon, IJCAI 2019, arXiv:1901.10517; straight-through: Bengio et al., 2013,
        arXiv:1308.3432.
    """
    logits, k = check_choice(logits, k)
    tau = check_positive("tau", tau)
    perturbed = _perturbed(logits, k, generator, noise)
    soft = _relax(perturbed, k, tau)
    index = perturbed.detach().topk(k, -1)[1]
    # What is unsound is NaN in the relaxed point, and must not be a plausible hard one.
    hard = torch.zeros_like(soft).scatter(-1, index, 1.0) + 0.0 * soft.detach()
    return substitute(hard.to(logits.dtype), soft.to(logits.dtype))


def _perturbed(
    logits: Tensor, k: int, generator: torch.Generator | None, noise: Tensor | None
) -> Tensor:
    u = draw(tuple(logits.shape), logits, generator, noise)
    x = sound_rows(logits, k)
    return x + gumbels(u, x.dtype)


def _relax(a: Tensor, k: int, tau: float) -> Tensor:
    a = centre(a)  # before the division, which would round what is shared
    point = torch.zeros_like(a)
    for j in range(k):
        p, log_rest = _softmax_and_rest(a / tau)
        point = point + p
        if j < k - 1:
            a = a + log_rest
    return point


def _softmax_and_rest(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return p = softmax(x) and log(1 - p), also where p rounds to 1."""
    log_p = x.log_softmax(-1)
    p = log_p.exp()
    # One p at most exceeds 1/2, that of the largest x: there 1 - p is the sum of the others.
    largest = torch.zeros_like(p).scatter(-1, x.detach().argmax(-1, keepdim=True), 1.0) > 0
    others = log_p.masked_fill(largest, -torch.inf).logsumexp(-1, keepdim=True)
    return p, torch.where(largest, others, torch.log1p(-p.masked_fill(largest, 0.0)))
