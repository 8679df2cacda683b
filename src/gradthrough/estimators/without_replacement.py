"""Estimators that never ask f twice at one point: sum-and-sample, and the unordered set."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._errors import DomainError
from ..kernels.dispatch import probabilities
from ..kernels.joint import draw_excluding, likeliest, log_probability
from ..kernels.softmax import one_hot
from ..laws.base import Distribution
from .base import DISCRETE, AbstractEstimator, Draw, Estimate, Traits, learning_signal, send, spread
from .checks import check_count

_LARGEST_SET = 12


def _joint(dist: Distribution) -> Tensor:
    r"""Return the probabilities of one row's variables, (\*batch, m, C), in float64."""
    row = dist.row
    p = probabilities(row.class_logits().detach()).to(torch.float64)
    p = p / p.sum(-1, keepdim=True)
    lead = len(row.batch_shape)
    return p.reshape(*p.shape[:lead], math.prod(row.event_shape), p.shape[-1])


def _points(dist: Distribution, p: Tensor, codes: Tensor) -> Tensor:
    r"""Turn codes (\*batch, E, m) into points (E, \*batch, \*event[, C])."""
    z = one_hot(codes.movedim(-2, 0), dist.classes, dist.logits.dtype)
    z = z + (0.0 * p).to(z.dtype)  # an unsound row must not give a plausible point
    return dist.from_classes(z.reshape(codes.shape[-2], *dist.row.class_logits().shape))


def _uniforms(dist: Distribution, noise: Tensor) -> Tensor:
    r"""Flatten the event of uniforms (N, \*batch, \*event) to (N, \*batch, m)."""
    lead = 1 + len(dist.row.batch_shape)
    return noise.reshape(*noise.shape[:lead], math.prod(noise.shape[lead:]))


@dataclass(frozen=True)
class SumAndSample(AbstractEstimator):
    r"""Sum and sample: the k likeliest points exactly, the rest by samples. Unbiased for every f.

    With C the k likeliest outcomes of a row (of all its variables jointly), and the N samples z
    drawn from what is left, ``sum_{c in C} p(c) g(c) + (1 - p(C)) mean_n g(z_n)`` for
    g(z) = f(z) d log p(z) / d theta, and the same for the value. Its variance is at most that of
    REINFORCE with N samples, and 0 where k is the size of the support. k + N evaluations. What is
    left, 1 - p(C), is known to 1e-16: an f that is as large as its inverse there is missed.

    Args:
        k: number of outcomes that are summed, >= 1.

    Raises:
        DomainError: k below 1.

    Example:
        >>> import torch, gradthrough as gt
        >>> f = lambda z: z.argmax(-1).float()  # no gradient of f is needed
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> gt.expect(f, logits, gt.SumAndSample(k=2)).sum().backward()
        >>> logits.grad.shape
        torch.Size([5, 3])

    Reference:
        Liu, Regier, Tripuraneni, Jordan, McAuliffe, AISTATS 2019, arXiv:1810.04777.
    """

    k: int = 1

    traits: ClassVar[Traits] = Traits(
        unbiased=True,
        families=DISCRETE,
        reference="Liu et al., AISTATS 2019, arXiv:1810.04777",
        exact_for="all",
    )

    def __post_init__(self) -> None:
        check_count("k", self.k, 1)

    def _summed(self, dist: Distribution) -> int:
        return min(self.k, dist.support_size)

    def evaluations(self, dist: Distribution, samples: int) -> int:
        """Return how often f is evaluated: at the k likeliest outcomes and at the samples."""
        return self._summed(dist) + samples

    def draw(self, dist: Distribution, noise: Tensor) -> Draw:
        """Ask for the likeliest points, then for samples from the rest."""
        p, n = _joint(dist), noise.shape[0]
        top = likeliest(p, self.k)
        log_mass = log_probability(p, top)
        mass, possible = log_mass.exp(), log_mass > -torch.inf
        drawn = draw_excluding(p, top, torch.ones_like(mass), _uniforms(dist, noise))
        # A point that is masked carries no weight; f is asked at the likeliest one instead.
        top = torch.where(possible.unsqueeze(-1), top, top[..., :1, :])
        codes = torch.cat((top, drawn.movedim(0, -2)), -2)
        rest = (1.0 - mass.sum(-1, keepdim=True)).clamp_min(0.0)
        rest = torch.where(possible.all(-1, keepdim=True), rest, 0.0)
        weights = torch.cat((mass, (rest / n).expand(*rest.shape[:-1], n)), -1).movedim(-1, 0)
        rows = dist.row.expand(weights.shape[0])
        return Draw(_points(dist, p, codes), rows, (weights,))

    def combine(
        self, draws: Sequence[Draw], values: Tensor, point_gradients: Tensor | None = None
    ) -> Estimate:
        """Send weight times f times the score at every point."""
        (one,) = draws
        (weights,) = one.aux
        return _send_weighted(one, values, weights, weights * learning_signal(values))


