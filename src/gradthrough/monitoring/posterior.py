"""What a batch says of q: entropy, KL, mutual information, use of classes."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .._errors import ShapeError
from .._types import compute_dtype
from ..laws.base import Distribution


class Posterior(NamedTuple):
    """What one batch says of q: numbers, not waited for, and tensors for running means."""

    event: tuple[int, ...]  # with the classes last
    rows: int
    bad_rows: Tensor
    entropy: Tensor
    max_prob: Tensor
    kl: Tensor
    information: Tensor  # (L,), mutual information of each latent with the rows
    attenuation: Tensor
    probs: Tensor  # (L, C), mean over rows
    allowed: Tensor  # (L, C), share of the rows that do not mask the class


def posterior_of(q: Distribution, prior: Distribution | None, tau: float) -> Posterior:
    """Return what a batch of R rows of L latents says, in float32 or better."""
    logits = q.class_logits().detach()
    rows, latents = math.prod(q.batch_shape), math.prod(q.event_shape)
    x = logits.to(compute_dtype(logits.dtype)).reshape(rows, latents, q.classes)
    masked = x.isneginf()
    log_p = x.log_softmax(-1)
    p = log_p.exp()
    log_p = log_p.masked_fill(masked, 0.0)
    entropy = -(p * log_p).sum(-1)  # (R, L)
    mean = p.mean(0)
    if prior is None:
        log_prior = -(~masked).sum(-1, keepdim=True).to(x.dtype).log()
    else:
        log_prior = _of_prior(prior, q, x)
    soft = x if math.isnan(tau) else x / tau
    left = (1.0 - soft.softmax(-1).square().sum(-1)).sum() / (1.0 - p.square().sum(-1)).sum()
    return Posterior(
        event=(*q.event_shape, q.classes),
        rows=rows,
        bad_rows=(~x.amax(-1).isfinite()).sum(),
        entropy=entropy.mean(),
        max_prob=p.amax(-1).mean(),
        kl=(p * (log_p - log_prior.expand_as(p).masked_fill(masked, 0.0))).sum(-1).mean(),
        information=(_entropy(mean) - entropy.mean(0)).clamp(min=0.0),
        attenuation=left / tau,
        probs=mean,
        allowed=(~masked).to(x.dtype).mean(0),
    )


def _entropy(p: Tensor) -> Tensor:
    return -torch.xlogy(p, p).sum(-1)


def _of_prior(prior: Distribution, q: Distribution, x: Tensor) -> Tensor:
    want = (*q.variables, q.classes)
    logits = prior.class_logits().detach().to(x)
    try:
        return logits.log_softmax(-1).expand(want).reshape(x.shape)
    except RuntimeError:
        raise ShapeError(
            f"the prior must broadcast to q, whose logits are {want} with classes last, but its "
            f"logits are {tuple(logits.shape)}. Give it the event shape of q, {q.event_shape}, "
            "and its classes."
        ) from None


def census(
    probs: Tensor, allowed: Tensor, information: Tensor | None, dead_class: float, dead: float
) -> list[Tensor]:
    """Return (dead classes, classes, dead latents, latents, mean information) of running means.

    Args:
        probs: (L, C).
        allowed: (L, C); a class that is never allowed is not counted.
        information: (L,), None if it is unknown: then no latent is counted.
        dead_class: part of an equal share below which a class is dead.
        dead: nats below which a latent is dead.
    """
    alive = allowed > 0
    classes = alive.sum(-1, keepdim=True)
    counts = [((probs * classes < dead_class * allowed) & alive).sum(), alive.sum()]
    if information is None:
        unknown = torch.full_like(probs[0, 0], math.nan)
        return [*counts, unknown, torch.zeros_like(unknown), unknown]
    chosen = classes.squeeze(-1) > 1
    dead_latents = ((information < dead) & chosen).sum()
    return [*counts, dead_latents, chosen.sum(), (information * chosen).sum() / chosen.sum()]
