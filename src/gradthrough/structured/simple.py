"""SIMPLE: exact k-subsets, with the gradient of their exact marginals."""

import torch
from torch import Tensor

from .._attach import substitute
from .checks import draw
from .subsets import tree_of
from .tree import coefficient, descend, marginals


def simple(
    logits: Tensor,
    k: int,
    *,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    r"""SIMPLE: an exact k-subset, with the Jacobian of the exact marginals. No temperature.

    Forward ``z ~ p(z) proportional to exp(theta . z)`` over the 0-1 vectors with k ones; backward
    ``d mu / d theta`` for the marginals mu = E z, which is the covariance of z. The gradient is
    exact for an f that is affine in z, biased otherwise. Time and memory are O(n k).

    Args:
        logits: theta, (\*batch, n); -inf masks a class.
        k: from 1 to n.
        generator: source of the noise.
        noise: float64 uniforms (\*batch, n - 1) in [0, 1) instead.

    Returns:
        Shape and dtype of the logits, k ones in each row.

    Raises:
        DomainError: k outside 1 to n, a row with fewer than k allowed classes, NaN or +inf.
        UnsupportedError: logits or noise of another dtype.
        ShapeError: noise of another shape.

    Example:
        >>> import torch, gradthrough as gt
        >>> logits = torch.zeros(5, 8, requires_grad=True)
        >>> z = gt.structured.simple(logits, 3)
        >>> z.sum(-1).tolist()
        [3.0, 3.0, 3.0, 3.0, 3.0]
        >>> (z * torch.arange(8.0)).sum().backward()

    Reference:
        Ahmed, Zeng, Niepert, Van den Broeck, ICLR 2023, arXiv:2210.01941.
    """
    logits, k, levels = tree_of(logits, k)
    z = _drawn(logits, k, levels, generator, noise)
    return substitute(z, marginals(levels, k).to(logits.dtype))


def sample_subset(
    logits: Tensor,
    k: int,
    *,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    r"""Draw exactly from p(z) proportional to exp(theta . z) over vectors with k ones.

    Args:
        logits: theta, (\*batch, n); -inf masks a class.
        k: from 1 to n.
        generator: source of the noise.
        noise: float64 uniforms (\*batch, n - 1) in [0, 1) instead.

    Returns:
        Shape and dtype of the logits, k ones in each row. No gradient.

    Raises:
        DomainError: k outside 1 to n, a row with fewer than k allowed classes, NaN or +inf.
        UnsupportedError: logits or noise of another dtype.
        ShapeError: noise of another shape.

    Example:
        >>> import torch, gradthrough as gt
        >>> gt.structured.sample_subset(torch.tensor([0.0, -torch.inf, 0.0]), 2)
        tensor([1., 0., 1.])

    Reference:
        Ahmed, Zeng, Niepert, Van den Broeck, ICLR 2023, arXiv:2210.01941.
    """
    logits, k, levels = tree_of(logits, k)
    return _drawn(logits, k, levels, generator, noise)


def _drawn(
    logits: Tensor,
    k: int,
    levels: list[Tensor],
    generator: torch.Generator | None,
    noise: Tensor | None,
) -> Tensor:
    u = draw((*logits.shape[:-1], logits.shape[-1] - 1), logits, generator, noise)
    counts = descend([level.detach() for level in levels], k, u)
    total = coefficient(levels, k).detach()
    return (counts + 0.0 * total.unsqueeze(-1)).to(logits.dtype)  # an unsound row is NaN
