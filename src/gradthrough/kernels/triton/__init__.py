r"""The pathwise kernels in Triton: one launch forward, one backward; ``eager`` is what they equal.

No softmax is kept: the backward computes it again from the logits, and inner draws again from
their counter, in registers.

A pass over a row is a loop over its blocks, also where one block holds the whole row. There the
loop has one trip, so the compiler sees that the next pass loads the same tile, and reads it once.

With TRITON_INTERPRET=1 in the environment before triton is first imported, the kernels run on CPU
tensors.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, cast

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import JITFunction, KernelInterface

from ..eager import (
    AbstractKernel,
    DecoupledStraightThrough,
    Exact,
    GappedStraightThrough,
    GumbelRao,
    GumbelSoftmax,
    Kept,
    Launched,
    ReinMax,
    ReinMaxRao,
    StraightThrough,
)
from . import draw, pull

INTERPRETED = not any(isinstance(f, JITFunction) for f in cast("list[object]", [draw.draw, tl.max]))
"""Whether the kernels, and what they call, run in Triton's interpreter, on CPU tensors."""

BLOCK = 4096
"""Classes held at a time; a row of more is walked."""

_LONGEST = 2**20  # the masses of a row's blocks are held at once,
_DRAWS = 1024  # and so are the sums of its inner draws, if it has several blocks


def unsupported(kernel: AbstractKernel, logits: Tensor) -> str:
    r"""Return why the kernel cannot run on logits (\*rows, C), as a sentence; "" if it can."""
    classes, device = logits.shape[-1], logits.device.type
    inner = isinstance(kernel, GumbelRao | ReinMaxRao)
    if not inner and not isinstance(kernel, Exact) and _softmax(kernel) is None:
        return f"There is no Triton kernel for {type(kernel).__name__}."
    if isinstance(kernel, GumbelRao) and kernel.qmc:
        return "The Triton kernels draw inner noise independently: they have no qmc."
    if logits.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"The Triton kernels compute in float32, but the logits are {logits.dtype}."
    if not 1 <= classes <= _LONGEST:
        return f"The Triton kernels take 1 to {_LONGEST} classes, but there are {classes}."
    if inner and classes > BLOCK and kernel.k > _DRAWS:
        return f"Beyond {BLOCK} classes the Triton kernels take up to {_DRAWS} inner draws."
    if device != "cuda" and not (INTERPRETED and device == "cpu"):
        return f"The Triton kernels run on CUDA, but the logits are on {device}."
    return ""


def forward(kernel: AbstractKernel, logits: Tensor, noise: Tensor, dense: bool = True) -> Launched:
    r"""Draw the sample, in one launch; that of an unsound row is NaN.

    Args:
        kernel: one for which `unsupported` returns "".
        logits: (\*rows, C); one dim of the rows may be of size 1 where the noise of a variable has
            more: one softmax, several draws.
        noise: uniforms as ``kernel.noise`` says.
        dense: whether the sample is wanted; without, it is empty, and only the index is drawn.

    Returns:
        The sample, its index in int64, row totals, and for Gumbel-Softmax the relaxed point in
        float32, which `backward` reads; the other kernels save nothing.
    """
    x, u = logits.contiguous(), noise.contiguous()
    lead = u.shape if kernel.noise == "variable" else u.shape[:-1]
    chosen = torch.empty(lead, dtype=torch.int64, device=x.device)
    total = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    z = x.new_empty((*lead, x.shape[-1] if dense else 0))
    saved: tuple[Tensor, ...] = ()
    if isinstance(kernel, GumbelSoftmax):
        saved = (torch.empty_like(x, dtype=torch.float32),)
        copy = 0 if not dense else 2 if kernel.soft else 1
        run = _launcher(draw.relax, chosen.numel(), x)
        run(x, u, z, saved[0], chosen, total, chosen.numel(), 1.0 / kernel.tau, copy=copy)
    else:
        wide = next((d for d, size in enumerate(lead) if x.shape[d] != size), None)
        times, period = (1, 1) if wide is None else (lead[wide], lead[wide + 1 :].numel())
        stride = 2 if kernel.noise == "variable+seed" else 1
        run = _launcher(draw.draw, chosen.numel(), x)
        run(
            x, u, z, chosen, total, chosen.numel(), 1.0 / kernel.law, times, period,
            stride=stride, dense=dense,
        )  # fmt: skip
    return Launched(z, chosen, total, saved)


