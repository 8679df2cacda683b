r"""Products of polynomials, in the first dim, where what is multiplied is not negative.

They are taken term by term: nothing cancels, so every coefficient has its own digits, which a
Fourier transform or Karatsuba's trick would take away. The derivative of a product is made of
products again, so derivatives of all orders keep the factors and nothing between.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from ..kernels.transforms import is_batched

_FEW = 2**17  # numbers in a table that a processor's cache still holds
_MANY = 2**24  # and those that are worth the memory where every call of torch is a launch


def product(left: Tensor, right: Tensor, start: int, stop: int) -> Tensor:
    r"""Return the coefficients from start to stop - 1 of left times right.

    Args:
        left: (J, \*rest).
        right: (R, \*rest).
        start: may be below 0; what is not in the product is 0.
        stop: above start.

    Returns:
        (stop - start, \*rest).
    """
    if torch.compiler.is_compiling() or is_batched(left) or is_batched(right):
        # The one fuses the table away and reads no jvp, the other asks for no vmap.
        return _by_table(left, right, start, stop)
    return cast(Tensor, _Product.apply(left, right, start, stop))


def correlate(above: Tensor, right: Tensor, size: int) -> Tensor:
    r"""Return ``sum_t above[t] right[t - j]`` for j below size: the adjoint of a product."""
    stop = len(above)
    return product(above.flip(0), right, stop - size, stop).flip(0)


class _Product(Function):
    @staticmethod
    def forward(left: Tensor, right: Tensor, start: int, stop: int) -> Tensor:
        shorter = min(len(left), len(right))
        numbers = left[0].numel() * shorter * (stop - start)
        by_terms = shorter <= 3 or numbers > (_FEW if left.device.type == "cpu" else _MANY)
        return (_by_terms if by_terms else _by_table)(left, right, start, stop)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        left, right, ctx.start, ctx.stop = inputs
        ctx.save_for_backward(left, right)
        ctx.save_for_forward(left, right)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        left, right = ctx.saved_tensors
        g, stop = grads[0].flip(0), ctx.stop
        wanted = ctx.needs_input_grad
        to_left = product(g, right, stop - len(left), stop).flip(0) if wanted[0] else None
        to_right = product(g, left, stop - len(right), stop).flip(0) if wanted[1] else None
        return to_left, to_right, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        left, right = ctx.saved_tensors
        t_left, t_right = tangents[:2]
        parts = [
            product(x, y, ctx.start, ctx.stop)
            for x, y in ((t_left, right), (left, t_right))
            if x is not None and y is not None
        ]
        return sum(parts[1:], parts[0])

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        left, right = (
            x.unsqueeze(-1).expand(*x.shape, info.batch_size) if dim is None else x.movedim(dim, -1)
            for x, dim in zip(args[:2], in_dims[:2], strict=True)
        )
        return product(left, right, *args[2:]), -1


def _by_terms(left: Tensor, right: Tensor, start: int, stop: int) -> Tensor:
    """Add one shifted multiple after the other: all of it stays in the cache."""
    if len(left) > len(right):
        left, right = right, left
    out = right.new_zeros((stop - start, *right.shape[1:]))
    for j in range(len(left)):
        low, high = max(start - j, 0), min(stop - j, len(right))
        if low < high:
            out[low + j - start : high + j - start].addcmul_(left[j], right[low:high])
    return out


def _by_table(left: Tensor, right: Tensor, start: int, stop: int) -> Tensor:
    """Multiply left with right[t - j] for all (t, j) at once: a few calls of torch."""
    if len(left) > len(right):
        left, right = right, left
    size = len(left)
    first, last = start - size + 1, stop  # of the coefficients of right that are read
    row = right[max(first, 0) : max(last, 0)]
    before = max(-first, 0)
    after = last - first - before - len(row)
    fill = row.new_zeros(())
    shape = row.shape[1:]
    row = torch.cat((fill.expand(before, *shape), row, fill.expand(after, *shape)))
    windows = row.unfold(0, size, 1).movedim(-1, 1)  # (t, from right[t - size + 1] on, ...)
    return (windows * left.flip(0).unsqueeze(0)).sum(1)
