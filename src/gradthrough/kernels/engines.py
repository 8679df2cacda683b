"""Which code runs a kernel: a backend asked for by name runs or raises."""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._errors import BackendError
from .._types import Backend
from . import compiled, eager, fused
from .eager import AbstractKernel, Kept, Launched

BACKENDS = ("auto", "eager", "fused", "compile", "triton")


class Engine(NamedTuple):
    """A backend: a kernel's sample, and its first derivative."""

    forward: Callable[[AbstractKernel, Tensor, Any, bool], Launched]
    backward: Callable[[AbstractKernel, Kept, Tensor], Tensor]
    poisons: bool = False  # whether its samples of unsound rows are NaN already
    streams: bool = False  # whether it takes a Stream for noise of kind "class"


SPECIFICATION = Engine(eager.forward, eager.backward)
_FUSED = Engine(fused.forward, fused.backward, streams=True)
_COMPILE = Engine(compiled.forward, compiled.backward)


def engine_for(backend: Backend, kernel: AbstractKernel, logits: Tensor) -> Engine:
    r"""Return what runs a kernel on logits (\*rows, C), or say why nothing by that name can.

    "auto" is Triton where it can run, on CUDA and outside of a graph being traced (which a
    compiler turns into code of its own), and `fused` elsewhere.
    """
    if backend in ("auto", "fused"):
        if backend == "auto" and logits.is_cuda and not torch.compiler.is_compiling():
            engine, why = _triton(kernel, logits)
            return _FUSED if why else engine
        return _FUSED
    if backend == "eager":
        return SPECIFICATION
    if backend == "compile":
        return _COMPILE
    if backend == "triton":
        engine, why = _triton(kernel, logits)
        if why:
            raise BackendError(f"backend='triton' was asked for. {why} backend='auto' picks one.")
        return engine
    raise BackendError(f"unknown backend {backend!r}. Known: {', '.join(map(repr, BACKENDS))}.")


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _triton(kernel: AbstractKernel, logits: Tensor) -> tuple[Engine, str]:
    """Return the Triton backend, or why it cannot run."""
    if not _has_triton():
        return _FUSED, "Triton is not installed: pip install 'gradthrough[triton]'."
    from . import triton

    engine = Engine(triton.forward, triton.backward, poisons=True)
    return engine, triton.unsupported(kernel, logits)
