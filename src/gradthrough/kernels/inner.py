"""Inner draws that come from outside: what they must be."""

from torch import Tensor

from .._errors import BackendError, DomainError, ShapeError, UnsupportedError
from .checks import check_content


def count_inner(inner: object, rows: Tensor, extra: int = 0) -> int:
    r"""Return K for inner Exp(1) draws (\*rows, K + extra, C), K >= 1, else say what came."""
    if not isinstance(inner, Tensor) or not inner.is_floating_point():
        raise UnsupportedError(
            "inner must be a floating-point tensor of Exp(1) draws, but a "
            f"{getattr(inner, 'dtype', type(inner).__name__)} came."
        )
    shape = tuple(rows.shape)
    if inner.ndim != len(shape) + 1 or (*inner.shape[:-2], inner.shape[-1]) != shape:
        many = f"K + {extra}" if extra else "K"
        raise ShapeError(
            f"inner must have shape (*rows, {many}, C) = {(*shape[:-1], many, shape[-1])}, but has "
            f"{tuple(inner.shape)}."
        )
    if inner.shape[-2] <= extra:
        raise DomainError(
            f"inner must hold at least {1 + extra} draws for each row, but has shape "
            f"{tuple(inner.shape)}."
        )
    if inner.device != rows.device:
        raise BackendError(
            f"inner lives on {inner.device}, but the logits on {rows.device}. "
            "Move it: inner.to(logits.device)."
        )
    check_content(inner, _check_content)
    return inner.shape[-2] - extra


def _check_content(inner: Tensor) -> None:
    if not bool(((inner > 0) & inner.isfinite()).all()):
        raise DomainError(
            "inner must be Exp(1) draws, finite and above 0 throughout, but some are not. Draw "
            "them: torch.empty(shape).exponential_()."
        )
