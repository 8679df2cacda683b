"""along: a kernel's derivative, which every mode of autograd may differentiate again."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from . import eager
from .eager import AbstractKernel, Kept
from .engines import SPECIFICATION, Engine
from .transforms import is_batched, mapped_first, transformed


class _Derivative(Function):
    """The surrogate's n-th derivative along n directions: linear and symmetric in them.

    Differentiating once more only appends a direction, so this one function is its own backward
    and forward mode, and a kernel that streams its terms does so at every order.
    """

    @staticmethod
    def forward(
        engine: Engine,
        kernel: AbstractKernel,
        saved: int,
        logits: Tensor,
        index: Tensor,
        noise: Tensor,
        inner: Tensor,
        *rest: Tensor,
    ) -> Tensor:
        directions = rest[saved:]
        chosen = index.to(torch.int64) if kernel.conditional else index
        kept = Kept(logits, chosen, noise, inner, rest[:saved])
        if len(directions) == 1:
            return engine.backward(kernel, kept, directions[0])
        return eager.derivative(kernel, kept, directions)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        engine, kernel, saved, *tensors = inputs
        ctx.engine, ctx.kernel, ctx.saved = engine, kernel, saved
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def _again(ctx: Any, replace: int | None, direction: Tensor) -> Tensor:
        logits, index, noise, inner, *rest = ctx.saved_tensors
        if replace is None:
            rest = [*rest, direction]
        else:
            rest[ctx.saved + replace] = direction
        return _apply_derivative(
            ctx.engine, ctx.kernel, ctx.saved, logits, index, noise, inner, *rest
        )

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (g,) = grads
        again = _Derivative._again
        needs = ctx.needs_input_grad
        g_logits = again(ctx, None, g) if needs[3] else None
        first = 7 + ctx.saved
        g_directions = [
            again(ctx, i, g) if needs[first + i] else None for i in range(len(needs) - first)
        ]
        return (*[None] * 3, g_logits, *[None] * (3 + ctx.saved), *g_directions)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _apply_derivative(*mapped_first(info, in_dims, args)), 0


class _DerivativeBothModes(_Derivative):
    """With forward mode, which torch.compile cannot trace."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        t_logits, t_directions = tangents[3], tangents[7 + ctx.saved :]
        again = _Derivative._again
        parts = [again(ctx, i, t) for i, t in enumerate(t_directions) if t is not None]
        if t_logits is not None:
            parts.append(again(ctx, None, t_logits))
        return sum(parts[1:], parts[0])


def _apply_derivative(*args: Any) -> Tensor:
    if torch.compiler.is_dynamo_compiling():
        return _Derivative.forward(*args)
    return cast(Tensor, _DerivativeBothModes.apply(*args))


def along(*inputs: Any) -> Tensor:
    """Return a kernel's first derivative, as a function of all that it depends on.

    Args:
        inputs: engine, kernel, how many are saved, logits, class, noise, inner, *saved, direction.
    """
    # Forward mode may follow the logits alone, and nothing that comes from above.
    plain = not torch.is_grad_enabled() and not any(transformed(inputs[i]) for i in (-1, 3))
    if is_batched(inputs[-1]):
        inputs = (SPECIFICATION, *inputs[1:])  # which does nothing in place
    return _Derivative.forward(*inputs) if plain else _apply_derivative(*inputs)
