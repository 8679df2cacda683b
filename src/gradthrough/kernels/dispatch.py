"""launch: the one autograd door to the kernels."""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from .._errors import DomainError, UnsoundLogitsError, UnsupportedError
from .._random import Stream
from .._types import Backend, compute_dtype
from . import eager, fused
from .eager import AbstractKernel, Exact, Kept
from .engines import SPECIFICATION, Engine, engine_for
from .softmax import centre, normalise
from .validation import validates

_BATCHED: Any = torch._C._parse_dispatch_key("Batched")  # pyright: ignore


def check_totals(logits: Tensor, total: Tensor) -> None:
    """Raise UnsoundLogitsError where a row's total is not finite."""
    # One number tells: totals are at most C, and a sum of NaN is NaN.
    if math.isfinite(total.sum(dtype=torch.float64).item()):
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
    engine: Engine, kernel: AbstractKernel, logits: Tensor, noise: Tensor | Stream, given: bool
) -> tuple[Tensor, ...]:
    checks = validates(logits)
    if checks and given and isinstance(noise, Tensor):
        check_uniforms(noise)
    z, index, total, saved = engine.forward(kernel, logits, noise, True)
    if checks:
        check_totals(logits, total)
    elif not engine.poisons:
        z = torch.where(total.isfinite().unsqueeze(-1), z, torch.nan)
    # What is kept for the backward is kept small.
    return (z, index.to(torch.uint8) if logits.shape[-1] <= 256 else index, *saved)


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
        return _apply_derivative(*_batched(info, in_dims, args)), 0


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


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Note what the derivative starts from; return the tensors to save."""
    engine, kernel, logits, noise, inner, _ = inputs
    _, index, *saved = output
    ctx.mark_non_differentiable(index, *saved)
    ctx.set_materialize_grads(False)
    ctx.engine, ctx.kernel, ctx.saved = engine, kernel, len(saved)
    # A noise per class is float64 and only `saved` looks at it: do not keep it alive.
    kept = noise if kernel.noise == "variable+seed" else index
    return (logits, index, kept, inner, *saved)


def _along(ctx: Any, direction: Tensor | None) -> Tensor | None:
    if direction is None:
        return None
    return along(ctx.engine, ctx.kernel, ctx.saved, *ctx.saved_tensors, direction)


def along(*inputs: Any) -> Tensor:
    """Return a kernel's first derivative, as a function of all that it depends on.

    Args:
        inputs: engine, kernel, how many are saved, logits, class, noise, inner, *saved, direction.
    """
    # Forward mode may follow the logits alone, and nothing that comes from above.
    plain = not torch.is_grad_enabled() and not any(transformed(inputs[i]) for i in (-1, 3))
    if _is_batched(inputs[-1]):
        inputs = (SPECIFICATION, *inputs[1:])  # which does nothing in place
    return _Derivative.forward(*inputs) if plain else _apply_derivative(*inputs)


def _is_batched(x: Tensor) -> bool:
    """Return whether x stands for several, as in torch.autograd.grad(is_grads_batched=True).

    That is a vmap older than torch.func, which asks no autograd.Function for its rule.
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._dispatch_keys(x).has(_BATCHED)  # pyright: ignore


def transformed(x: Tensor) -> bool:
    """Return whether a transform of torch.func, or forward mode, is at work."""
    # What torch's own Function.apply asks; there is no public way to.
    if torch._C._are_functorch_transforms_active():  # pyright: ignore[reportPrivateUsage]
        return True
    # The level first: to unpack takes as long as several operations.
    level = cast(int, forward_ad._current_level)  # pyright: ignore[reportPrivateUsage]
    return level >= 0 and forward_ad.unpack_dual(x).tangent is not None


def _transformed_inside() -> bool:
    """Return whether torch.compile reads a function under a transform of torch.func."""
    # As in transformed.
    if torch._C._are_functorch_transforms_active():  # pyright: ignore[reportPrivateUsage]
        return True
    if forward_ad._current_level >= 0:  # pyright: ignore[reportPrivateUsage]
        raise UnsupportedError(
            "forward mode around torch.compile: what is compiled loses the tangents, in torch "
            "itself. Put the transform inside: "
            "torch.compile(lambda x, t: torch.func.jvp(loss, (x,), (t,)))."
        )
    return False


class _Launch(Function):
    """(engine, kernel, logits, noise, inner) -> (sample, index, *what the derivative needs)."""

    @staticmethod
    def forward(
        engine: Engine,
        kernel: AbstractKernel,
        logits: Tensor,
        noise: Tensor,
        inner: Tensor,
        given: bool,
    ) -> tuple[Tensor, ...]:
        return _forward(engine, kernel, logits, noise, given)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        tensors = _keep(ctx, inputs, output)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return None, None, _along(ctx, grads[0]), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        out = _apply_launch(*_batched(info, in_dims, args))
        return out, tuple(0 for _ in out)


