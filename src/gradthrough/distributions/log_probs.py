"""Log-probabilities of classes and of points, without NaN where a class is masked."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._types import compute_dtype
from ..kernels.checks import check_rows
from ..kernels.softmax import centre
from ..laws.base import Distribution as Law
from ..laws.bernoulli import Bernoulli


def class_log_probs(law: Law) -> Tensor:
    r"""Return the log-probability of each class, (\*batch, C), in float32 or better."""
    check_rows(law.class_logits())
    x = law.logits.to(compute_dtype(law.logits.dtype))
    if isinstance(law, Bernoulli):  # keeps what a sum of exponentials rounds away
        return torch.stack((F.logsigmoid(x), F.logsigmoid(-x)), -1)
    x = centre(x)
    return x - x.logsumexp(-1, keepdim=True)


def weighted(z: Tensor, log_p: Tensor) -> Tensor:
    r"""Return sum_c z_c log_p_c, (\*rows): -inf where a masked class has a weight."""
    masked = log_p.isneginf()
    out = (z * log_p.masked_fill(masked, 0.0)).sum(-1)
    return out.masked_fill((masked & (z != 0)).any(-1), -torch.inf)
