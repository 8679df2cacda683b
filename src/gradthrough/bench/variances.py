"""Where the variance of a gradient comes from: the estimator's noise, or the minibatch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ..estimators import RLOO, AbstractEstimator
from ..rollout import Bound
from .task import AbstractTask, Batch

REFERENCE_SAMPLES = 16  # of the leave-one-out estimate that a bias is held against


class Spread:
    """Mean and variance of rows that stream past, in float64; no row is kept.

    Example:
        >>> import torch
        >>> from gradthrough.bench.variances import Spread
        >>> spread = Spread()
        >>> spread.add(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
        >>> spread.add(torch.tensor([[4.0, 1.0]]))
        >>> spread.mean.tolist(), spread.variance
        ([2.0, 1.0], 4.0)
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = torch.zeros(())
        self._squares = 0.0  # the sum of squared distances from the mean

    def add(self, rows: Tensor) -> None:
        """Take in rows (n, ...)."""
        x, n = rows.detach().double(), len(rows)
        centre = x.mean(0) if n > 1 else x[0]  # gradients of a network come one by one
        if n > 1:
            self._squares += float((x - centre).square().sum())
        if self.count:
            shift = centre - self._mean
            self._squares += float(shift.square().sum()) * self.count * n / (self.count + n)
            centre = self._mean + shift * (n / (self.count + n))
        self._mean = centre
        self.count += n

    @property
    def mean(self) -> Tensor:
        """The mean of the rows, float64 (...)."""
        return self._mean

    @property
    def variance(self) -> float:
        """Trace of the covariance of one row, without bias; it takes two rows."""
        return self._squares / (self.count - 1)

    @property
    def square(self) -> float:
        """Squared norm of the expected row, without bias: negative where it is lost in noise."""
        return float(self._mean.square().sum()) - self.variance / self.count


class Components:
    """The two parts of a gradient's variance, from several draws of the noise on each minibatch.

    The analysis of variance of a random design: the variance within a minibatch is that of the
    noise, and the variance of the minibatches' means is that of the minibatches and the share of
    the noise that is left in a mean, which is taken off. Both are unbiased, so the second one can
    come out below zero.

    Example:
        >>> import torch
        >>> from gradthrough.bench.variances import Components, Spread
        >>> parts = Components()
        >>> for gradients in ([[0.0], [2.0]], [[6.0], [8.0]]):
        ...     draws = Spread()
        ...     draws.add(torch.tensor(gradients))
        ...     parts.add(draws)
        >>> parts.noise, parts.minibatch
        (2.0, 17.0)
    """

    def __init__(self) -> None:
        self._means = Spread()
        self._noise = self._left = 0.0

    def add(self, draws: Spread) -> None:
        """Take in the draws of one minibatch, at least two."""
        self._means.add(draws.mean.unsqueeze(0))
        self._noise += draws.variance
        self._left += draws.variance / draws.count

    @property
    def noise(self) -> float:
        """Trace of the covariance over the noise, its mean over minibatches."""
        return self._noise / self._means.count

    @property
    def minibatch(self) -> float:
        """Trace of the covariance over minibatches of the mean over the noise."""
        return self._means.variance - self._left / self._means.count


def gradient_variances(
    task: AbstractTask,
    model: nn.Module,
    batches: Iterable[Batch],
    estimator: AbstractEstimator,
    parameters: Sequence[Tensor],
    *,
    draws: int,
    samples: int,
    generator: torch.Generator,
) -> dict[str, float]:
    r"""Return the parts of the variance of an estimator's gradient, and its bias.

    The gradient is that of the mean loss of a minibatch. The bias is held against leave-one-out
    REINFORCE (RLOO) with 16 samples, on the same minibatches and with as many draws: unbiased like
    REINFORCE, and less noisy. Its square is ``||mean_j d_j||^2 - trace(S) / n`` over the n
    minibatches, d_j the difference of the two means on the j-th and S the covariance of those: the
    noise of both is taken off, so that the number is unbiased, and can be below zero.

    Args:
        task: whose losses.
        model: where.
        batches: at least two minibatches, drawn independently.
        estimator: whose gradient.
        parameters: in what, all of them used by the loss.
        draws: forward and backward passes on each minibatch, >= 2.
        samples: of the estimator, for each example.
        generator: source of the noise.

    Returns:
        "mc variance" and "minibatch variance", traces; "squared bias" and "squared gradient", that
        of the reference; "relative squared bias", their ratio, unless the latter is not above zero.
    """
    parts, difference, reference = Components(), Spread(), Spread()
    for batch in batches:
        own = Bound(estimator, samples, generator)
        other = Bound(RLOO(), REFERENCE_SAMPLES, generator)
        mine, theirs = (_draws(task, model, batch, x, parameters, draws) for x in (own, other))
        parts.add(mine)
        difference.add((mine.mean - theirs.mean).unsqueeze(0))
        reference.add(theirs.mean.unsqueeze(0))
    found = {
        "mc variance": parts.noise,
        "minibatch variance": parts.minibatch,
        "squared bias": difference.square,
        "squared gradient": reference.square,
    }
    if reference.square > 0:
        found["relative squared bias"] = difference.square / reference.square
    return found


def _draws(
    task: AbstractTask,
    model: nn.Module,
    batch: Batch,
    bound: Bound,
    parameters: Sequence[Tensor],
    draws: int,
) -> Spread:
    """Return independent gradients on one minibatch."""
    spread = Spread()
    for _ in range(draws):
        with torch.enable_grad():
            loss = task.losses(model, batch, bound).mean()
        bound.take_tuning_loss()  # which nobody trains here
        gradients = torch.autograd.grad(loss, parameters)
        spread.add(torch.cat([g.flatten() for g in gradients]).unsqueeze(0))
    return spread
