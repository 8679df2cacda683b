"""The kernels of ``fused`` through torch.compile: on CPU one loop of C++, on a GPU of Triton.

Built when first called for, once for a kernel, a number of classes and a dtype, and again when the
number of rows first changes; then kept for the process.
"""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, cast

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
    build = _forward(kernel, logits.shape[-1], logits.dtype, dense)
    return _run(build, logits.detach(), noise)


def backward(kernel: AbstractKernel, kept: Kept, g: Tensor) -> Tensor:
    r"""Return the first derivative along g (\*rows, C), as `fused` does."""
    if torch.compiler.is_compiling():
        return fused.backward(kernel, kept, g)
    build = _backward(kernel, kept.logits.shape[-1], kept.logits.dtype)
    return _run(build, kept._replace(logits=kept.logits.detach()), g)


def _run(built: Callable[..., Any], *args: Any) -> Any:
    try:
        return built(*args)
    except RuntimeError as error:  # of which torch's errors of tracing and building are
        raise BackendError(_HELP) from error


# The number of classes is made a constant of the code, also where torch has decided from other
# calls that it may change.


@cache
def _forward(
    kernel: AbstractKernel, classes: int, dtype: torch.dtype, dense: bool
) -> Callable[..., Launched]:
    def run(logits: Tensor, noise: Tensor) -> Launched:
        logits = logits.reshape(*logits.shape[:-1], classes)
        return fused.forward(kernel, logits, noise, dense)

    return _built(run)


@cache
def _backward(kernel: AbstractKernel, classes: int, dtype: torch.dtype) -> Callable[..., Tensor]:
    def run(kept: Kept, g: Tensor) -> Tensor:
        logits = kept.logits.reshape(*kept.logits.shape[:-1], classes)
        return fused.backward(kernel, kept._replace(logits=logits), g)

    return _built(run)


def _built(function: Callable[..., Any]) -> Callable[..., Any]:
    compiler = cast(Any, torch.compile)  # the option is not among the overloads of its types
    if "isolate_recompiles" not in inspect.signature(compiler).parameters:
        raise BackendError(f"backend='compile' needs torch 2.13, but this is {torch.__version__}.")
    # Apart from one another: torch counts the builds of one piece of code, and stops at eight.
    return compiler(function, fullgraph=True, isolate_recompiles=True)
