"""KL divergences, added to the table of torch.distributions."""

import torch
import torch.distributions as td
from torch import Tensor

from .._errors import ShapeError
from ..laws.base import Distribution as Law
from ..laws.convert import as_discrete
from .bernoulli import Bernoulli
from .log_probs import class_log_probs
from .one_hot import OneHotCategorical


def _divergence(p: td.Distribution, q: td.Distribution) -> Tensor:
    r"""Return KL(p || q) in nats, (\*batch).

    A class that p masks adds nothing. Where q masks one that p does not, the divergence is +inf,
    with gradient zero.
    """
    a, b = as_discrete(p), as_discrete(q)
    _check_shapes(a, b)
    log_p, log_q = class_log_probs(a), class_log_probs(b)
    never, missing = log_p.isneginf(), log_q.isneginf()
    gap = log_p.masked_fill(never, 0.0) - log_q.masked_fill(missing, 0.0)
    total = (log_p.exp() * gap).sum(-1).masked_fill((missing & ~never).any(-1), torch.inf)
    return total.to(torch.promote_types(a.logits.dtype, b.logits.dtype))


def _check_shapes(a: Law, b: Law) -> None:
    if a.classes != b.classes:
        raise ShapeError(f"KL needs equal numbers of classes, but got {a.classes} and {b.classes}.")
    try:
        torch.broadcast_shapes(a.variables, b.variables)
    except RuntimeError:
        raise ShapeError(
            f"KL needs batch shapes that broadcast, but got {a.variables} and {b.variables}."
        ) from None


# Against torch's own in both directions, and among themselves, or torch finds two that fit.
for ours, theirs in ((OneHotCategorical, td.OneHotCategorical), (Bernoulli, td.Bernoulli)):
    for pair in ((ours, ours), (ours, theirs), (theirs, ours)):
        td.register_kl(*pair)(_divergence)
