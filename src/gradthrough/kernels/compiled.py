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
    return _run(_forward(kernel, logits.shape[-1], logits.dtype), logits.detach(), noise)


def backward(kernel: AbstractKernel, kept: Kept, g: Tensor) -> Tensor:
    r"""Return the first derivative along g (\*rows, C), as `fused` does."""
    if torch.compiler.is_compiling():
        return fused.backward(kernel, kept, g)
    build = _backward(kernel, kept.logits.shape[-1], kept.logits.dtype)
    return _run(build, kept._replace(logits=kept.logits.detach()), g)


def _run(built: Callable[..., Any], *args: Any) -> Any:
    try:
        return built(*args)
    except torch._dynamo.exc.TorchDynamoException as error:  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        raise BackendError(_HELP) from error


# The number of classes is made a constant of the code, also where torch has decided from other
# calls that it may change.


@cache
def _forward(kernel: AbstractKernel, classes: int, dtype: torch.dtype) -> Callable[..., Launched]:
    def run(logits: Tensor, noise: Tensor) -> Launched:
        return fused.forward(kernel, logits.reshape(*logits.shape[:-1], classes), noise)

    return _built(run)


@cache
def _backward(kernel: AbstractKernel, classes: int, dtype: torch.dtype) -> Callable[..., Tensor]:
    def run(kept: Kept, g: Tensor) -> Tensor:
        logits = kept.logits.reshape(*kept.logits.shape[:-1], classes)
        return fused.backward(kernel, kept._replace(logits=logits), g)

    return _built(run)


def _built(function: Callable[..., Any]) -> Callable[..., Any]:
    # Apart from one another: torch counts the builds of one piece of code, and stops at eight.
    return torch.compile(function, fullgraph=True, isolate_recompiles=True)
