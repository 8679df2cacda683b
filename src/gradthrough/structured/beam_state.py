"""What goes into a step of a beam search and comes out of it, and the state that follows it."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from .._errors import ShapeError, UnsupportedError
from .._types import FLOATS

State = Any
"""Tensors, numbers, None, and tuples, lists and dicts of them."""


def check_start(start: object) -> None:
    """Refuse what is not one token for each row."""
    if not isinstance(start, Tensor) or start.dtype != torch.int64:
        came = getattr(start, "dtype", type(start).__name__)
        raise UnsupportedError(
            "start must be an int64 tensor (*batch,) with the token that each row starts from, "
            f"but {came} came."
        )


def check_step(returned: object, tokens: Tensor) -> tuple[Tensor, State]:
    """Return what a step of the model returned, or say what is wrong with it."""
    pair = cast("tuple[Any, ...]", returned if isinstance(returned, tuple) else ())
    if len(pair) != 2 or not isinstance(pair[0], Tensor):
        raise UnsupportedError(
            "step must return (logits, state), a tensor and what the next call is given, but "
            f"returned {_named(cast(object, returned))}."
        )
    logits, state = pair
    if logits.dtype not in FLOATS:
        raise UnsupportedError(
            "the logits of step must be float64, float32, bfloat16 or float16, but are "
            f"{logits.dtype}."
        )
    if logits.ndim != tokens.ndim + 1 or logits.shape[:-1] != tokens.shape or not logits.shape[-1]:
        raise ShapeError(
            f"step was given tokens of shape {tuple(tokens.shape)}, (*batch, beams), and must "
            f"return logits (*batch, beams, V), but they have shape {tuple(logits.shape)}."
        )
    mapped(state, lambda x: _check_state(x, tokens))
    return logits, state


def _named(x: object) -> str:
    """Name what came by its types: the numbers of a tensor would fill the message."""
    name = f"a {type(x).__name__}"
    if not isinstance(x, tuple | list):
        return name
    parts = (type(part).__name__ for part in cast("tuple[object, ...]", x))
    return f"{name} of ({', '.join(parts)})"


def with_beam(x: Tensor, batch: tuple[int, ...]) -> Tensor:
    """Give a tensor of the state the dim of the beams, one of them."""
    if tuple(x.shape[: len(batch)]) != batch:
        raise ShapeError(
            f"the tensors of the state must begin with the shape of start, {batch}, but one has "
            f"shape {tuple(x.shape)}."
        )
    return x.unsqueeze(len(batch))


def follow(x: Tensor, parents: Tensor) -> Tensor:
    r"""Give each beam its parent's part of a tensor (\*batch, b, ...)."""
    rest = x.shape[parents.ndim :]
    index = parents.reshape(*parents.shape, *(1,) * len(rest)).expand(*parents.shape, *rest)
    return x.gather(parents.ndim - 1, index)


def mapped(state: State, change: Callable[[Tensor], Tensor]) -> State:
    """Change the tensors of a state, wherever they are in it."""
    if isinstance(state, Tensor):
        return change(state)
    if state is None or isinstance(state, bool | int | float | str):
        return state
    if isinstance(state, dict):
        named = cast("dict[Any, State]", state)
        return {name: mapped(part, change) for name, part in named.items()}
    if isinstance(state, list):
        return [mapped(part, change) for part in cast("list[State]", state)]
    if isinstance(state, tuple):
        made = cast("tuple[State, ...]", state)
        parts = [mapped(part, change) for part in made]
        # A named tuple takes its parts one by one.
        return type(made)(*parts) if hasattr(made, "_fields") else tuple(parts)
    raise UnsupportedError(
        "the state must be made of tensors, numbers, None, and tuples, lists and dicts of them, "
        f"so that it can follow the beams, but holds a {type(state).__name__}."
    )


def _check_state(x: Tensor, tokens: Tensor) -> Tensor:
    if x.shape[: tokens.ndim] != tokens.shape:
        raise ShapeError(
            f"the tensors of the state must begin with (*batch, beams) = {tuple(tokens.shape)}, "
            f"but step returned one of shape {tuple(x.shape)}."
        )
    return x
