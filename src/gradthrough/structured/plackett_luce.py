"""Plackett-Luce: k classes without replacement, their probability, and weights for sums."""

from typing import NamedTuple

import torch
from torch import Tensor

from .._errors import ShapeError, UnsupportedError
from .._random import gumbels
from ..estimators.checks import check_switch
from .checks import check_choice, check_index, draw, log_probabilities, sound_rows
from .log_space import LOW, add, apart, from_here_on, log_ring


class TopK(NamedTuple):
    r"""k classes of each row, drawn without replacement. All three are constants.

    Attributes:
        index: int64 (\*batch, k), the classes in the order in which they were drawn.
        perturbed: (\*batch, k), their log-probabilities plus Gumbel noise, from the largest down;
            float32 or better.
        threshold: (\*batch,), the largest perturbed log-probability of those not drawn; -inf where
            all allowed classes are.
    """

    index: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]
    perturbed: Tensor
    threshold: Tensor


def gumbel_top_k(
    logits: Tensor,
    k: int,
    *,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> TopK:
    r"""Draw k different classes, one after the other, each from what is left. Exact.

    With phi = log softmax(logits) and Gumbel noise G, the k largest phi + G in order:
    ``P(o) = prod_i p[o_i] / (1 - sum_{j<i} p[o_j])``, the law of Plackett and Luce.

    Args:
        logits: (\*batch, n); -inf masks a class.
        k: from 1 to n.
        generator: source of the noise.
        noise: float64 uniforms (\*batch, n) in [0, 1) instead.

    Returns:
        A `TopK` without a graph; `plackett_luce_log_prob` and `importance_weights` have gradients.

    Raises:
        DomainError: k outside 1 to n, a row with fewer than k allowed classes, NaN or +inf.
        UnsupportedError: logits or noise of another dtype.
        ShapeError: noise of another shape.

    Example:
        >>> import torch, gradthrough as gt
        >>> top = gt.structured.gumbel_top_k(torch.zeros(5, 8), 3)
        >>> top.index.shape, bool((top.perturbed[:, -1] > top.threshold).all())
        (torch.Size([5, 3]), True)

    Reference:
        Kool, van Hoof, Welling, ICML 2019, arXiv:1903.06059.
    """
    logits, k = check_choice(logits, k)
    u = draw(tuple(logits.shape), logits, generator, noise)
    phi = log_probabilities(logits.detach(), k)
    perturbed = phi + gumbels(u, phi.dtype)
    best, index = perturbed.topk(min(k + 1, logits.shape[-1]), -1)
    if best.shape[-1] > k:
        threshold = best[..., k]
    else:  # NaN rows stay NaN
        threshold = best[..., -1] - torch.inf
    return TopK(index[..., :k], best[..., :k], threshold)


def plackett_luce_log_prob(logits: Tensor, order: Tensor) -> Tensor:
    r"""Return the log-probability that these classes are drawn first, in this order.

    ``log P(o) = sum_i (theta[o_i] - log sum_{c not in o_1..o_(i-1)} exp theta_c)``. What is left
    is summed, never taken from 1: nothing cancels, however likely the first classes are.

    Args:
        logits: (\*batch, n); -inf masks a class.
        order: int64 (..., \*batch, k), different classes; k from 1 to n.

    Returns:
        (..., \*batch), in the dtype of the logits and differentiable in them; -inf where a class
        is masked.

    Raises:
        DomainError: a class named twice or outside 0 to n - 1, NaN or +inf logits.
        UnsupportedError: logits of another dtype, an order that is not int64.
        ShapeError: an order that does not fit the logits.

    Example:
        >>> import torch, gradthrough as gt
        >>> logits = torch.tensor([0.5, 0.3, 0.2]).log()
        >>> order = torch.tensor([0, 1])
        >>> gt.structured.plackett_luce_log_prob(logits, order).exp()  # 0.5 * 0.3 / 0.5
        tensor(0.3000)

    Reference:
        Kool, van Hoof, Welling, ICML 2019, arXiv:1903.06059.
    """
    logits, _ = check_choice(logits, 1)
    order = check_index("order", order, logits)
    chosen, possible, rest = apart(sound_rows(logits, 1), order)
    left = add(from_here_on(chosen), rest.unsqueeze(-1).expand(chosen.shape))
    total = (chosen - left).sum(-1)
    return total.masked_fill(~possible, -torch.inf).to(logits.dtype)


def importance_weights(logits: Tensor, top: TopK, *, normalised: bool = False) -> Tensor:
    r"""Return weights that make a sum over the drawn classes an estimate of a mean.

    ``w_i = p_i / q_i`` with ``q_i = 1 - exp(-exp(log p_i - kappa))`` for the threshold kappa: q_i
    is how probably class i is drawn, given the noise of the others. ``E sum_i w_i f_i = E f``
    exactly. The derivative goes through p and not through q, which makes that of the sum unbiased
    as well: ``(w * f[index]).sum(-1)`` can be trained.

    Args:
        logits: (\*batch, n), those of the draw.
        top: what `gumbel_top_k` drew from them.
        normalised: divide by the sum of the weights. It takes much of the variance away, and
            makes both the value and the gradient biased, by less the larger k is.

    Returns:
        (\*batch, k), in the dtype of the logits and differentiable in them.

    Raises:
        DomainError: NaN or +inf logits, classes that cannot be theirs.
        UnsupportedError: logits of another dtype, a top that is no `TopK`.
        ShapeError: a top that does not fit the logits.

    Example:
        >>> import torch, gradthrough as gt
        >>> logits = torch.zeros(8, requires_grad=True)
        >>> values = torch.arange(8.0)
        >>> top = gt.structured.gumbel_top_k(logits, 3)
        >>> weights = gt.structured.importance_weights(logits, top)
        >>> (weights * values[top.index]).sum().backward()

    Reference:
        Kool, van Hoof, Welling, ICML 2019, arXiv:1903.06059; Vieira 2014.
    """
    logits, _ = check_choice(logits, 1)
    _check_top(top)
    index = check_index("top.index", top.index, logits)
    phi = log_probabilities(logits, 1)
    phi = phi.expand(*index.shape[:-1], phi.shape[-1]).gather(-1, index)
    return weigh(phi, top.threshold, normalised).to(logits.dtype)


def _check_top(top: object) -> None:
    if not isinstance(top, TopK):
        raise UnsupportedError(
            f"top must be what gumbel_top_k returns, a TopK, but a {type(top).__name__} came."
        )
    if top.threshold.shape != top.index.shape[:-1]:
        raise ShapeError(
            f"top.threshold must have one number for each row of top.index, shape "
            f"{tuple(top.index.shape[:-1])}, but has {tuple(top.threshold.shape)}."
        )


def weigh(phi: Tensor, threshold: Tensor, normalised: bool) -> Tensor:
    r"""Return p / q for log-probabilities (\*batch, k) and thresholds (\*batch,)."""
    check_switch("normalised", normalised)
    phi = phi.masked_fill(phi.isneginf(), LOW)
    log_w = phi - log_ring(phi.detach() - threshold.detach().to(phi.dtype).unsqueeze(-1))
    return log_w.softmax(-1) if normalised else log_w.exp()
