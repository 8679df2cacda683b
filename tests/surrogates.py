"""Samples and surrogates of the pathwise family, written out with stop-gradients.

Each surrogate is an ordinary differentiable expression of the logits in which everything that
the paper holds constant is detached. The library is not asked how it draws, except for the
counter from which the inner draws of Gumbel-Rao come.
"""

import torch

import gradthrough as gt
from gradthrough._random import CounterExponentials
from problems import F64, probabilities


def gumbel(noise):
    return -(-torch.log1p(-noise)).log()


def index_for(estimator, logits, noise):
    """The class drawn, by the inverse cdf or by Gumbel-max."""
    x = logits.detach()
    if estimator.traits.noise == "class":
        return (x + gumbel(noise)).argmax(-1)
    u = noise[..., 0] if estimator.traits.noise == "variable+seed" else noise
    cdf = probabilities("categorical", x).cumsum(-1)
    return (cdf <= u.unsqueeze(-1)).sum(-1).clamp_max(x.shape[-1] - 1)


def conditional_gumbels(logits, hot, e):
    """Perturbed logits X whose argmax is known, from exponentials e (*rows, C)."""
    x = logits.detach()
    z = x.exp().sum(-1, keepdim=True)
    e_hot = (e * hot).sum(-1, keepdim=True)
    return torch.where(hot > 0, -(e_hot / z).log(), -(e / x.exp() + e_hot / z).log())


def surrogate(estimator, theta, hot, noise, inner=None):
    """The relaxation whose derivatives the sample `hot` is given."""
    still = theta.detach()
    pi = probabilities("categorical", still)
    tau = estimator.tau
    match estimator:
        case gt.StraightThrough():
            weight = 1.0 / (theta.shape[-1] * (pi * hot).sum(-1, keepdim=True))
            return (theta / tau).softmax(-1) * (weight if estimator.importance else 1.0)
        case gt.GumbelSoftmax() | gt.StraightThroughGumbelSoftmax():
            return ((theta + gumbel(noise)) / tau).softmax(-1)
        case gt.GumbelRao():
            if inner is None:
                draw = CounterExponentials(noise[..., 1], theta.shape[-1], F64)
                inner = torch.stack([draw(k) for k in range(estimator.k)], -2)
            shifts = [conditional_gumbels(still, hot, e) - still for e in inner.unbind(-2)]
            return sum(((theta + c) / tau).softmax(-1) for c in shifts) / len(shifts)
        case gt.GappedStraightThrough():
            top = still.amax(-1, keepdim=True)
            hit = (pi * hot).sum(-1, keepdim=True) * (1.0 - 1e-5)
            gap = -torch.log1p(-hit) / hit if estimator.gap == "p" else estimator.gap
            lift = (top - (still * hot).sum(-1, keepdim=True)) * hot
            push = (still - top + gap).relu() * (1.0 - hot)
            return ((theta + lift - push) / tau).softmax(-1)
        case gt.ReinMax():
            middle = (hot + (still / tau).softmax(-1)) / 2
            bent = ((middle.log() - still).detach() + theta).softmax(-1)
            return 2.0 * bent - 0.5 * theta.softmax(-1)
    raise NotImplementedError(type(estimator).__name__)


def reference_sample(estimator, theta, noise, inner=None):
    """What the function form must return, value and derivatives, for logits without masks."""
    index = index_for(estimator, theta, noise)
    hot = (index.unsqueeze(-1) == torch.arange(theta.shape[-1])).to(theta.dtype)
    soft = surrogate(estimator, theta, hot, noise, inner)
    return soft if estimator.traits.relaxed else hot + (soft - soft.detach())
