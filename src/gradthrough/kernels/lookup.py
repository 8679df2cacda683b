"""Rows of a table at sampled classes, with the sample's gradient: one-hot times table, unmade."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from .._errors import UnsupportedError
from .._types import compute_dtype
from .checks import check_totals, check_uniforms
from .derivative import along
from .eager import AbstractKernel, Kept
from .engines import Engine
from .layout import joined
from .transforms import transformed
from .validation import validates

_PART = 2**20  # elements of the gradient at the sample that are held at once


class _Refuse(Function):
    """Pass a gradient on; refuse to be differentiated itself."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *_: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise UnsupportedError(
            "gt.embed has a first derivative only. Where a second one is needed, make the sample: "
            "gt.reinmax(logits) @ weight, say."
        )


def _once(grad: Tensor | None, *depends: Tensor) -> Tensor | None:
    return None if grad is None else cast(Tensor, _Refuse.apply(grad, *depends))


class _Lookup(Function):
    """(engine, kernel, logits, weight, noise, given) -> (rows of the table, the classes)."""

    @staticmethod
    def forward(
        ctx: Any,
        engine: Engine,
        kernel: AbstractKernel,
        logits: Tensor,
        weight: Tensor,
        noise: Tensor,
        given: bool,
    ) -> tuple[Tensor, Tensor]:
        checks = validates(logits)
        if checks and given:
            check_uniforms(noise)
        _, index, total, saved = engine.forward(kernel, logits, noise, False)
        if checks:
            check_totals(logits, total)
        index = index.to(torch.int64)
        out = weight.index_select(0, index.reshape(-1)).reshape(*index.shape, weight.shape[-1])
        if not checks:
            out = torch.where(total.isfinite().unsqueeze(-1), out, torch.nan)
            poison = torch.where(total.isfinite(), 0.0, torch.nan)
        else:
            poison = noise.new_empty(0)
        ctx.engine, ctx.kernel, ctx.saved = engine, kernel, len(saved)
        counter = noise if kernel.noise == "variable+seed" else noise.new_empty(0)
        ctx.save_for_backward(weight, poison, logits, index, counter, noise.new_empty(0), *saved)
        ctx.mark_non_differentiable(index)
        ctx.set_materialize_grads(False)
        return out, index

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        g = grads[0]
        if g is None:
            return (None,) * 6
        weight, poison, logits, index, *rest = ctx.saved_tensors
        to_logits: Tensor | None = None
        to_weight: Tensor | None = None
        with torch.no_grad():
            rows = g.reshape(index.numel(), weight.shape[-1])
            if poison.numel():  # of a row without a distribution, to no class a plausible gradient
                rows = rows + poison.reshape(-1, 1).to(rows.dtype)
            if ctx.needs_input_grad[2]:
                kept = (logits, index, *rest)
                to_logits = _to_logits(ctx.engine, ctx.kernel, ctx.saved, kept, rows, weight)
            if ctx.needs_input_grad[3]:
                at = index.reshape(-1)
                to_weight = torch.zeros_like(weight).index_add(0, at, rows.to(weight.dtype))
        if torch.is_grad_enabled():
            to_logits = _once(to_logits, g, logits, weight)
            to_weight = _once(to_weight, g, logits)
        return None, None, to_logits, to_weight, None, None


def _to_logits(
    engine: Engine,
    kernel: AbstractKernel,
    saved: int,
    kept: tuple[Tensor, ...],
    g: Tensor,
    weight: Tensor,
) -> Tensor:
    """Return the kernel's derivative along the gradient at the sample, g W^T, some rows at once."""
    logits, table = kept[0], weight.detach().t()
    shape, dtype = logits.shape, compute_dtype(logits.dtype)
    count, classes = g.shape[0], shape[-1]
    # Row by row, what is not empty: an absent counter, absent inner draws.
    flat = [x.reshape(count, *x.shape[len(shape) - 1 :]) if x.numel() else x for x in kept]
    flat[0] = logits.detach().reshape(count, classes)
    flat[1] = kept[1].reshape(count)
    if transformed(g):
        return along(engine, kernel, saved, *flat, (g @ table).to(dtype)).reshape(shape)

    def pieces() -> Iterator[Tensor]:
        size = max(_PART // classes, 1)
        for start in range(0, max(count, 1), size):
            part = slice(start, start + size)
            some = [x[part] if x.numel() else x for x in flat]
            some[0], some[1] = flat[0][part], flat[1][part]
            # In the precision of the arithmetic: half precision would overflow, only to be cast.
            direction = (g[part] @ table).to(dtype)
            logits, chosen, counter, inner, *rest = some
            one = Kept(logits, chosen, counter, inner, tuple(rest))
            yield engine.backward(kernel, one, direction)

    return joined(pieces(), count).reshape(shape)


def lookup(
    engine: Engine,
    kernel: AbstractKernel,
    logits: Tensor,
    weight: Tensor,
    noise: Tensor,
    given: bool,
) -> tuple[Tensor, Tensor]:
    r"""Return one-hot sample @ weight (\*rows, E), and the class of each row, int64."""
    inputs = (engine, kernel, logits, weight, noise, given)
    return cast("tuple[Tensor, Tensor]", _Lookup.apply(*inputs))
