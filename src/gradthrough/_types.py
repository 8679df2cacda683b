"""The shape vocabulary and the few types that every layer shares.

Shapes are written with these letters everywhere:

* ``N``: samples, the leading dim of points and values.
* ``*batch``: independent rows, one value of f each.
* ``*event``: several variables that f sees jointly in one row.
* ``C``: classes of one categorical variable, always the last dim.

A categorical point is one-hot, ``(N, *batch, *event, C)``; a Bernoulli point is 0 or 1,
``(N, *batch, *event)``; values of f are ``(N, *batch)``.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["auto", "eager", "fused", "compile", "triton"]
"""Which code runs a kernel. A backend asked for by name runs or raises."""

NoiseKind = Literal[
    "none", "variable", "variable+seed", "class-1", "class", "class+variable", "class2"
]
"""What an estimator draws: nothing, one uniform for each variable, that and the seed of a
counter, one uniform for each class but one, for each class, for each class and one for the
variable, or two for each class."""

Gradients = Literal["none", "values", "graph"]
"""What an estimator wants of the gradient of f at its points: nothing, its values, or values
that can be differentiated in the points again."""

Objective = Callable[[Tensor], Tensor]
"""f: points ``(N, *batch, *event[, C])`` to values ``(N, *batch)``."""

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that arithmetic runs in: float32 or better."""
    return torch.float64 if dtype == torch.float64 else torch.float32
