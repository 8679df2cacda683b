"""The cells of the Tree-LSTM and of its leaves, each with its derivative by hand.

The parser differentiates a composition in two ways, towards its score for every pair and towards
the loss for the chosen one, and sums what reaches the weights over all pairs in one product.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class Composed(NamedTuple):
    """Parents, with what their derivative needs."""

    state: Tensor  # (M, 2 D): h and c
    gates: Tensor  # (M, 5 D): input, left and right forget, output, update
    squashed: Tensor  # (M, D): tanh of c


def compose(gates: Tensor, left: Tensor, right: Tensor) -> Composed:
    """Return the parents of pairs.

    Args:
        gates: (M, 5 D), what goes into the nonlinearities; overwritten.
        left: (M, D), c of the left children.
        right: (M, D), c of the right children.
    """
    d = left.shape[-1]
    gates[:, : 4 * d].sigmoid_()
    gates[:, 4 * d :].tanh_()
    i, f_left, f_right, o, u = gates.chunk(5, -1)
    c = torch.addcmul(torch.addcmul(i * u, f_left, left), f_right, right)
    squashed = c.tanh()
    return Composed(torch.cat((o * squashed, c), -1), gates, squashed)


def pull(
    gates: Tensor, squashed: Tensor, left: Tensor, right: Tensor, dh: Tensor, dc: Tensor | float
) -> tuple[Tensor, Tensor, Tensor]:
    """Pull a gradient in the parents back to what `compose` took.

    Args:
        gates: as `compose` returned them.
        squashed: the same.
        left: as `compose` took it.
        right: the same.
        dh: gradient in h, broadcast to (M, D).
        dc: in c.
    """
    i, f_left, f_right, o, u = gates.chunk(5, -1)
    dc = dh * o * (1.0 - squashed.square()) + dc
    slopes = torch.addcmul(gates, gates, gates, value=-1.0)
    slopes[:, -u.shape[-1] :] = 1.0 - u.square()
    out = torch.cat((dc * u, dc * left, dc * right, dh * squashed, dc * i), -1)
    return out.mul_(slopes), dc * f_left, dc * f_right


class LeafLSTM(Function):
    """An LSTM from left to right that gives h and c at every place, which torch's does not."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        """Return h and c, (L, B, D), for inputs (L, B, 4 D) and a recurrent weight (4 D, D)."""
        length, rows, d = inputs.shape[0], inputs.shape[1], weight.shape[-1]
        gates = inputs.clone()  # input, forget, output, update
        h, c, squashed = (inputs.new_zeros(length, rows, d) for _ in range(3))
        for t in range(length):
            if t:
                gates[t].addmm_(h[t - 1], weight.t())
            gates[t, :, : 3 * d].sigmoid_()
            gates[t, :, 3 * d :].tanh_()
            i, f, o, u = gates[t].chunk(4, -1)
            torch.mul(i, u, out=c[t])
            if t:
                c[t].addcmul_(f, c[t - 1])
            torch.tanh(c[t], out=squashed[t])
            torch.mul(o, squashed[t], out=h[t])
        ctx.save_for_backward(weight, gates, h, c, squashed)
        return h, c

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401
        dh: Tensor,
        dc: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients in inputs and weight."""
        weight, gates, h, c, squashed = ctx.saved_tensors
        d = weight.shape[-1]
        slopes = torch.addcmul(gates, gates, gates, value=-1.0)
        slopes[..., 3 * d :] = 1.0 - gates[..., 3 * d :].square()
        through = gates[..., 2 * d : 3 * d] * (1.0 - squashed.square())
        out = torch.zeros_like(gates)
        h_next, c_next = torch.zeros_like(dh[0]), torch.zeros_like(dh[0])
        for t in range(len(gates) - 1, -1, -1):
            i, f, _, u = gates[t].chunk(4, -1)
            h_next = h_next + dh[t]
            c_next = torch.addcmul(c_next + dc[t], h_next, through[t])
            before = c[t - 1] if t else torch.zeros_like(c_next)
            parts = (c_next * u, c_next * before, h_next * squashed[t], c_next * i)
            torch.mul(torch.cat(parts, -1), slopes[t], out=out[t])
            h_next, c_next = out[t] @ weight, c_next * f
        rows = out[1:].flatten(0, 1)
        return out, rows.t() @ h[:-1].flatten(0, 1)
