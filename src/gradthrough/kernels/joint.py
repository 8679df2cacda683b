"""The joint law of several independent variables, without ever listing its points.

A point is a code: the class of each of the m variables. All numbers are float64.
"""

import torch
from torch import Tensor

from .softmax import inverse_cdf


def log_probability(p: Tensor, codes: Tensor) -> Tensor:
    r"""Return the log-probabilities (\*batch, E) of codes (\*batch, E, m) under p (\*batch, m, C).

    In logs: a product over a thousand variables underflows, and a point would seem impossible.
    """
    each = p.unsqueeze(-3).expand(*codes.shape, p.shape[-1])
    return each.gather(-1, codes.unsqueeze(-1)).squeeze(-1).log().sum(-1)


def likeliest(p: Tensor, k: int) -> Tensor:
    r"""Return the codes (\*batch, k', m) of the k' = min(k, C^m) likeliest points.

    The k best points of the first i variables extend the k best of the first i - 1: each step
    keeps k, so the cost is O(m k C) and not C^m.
    """
    *batch, m, c = p.shape
    log_p = p.log()
    codes = torch.zeros(*batch, 1, 0, dtype=torch.int64, device=p.device)
    score = p.new_zeros(*batch, 1)
    for i in range(m):
        grown = (score.unsqueeze(-1) + log_p[..., i, :].unsqueeze(-2)).flatten(-2)
        score, best = grown.topk(min(k, grown.shape[-1]), -1)
        parents = (best // c).unsqueeze(-1).expand(*best.shape, i)
        codes = torch.cat((codes.gather(-2, parents), (best % c).unsqueeze(-1)), -1)
    return codes


def draw_excluding(p: Tensor, excluded: Tensor, counts: Tensor, u: Tensor) -> Tensor:
    r"""Draw a point from the joint law, given that it is none of the excluded ones.

    Variable by variable: a class keeps its probability less that of the excluded points which
    agree with the choices so far and take it. At the last variable the two are the same number
    for an excluded point, so what is left of it is exactly 0.

    Args:
        p: (\*batch, m, C).
        excluded: codes (\*batch, E, m), distinct where they count.
        counts: (\*batch, E), 1 or 0.
        u: uniforms (\*lead, \*batch, m).

    Returns:
        Codes (\*lead, \*batch, m). Where nothing is left, a likely point.
    """
    each = p.unsqueeze(-3).expand(*excluded.shape, p.shape[-1])
    own = each.gather(-1, excluded.unsqueeze(-1)).squeeze(-1)
    suffix = own.flip(-1).cumprod(-1).flip(-1)  # probability of an excluded point from i on
    rows = u.shape[:-1]
    p = p.expand(*rows, *p.shape[-2:])
    suffix, excluded = (x.expand(*rows, *x.shape[-2:]) for x in (suffix, excluded))
    agrees = counts.to(p.dtype).expand(*rows, counts.shape[-1])
    out: list[Tensor] = []
    for i in range(p.shape[-2]):
        law = p[..., i, :]
        taken = torch.zeros_like(law).scatter_add(-1, excluded[..., i], agrees * suffix[..., i])
        left = (law - taken).clamp_min(0.0)
        left = torch.where(left.sum(-1, keepdim=True) > 0, left, law)
        index = inverse_cdf(left, u[..., i]).clamp_max(law.shape[-1] - 1)
        agrees = agrees * (excluded[..., i] == index.unsqueeze(-1))
        out.append(index)
    return torch.stack(out, -1) if out else torch.zeros_like(u, dtype=torch.int64)
