"""Two relaxations of one categorical draw: a free one, and one tied to the class drawn."""

from typing import NamedTuple

import torch
from torch import Tensor

from .._random import exponentials, gumbels
from .._types import compute_dtype
from .dispatch import probabilities
from .softmax import centre

_LEAST_TAU = 0.01


class Relaxed(NamedTuple):
    """The two relaxations, in the categorical form, with the graph of a learned temperature."""

    tau: Tensor
    free: Tensor  # softmax(z / tau), z = theta + G
    tied: Tensor  # softmax(z~ / tau), z~ drawn again given that its argmax is the sample
    moves: Tensor  # d z~ / d log pi, class by class; 0 at the class drawn


def relax(logits: Tensor, index: Tensor, noise: Tensor, tau: Tensor) -> Relaxed:
    r"""Relax a draw.

    Args:
        logits: (\*rows, C), constant.
        index: the class drawn, argmax of logits + G (\*rows).
        noise: uniforms (\*rows, C, 2): those of G, and those of the tied relaxation.
        tau: temperature, of no dims, with its graph.
    """
    x = centre(logits.to(compute_dtype(logits.dtype)))
    p = probabilities(logits)
    # Kept above 0 without losing its gradient: it can come back.
    tau = tau + (tau.detach().clamp_min(_LEAST_TAU) - tau.detach())
    free = _softmax(centre(x + gumbels(noise[..., 0], x.dtype)), tau)
    e = exponentials(noise[..., 1], x.dtype)
    at = index.unsqueeze(-1)
    race = p * e.gather(-1, at)
    relative = race / (e + race)  # exp(z~_i - z~_D)
    moves = (e / (e + race)).scatter(-1, at, 0.0)
    tied = _softmax(relative.log().scatter(-1, at, 0.0), tau)
    return Relaxed(tau, free, tied, moves)


def _softmax(x: Tensor, tau: Tensor) -> Tensor:
    """Return softmax(x / tau) for x with maximum 0, -inf for masked classes."""
    masked = x.isneginf()
    # Before dividing: the gradient of -inf / tau in tau is NaN.
    e = torch.where(masked, 0.0, (torch.where(masked, 0.0, x) / tau).exp())
    return e / e.sum(-1, keepdim=True)


def jacobian(s: Tensor, g: Tensor) -> Tensor:
    """Return J(s) g, the derivative of softmax at value s along g."""
    return s * (g - (s * g).sum(-1, keepdim=True))
