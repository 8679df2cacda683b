"""What the Triton kernels share: a tile of rows, and sums along a row that is walked.

A tile is (R, B): R whole rows of up to B classes, or one block of one longer row. Arithmetic is
float32; what is cumulated for a draw is float64.
"""

# A value inside a kernel is a tile, whose type only Triton knows.
# pyright: basic, reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false

import triton
import triton.language as tl


@triton.jit
def own_rows(rows: tl.tensor, height: tl.constexpr) -> tl.tensor:
    """Return the program's rows (R), int64: offsets pass 2^31."""
    row = tl.program_id(0).to(tl.int64) * height + tl.arange(0, height)
    # Past the end the last row comes again: to write it twice does no harm, and saves a mask.
    return tl.minimum(row, rows - 1)


@triton.jit
def tile(
    x_ptr: tl.tensor, row: tl.tensor, start: tl.tensor, classes: tl.tensor, block: tl.constexpr
) -> tuple[tl.tensor, ...]:
    """Read a tile of logits (R, B): values, offsets, the lanes that exist, classes (1 or R, B)."""
    col = start + tl.arange(0, block)[None, :]
    spot = row[:, None] * classes + col
    x = tl.load(x_ptr + spot, col < classes, float("-inf")).to(tl.float32)
    return x, spot, col < classes, col


@triton.jit
def finite(top: tl.tensor) -> tl.tensor:
    """Return what to shift by (R): a block may be masked throughout where its row is not."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def fold(
    total: tl.tensor, top: tl.tensor, x: tl.tensor, new: tl.tensor, g: tl.tensor, scale: float
) -> tl.tensor:
    """Add sum_i g_i exp(x_i scale) to a total (R), its maximum moving from top to new."""
    by = finite(new)
    return total * tl.exp((top - by) * scale) + tl.sum(tl.exp((x - by[:, None]) * scale) * g, 1)


@triton.jit
def exponential(u: tl.tensor) -> tl.tensor:
    """Return -log(1 - u) in float32, accurate relative to itself also near 0."""
    # 2 atanh(s) with s = u / (2 - u); in the lower half s is at most 1/3, and seven terms suffice.
    small = u.to(tl.float32)
    s = small / (2.0 - small)
    t = s * s
    tail = t * (1.0 / 7 + t * (1.0 / 9 + t * (1.0 / 11 + t * (1.0 / 13))))
    series = 2.0 * s * (1.0 + t * (1.0 / 3 + t * (1.0 / 5 + tail)))
    return tl.where(u < 0.5, series, -tl.log((1.0 - u).to(tl.float32)))
