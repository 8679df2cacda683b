"""Objectives of several samples: the VIMCO bound and the log-variance loss."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ._attach import attach
from ._errors import ConfigError, UnsupportedError
from ._types import Objective
from .estimators.base import Draw, learning_signal
from .estimators.leave_one_out import VarGrad
from .expect import admit, ask, evaluate
from .laws.base import Distribution


def vimco(
    log_weights_fn: Objective,
    dist: object,
    samples: int,
    *,
    baseline: Literal["geometric", "arithmetic"] = "geometric",
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    r"""VIMCO: the multi-sample bound, with a leave-one-out gradient. Unbiased for the bound.

    ``L = log 1/N sum_k exp(l_k)`` for l_k = log p(x, z_k) - log q(z_k), z_k ~ q. Backward:
    ``sum_k (L - L_{-k}) d log q(z_k) / d theta + sum_k w_k d l_k``, w = softmax(l) and L_{-k} the
    bound with l_k replaced by the mean of the others. It is a bound to be maximised:
    ``(-gt.vimco(...)).mean().backward()``.

    Args:
        log_weights_fn: points (N, \*batch, \*event[, C]) to l (N, \*batch), with the graph of
            whatever log p and log q use.
        dist: q: Distribution, logits (\*batch, C), or one of torch.distributions.
        samples: N, >= 2.
        baseline: how the others are averaged for L_{-k}: "geometric" is the mean of their l,
            "arithmetic" the log of the mean of their exp(l).
        generator: source of the noise.
        noise: float64 uniforms (N, \*batch, \*event) in [0, 1) instead.

    Returns:
        The bound, (\*batch,); -inf, and without a gradient in the logits, where every l of a row
        is -inf.

    Raises:
        DomainError: fewer than 2 samples, unsound logits.
        ConfigError: unknown baseline; both noise and generator.
        ShapeError: log_weights_fn returns another shape than (N, \*batch).

    Example:
        >>> import torch, gradthrough as gt
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> log_p = torch.tensor([0.2, 0.3, 0.5]).log()
        >>> log_weights = lambda z: z @ log_p - gt.Categorical(logits).log_prob(z)
        >>> (-gt.vimco(log_weights, logits, samples=4)).mean().backward()

    Reference:
        Mnih, Rezende, ICML 2016, arXiv:1602.06725.
    """
    if baseline not in ("geometric", "arithmetic"):
        raise ConfigError(f"baseline is {baseline!r}, but must be 'geometric' or 'arithmetic'.")
    draw, log_weights = _values("vimco", log_weights_fn, dist, samples, generator, noise)
    q = draw.dist
    signal = learning_signal(log_weights)
    # A row whose samples are all impossible has the bound -inf, and nothing to learn from.
    dead = (signal == -torch.inf).all(0)
    sound = torch.where(dead, 0.0, log_weights)
    bound = torch.where(dead, -torch.inf, sound.logsumexp(0) - math.log(samples))
    own = torch.eye(samples, dtype=torch.bool, device=signal.device)
    own = own.reshape(samples, samples, *(1,) * (signal.ndim - 1))
    # Row k holds the others, with what stands in for l_k. By masking: subtracting cancels.
    others = torch.where(own, -torch.inf, signal.unsqueeze(0))
    if baseline == "geometric":
        mean = torch.where(own, 0.0, signal.unsqueeze(0)).sum(1) / (samples - 1)
    else:
        mean = others.logsumexp(1) - math.log(samples - 1)
    without = torch.where(own, mean.unsqueeze(1), others).logsumexp(1) - math.log(samples)
    # Where all others are impossible they tell nothing: 0 is a baseline as good as any.
    advantage = bound.detach() - torch.where(without == -torch.inf, 0.0, without)
    advantage = torch.where(dead, 0.0, advantage).to(signal.dtype)
    if not isinstance(q, Distribution):
        points = draw.points if draw.inner is None else draw.inner
        return bound + q.attach_score(torch.zeros_like(advantage), points, advantage).sum(0)
    weight = advantage.reshape(*advantage.shape, *(1,) * (q.logits.ndim - advantage.ndim))
    row = q.row
    return attach(bound, row.logits, (weight * row.score(draw.points)).sum(0))


def vargrad(
    log_ratio_fn: Objective,
    dist: object,
    samples: int,
    *,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    r"""VarGrad: the log-variance loss, half the variance of log q(z) - log p(x, z) over samples.

    ``1/2 Var_k[r(z_k)]``, r = log q - log p, z_k ~ q held constant, with the unbiased variance. Its
    gradient in the logits is RLOO's of E r, that of the negative ELBO. Parameters of log p get the
    gradient of the variance, which is another one: train them on ``-log p`` at samples instead,
    and detach them here.

    Args:
        log_ratio_fn: points (N, \*batch, \*event[, C]) to r (N, \*batch), with log q made from the
            logits of `dist`, graph and all.
        dist: q: Distribution, logits (\*batch, C), or one of torch.distributions.
        samples: N, >= 2.
        generator: source of the noise.
        noise: float64 uniforms (N, \*batch, \*event) in [0, 1) instead.

    Returns:
        The loss, (\*batch,); 0 where q is the posterior.

    Raises:
        DomainError: fewer than 2 samples, unsound logits.
        UnsupportedError: the logits need a gradient, but the ratio has no graph.
        ShapeError: log_ratio_fn returns another shape than (N, \*batch).

    Example:
        >>> import torch, gradthrough as gt
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> log_p = torch.tensor([0.2, 0.3, 0.5]).log()
        >>> log_ratio = lambda z: gt.Categorical(logits).log_prob(z) - z @ log_p
        >>> gt.vargrad(log_ratio, logits, samples=4).mean().backward()

    Reference:
        Richter, Boustati, Nuesken, Ruiz, Akyildiz, NeurIPS 2020, arXiv:2010.10436.
    """
    draw, ratio = _values("vargrad", log_ratio_fn, dist, samples, generator, noise)
    if torch.is_grad_enabled() and draw.dist.requires_grad and not ratio.requires_grad:
        raise UnsupportedError(
            "the log-ratio has no graph, so the loss would have no gradient. log_ratio_fn must "
            "compute log q(z) from the logits: gradthrough.Categorical(logits).log_prob(z) - log_p."
        )
    return 0.5 * ratio.var(0)


def _values(
    name: str,
    f: Objective,
    dist: object,
    samples: int,
    generator: torch.Generator | None,
    noise: Tensor | None,
) -> tuple[Draw, Tensor]:
    """Evaluate f at independent samples, at least 2."""
    estimator = VarGrad()
    q = admit(dist, estimator, samples)
    (draw,), values, _ = evaluate(f, ask(estimator, q.expand(samples), generator, noise), name)
    return draw, values
