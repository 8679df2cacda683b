"""Draws by inverse cdf: one uniform for a row, sums in float64 that a long row can afford."""

import torch
from torch import Tensor

_SHORT = 256  # classes that are summed up one by one, at most

# The threshold is kept strictly below the total, also for the largest u: then a class whose cdf
# exceeds it exists, and the first of them never has probability 0.
_BELOW = 1.0 - 2.0**-52


def draw(p: Tensor, u: Tensor, dim: int) -> Tensor:
    """Draw N classes for each row: each the first whose cdf exceeds u times the total.

    Args:
        p: probabilities, (C, R) for dim 0 or (R, C) for dim -1; a row of NaN draws any class.
        u: float64 uniforms (R, N).
        dim: that of the classes.

    Returns:
        (R, N), of a dtype of integers that holds it.
    """
    if dim == 0:
        return _among_columns(p, u)
    if p.shape[-1] <= _SHORT:
        return _search(p, u)[0]
    return _in_two_stages(p, u)


def ends(p: Tensor) -> Tensor:
    """Return where the interval of uniforms that `draw` gives each class ends, (R, C), up to 1.

    Float64, and the very numbers that a draw compares with: a rare class has a narrow interval.
    """
    cdf = p.to(torch.float64).cumsum(-1)
    if p.shape[-1] > _SHORT:
        size = _block(p.shape[-1])
        mass = _masses(p, size).to(torch.float64)
        before = mass.cumsum(-1) - mass
        for at, block in enumerate(torch.split(p, size, -1)):
            inside = block.to(torch.float64).cumsum(-1)
            share = inside / inside[:, -1:].clamp_min(2.0**-1000) * mass[:, at, None]
            cdf[:, at * size : (at + 1) * size] = before[:, at, None] + share
    return cdf / cdf[:, -1:]


def _among_columns(p: Tensor, u: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        return _class_by_class(p, u)
    cdf = p.cumsum(0, dtype=torch.float64).unsqueeze(-1)
    return (cdf <= u * (cdf[-1] * _BELOW)).sum(0, dtype=torch.uint8)


def _class_by_class(p: Tensor, u: Tensor) -> Tensor:
    """Return the same as one loop of a compiler's making."""
    classes = p.unsqueeze(-1).unbind(0)
    total = classes[0].to(torch.float64)
    for one in classes[1:]:
        total = total + one
    threshold = u * (total * _BELOW)
    reached = classes[0].to(torch.float64)
    index = torch.zeros_like(u, dtype=torch.int64)
    for one in classes[1:]:
        index = index + (reached <= threshold)
        reached = reached + one
    return index


def _search(p: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Draw from weights p (R, C) with u (R, N); return the indices (R, N), and the cdf (R, C)."""
    cdf = p.to(torch.float64, copy=True).cumsum_(-1)
    threshold = (u * (cdf[:, -1:] * _BELOW)).contiguous()  # or torch copies it, and warns
    index = torch.searchsorted(cdf, threshold, right=True)
    return index.clamp_max_(p.shape[-1] - 1), cdf  # NaN is beyond all


def _in_two_stages(p: Tensor, u: Tensor) -> Tensor:
    """Draw a block, then a class of it, for u (R, N).

    One sum over the row gives the masses of its blocks; only those, and the classes of the block
    drawn, are summed up one by one. Rare classes lose no bits: the sums that are not in float64
    are over about sqrt(C) numbers, and for each block alone.
    """
    classes = p.shape[-1]
    size = _block(classes)
    block, cdf = _search(_masses(p, size), u)
    start = cdf.gather(-1, (block - 1).clamp_min_(0)).masked_fill_(block == 0, 0.0)
    # What is left of u within the block drawn, from 0 to 1.
    left = (u * (cdf[:, -1:] * _BELOW) - start) / (cdf.gather(-1, block) - start)
    members = block.unsqueeze(-1) * size + torch.arange(size, device=p.device)
    weights = p.gather(-1, members.clamp_max(classes - 1).flatten(1)).view(members.shape)
    if classes % size:
        weights.masked_fill_(members >= classes, 0.0)
    inside, _ = _search(weights.flatten(0, 1), left.clamp_(0.0, 1.0 - 2.0**-53).reshape(-1, 1))
    return block * size + inside.view(block.shape)


def _masses(p: Tensor, size: int) -> Tensor:
    """Sum blocks of so many classes, and what is left of the row."""
    blocks, rest = p.shape[-1] // size, p.shape[-1] % size
    if rest:
        whole = p[:, : blocks * size].view(-1, blocks, size).sum(-1)
        return torch.cat((whole, p[:, -rest:].sum(-1, keepdim=True)), -1)
    if p.device.type != "cpu" or torch.compiler.is_compiling():
        return p.view(-1, blocks, size).sum(-1)
    # Short sums, that a product with ones does in half the time; on CUDA autocast would run it in
    # half precision.
    return p.reshape(-1, size).mv(p.new_ones(size)).view(-1, blocks)


def _block(classes: int) -> int:
    """Return about sqrt(classes), a divisor if there is one near."""
    root = round(classes**0.5)
    near = range(root, max(root // 2, 1) - 1, -1)
    return next((size for size in near if classes % size == 0), root)
