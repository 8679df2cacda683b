"""What comes into a layer: features and masks."""

import torch
from torch import Tensor, nn

from .._errors import BackendError, ShapeError, UnsupportedError


def project(linear: nn.Linear, x: Tensor) -> Tensor:
    """Return linear(x), or say which features came."""
    if x.ndim < 1 or x.shape[-1] != linear.in_features:
        raise ShapeError(
            f"the layer takes inputs (*batch, {linear.in_features}), but they have shape "
            f"{tuple(x.shape)}. Make the layer with in_features={x.shape[-1] if x.ndim else 1}, or "
            "bring the features to the end."
        )
    return linear(x)


def check_mask(mask: object, like: Tensor) -> Tensor:
    """Return a mask that is bool, on the device of what it is for."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        came = getattr(mask, "dtype", type(mask).__name__)
        raise UnsupportedError(
            f"mask must be a bool tensor, True where something counts, but {came} came. Convert "
            "it: mask.bool()."
        )
    if mask.device != like.device:
        raise BackendError(
            f"mask lives on {mask.device}, but what it is for on {like.device}. Move it: "
            f"mask.to({str(like.device)!r})."
        )
    return mask


def check_positions(mask: Tensor, positions: tuple[int, ...], like: Tensor) -> Tensor:
    """Return a mask with one entry for each position."""
    check_mask(mask, like)
    if tuple(mask.shape) != positions:
        raise ShapeError(
            f"mask must have one entry for each position, shape {positions}, but has "
            f"{tuple(mask.shape)}."
        )
    return mask
