"""The pathwise kernels in plain torch, arranged for speed; ``eager`` says what they compute.

A draw takes one uniform for a variable and no cumulative sum over a long row; a first derivative
takes the softmax again, so that nothing of the size of the logits is kept but the logits. The
sums run in another order than in ``eager``: equal to rounding.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._random import Stream
from .._types import compute_dtype
from . import binary, drawing, eager
from .drawing import draw
from .eager import (
    AbstractKernel,
    DecoupledStraightThrough,
    GappedStraightThrough,
    GumbelRao,
    GumbelSoftmax,
    Kept,
    Launched,
    ReinMax,
    ReinMaxCV,
    ReinMaxRao,
    SoftGumbelSoftmax,
    StraightThrough,
)
from .gumbel import relax
from .layout import Collected, Layout, interleaved, joined, parts
from .rao import average

_softmax_backward = torch._softmax_backward_data  # pyright: ignore


def forward(
    kernel: AbstractKernel, logits: Tensor, noise: Tensor | Stream, dense: bool = True
) -> Launched:
    r"""Draw for logits (\*rows, C); an unsound row gives any class and a total of NaN.

    One dim of the rows may be of size 1 where the noise has more: one softmax, several draws.
    Without `dense` no sample is made, only its class.
    """
    if isinstance(kernel, GumbelSoftmax):
        return relax(kernel, logits, noise, dense)
    if isinstance(noise, Stream):
        raise TypeError("a stream of uniforms serves Gumbel-Softmax alone")
    rows, lead = logits.reshape(-1, logits.shape[-1]), logits.shape[:-1]
    u = noise[..., 0] if kernel.noise == "variable+seed" else noise
    wide = next((d for d, size in enumerate(lead) if u.shape[d] != size), None)
    u = u.unsqueeze(-1) if wide is None else u.movedim(wide, -1)
    index, total = _sample(kernel.law, rows, u.reshape(rows.shape[0], u.shape[-1]))
    index = index.reshape(u.shape)
    index = index.squeeze(-1) if wide is None else index.movedim(-1, wide)
    return Launched(
        _corner(index, logits.shape[-1] if dense else 0, logits.dtype),
        index,
        total.reshape(lead),
        (),
    )


def _sample(law: float, rows: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Draw classes (R, N) from softmax(rows / law) with u (R, N); return the totals (R), too."""
    if rows.shape[-1] == 2:
        x = rows.to(compute_dtype(rows.dtype))
        return binary.draw(x, u, law), x[:, 0].maximum(x[:, 1]).mul_(0.0)
    layout = Layout(rows.shape[-1])
    drawn, total = Collected(len(rows)), Collected(len(rows))
    for some, v in parts(rows, u):
        p = _softmax(layout.arrange(some), law, layout.dim)
        drawn.add(draw(p, v, layout.dim))
        total.add(p.select(layout.dim, 0))
    # No view of a softmax, which it would keep alive.
    return drawn.whole().contiguous(), total.whole().contiguous()


def ends(logits: Tensor) -> Tensor:
    r"""Return where each class's interval of uniforms ends (\*rows, C), float64, up to 1."""
    layout, rows = Layout(logits.shape[-1]), logits.reshape(-1, logits.shape[-1])
    p = _softmax(layout.arrange(rows), 1.0, layout.dim)
    return drawing.ends(layout.restore(p)).reshape(logits.shape)


