"""Which code runs a kernel: a backend asked for by name runs or raises."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from .._errors import BackendError
from .._types import Backend
from . import compiled, eager, fused
from .eager import AbstractKernel, Kept, Launched

BACKENDS = ("auto", "eager", "fused", "compile", "triton")


class Engine(NamedTuple):
    """A backend: a kernel's sample, and its first derivative."""

    forward: Callable[[AbstractKernel, Tensor, Tensor], Launched]
    backward: Callable[[AbstractKernel, Kept, Tensor], Tensor]
    poisons: bool  # whether its samples of unsound rows are NaN already


_EAGER = Engine(eager.forward, eager.backward, False)
_COMPILE = Engine(compiled.forward, compiled.backward, False)
_FUSED = Engine(fused.forward, fused.backward, False)


def engine_for(backend: Backend, kernel: AbstractKernel, logits: Tensor) -> Engine:
    r"""Return what runs a kernel on logits (\*rows, C), or say why nothing by that name can."""
    if backend in ("auto", "fused"):
        return _FUSED
    if backend == "eager":
        return _EAGER
    if backend == "compile":
        return _COMPILE
    raise BackendError(f"unknown backend {backend!r}. Known: {', '.join(map(repr, BACKENDS))}.")
