"""Checks of what comes in, and learnable numbers."""

import math
import numbers
from functools import partial
from typing import cast

import torch
from torch import Tensor

from .._errors import DomainError, ShapeError, UnsupportedError
from .._types import FLOATS
from ..kernels.checks import check_content
from ..kernels.transforms import transformed


def check_positive(name: str, value: object) -> float:
    """Return a finite number above 0, else say what came."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.requires_grad:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UnsupportedError(f"{name} must be a number, but a {type(value).__name__} came.")
    # Comparisons, and in a graph no conversion: there the number may be a symbol, which moves from
    # step to step without another graph.
    symbolic = torch.compiler.is_dynamo_compiling()
    number: float = value if symbolic else float(value)  # pyright: ignore[reportAssignmentType]
    if not 0 < number < math.inf:
        raise DomainError(f"{name} must be finite and above 0, but is {number}.")
    if not 1e-30 <= number <= 1e30:
        raise DomainError(
            f"{name} must lie between 1e-30 and 1e30, so that float32 has room for its "
            f"quotients, but is {number}."
        )
    return number


Scalar = float | Tensor


def check_temperature(name: str, value: object) -> Scalar:
    """Return a number above 0, or the tensor of such numbers, as it is: it may be learned."""
    if not isinstance(value, Tensor) or (value.numel() == 1 and not _is_followed(value)):
        return check_positive(name, value)
    if not value.is_floating_point():
        raise UnsupportedError(f"{name} must be floating point, but is {value.dtype}.")
    check_content(value, partial(_check_positive, name))
    return value


def for_kernel(tau: object) -> float:
    """Return a temperature as kernels take it; `tempered` runs those where it is a tensor."""
    return cast(float, check_temperature("tau", tau))


def _is_followed(value: Tensor) -> bool:
    return value.requires_grad or transformed(value)


def _check_positive(name: str, value: Tensor) -> None:
    if not bool(((value > 0) & value.isfinite()).all()):
        raise DomainError(
            f"{name} must be finite and above 0 throughout, but the tensor is not. Learn its "
            "logarithm, or clamp it."
        )


def _check_finite(name: str, value: Tensor) -> None:
    if not bool(value.isfinite().all()):
        raise DomainError(f"{name} must be finite, but is {value.detach().reshape(()).item()}.")


def check_scalar(name: str, value: object, *, positive: bool = False) -> Scalar:
    """Return a finite number, or the tensor of one number, as it is: it may be learned."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or not value.is_floating_point():
            raise UnsupportedError(
                f"{name} must be a number or a floating-point tensor of one number, but a "
                f"{value.dtype} tensor of shape {tuple(value.shape)} came."
            )
        check_content(value, partial(_check_finite, name))
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UnsupportedError(
            f"{name} must be a number or a tensor of one number, but a {type(value).__name__} came."
        )
    number = float(value)
    if not math.isfinite(number) or (positive and number <= 0):
        raise DomainError(
            f"{name} must be finite{' and above 0' if positive else ''}, but is {number}."
        )
    return number


def scalar_like(value: Scalar, x: Tensor) -> Tensor:
    """Return a number as a tensor of no dims, of the dtype and device of x, with its graph."""
    return torch.as_tensor(value, dtype=x.dtype, device=x.device).reshape(())


def check_count(name: str, value: object, least: int) -> int:
    """Return an int of at least `least`, else say what came."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise UnsupportedError(f"{name} must be an int, but a {type(value).__name__} came.")
    if value < least:
        raise DomainError(f"{name} must be at least {least}, but is {value}.")
    return value


def check_switch(name: str, value: object) -> bool:
    """Return a bool, else say what came."""
    if not isinstance(value, bool):
        raise UnsupportedError(f"{name} must be True or False, but is {value!r}.")
    return value


def check_logits(logits: object, dim: object) -> Tensor:
    """Refuse what a plain pathwise function cannot take."""
    if not isinstance(logits, Tensor):
        raise UnsupportedError(
            f"logits must be a torch.Tensor, but a {type(logits).__name__} came."
        )
    if logits.dtype not in FLOATS:
        raise UnsupportedError(
            f"logits must be float64, float32, bfloat16 or float16, but are {logits.dtype}. "
            "Convert them: logits.float()."
        )
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise UnsupportedError(f"dim must be an int, but a {type(dim).__name__} came.")
    if not -logits.ndim <= dim < logits.ndim:
        raise ShapeError(
            f"dim={dim} does not exist: logits have shape {tuple(logits.shape)}, with the classes "
            "along one of its dims."
        )
    if logits.shape[dim] == 0:
        raise ShapeError(f"logits of shape {tuple(logits.shape)} have no class along dim={dim}.")
    return logits
