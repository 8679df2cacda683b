"""Whether the content of tensors is looked at."""

import torch
from torch import Tensor

_validation: bool | None = None


def set_validation(enabled: bool | None) -> None:
    """Choose whether the content of logits and noise is checked.

    None, the default, checks on CPU and not on CUDA, where a check waits for the device. An
    unsound row (NaN, +inf or -inf throughout) that is not checked gives a NaN sample and a NaN
    gradient. Nothing is checked while a graph is traced.

    Args:
        enabled: True, False, or None for the default.

    Example:
        >>> import gradthrough as gt
        >>> gt.set_validation(True)  # check on CUDA too
        >>> gt.set_validation(None)
    """
    global _validation
    _validation = enabled


def validates(x: Tensor) -> bool:
    """Return whether the content of a tensor is looked at, here and now."""
    if torch.compiler.is_compiling() or x.device.type == "meta":
        return False
    return x.device.type == "cpu" if _validation is None else _validation