def _send_weighted(one: Draw, values: Tensor, weights: Tensor, signal: Tensor) -> Estimate:
    """Return the weighted sum of the values, with the sum of signal times score as gradient."""
    row = one.dist.row
    score = row.score(one.points)
    gradient = (spread(signal, score.ndim - signal.ndim).to(score.dtype) * score).sum(0)
    return send(one, (weights.to(values.dtype) * values).sum(0), gradient)


@dataclass(frozen=True)
class UnorderedSet(AbstractEstimator):
    r"""Unordered set: N samples without replacement, their order integrated out. Unbiased.

    S is a set of N different outcomes of a row (of all its variables jointly). With the
    leave-one-out ratios R(S, s) = P(S \ s without s) / P(S),
    ``sum_s p(s) R(S, s) [f(s) - sum_s' p(s') R(S \ s, s') f(s')] d log p(s) / d theta``, and the
    value is ``sum_s p(s) R(S, s) f(s)``; these weights sum to 1. Where N exceeds the number of
    possible outcomes, value and gradient are exact. Time grows as 2^N, not N!.

    Raises:
        DomainError: fewer than 2 samples, or more than 12.

    Example:
        >>> import torch, gradthrough as gt
        >>> f = lambda z: z.argmax(-1).float()  # no gradient of f is needed
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> gt.expect(f, logits, gt.UnorderedSet(), samples=2).sum().backward()
        >>> logits.grad.shape
        torch.Size([5, 3])

    Reference:
        Kool, van Hoof, Welling, ICLR 2020, arXiv:2002.06043.
    """

    traits: ClassVar[Traits] = Traits(
        unbiased=True,
        families=DISCRETE,
        reference="Kool et al., ICLR 2020, arXiv:2002.06043",
        exact_for="all",
        min_samples=2,
    )

    def draw(self, dist: Distribution, noise: Tensor) -> Draw:
        """Draw points one after the other, each different from those before."""
        if noise.shape[0] > _LARGEST_SET:
            raise DomainError(
                f"UnorderedSet sums over the 2^N orders in which its samples can come: N is at "
                f"most {_LARGEST_SET}, but samples={noise.shape[0]}."
            )
        p, u = _joint(dist), _uniforms(dist, noise)
        rows = (*p.shape[:-2], 1)
        codes = torch.zeros(*rows, p.shape[-2], dtype=torch.int64, device=p.device)[..., :0, :]
        counts = p.new_zeros(rows)[..., :0]
        for step in u.unbind(0):
            new = draw_excluding(p, codes, counts, step).unsqueeze(-2)
            # Where no outcome is left, what comes is a repetition, or has no probability.
            seen = ((codes == new).all(-1) & (counts > 0)).any(-1, keepdim=True)
            fresh = ~seen & (log_probability(p, new) > -torch.inf)
            codes = torch.cat((codes, new), -2)
            counts = torch.cat((counts, fresh.to(p.dtype)), -1)
        mass = log_probability(p, codes).exp() * counts
        points = _points(dist, p, codes)
        return Draw(points, dist, (mass.movedim(-1, 0), counts.movedim(-1, 0)))

    def combine(
        self, draws: Sequence[Draw], values: Tensor, point_gradients: Tensor | None = None
    ) -> Estimate:
        """Send the weighted signal, each outcome with the others of its set as baseline."""
        (one,) = draws
        mass, counts = one.aux
        n = values.shape[0]
        f = learning_signal(values).to(mass.dtype)
        c = _completions(mass, counts)
        every = range(n)
        weights = torch.stack([counts[s] * c[1 << s] / c[0] for s in every])
        baselines: list[Tensor] = []
        for s in every:
            others = [counts[t] * c[1 << s | 1 << t] / c[1 << s] * f[t] for t in every if t != s]
            baselines.append(mass[s] * f[s] + torch.stack(others).sum(0))
        signal = weights * (f - torch.stack(baselines))
        return _send_weighted(one, values, weights, signal)


def _completions(mass: Tensor, counts: Tensor) -> list[Tensor]:
    """Return, for each subset T of the set S, how probably the draws after T complete S.

    With T drawn, c(T) = sum_{s not in T} c(T + s) / (1 - p(T)): the probability of drawing the
    rest of S next, in any order, over the product of its p. So p(s) R(S, s) = c({s}) / c({}), and
    no product of many small probabilities is ever formed. Outcomes that do not count are taken as
    drawn from the start.
    """
    n = mass.shape[0]
    rest = (1.0 - mass.sum(0)).clamp_min(0.0)  # outside S
    out = [torch.ones_like(rest)] * 2**n
    for subset in reversed(range(2**n - 1)):
        missing = [s for s in range(n) if not subset >> s & 1]
        # 1 - p(T), as a sum of what is not in T: nothing cancels.
        left = rest + torch.stack([mass[s] for s in missing]).sum(0)
        ways = torch.stack([counts[s] * out[subset | 1 << s] for s in missing]).sum(0)
        whole = torch.stack([counts[s] for s in missing]).sum(0) == 0
        out[subset] = torch.where(whole, 1.0, ways / left)
    return out
