"""Coupled coin flips: n samples of one Bernoulli variable that avoid being alike.

With d uniform on the simplex (Dirichlet(1, ..., 1)) each v_i = (1 - d_i)^(n-1) is uniform, and
the v_i are negatively dependent: P(v_i < s, v_j < s) = max(0, 2 s^(1/(n-1)) - 1)^(n-1). Here s is
at most 1/2; a likelier coin is flipped by its other side.
"""

import torch
from torch import Tensor

from .._random import exponentials


def rare_hits(noise: Tensor, s: Tensor) -> Tensor:
    r"""Flip n coupled coins of probability s <= 1/2.

    Args:
        noise: float64 uniforms (n, ...), n >= 2.
        s: float64 (...).

    Returns:
        Whether each coin hits, (n, ...), bool.
    """
    n = noise.shape[0]
    e = exponentials(noise, torch.float64)
    # v_i < s in terms of d_i: with s near 0 its power would lose the digits that matter.
    threshold = -torch.expm1(s.log() / (n - 1))
    return e / e.sum(0) > threshold


def pair_ratio(s: Tensor, n: int) -> Tensor:
    """Return P(two given coins of n both hit) / s, for s <= 1/2; 0 for s = 0."""
    return (2.0 - s ** (-1.0 / (n - 1))).clamp_min(0.0) ** (n - 1)
