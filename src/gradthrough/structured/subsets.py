"""The law of k-subsets: marginals, probabilities, entropy and divergence, all exact."""

import torch
from torch import Tensor

from .._errors import DomainError, ShapeError, UnsupportedError
from ..kernels.checks import check_content
from .checks import check_choice, sound_rows
from .tree import Tree, chances, log_root, plant


def subset_marginals(logits: Tensor, k: int) -> Tensor:
    r"""Return how probably each class is in the subset: ``mu = d log Z / d theta``.

    Args:
        logits: theta, (\*batch, n); -inf masks a class.
        k: from 1 to n.

    Returns:
        Shape and dtype of the logits, between 0 and 1; each row sums to k. Differentiable; the
        Jacobian is the covariance of z.

    Raises:
        DomainError: k outside 1 to n, a row with fewer than k allowed classes, NaN or +inf.
        UnsupportedError: logits of another dtype.

    Example:
        >>> import torch, gradthrough as gt
        >>> gt.structured.subset_marginals(torch.zeros(4), 2)
        tensor([0.5000, 0.5000, 0.5000, 0.5000])

    Reference:
        Ahmed, Zeng, Niepert, Van den Broeck, ICLR 2023, arXiv:2210.01941.
    """
    logits, k, tree = tree_of(logits, k)
    return chances(tree)[0].to(logits.dtype)


def subset_log_partition(logits: Tensor, k: int) -> Tensor:
    r"""Return ``log Z = log sum_{|S| = k} exp(sum_{i in S} theta_i)``, in O(n k).

    Args:
        logits: theta, (\*batch, n); -inf masks a class.
        k: from 1 to n.

    Returns:
        (\*batch,), in the dtype of the logits and differentiable in them; the gradient is
        `subset_marginals`.

    Raises:
        DomainError: k outside 1 to n, a row with fewer than k allowed classes, NaN or +inf.
        UnsupportedError: logits of another dtype.

    Example:
        >>> import torch, gradthrough as gt
        >>> gt.structured.subset_log_partition(torch.zeros(4), 2).exp()  # 6 subsets
        tensor(6.0000)

    Reference:
        Ahmed, Zeng, Niepert, Van den Broeck, ICLR 2023, arXiv:2210.01941.
    """
    logits, k, tree = tree_of(logits, k)
    largest = logits.detach().amax(-1).double()  # what `sound_rows` took off
    return (log_root(tree) + tree.scale + k * largest).to(logits.dtype)


def subset_log_prob(logits: Tensor, k: int, z: Tensor) -> Tensor:
    r"""Return the log-probability of k-hot points under `sample_subset`: theta . z - log Z.

    For the law of `gumbel_top_k`, which is another, see `plackett_luce_subset_log_prob`.

    Args:
        logits: theta, (\*batch, n); -inf masks a class.
        k: from 1 to n.
        z: points (..., \*batch, n), k ones and else 0.

    Returns:
        (..., \*batch), in the dtype of the logits and differentiable in them; -inf where a class
        is masked.

    Raises:
        DomainError: k outside 1 to n, points that are not k-hot, a row with fewer than k allowed
            classes, NaN or +inf.
        UnsupportedError: logits of another dtype.
        ShapeError: points of another shape.

    Example:
        >>> import torch, gradthrough as gt
        >>> z = torch.tensor([1.0, 0.0, 1.0, 0.0])
        >>> gt.structured.subset_log_prob(torch.zeros(4), 2, z).exp()
        tensor(0.1667)

    Reference:
        Ahmed, Zeng, Niepert, Van den Broeck, ICLR 2023, arXiv:2210.01941.
    """
    checked, k = check_choice(logits, k)
    chosen = _check_points(z, k, checked)
    logits, k, tree = tree_of(logits, k)
    total = torch.where(chosen, tree.log_in, tree.log_out).sum(-1) - log_root(tree)
    impossible = (chosen & tree.masked).any(-1)
    return total.masked_fill(impossible, -torch.inf).to(logits.dtype)


