"""Checks of the content of logits and noise, under every transform."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._errors import DomainError, UnsoundLogitsError
from .._types import compute_dtype
from .softmax import centre, normalise
from .transforms import mapped_first
from .validation import validates


def check_totals(logits: Tensor, total: Tensor) -> None:
    """Raise UnsoundLogitsError where a row's total is not finite."""
    # One number tells: totals are at most C, and a sum of NaN is NaN.
    if math.isfinite(total.sum(dtype=torch.float64).item()):
        return
    bad = int((~total.isfinite()).sum())
    rows = total.numel()
    found = [
        name
        for name, hit in (
            ("NaN", logits.isnan().any()),
            ("+inf", logits.isposinf().any()),
            ("rows whose classes are all masked (-inf)", logits.isneginf().all(-1).any()),
        )
        if bool(hit)
    ]
    raise UnsoundLogitsError(
        f"logits of shape {tuple(logits.shape)} hold {', '.join(found) or 'values too large'}: "
        f"{bad} of {rows} rows have no distribution. Wanted: finite logits, or -inf for masked "
        "classes with at least one class left in each row. Look for an overflow upstream, or "
        "leave the rows without a class out."
    )


def check_uniforms(noise: Tensor) -> None:
    """Raise DomainError unless the noise is in [0, 1)."""
    if noise.numel() == 0:
        return
    low, high = torch.aminmax(noise)
    if not (bool(low >= 0.0) and bool(high < 1.0)):
        raise DomainError(
            f"noise must be uniforms in [0, 1), but runs from {low.item()} to {high.item()}. "
            "Draw it with torch.rand(shape, dtype=torch.float64), or let gradthrough draw it."
        )


class _Check(Function):
    """Look at content below functorch, where there is a content to look at."""

    @staticmethod
    def forward(check: Callable[[Tensor], None], x: Tensor) -> Tensor:
        if validates(x):
            check(x)
        return x.new_zeros(())

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _Check.apply(*mapped_first(info, in_dims, args)), None


def check_content(x: Tensor, check: Callable[[Tensor], None]) -> None:
    """Call a check that may raise, wherever content is validated, under every transform."""
    if not torch.compiler.is_compiling():
        _Check.apply(check, x.detach())


def _sound(logits: Tensor) -> None:
    x = logits.to(compute_dtype(logits.dtype))
    check_totals(x, normalise(centre(x))[1])


def check_rows(logits: Tensor) -> None:
    r"""Raise DomainError where a row of logits (\*rows, C) has no distribution."""
    check_content(logits, _sound)
