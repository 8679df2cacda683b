"""Samples and surrogates of the pathwise family, written out with stop-gradients.

Each surrogate is an ordinary differentiable expression of the logits in which everything that
the paper holds constant is detached. The library is not asked how it draws, except for the
counter from which the inner draws of Gumbel-Rao come.
"""

import torch

import gradthrough as gt
from gradthrough._random import CounterExponentials
from problems import F64, denoiser, diffused, last_law, probabilities


def gumbel(noise):
    return -(-torch.log1p(-noise)).log()


def index_for(estimator, logits, noise):
    """The class drawn, by the inverse cdf or by Gumbel-max."""
    x = logits.detach()
    if estimator.traits.noise == "class":
        return (x + gumbel(noise)).argmax(-1)
    law = probabilities("categorical", x)
    u = noise[..., 0] if estimator.traits.noise == "variable+seed" else noise
    match estimator:
        case gt.DecoupledStraightThrough():
            law = probabilities("categorical", x / estimator.tau_forward)
        case gt.ReDGE() | gt.ReinDGE():
            law, u = last_law(estimator, x, noise[..., :-1]), noise[..., -1]
    cdf = law.cumsum(-1)
    return (cdf <= u.unsqueeze(-1)).sum(-1).clamp_max(x.shape[-1] - 1)


def conditional_gumbels(logits, hot, e):
    """Perturbed logits X whose argmax is known, from exponentials e (*rows, C)."""
    x = logits.detach()
    z = x.exp().sum(-1, keepdim=True)
    e_hot = (e * hot).sum(-1, keepdim=True)
    return torch.where(hot > 0, -(e_hot / z).log(), -(e / x.exp() + e_hot / z).log())


def relaxations(theta, law, hot, inner, tau):
    """One relaxation of theta for each of the inner draws, made from the logits of `law`."""
    shifts = [conditional_gumbels(law.log(), hot, e) - theta.detach() for e in inner.unbind(-2)]
    return [((theta + c) / tau).softmax(-1) for c in shifts]


def bend(theta, p):
    """A softmax of theta that has the value p."""
    return ((p.log() - theta).detach() + theta).softmax(-1)


def surrogate(estimator, theta, hot, noise, inner=None):
    """The relaxation whose derivatives the sample `hot` is given."""
    still = theta.detach()
    pi = probabilities("categorical", still)
    tau = getattr(estimator, "tau", None)
    if inner is None and hasattr(estimator, "k"):
        points = estimator.k if getattr(estimator, "qmc", False) else 0
        draw = CounterExponentials(noise[..., 1], theta.shape[-1], F64, points=points)
        inner = torch.stack([draw(k) for k in range(estimator.k + 1)], -2)
        inner = inner if isinstance(estimator, gt.ReinMaxCV) else inner[..., :-1, :]
    match estimator:
        case gt.StraightThrough():
            weight = 1.0 / (theta.shape[-1] * (pi * hot).sum(-1, keepdim=True))
            return (theta / tau).softmax(-1) * (weight if estimator.importance else 1.0)
        case gt.GumbelSoftmax() | gt.StraightThroughGumbelSoftmax():
            return ((theta + gumbel(noise)) / tau).softmax(-1)
        case gt.GumbelRao():
            soft = relaxations(theta, pi, hot, inner, tau)
            return sum(soft) / len(soft)
        case gt.GappedStraightThrough():
            top = still.amax(-1, keepdim=True)
            hit = (pi * hot).sum(-1, keepdim=True) * (1.0 - 1e-5)
            gap = -torch.log1p(-hit) / hit if estimator.gap == "p" else estimator.gap
            lift = (top - (still * hot).sum(-1, keepdim=True)) * hot
            push = (still - top + gap).relu() * (1.0 - hot)
            return ((theta + lift - push) / tau).softmax(-1)
        case gt.ReinMax():
            middle = (hot + (still / tau).softmax(-1)) / 2
            return 2.0 * bend(theta, middle) - 0.5 * theta.softmax(-1)
        case gt.ReinMaxRao():
            soft = relaxations(theta, (pi + hot) / 2, hot, inner, tau)
            return 2.0 * sum(soft) / len(soft) - 0.5 * theta.softmax(-1)
        case gt.ReinMaxCV():
            *averaged, extra = relaxations(theta, (pi + hot) / 2, hot, inner, estimator.tau_cv)
            bracket = sum(averaged) / len(averaged) - extra
            middle = (hot + (still / tau).softmax(-1)) / 2
            return 2.0 * bend(theta, middle) - theta.softmax(-1) / 2 + estimator.eta * bracket
        case gt.DecoupledStraightThrough():
            return (theta / estimator.tau_backward).softmax(-1)
        case gt.ReDGE():
            return last_law(estimator, theta, noise[..., :-1])
        case gt.ReinDGE():
            last = denoiser(estimator, theta, *diffused(estimator, theta, noise[..., :-1]))
            path = (last - theta + still).softmax(-1)
            s = path.detach()
            return path + 2.0 * bend(theta, (s + hot) / 2) - 0.5 * bend(theta, s)
    raise NotImplementedError(type(estimator).__name__)


def reference_sample(estimator, theta, noise, inner=None):
    """What the function form must return, value and derivatives, for logits without masks."""
    index = index_for(estimator, theta, noise)
    hot = (index.unsqueeze(-1) == torch.arange(theta.shape[-1])).to(theta.dtype)
    soft = surrogate(estimator, theta, hot, noise, inner)
    return soft if estimator.traits.relaxed else hot + (soft - soft.detach())
