"""SIMPLE: exact k-subsets, with the gradient of their exact marginals."""

import torch
from torch import Tensor

from .._attach import substitute
from .checks import draw
from .subsets import tree_of
from .tree import Tree, chances, descend, log_root


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
    exact for an f that is affine in z, biased otherwise. Time is O(n min(k, n - k)), memory is
    O(n log k), in float64 whatever the dtype of the logits.

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
    logits, k, tree = tree_of(logits, k)
    z = _drawn(logits, tree, generator, noise)
    return substitute(z, chances(tree)[0].to(logits.dtype))


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
    with torch.no_grad():
        logits, k, tree = tree_of(logits, k)
    return _drawn(logits, tree, generator, noise)


def _drawn(
    logits: Tensor,
    tree: Tree,
    generator: torch.Generator | None,
    noise: Tensor | None,
) -> Tensor:
    u = draw((*logits.shape[:-1], logits.shape[-1] - 1), logits, generator, noise)
    unsound = 0.0 * log_root(tree).detach().unsqueeze(-1)  # NaN
    return (descend(tree, u) + unsound).to(logits.dtype)
