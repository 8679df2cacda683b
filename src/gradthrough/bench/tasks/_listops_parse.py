"""Parsing as a chain of autograd functions, one a step, with the choices made in between.

The steps share a chart, and no gradient of a node passes from one function to the next: a step
hands on logits alone. The chain of logits makes autograd take the steps back in order, also where
an estimator sends nothing through its sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ._listops_chart import Chart, Weights
from ._listops_sweep import Sweep


class _Parse:
    """A chart, and the way back through it."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths
        self.chart: Chart | None = None
        self.sweep: Sweep | None = None

    @property
    def grown(self) -> Chart:
        """The chart."""
        assert self.chart is not None
        return self.chart

    @property
    def swept(self) -> Sweep:
        """The way back."""
        assert self.sweep is not None
        return self.sweep


class _Start(Function):
    @staticmethod
    def forward(ctx: Any, parse: _Parse, leaves: Tensor, *weights: Tensor) -> Tensor:  # noqa: ANN401
        ctx.parse = parse
        parse.chart = Chart(Weights(*weights), leaves, parse.lengths)
        return parse.chart.logits()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 # pyright: ignore[reportIncompatibleMethodOverride]
        sweep = ctx.parse.swept
        if g.numel():
            sweep.scores(0, g)
        found = sweep.finish()
        ctx.parse.sweep = None
        return None, found.leaves, found.weights.pair, found.weights.bias, found.weights.query


class _Step(Function):
    @staticmethod
    def forward(ctx: Any, parse: _Parse, before: Tensor, z: Tensor) -> Tensor:  # noqa: ANN401
        ctx.parse, ctx.step = parse, len(parse.grown.merges)
        parse.grown.merge(z.argmax(-1, keepdim=True))
        return parse.grown.logits()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[None, None, Tensor]:  # noqa: ANN401 # pyright: ignore[reportIncompatibleMethodOverride]
        sweep = ctx.parse.swept
        if g.numel():
            sweep.scores(ctx.step + 1, g)
        return None, None, sweep.merge(ctx.step)


class _Finish(Function):
    @staticmethod
    def forward(ctx: Any, parse: _Parse, before: Tensor) -> Tensor:  # noqa: ANN401
        ctx.parse = parse
        return parse.grown.roots()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, roots: Tensor) -> tuple[None, None]:  # noqa: ANN401 # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.parse.sweep = Sweep(ctx.parse.grown, roots)
        return None, None


def parse(
    weights: Weights,
    leaves: Tensor,
    lengths: list[int],
    choose: Callable[[Tensor], Tensor],
) -> Tensor:
    """Parse sentences by merging two neighbours at a time; differentiable.

    Where two nodes are left in all sentences there is no choice.

    Args:
        weights: of the composition.
        leaves: (L, R, 2 D), h and c, zero beyond the end of a sentence.
        lengths: of the sentences, each at least 1, the longest first and L long.
        choose: takes scores (n, W - 1) of the first rows, -inf where nothing can be merged, and
            returns one-hots of that shape. Their gradient is that of a choice which mixes nodes.

    Returns:
        h of the roots, (R, D).
    """
    state = _Parse(lengths)
    parts = (weights.pair, weights.bias, weights.query)
    logits = cast(Tensor, _Start.apply(state, leaves, *parts))
    for _ in range(len(leaves) - 1):
        z = choose(logits) if logits.shape[1] > 1 else torch.ones_like(logits)
        logits = cast(Tensor, _Step.apply(state, logits, z))
    return cast(Tensor, _Finish.apply(state, logits))
