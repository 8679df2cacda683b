"""torch.nn.functional.gumbel_softmax, replaced under every name it has."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.overrides import (
    TorchFunctionMode,
    _get_current_function_mode,  # pyright: ignore[reportPrivateUsage]
    handle_torch_function,
    has_torch_function_unary,  # pyright: ignore[reportUnknownVariableType]
)

from .._errors import BackendError
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
    from gradthrough.swapping.functional import instead

    return instead(logits, tau, hard, eps, dim)


def instead(logits: Tensor, tau: Any, hard: bool, eps: float, dim: int) -> Tensor:
    """Stand in for the function, but not in a graph.

    A graph of torch.compile that holds the function as it is looks like one of torch's own. It
    would be stored as that, and taken from the store by programs that never heard of a swap.
    """
    if torch.compiler.is_compiling() and not has_torch_function_unary(logits):
        raise BackendError(
            "torch.compile came upon gumbel_softmax where it does not see that it is swapped: in "
            "another thread, or in a checkpoint around compiled code. Enter the swap in the thread "
            "that compiles, and compile what holds the checkpoint."
        )
    return gumbel_softmax(logits, tau, hard, eps, dim)


# The code of the function is replaced, not its name in torch.nn.functional: so it is for all who
# hold the function (`from torch.nn.functional import gumbel_softmax`, a partial), in every thread,
# and in the recompute of a checkpoint. The mode below would not see the call there: torch takes
# modes down for the time of a backward.
PATCH = Code(lambda: FUNCTION, _instead)


class _Mode(TorchFunctionMode):
    """Shows torch.compile the function to those who hold it: else it would not look inside."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is FUNCTION:
            return gumbel_softmax(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class _Held(threading.local):
    depth: int = 0
    mode: _Mode


_HELD = _Held()


class Watched:
    """The mode, on in this thread once, however many swaps are nested."""

    def __enter__(self) -> None:
        if not _HELD.depth:
            _HELD.mode = _Mode()
            _HELD.mode.__enter__()
        _HELD.depth += 1

    def __exit__(self, *error: object) -> None:
        if not _HELD.depth:  # entered in another thread, where the mode stays, and does nothing
            return
        _HELD.depth -= 1
        if not _HELD.depth:
            _take_down(_HELD.mode)


def _take_down(mode: TorchFunctionMode) -> None:
    """Take a mode off the stack, also from beneath others, which stay."""
    above: list[TorchFunctionMode] = []
    while (top := _get_current_function_mode()) is not None and top is not mode:
        TorchFunctionMode.__exit__(top, None, None, None)
        above.append(top)
    if top is mode:
        TorchFunctionMode.__exit__(mode, None, None, None)
    for one in reversed(above):
        TorchFunctionMode.__enter__(one)