def subset_entropy(logits: Tensor, k: int) -> Tensor:
    r"""Return the entropy of `sample_subset` in nats.

    Args:
        logits: theta, (\*batch, n); -inf masks a class.
        k: from 1 to n.

    Returns:
        (\*batch,), in the dtype of the logits and differentiable in them.

    Raises:
        DomainError: k outside 1 to n, a row with fewer than k allowed classes, NaN or +inf.
        UnsupportedError: logits of another dtype.

    Example:
        >>> import torch, gradthrough as gt
        >>> gt.structured.subset_entropy(torch.zeros(4), 2).exp()
        tensor(6.0000)

    Reference:
        Ahmed, Zeng, Niepert, Van den Broeck, ICLR 2023, arXiv:2210.01941.
    """
    logits, k, tree = tree_of(logits, k)
    chosen, left = chances(tree)
    coins = (chosen * tree.log_in + left * tree.log_out).sum(-1)
    return _not_negative(log_root(tree) - coins).to(logits.dtype)


def subset_kl(logits: Tensor, other: Tensor, k: int) -> Tensor:
    r"""Return KL(p || q) in nats, of the laws of `sample_subset` for two tensors of logits.

    Args:
        logits: those of p, (\*batch, n); -inf masks a class.
        other: those of q, of the same shape.
        k: from 1 to n.

    Returns:
        (\*batch,), in the dtype of the logits and differentiable in both; inf where q masks a
        class that p does not.

    Raises:
        DomainError: k outside 1 to n, a row with fewer than k allowed classes, NaN or +inf.
        UnsupportedError: logits of another dtype.
        ShapeError: two shapes.

    Example:
        >>> import torch, gradthrough as gt
        >>> gt.structured.subset_kl(torch.zeros(4), torch.ones(4), 2)  # one law
        tensor(0.)

    Reference:
        Ahmed, Zeng, Niepert, Van den Broeck, ICLR 2023, arXiv:2210.01941.
    """
    logits, k, p = tree_of(logits, k)
    other, k, q = tree_of(other, k)
    if logits.shape != other.shape:
        raise ShapeError(
            f"KL needs logits of one shape, but got {tuple(logits.shape)} and "
            f"{tuple(other.shape)}. Expand them."
        )
    chosen, left = chances(p)
    coins = chosen * (p.log_in - q.log_in) + left * (p.log_out - q.log_out)
    total = _not_negative(coins.sum(-1) + log_root(q) - log_root(p))
    # What is unsound stays NaN.
    wider = (q.masked & ~p.masked).any(-1) & ~total.detach().isnan()
    return total.masked_fill(wider, torch.inf).to(logits.dtype)


def tree_of(logits: Tensor, k: int) -> tuple[Tensor, int, Tree]:
    """Return what came, checked, and the tree over its classes, in float64."""
    logits, k = check_choice(logits, k)
    return logits, k, plant(sound_rows(logits.double(), k), k)


def _not_negative(x: Tensor) -> Tensor:
    """Lift what rounding took below 0. The derivatives stay: a divergence of 0 has a second one."""
    return x - x.detach().clamp_max(0.0)


def _check_points(z: object, k: int, logits: Tensor) -> Tensor:
    if not isinstance(z, Tensor):
        raise UnsupportedError(f"z must be a torch.Tensor, but a {type(z).__name__} came.")
    want = tuple(logits.shape)
    if z.ndim < len(want) or tuple(z.shape[z.ndim - len(want) :]) != want:
        raise ShapeError(
            f"z must end in the shape of the logits, {want}, but has shape {tuple(z.shape)}."
        )
    check_content(z, lambda x: _check_k_hot(x, k))
    return z.detach() > 0.5


def _check_k_hot(z: Tensor, k: int) -> None:
    if not bool((((z == 0) | (z == 1)).all(-1) & ((z == 1).sum(-1) == k)).all()):
        raise DomainError(
            f"z must be k-hot, exactly 0 or 1 with {k} ones in each row, but is not. A soft point "
            "has no probability under a law of subsets."
        )
