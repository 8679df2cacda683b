"""The forward kernels: a class by the inverse cdf, or by one Gumbel for each class."""

# A value inside a kernel is a tile, whose type only Triton knows.
# pyright: basic, reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false

import triton
import triton.language as tl

from .tiles import exponential, finite, fold, own_rows, tile


@triton.jit
def _first_beyond(mass: tl.tensor, threshold: tl.tensor, at: tl.tensor) -> tl.tensor:
    """Return the first place (R) with mass whose cumulative mass exceeds the threshold (R)."""
    beyond = tl.cumsum(mass, 1) > threshold[:, None]
    # Sums in parallel may differ in their last bits, and none exceed it: then the last place with
    # mass is taken. One minimum finds either, for that place ranks behind all others.
    behind = tl.where(mass > 0.0, 2**25 - at, 2**25)
    key = tl.min(tl.where(beyond & (mass > 0.0), at, behind), 1)
    return tl.where(key < 2**24, key, 2**25 - key)


@triton.jit
def _below(u: tl.tensor, total: tl.tensor) -> tl.tensor:
    """Return u times the total (R), strictly below the total also for the largest u."""
    return u * (total * (1.0 - 2.0**-52))


@triton.jit
def _block_drawn(
    masses: tl.tensor, tops: tl.tensor, total: tl.tensor, u: tl.tensor, slot: tl.tensor
) -> tuple[tl.tensor, ...]:
    """Draw a block of the row: its number and its maximum (R), and a uniform to go on with."""
    threshold = _below(u, total)
    which = _first_beyond(masses, threshold, slot)
    mine = slot == which[:, None]
    before = tl.sum(tl.where(slot < which[:, None], masses, 0.0), 1)
    # What is left of the uniform, relative to the block: its classes will be summed once more, in
    # the block's own scale, and rounding then shifts no class against its neighbours.
    left = tl.maximum(threshold - before, 0.0) / tl.sum(tl.where(mine, masses, 0.0), 1)
    return which, tl.sum(tl.where(mine, tops, 0.0), 1), left


@triton.jit(do_not_specialize=["rows"])
def draw(
    x_ptr: tl.tensor, u_ptr: tl.tensor, z_ptr: tl.tensor, index_ptr: tl.tensor,
    total_ptr: tl.tensor, rows: int, scale: float,
    times: int,  # draws for each row of logits: that many,
    period: int,  # each time for so many rows of them
    stride: tl.constexpr,  # numbers in a row of noise; the first is the uniform
    dense: tl.constexpr,  # whether z is written
    units: int,
    align: tl.constexpr,  # units * align classes: the compiler sees what divides them
    blocks: tl.constexpr,  # 1, or a power of 2 no less than the blocks of a row
    block: tl.constexpr,
    height: tl.constexpr,  # rows of a tile; 1 if blocks > 1
) -> None:  # fmt: skip
    """Draw from softmax(x scale)."""
    classes = units * align
    span = block if blocks == 1 else classes
    row = own_rows(rows, height)
    source = row // (times * period) * period + row % period
    slot = tl.arange(0, blocks)[None, :]
    tops = tl.full((height, blocks), float("-inf"), tl.float32)
    masses = tl.zeros((height, blocks), tl.float64)
    for start in range(0, span, block):
        x, _, _, _ = tile(x_ptr, source, start, classes, block)
        high = tl.max(x, 1)
        e = tl.exp((x - finite(high)[:, None]) * scale).to(tl.float64)
        tops = tl.where(slot == start // block, high[:, None], tops)
        masses = tl.where(slot == start // block, tl.sum(e, 1)[:, None], masses)
    top = tl.max(tops, 1)
    # An unsound row meets (-inf) - (-inf), inf - inf or NaN here at the latest.
    masses *= tl.exp((tops - top[:, None]) * scale).to(tl.float64)
    total = tl.sum(masses, 1)
    sound = total == total
    u = tl.load(u_ptr + row * stride).to(tl.float64)
    origin = tl.zeros((height, 1), tl.int32)
    if blocks > 1:
        which, top, u = _block_drawn(masses, tops, total, u, slot)
        origin = which[:, None] * block
    x, _, _, col = tile(x_ptr, source, origin, classes, block)
    e = tl.exp((x - finite(top)[:, None]) * scale).to(tl.float64)
    index = tl.where(sound, _first_beyond(e, _below(u, tl.sum(e, 1)), col), 0)
    if dense:
        blank = tl.where(sound, 0.0, float("nan"))[:, None]
        for start in range(0, span, block):
            at = start + tl.arange(0, block)[None, :]
            z = tl.where(at == index[:, None], blank + 1.0, blank)
            tl.store(z_ptr + (row[:, None] * classes + at), z, at < classes)
    tl.store(index_ptr + row, index.to(tl.int64))
    tl.store(total_ptr + source, total.to(tl.float32))


@triton.jit
def _gumbel(u_ptr: tl.tensor, spot: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """Return the Gumbel draws of a tile of uniforms."""
    u = tl.load(u_ptr + spot, inside, 0.5).to(tl.float64)
    return -tl.log(exponential(tl.maximum(u, 2.0**-54)))


@triton.jit(do_not_specialize=["rows"])
def relax(
    x_ptr: tl.tensor, u_ptr: tl.tensor, z_ptr: tl.tensor, soft_ptr: tl.tensor,
    index_ptr: tl.tensor, total_ptr: tl.tensor, rows: int, scale: float,
    copy: tl.constexpr,  # what z gets: 0 nothing, 1 the corner, 2 the relaxed point
    units: int, align: tl.constexpr, blocks: tl.constexpr, block: tl.constexpr,
    height: tl.constexpr,
) -> None:  # fmt: skip
    """Draw with one Gumbel for each class; the relaxed point goes to soft."""
    classes = units * align
    span = block if blocks == 1 else classes
    row = own_rows(rows, height)
    top = tl.full((height,), float("-inf"), tl.float32)
    for start in range(0, span, block):
        x, _, _, _ = tile(x_ptr, row, start, classes, block)
        top = tl.maximum(top, tl.max(x, 1))
    best = tl.full((height,), float("-inf"), tl.float32)
    index = tl.zeros((height,), tl.int32)
    total = tl.zeros((height,), tl.float32)
    for start in range(0, span, block):
        x, spot, inside, col = tile(x_ptr, row, start, classes, block)
        y = x - top[:, None] + _gumbel(u_ptr, spot, inside)
        high = tl.max(y, 1)
        first = tl.min(tl.where(y == high[:, None], col, 2**24), 1)
        index = tl.where(high > best, first, index)
        new = tl.maximum(best, high)
        total = fold(total, best, y, new, 1.0, scale)
        best = new
    sound = total == total
    index = tl.where(sound, index, 0)
    for start in range(0, span, block):
        x, spot, inside, col = tile(x_ptr, row, start, classes, block)
        y = x - top[:, None] + _gumbel(u_ptr, spot, inside)
        relaxed = tl.exp((y - best[:, None]) * scale) / total[:, None]
        tl.store(soft_ptr + spot, relaxed, inside)
        if copy == 1:
            blank = tl.where(sound, 0.0, float("nan"))[:, None]
            tl.store(z_ptr + spot, tl.where(col == index[:, None], blank + 1.0, blank), inside)
        if copy == 2:
            tl.store(z_ptr + spot, relaxed, inside)
    tl.store(index_ptr + row, index.to(tl.int64))
    tl.store(total_ptr + row, total)
