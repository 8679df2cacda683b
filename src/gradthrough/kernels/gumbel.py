"""Gumbel-Softmax: a relaxed point and its argmax, with as few passes over float64 as can be."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .._random import Stream
from .eager import GumbelSoftmax, Launched
from .layout import Collected, Layout, parts
from .validation import validates

_LEAST = 2.0**-54


def relax(
    kernel: GumbelSoftmax, logits: Tensor, noise: Tensor | Stream, dense: bool = True
) -> Launched:
    r"""Draw for logits (\*rows, C), with uniforms of as many numbers."""
    rows = logits.reshape(-1, logits.shape[-1])
    layout = Layout(rows.shape[-1])
    relaxed = Collected(len(rows), 1 if layout.dim == 0 else 0)
    z = logits.new_empty(logits.shape if dense else (*logits.shape[:-1], 0))
    flat, chosen, start = z.view(len(rows), z.shape[-1]), Collected(len(rows)), 0
    for some, u in _with_uniforms(rows, noise):
        x = _perturbed(layout, some, u)
        part = flat[start : start + len(some)]
        start += len(some)
        if not dense:
            chosen.add(_first(x, layout.dim).reshape(-1))
        elif not kernel.soft:
            layout.write(_corner(x, layout.dim), part)
        if kernel.tau != 1.0:  # centred before the division, which would round what is shared
            x.div_(kernel.tau)
        x = torch.softmax(x, layout.dim)
        relaxed.add(x)
        if dense and kernel.soft:
            layout.write(x, part)
    point = layout.restore(relaxed.whole())
    index = _no_class(rows) if dense else chosen.whole()
    lead = logits.shape[:-1]
    total = point[:, 0].reshape(lead)
    return Launched(z, index.reshape(lead), total, (point.reshape(logits.shape),))


def _no_class(rows: Tensor) -> Tensor:
    """Return a number for each row that takes no memory: of a whole sample none is needed."""
    return torch.zeros((), dtype=torch.uint8, device=rows.device).expand(len(rows))


def _with_uniforms(rows: Tensor, noise: Tensor | Stream) -> Iterator[tuple[Tensor, Tensor]]:
    """Give some of the rows at a time, with minus the uniforms for them, new tensors."""
    if isinstance(noise, Stream):
        for (some,) in parts(rows, use="noisy"):
            yield some, noise.take(some.shape).neg_()
    else:
        for some, u in parts(rows, noise.reshape(rows.shape), use="noisy"):
            yield some, u.neg()


def _perturbed(layout: Layout, rows: Tensor, minus: Tensor) -> Tensor:
    """Return theta + G, laid out, less its maximum."""
    x = layout.arrange(rows)
    x = x - x.amax(layout.dim, keepdim=True)
    # G = -log E, E = -log1p(-u) as in _random.exponentials.
    e = layout.arrange(minus.log1p_(), x.dtype).neg_()
    x.sub_(e.clamp_min_(_LEAST).log_())
    return x.sub_(x.amax(layout.dim, keepdim=True))


def _corner(x: Tensor, dim: int) -> Tensor:
    """Return the one-hot point of the first class whose x is 0, the maximum."""
    if validates(x):
        corner = torch.empty_like(x)
        torch.eq(x, 0.0, out=corner)  # to bool it takes six times as long
        if corner.numel() == 0 or float(corner.sum(dim).amax()) <= 1.0:
            return corner
    return torch.zeros_like(x).scatter_(dim, _first(x, dim), 1.0)


def _first(x: Tensor, dim: int) -> Tensor:
    """Return the first class whose x is 0, the maximum."""
    if dim == 0:
        return x.max(0, keepdim=True)[1]
    # torch's argmax over a last dim takes several times as long.
    last = x.shape[-1] - 1
    places = torch.arange(last + 1, dtype=torch.int32, device=x.device)
    return torch.where(x == 0.0, places, last).amin(-1, keepdim=True)
