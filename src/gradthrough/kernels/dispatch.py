"""launch: the one autograd door to the kernels."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from .._errors import BackendError, DomainError, UnsoundLogitsError
from .._types import Backend, compute_dtype
from .eager import AbstractKernel, Exact, contract
from .softmax import centre, normalise, one_hot

_validation: bool | None = None


def set_validation(enabled: bool | None) -> None:
    """Choose whether the content of logits and noise is checked.

    None, the default, checks on CPU and not on CUDA, where a check waits for the device. An
    unsound row (NaN, +inf or -inf throughout) that is not checked gives a NaN sample and a NaN
    gradient. Nothing is checked while a graph is traced.

    Args:
        enabled: True, False, or None for the default.

    Example:
        >>> import gradthrough as gt
        >>> gt.set_validation(True)  # check on CUDA too
        >>> gt.set_validation(None)
    """
    global _validation
    _validation = enabled


def _validates(x: Tensor) -> bool:
    if torch.compiler.is_compiling() or x.device.type == "meta":
        return False
    return x.device.type == "cpu" if _validation is None else _validation


def _check_rows(logits: Tensor, total: Tensor) -> None:
    if bool(total.isfinite().all()):
        return
    bad = int((~total.isfinite()).sum())
    rows = total.numel()
    found = [
        name
        for name, hit in (
            ("NaN", logits.isnan().any()),
            ("+inf", logits.isposinf().any()),
            ("rows whose classes are all masked (-inf)", logits.isneginf().all(-1).any()),
        )
        if bool(hit)
    ]
    raise UnsoundLogitsError(
        f"logits of shape {tuple(logits.shape)} hold {', '.join(found) or 'values too large'}: "
        f"{bad} of {rows} rows have no distribution. Wanted: finite logits, or -inf for masked "
        "classes with at least one class left in each row. Look for an overflow upstream, or "
        "leave the rows without a class out."
    )


def check_uniforms(noise: Tensor) -> None:
    """Raise DomainError unless the noise is in [0, 1)."""
    if noise.numel() == 0:
        return
    low, high = torch.aminmax(noise)
    if not (bool(low >= 0.0) and bool(high < 1.0)):
        raise DomainError(
            f"noise must be uniforms in [0, 1), but runs from {low.item()} to {high.item()}. "
            "Draw it with torch.rand(shape, dtype=torch.float64), or let gradthrough draw it."
        )


def _forward(
    kernel: AbstractKernel, logits: Tensor, noise: Tensor, inner: Tensor, given: bool
) -> tuple[Tensor, ...]:
    x = logits.to(compute_dtype(logits.dtype))
    checks = _validates(logits)
    if checks and given:
        check_uniforms(noise)
    drawn = kernel.forward(centre(x), noise, inner)
    if checks:
        _check_rows(x, drawn.total)
    if kernel.soft:
        z = drawn.saved[0].to(logits.dtype, copy=True)  # `saved` is marked constant, z is not
    else:
        z = one_hot(drawn.chosen, logits.shape[-1], logits.dtype)
    if not checks:
        z = torch.where(drawn.total.isfinite(), z, torch.nan)
    return (z, drawn.chosen, *drawn.saved)


def _batched(info: Any, in_dims: tuple[int | None, ...], args: tuple[Any, ...]) -> list[Any]:
    """Give every tensor the mapped dim in front: rows are independent, so it is one more row."""
    out: list[Any] = []
    for arg, dim in zip(args, in_dims, strict=True):
        if not isinstance(arg, Tensor):
            out.append(arg)
        elif dim is None:
            out.append(arg.unsqueeze(0).expand(info.batch_size, *arg.shape))
        else:
            out.append(arg.movedim(dim, 0))
    return out


class _Derivative(Function):
    """The surrogate's n-th derivative along n directions: linear and symmetric in them.

    Differentiating once more only appends a direction, so this one function is its own backward
    and forward mode, and a kernel that streams its terms does so at every order.
    """

    @staticmethod
    def forward(
        kernel: AbstractKernel,
        saved: int,
        logits: Tensor,
        index: Tensor,
        noise: Tensor,
        inner: Tensor,
        *rest: Tensor,
    ) -> Tensor:
        dtype = compute_dtype(logits.dtype)
        directions = tuple(d.to(dtype) for d in rest[saved:])
        terms = kernel.terms(index, noise, inner, rest[:saved])
        return contract(terms, directions).to(logits.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        kernel, saved, *tensors = inputs
        ctx.kernel, ctx.saved = kernel, saved
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def _again(ctx: Any, replace: int | None, direction: Tensor) -> Tensor:
        logits, index, noise, inner, *rest = ctx.saved_tensors
        if replace is None:
            rest = [*rest, direction]
        else:
            rest[ctx.saved + replace] = direction
        return _apply_derivative(ctx.kernel, ctx.saved, logits, index, noise, inner, *rest)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (g,) = grads
        again = _Derivative._again
        needs = ctx.needs_input_grad
        g_logits = again(ctx, None, g) if needs[2] else None
        first = 6 + ctx.saved
        g_directions = [
            again(ctx, i, g) if needs[first + i] else None for i in range(len(needs) - first)
        ]
        return (None, None, g_logits, None, None, None, *([None] * ctx.saved), *g_directions)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _apply_derivative(*_batched(info, in_dims, args)), 0


class _DerivativeBothModes(_Derivative):
    """With forward mode, which torch.compile cannot trace."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        t_logits, t_directions = tangents[2], tangents[6 + ctx.saved :]
        again = _Derivative._again
        parts = [again(ctx, i, t) for i, t in enumerate(t_directions) if t is not None]
        if t_logits is not None:
            parts.append(again(ctx, None, t_logits))
        return sum(parts[1:], parts[0])


