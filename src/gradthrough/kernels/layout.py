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
_COMPLEX = (torch.float32, torch.float64)  # that make up complex numbers
# Elements of a part that is gone over once, the same for long rows, often, or to draw float64
# numbers for it. Found by timing.
PARTS = {"once": 2**18, "long": 2**20, "often": 2**15, "noisy": 2**16}


class Layout:
    """The layout for rows of so many classes."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.dim = 0 if classes <= _CLASS_MAJOR else -1

    def arrange(self, rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Lay (R, C) out in a dtype, or float32 or better. It may share memory with `rows`."""
        dtype = dtype or compute_dtype(rows.dtype)
        if self.dim == -1:
            return rows.to(dtype)
        if rows.dtype != dtype:  # one copy, quicker than a transposed one of the same dtype
            return rows.t().to(dtype, memory_format=torch.contiguous_format)
        if rows.stride(0) == 1:  # as `restore` leaves it
            return rows.t()
        if self.classes <= _COLUMNS:
            return torch.stack(rows.unbind(-1))
        return rows.t().contiguous()

    def each(self, x: Tensor) -> Tensor:
        """Lay a number for each row (R) out: (1, R) or (R, 1)."""
        return x.unsqueeze(self.dim)

    def restore(self, x: Tensor) -> Tensor:
        """Return what was laid out as (R, C), a view."""
        return x if self.dim == -1 else x.t()

    def write(self, x: Tensor, out: Tensor) -> None:
        """Put what was laid out into (R, C), row by row in memory."""
        direct = x.dtype == out.dtype and not torch.compiler.is_compiling()
        if direct and self.classes == 2 and x.dtype in _COMPLEX:
            torch.complex(x[0], x[1], out=torch.view_as_complex(out))
        elif direct and self.classes <= _COLUMNS:
            torch.stack(x.unbind(0), -1, out=out)
        else:
            out.copy_(self.restore(x))


def interleaved(zero: Tensor, one: Tensor) -> Tensor:
    """Stack two tensors along a new last dim, by the quickest way that torch has on CPU."""
    if torch.compiler.is_compiling() or zero.dtype not in _COMPLEX:
        return torch.stack((zero, one), -1)
    out = torch.empty((*one.shape, 2), dtype=one.dtype, device=one.device)
    torch.complex(zero, one, out=torch.view_as_complex(out))
    return out


def parts(rows: Tensor, *others: Tensor, use: str = "once") -> Iterator[tuple[Tensor, ...]]:
    """Cut rows (R, C), and others with as many rows, into parts to work on one by one.

    On CPU, where a kernel's buffers then stay within the memory that the process holds already:
    fresh pages cost several times the arithmetic. What the parts are for is one of PARTS.
    """
    if rows.device.type != "cpu" or torch.compiler.is_compiling():
        yield (rows, *others)
        return
    count, classes = rows.shape
    size = max(PARTS["long" if use == "once" and classes > _LONG else use] // classes, 1)
    if count <= size:
        yield (rows, *others)
        return
    for start in range(0, count, size):
        yield tuple(x[start : start + size] for x in (rows, *others))


class Collected:
    """Pieces of rows, so many together along `dim`, put in their place as they come."""

    def __init__(self, count: int, dim: int = 0) -> None:
        self._count, self._dim, self._start = count, dim, 0
        self._whole: Tensor | None = None

    def add(self, piece: Tensor) -> None:
        """Take the next piece; one that is the whole is kept as it is."""
        size = piece.shape[self._dim]
        if size == self._count:
            self._whole = piece
            return
        if self._whole is None:
            shape = list(piece.shape)
            shape[self._dim] = self._count
            self._whole = torch.empty(shape, dtype=piece.dtype, device=piece.device)
        self._whole.narrow(self._dim, self._start, size).copy_(piece)
        self._start += size

    def whole(self) -> Tensor:
        """Return what came."""
        if self._whole is None:
            raise RuntimeError("no pieces came")
        return self._whole


def joined(pieces: Iterable[Tensor], count: int) -> Tensor:
    """Join pieces of rows, so many together, as they come; contiguous."""
    out = Collected(count)
    for piece in pieces:
        out.add(piece)
    return out.whole().contiguous()