def backward(kernel: AbstractKernel, kept: Kept, g: Tensor) -> Tensor:
    r"""Return the first derivative along g (\*rows, C), in the dtype of the logits: one launch."""
    logits, chosen, noise, inner, saved = kept
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    x = (saved[0] if saved else logits).contiguous()
    where = (x, g.contiguous(), chosen.contiguous())
    rows = chosen.numel()
    softmax = _softmax(kernel)
    if softmax is not None:
        kind, tau, weight, gap = softmax
        run = _launcher(pull.pull, rows, x)
        run(*where, out, rows, 1.0 / tau, weight, gap, kind=kind, unit=tau == 1.0)
    elif isinstance(kernel, GumbelRao | ReinMaxRao):
        halved = isinstance(kernel, ReinMaxRao)
        weight = (2.0 if halved else 1.0) / (kernel.k * kernel.tau)
        run = _launcher(pull.pull_inner, rows, x)
        run(
            *where, noise.contiguous(), inner.contiguous(), out, rows, kernel.k,
            1.0 / kernel.tau, weight, halved=halved, given=inner.numel() > 0,
            root=kernel.tau != 1.0, slots=triton.next_power_of_2(kernel.k),
        )  # fmt: skip
    else:
        out.zero_()
    return out


class _Softmax(NamedTuple):
    """What `pull.pull` needs to know of a kernel."""

    kind: int
    tau: float
    weight: float
    gap: float = 0.0


def _softmax(kernel: AbstractKernel) -> _Softmax | None:
    match kernel:
        case StraightThrough(tau, importance):
            kind = pull.IMPORTANCE if importance else pull.SOFT
            return _Softmax(kind.value, tau, 1.0 / tau)
        case DecoupledStraightThrough(_, tau):
            return _Softmax(pull.SOFT.value, tau, 1.0 / tau)
        case GappedStraightThrough(tau, "p"):
            return _Softmax(pull.GAP_OF_P.value, tau, 1.0 / tau)
        case GappedStraightThrough(tau, gap):
            return _Softmax(pull.GAP.value, tau, 1.0 / tau, float(gap))
        case ReinMax(tau):
            return _Softmax(pull.REINMAX.value, tau, 1.0)
        case GumbelSoftmax(tau):
            return _Softmax(pull.GIVEN.value, 1.0, 1.0 / tau)
        case _:
            return None


def _launcher(kernel: object, rows: int, x: Tensor) -> Callable[..., None]:
    """Return a kernel as it is called for so many rows, on the device and with the classes of x."""

    def run(*args: object, **options: object) -> None:
        if rows == 0:
            return
        tiles = _tiles(x.shape[-1])
        grid = (-(-rows // tiles["height"]),)
        with _on(x):
            cast("KernelInterface[Callable[..., None]]", kernel)[grid](*args, **options, **tiles)

    return run


def _on(x: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _tiles(classes: int) -> dict[str, Any]:
    """Return how a program sees rows of so many classes, and what it is compiled with."""
    block = min(triton.next_power_of_2(classes), BLOCK)
    blocks = triton.next_power_of_2(-(-classes // block))
    height = max(1, 1024 // block) if blocks == 1 else 1
    align = math.gcd(classes, 16)
    return {
        "units": classes // align,
        "align": align,
        "blocks": blocks,
        "block": block,
        "height": height,
        "num_warps": min(16, max(1, height * block // 256)),
        "enable_fp_fusion": True,  # the default, which triton 3.9 wants to be spelled out
    }