def _apply_derivative(*args: Any) -> Tensor:
    if torch.compiler.is_compiling():
        return _Derivative.forward(*args)
    return cast(Tensor, _DerivativeBothModes.apply(*args))


class _Launch(Function):
    """(kernel, logits, noise) -> (sample, index, *what the derivative needs)."""

    @staticmethod
    def forward(
        kernel: AbstractKernel, logits: Tensor, noise: Tensor, inner: Tensor, given: bool
    ) -> tuple[Tensor, ...]:
        return _forward(kernel, logits, noise, inner, given)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        kernel, logits, noise, inner, _ = inputs
        _, index, *saved = output
        ctx.mark_non_differentiable(index, *saved)
        ctx.set_materialize_grads(False)
        ctx.kernel, ctx.saved = kernel, len(saved)
        # A per-class noise is float64 and only `saved` looks at it: do not keep it alive.
        kept = noise if kernel.noise == "variable+seed" else index
        tensors = (logits, index, kept, inner, *saved)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        g = None
        if grads[0] is not None:
            g = _apply_derivative(ctx.kernel, ctx.saved, *ctx.saved_tensors, grads[0])
        return None, g, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        out = _apply_launch(*_batched(info, in_dims, args))
        return out, tuple(0 for _ in out)


class _LaunchBothModes(_Launch):
    """With forward mode, which torch.compile cannot trace."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        t = None
        if tangents[1] is not None:
            t = _apply_derivative(ctx.kernel, ctx.saved, *ctx.saved_tensors, tangents[1])
        return (t, *([None] * (1 + ctx.saved)))


def _apply_launch(*args: Any) -> tuple[Tensor, ...]:
    door = _Launch if torch.compiler.is_compiling() else _LaunchBothModes
    return cast("tuple[Tensor, ...]", door.apply(*args))


def launch(
    kernel: AbstractKernel,
    logits: Tensor,
    noise: Tensor,
    *,
    inner: Tensor | None = None,
    given: bool = True,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    r"""Run a kernel.

    Args:
        kernel: which sample, and which surrogate.
        logits: (\*rows, C).
        noise: uniforms as ``kernel.noise`` says, on the device of the logits.
        inner: Exp(1) draws (\*rows, K, C) for a kernel with inner draws, instead of the counter.
        given: whether the noise came from outside and has to be checked.
        backend: "auto" or "eager".

    Returns:
        The sample (\*rows, C) in the dtype of the logits, and the class drawn (\*rows), int64.
    """
    if backend not in ("auto", "eager"):
        raise BackendError(f"unknown backend {backend!r}. Known: 'auto', 'eager'.")
    # Absent inner draws travel as an empty tensor: a traced context loses a None it should save.
    draws = noise.new_empty(0) if inner is None else inner
    out = _apply_launch(kernel, logits, noise, draws, given)
    return out[0], out[1]


def draw(logits: Tensor, noise: Tensor, *, given: bool = True) -> tuple[Tensor, Tensor]:
    r"""Draw an exact one-hot sample (\*rows, C) and its index (\*rows), without a gradient."""
    z, index = launch(Exact(), logits.detach(), noise, given=given)
    return z, index


class _Check(Function):
    """Look at content below functorch, where there is a content to look at."""

    @staticmethod
    def forward(check: Callable[[Tensor], None], x: Tensor) -> Tensor:
        if _validates(x):
            check(x)
        return x.new_zeros(())

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _Check.apply(*_batched(info, in_dims, args)), None


def check_content(x: Tensor, check: Callable[[Tensor], None]) -> None:
    """Call a check that may raise, wherever content is validated, under every transform."""
    if not torch.compiler.is_compiling():
        _Check.apply(check, x.detach())


def _sound(logits: Tensor) -> None:
    x = logits.to(compute_dtype(logits.dtype))
    _check_rows(x, normalise(centre(x))[1])


def check_rows(logits: Tensor) -> None:
    r"""Raise DomainError where a row of logits (\*rows, C) has no distribution."""
    check_content(logits, _sound)


def probabilities(logits: Tensor) -> Tensor:
    r"""Return softmax(logits) (\*rows, C) in float32 or better: what a draw compares with."""
    check_rows(logits)
    return normalise(centre(logits.to(compute_dtype(logits.dtype))))[0]
