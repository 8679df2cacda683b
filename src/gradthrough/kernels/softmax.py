"""Softmax, its derivatives of every order, and draws from it, over the last dim."""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor


def centre(x: Tensor) -> Tensor:
    """Shift each row so that its maximum is 0.

    Done before anything else: a constant that logits share would otherwise eat the bits that tell
    the classes apart. A row with +inf, or with -inf throughout, becomes NaN.
    """
    return x - x.detach().amax(-1, keepdim=True)


def normalise(x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the softmax of centred rows and the row totals (\*rows, 1).

    A total is finite only for a sound row: NaN, +inf and a row that is -inf throughout all end in
    NaN, so one check covers them.
    """
    # Written out: torch's own last-dim softmax is several times slower at few classes.
    e = x.exp()
    total = e.sum(-1, keepdim=True)
    return e / total, total


def softmax(x: Tensor) -> Tensor:
    """Return the softmax of centred rows."""
    return normalise(x)[0]


def inverse_cdf(p: Tensor, u: Tensor) -> Tensor:
    r"""Draw a class index (\*rows) from probabilities p (\*rows, C) and uniforms u (\*rows)."""
    cdf = p.cumsum(-1, dtype=torch.float64)  # float32 sums lose classes in a long row
    # Strictly below the top, also for the largest u: so the first class whose cdf exceeds the
    # threshold exists, and it never is a class of probability 0.
    threshold = u.unsqueeze(-1) * (cdf[..., -1:] * (1.0 - 2.0**-52))
    return (cdf <= threshold).sum(-1)


def one_hot(index: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    r"""Return exact zeros and ones, (\*rows, classes)."""
    shape = (*index.shape, classes)
    if classes == 0:
        return torch.zeros(shape, dtype=dtype, device=index.device)
    return torch.zeros(shape, dtype=dtype, device=index.device).scatter(
        -1, index.unsqueeze(-1), 1.0
    )


def derivative(p: Tensor, directions: Sequence[Tensor]) -> Tensor:
    r"""Differentiate softmax at value p along several directions, each (\*rows, C).

    Order 1 is J(p) a = p * (a - p.a). The higher orders follow from Leibniz's rule on that
    product; all are symmetric in the directions, since softmax is itself a gradient. So the same
    function serves forward and reverse mode.
    """
    first = p * (directions[0] - (p * directions[0]).sum(-1, keepdim=True))
    if len(directions) == 1:
        return first
    lead, rest = directions[0], tuple(range(1, len(directions)))
    partial: dict[tuple[int, ...], Tensor] = {(): p}
    for size in range(1, len(rest) + 1):
        for chosen in combinations(rest, size):
            partial[chosen] = derivative(p, [directions[i] for i in chosen])
    out = partial[rest] * (lead - (p * lead).sum(-1, keepdim=True))
    for chosen, value in partial.items():
        if chosen != rest:
            others = tuple(i for i in rest if i not in chosen)
            out = out - value * (partial[others] * lead).sum(-1, keepdim=True)
    return out
