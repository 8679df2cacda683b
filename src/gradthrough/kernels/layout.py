"""How rows of logits lie in memory while a kernel works.

Rows (R, C) of few classes are laid out class by class, (C, R): torch's softmax over a short last
dim is several times slower than over a short first dim. Longer rows stay as they are. Either way a
kernel works along ``layout.dim``, and a number for each row has size 1 there.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from .._types import compute_dtype

_CLASS_MAJOR = 20  # classes, at most; about where the two softmaxes take the same time
_COLUMNS = 4  # that are copied one by one, at most: torch transposes a narrow matrix slowly
_LONG = 256  # classes; rows of more need no cumulative sum in float64
_PART, _LONG_PART, _OFTEN_PART = 2**18, 2**20, 2**15  # elements


class Layout:
    """The layout for rows of so many classes."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.dim = 0 if classes <= _CLASS_MAJOR else -1

    def arrange(self, rows: Tensor) -> Tensor:
        """Lay (R, C) out in float32 or better. The result may share memory with `rows`."""
        rows = rows.to(compute_dtype(rows.dtype))
        if self.dim == -1:
            return rows
        if self.classes <= _COLUMNS:
            return torch.stack(rows.unbind(-1))
        return rows.t().contiguous()

    def each(self, x: Tensor) -> Tensor:
        """Lay a number for each row (R) out: (1, R) or (R, 1)."""
        return x.unsqueeze(self.dim)

    def restore(self, x: Tensor) -> Tensor:
        """Return what was laid out as (R, C), a view."""
        return x if self.dim == -1 else x.t()


def parts(rows: Tensor, *others: Tensor, often: bool = False) -> Iterator[tuple[Tensor, ...]]:
    """Cut rows (R, C), and others with as many rows, into parts to work on one by one.

    On CPU, where a kernel's buffers then stay within the memory that the process holds already:
    fresh pages cost several times the arithmetic. Where each part is gone over `often`, they
    stay in the cache, too.
    """
    if rows.device.type != "cpu" or torch.compiler.is_compiling():
        yield (rows, *others)
        return
    count, classes = rows.shape
    most = _OFTEN_PART if often else _PART if classes <= _LONG else _LONG_PART
    size = max(most // classes, 1)
    if count <= size:
        yield (rows, *others)
        return
    for start in range(0, count, size):
        yield tuple(x[start : start + size] for x in (rows, *others))


def joined(pieces: Iterable[Tensor], count: int) -> Tensor:
    """Join pieces of rows, so many together, as they come."""
    out: Tensor | None = None
    start = 0
    for piece in pieces:
        if piece.shape[0] == count:
            return piece.contiguous()
        if out is None:
            out = torch.empty((count, *piece.shape[1:]), dtype=piece.dtype, device=piece.device)
        out[start : start + piece.shape[0]] = piece
        start += piece.shape[0]
    if out is None:
        raise RuntimeError("no pieces came")
    return out