class _LaunchBothModes(_Launch):
    """With forward mode, which torch.compile cannot trace."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return (_along(ctx, tangents[2]), *([None] * (1 + ctx.saved)))


class _LaunchUntransformed(Function):
    """The same where no transform is at work.

    Without setup_context torch binds no signature, which was a third of the time of a small call.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        engine, kernel, logits, noise, _, given = inputs
        output = _forward(engine, kernel, logits, noise, given)
        ctx.save_for_backward(*_keep(ctx, inputs, output))
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return None, None, _along(ctx, grads[0]), None, None, None


def _apply_launch(*args: Any) -> tuple[Tensor, ...]:
    if torch.compiler.is_dynamo_compiling():
        door: type[Function] = _Launch
    elif transformed(args[2]):
        door = _LaunchBothModes
    else:
        door = _LaunchUntransformed
    return cast("tuple[Tensor, ...]", door.apply(*args))


def launch(
    kernel: AbstractKernel,
    logits: Tensor,
    noise: Tensor | Stream,
    *,
    inner: Tensor | None = None,
    given: bool = True,
    backend: Backend = "auto",
) -> Tensor:
    r"""Run a kernel.

    Args:
        kernel: which sample, and which surrogate.
        logits: (\*rows, C).
        noise: uniforms as ``kernel.noise`` says, on the device of the logits; or where they come
            from, to be drawn part by part if all of it runs here and now.
        inner: Exp(1) draws (\*rows, K, C) for a kernel with inner draws, instead of the counter.
        given: whether the noise came from outside and has to be checked.
        backend: "auto", or by name what shall run.

    Returns:
        The sample (\*rows, C) in the dtype of the logits.

    Raises:
        BackendError: no such backend, or it cannot run this.
    """
    return _launch(kernel, logits, noise, inner, given, backend)[0]


def _launch(
    kernel: AbstractKernel,
    logits: Tensor,
    noise: Tensor | Stream,
    inner: Tensor | None,
    given: bool,
    backend: Backend,
) -> tuple[Tensor, ...]:
    engine = engine_for(backend, kernel, logits)
    if isinstance(noise, Stream) and not _streams(engine, kernel, logits):
        noise = noise.all()
    # Absent inner draws travel as an empty tensor: a traced context loses a None it should save.
    draws = logits.new_empty(0) if inner is None else inner
    if torch.compiler.is_dynamo_compiling() and _transformed_inside():
        _into_the_graph()
        return _launch_as_it_is(backend, kernel, logits, noise, draws, given)
    return _apply_launch(engine, kernel, logits, noise, draws, given)


def _streams(engine: Engine, kernel: AbstractKernel, logits: Tensor) -> bool:
    """Return whether the noise need not be there before the kernel starts."""
    return (
        engine.streams
        and kernel.noise == "class"
        and logits.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not transformed(logits)
    )


def _launch_as_it_is(backend: Backend, kernel: AbstractKernel, *args: Any) -> tuple[Tensor, ...]:
    """Launch within the graph of torch.compile, which under a transform may not read the door.

    It would lose its backward and differentiate its forward. So the transform finds all its rules.
    """
    engine = engine_for(backend, kernel, args[0])
    return cast("tuple[Tensor, ...]", _LaunchBothModes.apply(engine, kernel, *args))


def _into_the_graph() -> None:
    torch.compiler.allow_in_graph(_launch_as_it_is)


# As in _attach, where the reason is: the tracer calls the function instead of reading it.
_into_the_graph.__dict__["_dynamo_marked_constant"] = True


def launch_indexed(
    kernel: AbstractKernel, logits: Tensor, noise: Tensor, *, given: bool = True
) -> tuple[Tensor, Tensor]:
    r"""Run a kernel; return the class drawn (\*rows), int64, too."""
    z, index, *_ = _launch(kernel, logits, noise, None, given, "auto")
    return z, index.to(torch.int64) if kernel.conditional else z.argmax(-1)


def draw(logits: Tensor, noise: Tensor, *, given: bool = True) -> tuple[Tensor, Tensor]:
    r"""Draw an exact one-hot sample (\*rows, C) and its index (\*rows), without a gradient."""
    return launch_indexed(Exact(), logits.detach(), noise, given=given)


class _Check(Function):
    """Look at content below functorch, where there is a content to look at."""

    @staticmethod
    def forward(check: Callable[[Tensor], None], x: Tensor) -> Tensor:
        if validates(x):
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
    check_totals(x, normalise(centre(x))[1])


def check_rows(logits: Tensor) -> None:
    r"""Raise DomainError where a row of logits (\*rows, C) has no distribution."""
    check_content(logits, _sound)


def probabilities(logits: Tensor) -> Tensor:
    r"""Return softmax(logits) (\*rows, C) in float32 or better: what a draw compares with."""
    check_rows(logits)
    return normalise(centre(logits.to(compute_dtype(logits.dtype))))[0]


def interval_ends(logits: Tensor) -> Tensor:
    r"""Return where the interval of uniforms that draws each class ends, (\*rows, C), float64."""
    check_rows(logits)
    return fused.ends(logits)
