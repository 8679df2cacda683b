"""What choices beyond one class are measured against: the papers' formulas in a few lines of torch.

`noise` is what the library calls so: with it both sides draw the same.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributions as td
from torch import Tensor


def _gumbels(x: Tensor, noise: Tensor | None) -> Tensor:
    e = torch.empty_like(x).exponential_() if noise is None else -torch.log1p(-noise)
    return -e.log()


def recursion(theta: Tensor, *, k: int) -> Tensor:
    """SIMPLE by the paper's recursion over classes: log Z, its gradient, and a draw."""
    rows = [torch.zeros_like(theta[:, :1])]  # log sums over 0 to min(i, k) of the first i classes
    for i in range(theta.shape[-1]):
        out, with_it = rows[-1], rows[-1] + theta[:, i : i + 1]
        parts = [out[:, :1], torch.logaddexp(out[:, 1:], with_it[:, :-1]), with_it[:, -1:]]
        rows.append(torch.cat(parts if i < k else parts[:2], -1))
    mu = torch.autograd.grad(rows[-1][:, k].sum(), theta, create_graph=True)[0]
    with torch.no_grad():
        left = torch.full_like(theta[:, :1], k, dtype=torch.int64)
        u, z = torch.rand_like(theta).log(), torch.zeros_like(theta)
        for i in reversed(range(theta.shape[-1])):
            taken = rows[i].gather(-1, (left - 1).clamp_min(0)) + theta[:, i : i + 1]
            take = (u[:, i : i + 1] < taken - rows[i + 1].gather(-1, left)) & (left > 0)
            z[:, i : i + 1] = take.to(z.dtype)
            left = left - take.long()
    return z + mu - mu.detach()


def softmax_loop(logits: Tensor, *, k: int, tau: float, noise: Tensor | None = None) -> Tensor:
    """Relaxed k-hot points: k softmaxes, what is taken leaves the next."""
    a, point = logits + _gumbels(logits, noise), torch.zeros_like(logits)
    for _ in range(k):
        p = (a / tau).softmax(-1)
        point = point + p
        a = a + (1.0 - p).clamp_min(torch.finfo(p.dtype).tiny).log()
    return point


def top_k(logits: Tensor, *, k: int, noise: Tensor | None = None) -> Tensor:
    """Gumbel-top-k: the k largest of log-probabilities and Gumbel noise."""
    return (logits.log_softmax(-1) + _gumbels(logits, noise)).topk(k, -1)[1]


def unrolled(scores: Tensor, *, iterations: int) -> Tensor:
    """Sinkhorn in log space, differentiated by autograd."""
    for _ in range(iterations):
        scores = scores - scores.logsumexp(-1, keepdim=True)
        scores = scores - scores.logsumexp(-2, keepdim=True)
    return scores.exp()


def gates(log_alpha: Tensor, *, noise: Tensor | None = None) -> Tensor:
    """Hard Concrete as the paper has it."""
    u = torch.rand_like(log_alpha) if noise is None else noise
    s = ((u.log() - (1.0 - u).log() + log_alpha) / (2 / 3)).sigmoid()
    return (s * 1.2 - 0.1).clamp(0.0, 1.0)


def straight_through(logits: Tensor) -> Tensor:
    """Multiplier of a drawn expert: its entry of a one-hot sample with softmax's derivative."""
    p = logits.softmax(-1)
    index = torch.multinomial(p.detach(), 1)
    z = torch.zeros_like(p).scatter(-1, index, 1.0) + p - p.detach()
    return z.gather(-1, index)


def rsample(kind: Callable[..., Any], *parameters: Tensor) -> Tensor:
    return kind(*parameters).rsample()


def count(logits: Tensor, *, total_count: int) -> Tensor:
    return td.Binomial(total_count, logits=logits).sample()
