"""The kernels of ``fused`` through torch.compile: on CPU one loop of C++, on a GPU of Triton.

Built when first called for: once for a kernel with its options, a number of classes and a dtype,
and again when the number of rows first changes; then kept for the process. So a temperature that
changes at every step builds at every step: that is for ``fused``.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import count
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from .._errors import BackendError
from . import fused
from .eager import AbstractKernel, Kept, Launched

_HELP = (
    "torch.compile could not build this kernel. On CPU it needs a C++ compiler (g++ or clang++), "
    "on a GPU Triton. Everything but the speed is the same with backend='fused'."
)


def forward(kernel: AbstractKernel, logits: Tensor, noise: Tensor, dense: bool = True) -> Launched:
    r"""Draw for logits (\*rows, C), as `fused` does."""
    if torch.compiler.is_compiling():  # what is traced already is built with the rest
        return fused.forward(kernel, logits, noise, dense)
    lead, classes = logits.shape[:-1], logits.shape[-1]
    rows = _bare(logits, (lead.numel(), classes))
    u = _bare(noise, (rows.shape[0], *noise.shape[len(lead) :]))
    z, chosen, total, saved = _run(_forward(kernel, classes, logits.dtype, dense), rows, u)
    z, chosen, total, *saved = (
        x.reshape((*lead, *x.shape[1:])) for x in (z, chosen, total, *saved)
    )
    return Launched(z, chosen, total, tuple(saved))


def backward(kernel: AbstractKernel, kept: Kept, g: Tensor) -> Tensor:
    r"""Return the first derivative along g (\*rows, C), as `fused` does."""
    if torch.compiler.is_compiling():
        return fused.backward(kernel, kept, g)
    logits, chosen, noise, inner, saved = kept
    lead, classes = logits.shape[:-1], logits.shape[-1]
    rows = _bare(logits, (lead.numel(), classes))
    many, nothing = rows.shape[0], noise.new_empty(0)
    flat = Kept(
        rows,
        _bare(chosen, (many,)),
        _bare(noise, (many, 2)) if kernel.noise == "variable+seed" else nothing,
        _bare(inner, (many, -1, classes)) if inner.numel() else nothing,
        tuple(_bare(x, rows.shape) for x in saved),
    )
    build = _backward(kernel, classes, logits.dtype)
    return _run(build, flat, _bare(g, rows.shape)).reshape(logits.shape)


def _bare(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return x in a shape, contiguous and no view: of a view's base torch would check the shape."""
    return x.reshape(shape).contiguous().data


def _run(built: Callable[..., Any], *args: Any) -> Any:
    try:
        return built(*args)
    except Exception as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise BackendError(_HELP) from error
        raise


@lru_cache(maxsize=256)
def _forward(
    kernel: AbstractKernel, classes: int, dtype: torch.dtype, dense: bool
) -> Callable[..., Launched]:
    def run(logits: Tensor, noise: Tensor) -> Launched:
        return fused.forward(kernel, logits, noise, dense)

    return _built(run)


@lru_cache(maxsize=256)
def _backward(kernel: AbstractKernel, classes: int, dtype: torch.dtype) -> Callable[..., Tensor]:
    def run(kept: Kept, g: Tensor) -> Tensor:
        return fused.backward(kernel, kept, g)

    return _built(run)


_numbers = count()


def _built(run: FunctionType) -> Callable[..., Any]:
    # Of one piece of code torch counts the builds, and stops at eight; and a size that two calls
    # do not share it takes for one that varies. So each build has a code of its own, by name.
    code = run.__code__.replace(co_name=f"{run.__name__}_{next(_numbers)}")
    own = FunctionType(code, run.__globals__, code.co_name, None, run.__closure__)
    return torch.compile(own, fullgraph=True)