def _corner(index: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    r"""Return exact zeros and ones (\*rows, C) for the class of each row; it is no view.

    For C = 0, where no sample is wanted, it is empty.
    """
    if classes == 0:
        return torch.empty((*index.shape, 0), dtype=dtype, device=index.device)
    if classes == 2 and dtype in (torch.float32, torch.float64):
        one = index.to(dtype)
        return interleaved(1.0 - one, one)
    z = torch.zeros((*index.shape, classes), dtype=dtype, device=index.device)
    z.view(-1, classes).scatter_(-1, index.to(torch.int64).reshape(-1, 1), 1.0)
    return z


class _Part:
    """Some of the rows. What is asked for is laid out anew: not every kernel looks at all of it."""

    def __init__(self, layout: Layout, kept: Kept, g: Tensor) -> None:
        self._layout, self._g = layout, g
        self.kept = kept  # the same rows, as they came

    @property
    def x(self) -> Tensor:
        """Logits, (C, R) or (R, C), in float32 or better."""
        return self._layout.arrange(self.kept.logits)

    @property
    def at(self) -> Tensor:
        """The class drawn, (1, R) or (R, 1)."""
        return self._layout.each(self.kept.chosen)

    @property
    def g(self) -> Tensor:
        """The direction, as x."""
        return self._layout.arrange(self._g)

    @property
    def relaxed(self) -> Tensor:
        """The relaxed point that Gumbel-Softmax keeps, as x."""
        return self._layout.arrange(self.kept.saved[0])


def backward(kernel: AbstractKernel, kept: Kept, g: Tensor) -> Tensor:
    r"""Return the first derivative along g (\*rows, C), in the dtype of the logits."""
    pairs = kept.logits.shape[-1] == 2 and binary.covers(kernel)
    if not pairs and type(kernel) not in _DERIVATIVES:
        return eager.backward(kernel, kept, g)
    shape, classes = kept.logits.shape, kept.logits.shape[-1]
    rows = kept.logits.reshape(-1, classes)
    count = rows.shape[0]
    counter = kernel.noise == "variable+seed"
    given = kept.inner.numel() > 0
    whole = [rows, kept.chosen.reshape(-1), g.reshape(-1, classes)]
    whole += [x.reshape(rows.shape) for x in kept.saved]
    whole += [kept.noise.reshape(count, 2)] if counter else []
    whole += [kept.inner.reshape(count, -1, classes)] if given else []

    def derivative(some: Tensor, chosen: Tensor, along: Tensor, *rest: Tensor) -> Tensor:
        saved = rest[: len(kept.saved)]
        inner = rest[-1] if given else kept.inner
        noise = rest[len(saved)] if counter else kept.noise
        part = Kept(some, chosen, noise, inner, saved)
        if pairs:
            return _of_pairs(kernel, part, along)
        layout = Layout(classes)
        out = _DERIVATIVES[type(kernel)](kernel, _Part(layout, part, along), layout.dim)
        return layout.restore(out).to(rows.dtype)

    pieces = (derivative(*some) for some in parts(*whole, use="often" if counter else "once"))
    return joined(pieces, count).reshape(shape)


def _of_pairs(kernel: AbstractKernel, kept: Kept, g: Tensor) -> Tensor:
    x, g = (t.to(compute_dtype(t.dtype)) for t in (kept.logits, g))
    slope = binary.slope(kernel, binary.Pair(x[:, 1] - x[:, 0], kept))
    one = slope.mul_(g[:, 1] - g[:, 0])
    return interleaved(-one, one).to(kept.logits.dtype)


def _softmax(x: Tensor, tau: float, dim: int) -> Tensor:
    if tau == 1.0:
        return torch.softmax(x, dim)
    # Centred before the division, which would round what the logits share.
    return torch.softmax((x - x.amax(dim, keepdim=True)).div_(tau), dim)


def _along(p: Tensor, g: Tensor, dim: int) -> Tensor:
    """Return p * (g - p.g), the derivative of a softmax at value p."""
    # One pass of torch's own, where the formula would be four.
    return _softmax_backward(g, p, dim, p.dtype)


def _over(x: Tensor, tau: float) -> Tensor:
    """Divide in place."""
    return x if tau == 1.0 else x.div_(tau)


def _straight_through(kernel: StraightThrough, part: _Part, dim: int) -> Tensor:
    x = part.x
    out = _along(_softmax(x, kernel.tau, dim), part.g, dim)
    if not kernel.importance:
        return _over(out, kernel.tau)
    alive = (x > -torch.inf).sum(dim, keepdim=True)
    drawn = torch.softmax(x, dim).gather(dim, part.at).clamp_min_(1e-12)
    return out.div_(alive * drawn * kernel.tau)


def _decoupled(kernel: DecoupledStraightThrough, part: _Part, dim: int) -> Tensor:
    p = _softmax(part.x, kernel.tau_backward, dim)
    return _over(_along(p, part.g, dim), kernel.tau_backward)


def _gumbel_softmax(kernel: GumbelSoftmax, part: _Part, dim: int) -> Tensor:
    return _over(_along(part.relaxed, part.g, dim), kernel.tau)


def _reinmax(kernel: ReinMax, part: _Part, dim: int) -> Tensor:
    """Return 2 J((D + q) / 2) g - J(p) g / 2 with p, q the softmaxes at 1 and tau.

    The first part is (D + q) * (g - (g_D + q.g) / 2). For p = q all but D's share collapses to
    p * (g - g_D) / 2.
    """
    x, at, g = part.x, part.at, part.g
    drawn = g.gather(dim, at)
    p = torch.softmax(x, dim)
    mean = (p * g).sum(dim, keepdim=True)
    if kernel.tau == 1.0:
        return (g - drawn).mul_(p).scatter_add_(dim, at, drawn - mean).mul_(0.5)
    q = _softmax(x, kernel.tau, dim)
    middle = (q * g).sum(dim, keepdim=True).add_(drawn).mul_(0.5)
    out = (g - middle).mul_(q).sub_((g - mean).mul_(p).mul_(0.5))
    return out.scatter_add_(dim, at, drawn - middle)


def _gapped(kernel: GappedStraightThrough, part: _Part, dim: int) -> Tensor:
    x, at = part.x, part.at
    x = x - x.amax(dim, keepdim=True)
    drawn = x.gather(dim, at)
    if kernel.gap == "p":
        share = torch.softmax(x, dim).gather(dim, at).clamp_min_(1e-20).mul_(1.0 - 1e-5)
        x = x.minimum(torch.log1p(-share).div_(share))
    else:
        x.clamp_max_(-kernel.gap)
    x.scatter_(dim, at, drawn - drawn)  # 0, or NaN in an unsound row
    out = _along(torch.softmax(_over(x, kernel.tau), dim), part.g, dim)
    return _over(out, kernel.tau)


def _gumbel_rao(kernel: GumbelRao, part: _Part, dim: int) -> Tensor:
    draws = ((1.0 / kernel.k, e) for e in part.kept.draws(kernel.k, kernel.points, dim))
    return average(torch.softmax(part.x, dim), part.at, part.g, draws, kernel.tau, dim)


def _middle(p: Tensor, at: Tensor, dim: int) -> Tensor:
    """Return the point in the middle of p and the corner of the class drawn."""
    half = torch.full_like(at, 0.5, dtype=p.dtype)
    return (p * 0.5).scatter_add_(dim, at, half)


def _reinmax_rao(kernel: ReinMaxRao, part: _Part, dim: int) -> Tensor:
    p = torch.softmax(part.x, dim)
    draws = ((2.0 / kernel.k, e) for e in part.kept.draws(kernel.k, dim=dim))
    out = average(_middle(p, part.at, dim), part.at, part.g, draws, kernel.tau, dim)
    return out.sub_(_along(p, part.g, dim).mul_(0.5))


def _reinmax_cv(kernel: ReinMaxCV, part: _Part, dim: int) -> Tensor:
    out = _reinmax(ReinMax(kernel.tau), part, dim)
    if kernel.eta == 0.0:
        return out
    weights = [kernel.eta / kernel.k] * kernel.k + [-kernel.eta]
    draws = zip(weights, part.kept.draws(kernel.k + 1, dim=dim), strict=True)
    middle = _middle(torch.softmax(part.x, dim), part.at, dim)
    return out.add_(average(middle, part.at, part.g, draws, kernel.tau_cv, dim))


_DERIVATIVES: dict[type[AbstractKernel], Callable[[Any, _Part, int], Tensor]] = {
    StraightThrough: _straight_through,
    DecoupledStraightThrough: _decoupled,
    GumbelRao: _gumbel_rao,
    GumbelSoftmax: _gumbel_softmax,
    SoftGumbelSoftmax: _gumbel_softmax,
    GappedStraightThrough: _gapped,
    ReinMax: _reinmax,
    ReinMaxCV: _reinmax_cv,
    ReinMaxRao: _reinmax_rao,
}
