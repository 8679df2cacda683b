"""Rows of a table at sampled classes, with the sample's gradient: one-hot times table, unmade."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from .._errors import UnsupportedError
from .dispatch import check_totals, check_uniforms, validates
from .eager import AbstractKernel, Kept
from .engines import Engine

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
        ctx.engine, ctx.kernel = engine, kernel
        counter = noise if kernel.noise == "variable+seed" else noise.new_empty(0)
        ctx.save_for_backward(logits, weight, index, counter, *saved)
        ctx.mark_non_differentiable(index)
        ctx.set_materialize_grads(False)
        return out, index

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        g = grads[0]
        if g is None:
            return (None,) * 6
        logits, weight, index, *_ = ctx.saved_tensors
        to_logits: Tensor | None = None
        to_weight: Tensor | None = None
        with torch.no_grad():
            if ctx.needs_input_grad[2]:
                to_logits = _to_logits(ctx, g)
            if ctx.needs_input_grad[3]:
                rows = g.reshape(-1, weight.shape[-1]).to(weight.dtype)
                to_weight = torch.zeros_like(weight).index_add_(0, index.reshape(-1), rows)
        if torch.is_grad_enabled():
            to_logits = _once(to_logits, g, logits, weight)
            to_weight = _once(to_weight, g, logits)
        return None, None, to_logits, to_weight, None, None


def _to_logits(ctx: Any, g: Tensor) -> Tensor:
    """Return the kernel's derivative along the gradient at the sample, g W^T, some rows at once."""
    logits, weight, index, counter, *saved = ctx.saved_tensors
    classes = logits.shape[-1]
    rows, chosen = logits.detach().reshape(-1, classes), index.reshape(-1)
    g, table = g.reshape(-1, weight.shape[-1]), weight.detach().t()
    counter = counter.reshape(-1, 2) if counter.numel() else counter
    saved = [x.reshape(rows.shape) for x in saved]
    out = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    size = max(_PART // classes, 1)
    for start in range(0, rows.shape[0], size):
        part = slice(start, start + size)
        kept = Kept(
            rows[part],
            chosen[part],
            counter[part] if counter.numel() else counter,
            counter.new_empty(0),
            tuple(x[part] for x in saved),
        )
        out[part] = ctx.engine.backward(ctx.kernel, kept, (g[part] @ table).to(rows.dtype))
    return out.reshape(logits.shape)


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
