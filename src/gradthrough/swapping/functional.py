"""torch.nn.functional.gumbel_softmax, replaced under every name it has."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.overrides import (
    TorchFunctionMode,
    handle_torch_function,
    has_torch_function_unary,  # pyright: ignore[reportUnknownVariableType]
)

from .active import Code, responsible

FUNCTION = torch.nn.functional.gumbel_softmax


def gumbel_softmax(
    logits: Tensor, tau: Any = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1
) -> Tensor:
    """Do what the swap in charge says, or what torch does."""
    if has_torch_function_unary(logits):  # subclasses and modes see the call as they always do
        return handle_torch_function(
            FUNCTION, (logits,), logits, tau=tau, hard=hard, eps=eps, dim=dim
        )
    swap = responsible()
    if swap is None:
        return PATCH.stock(logits, tau=tau, hard=hard, eps=eps, dim=dim)
    if eps != 1e-10:
        warnings.warn("`eps` has no effect, as in torch's own gumbel_softmax.", stacklevel=2)
    return swap.draw(logits, hard=hard, tau=tau, dim=dim)


def _instead(logits: Any, tau: Any = 1, hard: Any = False, eps: Any = 1e-10, dim: Any = -1) -> Any:
    # Code of another function runs among that one's globals: it finds nothing of this module.
    from gradthrough.swapping.functional import gumbel_softmax

    return gumbel_softmax(logits, tau, hard, eps, dim)


# The code of the function is replaced, not its name in torch.nn.functional: so it is for all who
# hold the function (`from torch.nn.functional import gumbel_softmax`, a partial), in every thread,
# and in the recompute of a checkpoint. No TorchFunctionMode would see the call there: torch takes
# modes down for the time of a backward.
PATCH = Code(lambda: FUNCTION, _instead)


class _Mode(TorchFunctionMode):
    """Shows torch.compile the function, which else it calls without a look inside.

    So it sees from where in a model a call is made; else it need not.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is FUNCTION:
            return gumbel_softmax(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class _Depth(threading.local):
    value: int = 0
    mode: _Mode


_DEPTH = _Depth()


class Watched:
    """The mode, on in this thread once however many swaps are nested."""

    def __enter__(self) -> None:
        if not _DEPTH.value:
            _DEPTH.mode = _Mode()
            _DEPTH.mode.__enter__()
        _DEPTH.value += 1

    def __exit__(self, *error: object) -> None:
        _DEPTH.value -= 1
        if not _DEPTH.value:
            _DEPTH.mode.__exit__(None, None, None)
