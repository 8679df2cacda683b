"""The kernels of ``fused`` through torch.compile: on CPU one loop of C++, on a GPU of Triton.

Built when first called for, once for a kernel, a number of classes and a dtype, and again when the
number of rows first changes; then kept for the process.
"""

from collections.abc import Callable
from functools import cache
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


def forward(kernel: AbstractKernel, logits: Tensor, noise: Tensor) -> Launched:
    r"""Draw for logits (\*rows, C), as `fused` does."""
    if torch.compiler.is_compiling():  # what is traced already is built with the rest
        return fused.forward(kernel, logits, noise)
    lead, classes = logits.shape[:-1], logits.shape[-1]
    rows = logits.detach().reshape(-1, classes)
    u = noise.reshape(rows.shape[0], *noise.shape[len(lead) :])
    z, chosen, total, saved = _run(_forward(kernel, classes, logits.dtype), rows, u)
    out = (z, chosen, total, *saved)
    out = tuple(x.reshape(*lead, *x.shape[1:]) for x in out)
    return Launched(*out[:3], out[3:])


def backward(kernel: AbstractKernel, kept: Kept, g: Tensor) -> Tensor:
    r"""Return the first derivative along g (\*rows, C), as `fused` does."""
    if torch.compiler.is_compiling():
        return fused.backward(kernel, kept, g)
    logits, chosen, noise, inner, saved = kept
    shape, classes = logits.shape, logits.shape[-1]
    rows = logits.detach().reshape(-1, classes)
    count = rows.shape[0]
    flat = Kept(
        rows,
        chosen.reshape(-1),
        noise.reshape(count, 2) if kernel.noise == "variable+seed" else noise.new_empty(0),
        inner.reshape(count, -1, classes) if inner.numel() else inner.new_empty(0),
        tuple(x.reshape(rows.shape) for x in saved),
    )
    build = _backward(kernel, classes, logits.dtype)
    return _run(build, flat, g.reshape(rows.shape)).reshape(shape)


def _run(built: Callable[..., Any], *args: Any) -> Any:
    try:
        return built(*args)
    except torch._dynamo.exc.TorchDynamoException as error:  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        raise BackendError(_HELP) from error


@cache
def _forward(kernel: AbstractKernel, classes: int, dtype: torch.dtype) -> Callable[..., Launched]:
    # Written so, the number of classes is a constant of the code, also where torch has decided
    # that it may change.
    return _built(lambda rows, u: fused.forward(kernel, rows.reshape(-1, classes), u))


@cache
def _backward(kernel: AbstractKernel, classes: int, dtype: torch.dtype) -> Callable[..., Tensor]:
    def run(kept: Kept, g: Tensor) -> Tensor:
        kept = kept._replace(logits=kept.logits.reshape(-1, classes))
        return fused.backward(kernel, kept, g.reshape(-1, classes))

    return _built(run)


def _built(function: Callable[..., Any]) -> Callable[..., Any]:
    # Apart from one another: torch counts the builds of one piece of code, and stops at eight.
    return torch.compile(function, fullgraph=True, isolate_recompiles=True)
