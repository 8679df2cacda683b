r"""How many of a set are chosen, half by half: a tree of log-polynomials over the classes.

A node holds ``log sum exp(sum of weights)`` over the ways to choose t of its classes, for t from 0
to min(size, k): the coefficients of prod_i (1 + exp(theta_i) x). A parent's are the convolution of
its children's. All levels together take O(n k) numbers, and there are log n of them. What n leaves
no partner to goes up as it is.

Impossible counts hold `LOW`, not -inf. Every step adds positive numbers only, so nothing cancels.
A level is (counts, nodes, \*batch): torch takes a softmax over a short last dim slowly.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..kernels.softmax import inverse_cdf
from .log_space import LOW


def leaves(x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    r"""Turn logits (\*batch, n) into leaves (2, n, \*batch): the logs of "out" and of "in".

    They are those of independent coins whose expected sum is near k. Then what k classes are
    likely is near 0 at every level, where floating point is finest, and not a sum of logits.

    Returns:
        The leaves; the shift (\*batch,) and the constants (\*batch, n) that were taken out of them:
        log Z is the coefficient of the root plus ``k * shift + constants.sum(-1)``.
    """
    shift = _tilt(x.detach(), k)
    t = x - shift
    constants = softplus(t.detach())
    out = t.detach().isneginf()
    chosen = (t - constants).masked_fill(out, LOW)
    leaf = torch.stack((-constants, chosen)).movedim(-1, 1)
    return leaf, shift.squeeze(-1), constants


def grow(leaf: Tensor, k: int) -> list[Tensor]:
    """Return the levels, from the leaves to the root."""
    levels = [leaf]
    while levels[-1].shape[1] > 1:
        below = levels[-1]
        counts = min(2 * (len(below) - 1), k) + 1
        left, right, alone = _halves(below)
        level = _splits(left, right, counts).logsumexp(1)
        if alone.shape[1]:
            level = torch.cat((level, _lengthened(alone, counts)), 1)
        levels.append(level)
    return levels


def coefficient(levels: list[Tensor], k: int) -> Tensor:
    r"""Return the log of the sum over the subsets of size k, (\*batch,)."""
    return levels[-1][k, 0]


def occupancies(levels: list[Tensor], k: int) -> list[Tensor]:
    """Return the law of each node's count given that k are chosen in all, level by level."""
    root = levels[-1]
    law = 0.0 * root.detach()  # an unsound row is NaN, and stays so
    law[k] += 1.0
    laws = [law]
    for below in reversed(levels[:-1]):
        law = laws[-1]
        left, right, alone = _halves(below)
        pairs = left.shape[1]
        parents = law[:, :pairs].unsqueeze(1)
        lefts = (parents * _splits(left, right, len(law)).softmax(1)).sum(0)
        rights = (parents * _splits(right, left, len(law)).softmax(1)).sum(0)
        down = torch.stack((lefts, rights), 2).flatten(1, 2)
        if alone.shape[1]:
            down = torch.cat((down, law[: len(below), pairs:]), 1)
        laws.append(down)
    return laws[::-1]


def marginals(levels: list[Tensor], k: int) -> Tensor:
    r"""Return how probably each class is chosen, (\*batch, n)."""
    return occupancies(levels, k)[0][1].movedim(0, -1)


def divergence(levels: list[Tensor], others: list[Tensor] | None, laws: list[Tensor]) -> Tensor:
    r"""Return the entropy of the subset, (\*batch,), or KL to the law that others grew.

    By the chain rule: the sum over the nodes of that of the split between their children.
    """
    total = torch.zeros_like(levels[-1][0, 0])
    for i, (below, law) in enumerate(zip(levels[:-1], laws[1:], strict=True)):
        left, right, _ = _halves(below)
        log_p = _splits(left, right, len(law)).log_softmax(1)
        if others is None:
            each = -(log_p.exp() * log_p).sum(1)
        else:
            left, right, _ = _halves(others[i])
            log_q = _splits(left, right, len(law)).log_softmax(1)
            each = (log_p.exp() * (log_p - log_q)).sum(1)
        total = total + (law[:, : left.shape[1]] * each).sum((0, 1))
    return total


def descend(levels: list[Tensor], k: int, u: Tensor) -> Tensor:
    r"""Draw a subset: share k between the halves, and so on down. Counts (\*batch, n) of 0 or 1.

    Args:
        levels: without a graph.
        k: how many are chosen.
        u: uniforms (\*batch, n - 1), one for each pair of children, from the root down.
    """
    counts = torch.full_like(levels[-1][0], k, dtype=torch.int64)
    start, u = 0, u.movedim(-1, 0)
    for below in reversed(levels[:-1]):
        left, right, _ = _halves(below)
        size, pairs = left.shape[:2]
        shared = counts[:pairs]
        sizes = torch.arange(size, device=u.device).reshape(-1, *(1,) * shared.ndim)
        other = shared - sizes
        inside = (other >= 0) & (other < size)
        weights = left + right.gather(0, other.clamp(0, size - 1)).masked_fill(~inside, LOW)
        lefts = inverse_cdf(weights.softmax(0).movedim(0, -1), u[start : start + pairs])
        start += pairs
        down = torch.stack((lefts, shared - lefts), 1).flatten(0, 1)
        counts = torch.cat((down, counts[pairs:]))
    return counts.movedim(0, -1)


def _tilt(x: Tensor, k: int) -> Tensor:
    """Return a shift of the logits (..., n) by which coins would show about k heads, (..., 1)."""
    n = x.shape[-1]
    kth = x.topk(k, -1)[0][..., -1:]
    low, high = kth - math.log(k + 1), kth + math.log(n + 1)
    for _ in range(10):  # roughly will do: any shift is right
        middle = (low + high) / 2
        more = torch.sigmoid(x - middle).sum(-1, keepdim=True) > k
        low, high = torch.where(more, middle, low), torch.where(more, high, middle)
    return (low + high) / 2


def _halves(level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the left and the right children of a level, and what has no partner."""
    paired = level.shape[1] // 2 * 2
    return level[:, 0:paired:2], level[:, 1:paired:2], level[:, paired:]


def _lengthened(x: Tensor, counts: int) -> Tensor:
    """Fill up with impossible counts."""
    return torch.cat((x, torch.full_like(x[:1], LOW).expand(counts - len(x), *x.shape[1:])))


def _splits(left: Tensor, right: Tensor, counts: int) -> Tensor:
    """Return (t, j, ...): the log-weight of j in the left and t - j in the right."""
    size, rest = len(left), left.shape[1:]
    # A row that holds right[-i] at place i, modulo its length. Written out again and again and read
    # with one place less to a row, it is shifted by one from row to row: right[t - j] at (t, j).
    fill = torch.full_like(right[:1], LOW).expand(counts - 1, *rest)
    row = torch.cat((right[:1], fill, right[1:].flip(0)))
    again = row.unsqueeze(0).expand(counts, *row.shape).flatten(0, 1)
    table = again[: counts * (len(row) - 1)].reshape(counts, len(row) - 1, *rest)
    return left.unsqueeze(0) + table[:, :size]
