"""The exact gradient, by a sum over the support that goes part by part."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, cast

import torch
from torch import Tensor

from .._types import Objective
from ..estimators import Enumerate
from ..expect import check_values
from ..kernels.softmax import one_hot
from ..laws.base import Distribution
from ..laws.convert import as_discrete
from ..rollout import Bound

LIMIT = 10**7  # points of one row times rows
_PART = 2**16  # of those at once
_NUMBERS = 2**22  # that such points hold, at once
WORK = 2 * 10**10  # and in all


def enumerable(dist: Distribution) -> bool:
    """Return whether the support is small enough for a sum over all rows."""
    points = dist.support_size * math.prod(dist.batch_shape)
    return points <= LIMIT and points * width(dist) <= WORK


def width(dist: Distribution) -> int:
    """Return how many numbers a point of one row holds, one-hot."""
    return dist.classes * math.prod(dist.event_shape)


def exact_gradient(f: Objective, dist: Distribution) -> Tensor:
    r"""Return the gradient of the batch mean of ``E f(z)`` in the logits, float64 (D,).

    ``sum_z p(z) (f(z) - E f) grad log p(z)``: without E f it is the same gradient, but values
    that are large beside their differences would cancel in it.

    Args:
        f: takes points (N, \*batch, \*event[, C]), returns values (N, \*batch).
        dist: `enumerable`.
    """
    shape = dist.score(dist.mode().unsqueeze(0)).shape[1:]
    weighted = torch.zeros(shape, dtype=torch.float64, device=dist.logits.device)
    plain, mean = torch.zeros_like(weighted), weighted.new_zeros(dist.batch_shape)
    event = (1,) * (weighted.ndim - mean.ndim)
    with torch.no_grad():
        for points in slices(dist):
            p, values = _weighed(f, dist, points)
            score = dist.score(points).double()
            plain += (p.reshape(*p.shape, *event) * score).sum(0)
            weight = p * values
            weighted += (weight.reshape(*p.shape, *event) * score).sum(0)
            mean += weight.sum(0)
    return (
        (weighted - mean.reshape((*mean.shape, *event)) * plain) / math.prod(mean.shape)
    ).flatten()


class Exact(Bound):
    """Stands where an estimator would in a program, and returns exact expectations.

    To the program an expectation is a number. `gradient` then walks the choices backwards, and
    each support part by part, so that no more than a part is ever held. A choice within f is
    summed over at once.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__(Enumerate(), 1, generator)
        self.points = 0
        self._choices: list[_Choice] = []
        self._within = False

    def __call__(self, f: Objective, dist: object) -> Tensor:
        """Return E f, (*batch,)."""
        q = as_discrete(dist)
        if self._within:
            return _total(f, q).to(q.logits.dtype)
        self.points += q.support_size
        with torch.no_grad(), self._inside():
            value = _total(f, q).to(q.logits.dtype)
        self._choices.append(_Choice(f, q, value.requires_grad_()))
        return value

    def gradient(self, loss: Tensor, params: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the gradient of a loss that was made from these expectations."""
        values = [one.value for one in self._choices]
        found = _slopes(loss, [*params, *values])
        for i in reversed(range(len(values))):
            upstream, choice = found.pop(), self._choices[i]
            if upstream is None:
                continue
            inputs = [*params, *values[:i]]
            for points in slices(choice.dist, _PART // 8):  # a graph is held of it
                with torch.enable_grad(), self._inside():
                    p, away = _weighed(choice.f, choice.dist, points)
                    # What values have in common would cancel in the gradient.
                    part = (p * (away - choice.value.detach()) * upstream).sum()
                for j, more in enumerate(_slopes(part, inputs)):
                    here = found[j]
                    found[j] = here if more is None else more if here is None else here + more
        return found

    @contextmanager
    def _inside(self) -> Generator[None]:
        before, self._within = self._within, True
        try:
            yield
        finally:
            self._within = before


class _Choice(NamedTuple):
    f: Objective
    dist: Distribution
    value: Tensor  # a leaf


def _slopes(y: Tensor, inputs: Sequence[Tensor]) -> list[Tensor | None]:
    """Return the gradient of y, None where there is none; its graph stays."""
    if not y.requires_grad:
        return [None] * len(inputs)
    found = torch.autograd.grad(y, inputs, allow_unused=True, retain_graph=True)
    return list(cast("tuple[Tensor | None, ...]", found))


def _total(f: Objective, dist: Distribution) -> Tensor:
    """Return E f, float64 (*batch,)."""
    total = torch.zeros((), dtype=torch.float64, device=dist.logits.device)
    for points in slices(dist):
        p, values = _weighed(f, dist, points)
        total = total + (p * values).sum(0)
    return total


def _weighed(f: Objective, dist: Distribution, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probabilities of points and the values there, float64 (n, *batch)."""
    log_probs = dist.expand(len(points)).precise_log_prob(points)
    # f may be undefined at a point that is never drawn.
    possible = log_probs > -torch.inf
    held = possible.reshape(possible.shape + (1,) * (points.ndim - possible.ndim))
    values = f(torch.where(held, points, dist.mode()))
    check_values(values, tuple(log_probs.shape), "audit", points.device)
    return log_probs.double().exp(), values.double()


def slices(dist: Distribution, most: int | None = None) -> Iterator[Tensor]:
    """Yield the points (n, *batch, *event[, C]) of the support, part by part."""
    rows = max(math.prod(dist.batch_shape), 1)
    size = max(1, min((most or _PART) // rows, _NUMBERS // (rows * width(dist))))
    c, event, lead = dist.classes, dist.event_shape, (1,) * len(dist.batch_shape)
    places = [c**i for i in range(math.prod(event))]
    device = dist.logits.device
    for start in range(0, dist.support_size, size):
        number = torch.arange(start, min(start + size, dist.support_size), device=device)
        digits = (number.unsqueeze(-1) // torch.tensor(places, device=device)) % c
        z = one_hot(digits, c, dist.logits.dtype).reshape(len(number), *lead, *event, c)
        yield dist.from_classes(z.expand(len(number), *dist.batch_shape, *event, c))
