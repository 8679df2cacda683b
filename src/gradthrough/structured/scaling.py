"""Sinkhorn's iterations, of which the backward keeps one matrix and not two for each."""

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from ..kernels.transforms import is_batched, transformed


def scaled(x: Tensor, iterations: int) -> Tensor:
    r"""Return matrices exp(x), (\*batch, n, m), with rows and columns normalised in turn."""
    if torch.compiler.is_compiling() or not x.requires_grad or transformed(x):
        return _unrolled(x, iterations)
    return cast(Tensor, _Scaled.apply(x, iterations))


def _unrolled(x: Tensor, iterations: int) -> Tensor:
    """The specification, and what has every derivative."""
    for i in range(2 * iterations):
        x = x - x.logsumexp(_dim(i), keepdim=True)
    return x.exp()


class _Scaled(Function):
    """Keeps x and what was taken from it, vectors. What was between comes back bit by bit.

    The backward goes through it piece by piece: at any time it holds about 2 sqrt(2 iterations)
    matrices, and takes no exponential that the backward of logsumexp would not take as well.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, iterations: int) -> Tensor:
        ctx.iterations, y = iterations, x
        taken: list[Tensor] = []
        for i in range(2 * iterations):
            taken.append(y.logsumexp(_dim(i), keepdim=True))
            y = y - taken[-1]
        ctx.save_for_backward(x, *taken)
        return y.exp()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, *taken = ctx.saved_tensors
        if torch.is_grad_enabled() or is_batched(grads[0]):  # a derivative of the derivative
            with torch.enable_grad():
                out = _unrolled(x, ctx.iterations)
            return *torch.autograd.grad(out, x, grads[0], create_graph=True), None
        return _back(x, taken, grads[0]), None


def _back(x: Tensor, taken: list[Tensor], g: Tensor) -> Tensor:
    size = math.ceil(math.sqrt(len(taken)))
    starts: list[Tensor] = []
    y = x
    for i, less in enumerate(taken):
        if i % size == 0:
            starts.append(y)
        y = y - less
    g = g * y.exp()
    for piece in reversed(range(len(starts))):
        between = [starts.pop()]
        for less in taken[piece * size : (piece + 1) * size]:
            between.append(between[-1] - less)
        for i in reversed(range(piece * size, piece * size + len(between) - 1)):
            total = g.sum(_dim(i), keepdim=True)
            g = torch.addcmul(g, between.pop().exp_(), total, value=-1.0)
    return g


def _dim(step: int) -> int:
    return -1 - step % 2
