r"""How many of a set are chosen, half by half: a tree of polynomials over the classes.

A subset of k classes is drawn as coins are that show k heads. A node holds how probably so many of
its own coins do, for up to min(size, k) of them: the coefficients of ``prod_i (q_i + p_i x)``. A
parent's polynomial is the product of its children's. What n leaves no partner to goes up as it is.

The coins are tilted so that about k heads are expected. Then what is wanted of the root is no small
number, and a coefficient that float64 cannot hold belongs to no subset that could matter. Every
step adds what is not negative, so nothing cancels. Where k is above n / 2, tails are counted.

A level is (counts, nodes, \*batch).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

from ..kernels.softmax import inverse_cdf
from .polynomials import correlate, product


class Tree(NamedTuple):
    r"""The coins, the levels that grew from them, and what to look up there."""

    log_in: Tensor  # (*batch, n), that a coin shows heads; 0 where it cannot
    log_out: Tensor  # (*batch, n), that it shows tails
    masked: Tensor  # (*batch, n)
    scale: Tensor  # (*batch,), log Z less the log of the root's probability
    levels: list[Tensor]
    target: int  # of what is counted: k heads, or n - k tails
    head: int  # where a leaf has its heads


def plant(x: Tensor, k: int) -> Tree:
    r"""Turn rows (\*batch, n) in float64 into a tree.

    The scale of the coins is a constant, not a function of x: a leaf is ``(q, p)`` with
    ``p = exp(x) * c`` and ``q = c'``. So the derivatives are those of Z itself.
    """
    n = x.shape[-1]
    shift = _tilt(x.detach(), k)
    t = x - shift
    constants = softplus(t.detach())
    masked = t.detach().isneginf()
    log_in = t - constants
    leaf = torch.stack((torch.exp(-constants), log_in.exp()))
    target, head = k, 1
    if 2 * k > n:
        leaf, target, head = leaf.flip(0), n - k, 0
    levels = grow(leaf.movedim(-1, 1).contiguous(), target)
    scale = k * shift.squeeze(-1) + constants.sum(-1)
    return Tree(log_in.masked_fill(masked, 0.0), -constants, masked, scale, levels, target, head)


def grow(leaf: Tensor, target: int) -> list[Tensor]:
    """Return the levels, from the leaves to the root."""
    levels = [leaf]
    while levels[-1].shape[1] > 1:
        below = levels[-1]
        counts = min(2 * (len(below) - 1), target) + 1
        left, right, alone = _halves(below)
        level = product(left, right, 0, counts)
        if alone.shape[1]:
            level = torch.cat((level, _resized(alone, counts)), 1)
        levels.append(level)
    return levels


def log_root(tree: Tree) -> Tensor:
    r"""Return the log-probability that the coins show k heads, (\*batch,)."""
    return tree.levels[-1][tree.target, 0].log()


def chances(tree: Tree) -> tuple[Tensor, Tensor]:
    r"""Return how probably each class is chosen and how probably it is not, (\*batch, n) each.

    From the root down, each node is given how the coins outside of it fare: P(the others show what
    it leaves to them) / P(k in all), for each count of its own.
    """
    root = tree.levels[-1]
    wanted = torch.arange(len(root), device=root.device) == tree.target
    above = wanted.to(root.dtype).reshape(-1, *(1,) * (root.ndim - 1)) / root[tree.target]
    for below in reversed(tree.levels[:-1]):
        left, right, _ = _halves(below)
        pairs, size = left.shape[1], len(below)
        shared = above[:, :pairs]
        down = [correlate(shared, right, size), correlate(shared, left, size)]
        above = torch.cat((*down, _resized(above[:, pairs:], size)), 1)
    each = (above * tree.levels[0]).movedim(1, -1)
    each = each / each.sum(0)  # 1 but for rounding, which would leave [0, 1]
    return each[tree.head], each[1 - tree.head]


def descend(tree: Tree, u: Tensor) -> Tensor:
    r"""Draw a subset: share k between the halves, and so on down. 0 or 1 each, (\*batch, n).

    Args:
        tree: its graph is not used.
        u: uniforms (\*batch, n - 1), one for each pair of children, from the root down.
    """
    levels = [level.detach() for level in tree.levels]
    counts = torch.full_like(levels[-1][0], tree.target, dtype=torch.int64)
    start, u = 0, u.movedim(-1, 0)
    for below in reversed(levels[:-1]):
        left, right, _ = _halves(below)
        size, pairs = left.shape[:2]
        shared = counts[:pairs]
        sizes = torch.arange(size, device=u.device).reshape(-1, *(1,) * shared.ndim)
        other = shared - sizes
        inside = (other >= 0) & (other < size)
        weights = left * right.gather(0, other.clamp(0, size - 1)).masked_fill(~inside, 0.0)
        lefts = inverse_cdf(weights.movedim(0, -1), u[start : start + pairs])
        start += pairs
        counts = torch.cat((lefts, shared - lefts, counts[pairs:]))
    heads = counts if tree.head else 1 - counts
    return heads.movedim(0, -1)


def _tilt(x: Tensor, k: int) -> Tensor:
    """Return a shift of the logits (..., n) by which coins would show about k heads, (..., 1)."""
    n = x.shape[-1]
    kth = x.topk(k, -1)[0][..., -1:]
    y = (x - kth).float()  # roughly will do: any shift is right
    low = torch.full_like(y[..., :1], -math.log(k + 1))
    high = torch.full_like(low, math.log(n + 1))
    for _ in range(12):
        middle = (low + high) / 2
        more = torch.sigmoid(y - middle).sum(-1, keepdim=True) > k
        low, high = torch.where(more, middle, low), torch.where(more, high, middle)
    return kth + (low + high) / 2


def _halves(level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the left and the right children of a level, and what has no partner."""
    pairs = level.shape[1] // 2
    return level[:, :pairs], level[:, pairs : 2 * pairs], level[:, 2 * pairs :]


def _resized(x: Tensor, counts: int) -> Tensor:
    """Fill up with impossible counts, or leave out what cannot be."""
    if len(x) >= counts:
        return x[:counts]
    return pad(x, (0, 0) * (x.ndim - 1) + (0, counts - len(x)))
