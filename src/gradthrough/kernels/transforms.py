"""Transforms around a kernel: whether one is at work, and what stands for several."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._errors import UnsupportedError

_BATCHED: Any = torch._C._parse_dispatch_key("Batched")  # pyright: ignore


def transformed(x: Tensor) -> bool:
    """Return whether a transform of torch.func, or forward mode, is at work."""
    # What torch's own Function.apply asks; there is no public way to.
    if torch._C._are_functorch_transforms_active():  # pyright: ignore[reportPrivateUsage]
        return True
    # The level first: to unpack takes as long as several operations.
    level = cast(int, forward_ad._current_level)  # pyright: ignore[reportPrivateUsage]
    return level >= 0 and forward_ad.unpack_dual(x).tangent is not None


def transformed_inside() -> bool:
    """Return whether torch.compile reads a function under a transform of torch.func."""
    if torch._C._are_functorch_transforms_active():  # pyright: ignore[reportPrivateUsage]
        return True
    if forward_ad._current_level >= 0:  # pyright: ignore[reportPrivateUsage]
        raise UnsupportedError(
            "forward mode around torch.compile: what is compiled loses the tangents, in torch "
            "itself. Put the transform inside: "
            "torch.compile(lambda x, t: torch.func.jvp(loss, (x,), (t,)))."
        )
    return False


def is_batched(x: Tensor) -> bool:
    """Return whether x stands for several, as in torch.autograd.grad(is_grads_batched=True).

    That is a vmap older than torch.func, which asks no autograd.Function for its rule.
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._dispatch_keys(x).has(_BATCHED)  # pyright: ignore


def mapped_first(info: Any, in_dims: tuple[int | None, ...], args: tuple[Any, ...]) -> list[Any]:
    """Give every tensor the mapped dim in front: rows are independent, so it is one more row."""
    out: list[Any] = []
    for arg, dim in zip(args, in_dims, strict=True):
        if not isinstance(arg, Tensor):
            out.append(arg)
        elif dim is None:
            out.append(arg.unsqueeze(0).expand(info.batch_size, *arg.shape))
        else:
            out.append(arg.movedim(dim, 0))
    return out
