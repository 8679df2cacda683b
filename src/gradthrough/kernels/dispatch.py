"""launch: the one autograd door to the kernels."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from .._random import Stream
from .._types import Backend, compute_dtype
from . import fused
from .checks import check_rows, check_totals, check_uniforms
from .derivative import along
from .eager import AbstractKernel, Exact
from .engines import Engine, engine_for
from .softmax import centre, normalise
from .transforms import mapped_first, transformed, transformed_inside
from .validation import validates


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
        out = _apply_launch(*mapped_first(info, in_dims, args))
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
    if torch.compiler.is_dynamo_compiling() and transformed_inside():
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


def probabilities(logits: Tensor) -> Tensor:
    r"""Return softmax(logits) (\*rows, C) in float32 or better: what a draw compares with."""
    check_rows(logits)
    return normalise(centre(logits.to(compute_dtype(logits.dtype))))[0]


def interval_ends(logits: Tensor) -> Tensor:
    r"""Return where the interval of uniforms that draws each class ends, (\*rows, C), float64."""
    check_rows(logits)
    return fused.ends(logits)
