"""The backward kernels: a gradient pulled back through the softmaxes of a surrogate."""

# A value inside a kernel is a tile, whose type only Triton knows.
# pyright: basic, reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false

import triton
import triton.language as tl

from .tiles import exponential, fold, own_rows, tile

# Which surrogate. The order matters to `pull`.
SOFT = tl.constexpr(0)
IMPORTANCE = tl.constexpr(1)  # softmax / (N pi_D)
REINMAX = tl.constexpr(2)
GAP = tl.constexpr(3)  # the others are pushed below D by a given gap
GAP_OF_P = tl.constexpr(4)  # by the mean gap at pi_D
GIVEN = tl.constexpr(5)  # the softmax is in memory


@triton.jit
def _weight(
    x: tl.tensor, top: tl.tensor, hit: tl.tensor, gaps: tl.tensor, scale: float,
    kind: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Return what the softmax at `scale` normalises."""
    d = x - top[:, None]
    if kind == GAP or kind == GAP_OF_P:
        # Comparisons, because a minimum would drop a NaN.
        d = tl.where(hit, d - d, tl.where(d > -gaps[:, None], -gaps[:, None], d))
    w = tl.exp(d * scale)
    if kind == GIVEN:
        w = tl.where(x == float("-inf"), 0.0, x)  # lanes past the end
    return w


@triton.jit(do_not_specialize=["rows"])
def pull(
    x_ptr: tl.tensor,  # logits; for GIVEN the softmax itself
    g_ptr: tl.tensor, index_ptr: tl.tensor, out_ptr: tl.tensor, rows: int,
    scale: float, weight: float, gap: float, kind: tl.constexpr,
    unit: tl.constexpr,  # scale is 1: both softmaxes of ReinMax are the same to the compiler
    units: int, align: tl.constexpr, blocks: tl.constexpr, block: tl.constexpr,
    height: tl.constexpr,
) -> None:  # fmt: skip
    """Pull g back through one softmax of scale * logits, or through ReinMax's two."""
    classes = units * align
    span = block if blocks == 1 else classes
    row = own_rows(rows, height)
    if unit:
        scale = 1.0
    index = tl.load(index_ptr + row).to(tl.int32)
    top = tl.full((height,), float("-inf"), tl.float32)
    s = tl.zeros((height,), tl.float32)  # the sum of what the softmax at `scale` normalises
    a = tl.zeros((height,), tl.float32)  # that sum with g
    s1 = tl.zeros((height,), tl.float32)  # those of the softmax at 1
    a1 = tl.zeros((height,), tl.float32)
    alive = tl.zeros((height,), tl.float32)
    if kind != GIVEN:
        for start in range(0, span, block):
            x, spot, inside, _ = tile(x_ptr, row, start, classes, block)
            new = tl.maximum(top, tl.max(x, 1))
            if kind <= REINMAX:
                g = tl.load(g_ptr + spot, inside, 0.0).to(tl.float32)
                s = fold(s, top, x, new, 1.0, scale)
                a = fold(a, top, x, new, g, scale)
                if kind == REINMAX:
                    a1 = fold(a1, top, x, new, g, 1.0)
            if kind == IMPORTANCE or kind == REINMAX or kind == GAP_OF_P:
                s1 = fold(s1, top, x, new, 1.0, 1.0)
            if kind == IMPORTANCE:
                alive += tl.sum((x > float("-inf")).to(tl.float32), 1)
            top = new
    factor = tl.full((height,), weight, tl.float32)
    gaps = tl.full((height,), gap, tl.float32)
    if kind == IMPORTANCE or kind == GAP_OF_P:
        share = tl.exp(tl.load(x_ptr + row * classes + index).to(tl.float32) - top) / s1
        if kind == IMPORTANCE:
            factor /= alive * tl.maximum(share, 1e-12)
        else:
            share = tl.maximum(share, 1e-20) * (1.0 - 1e-5)
            gaps = exponential(share) / share
    if kind >= GAP:
        for start in range(0, span, block):
            x, spot, inside, col = tile(x_ptr, row, start, classes, block)
            g = tl.load(g_ptr + spot, inside, 0.0).to(tl.float32)
            w = _weight(x, top, col == index[:, None], gaps, scale, kind)
            s += tl.sum(w, 1)
            a += tl.sum(w * g, 1)
    for start in range(0, span, block):
        x, spot, inside, col = tile(x_ptr, row, start, classes, block)
        g = tl.load(g_ptr + spot, inside, 0.0).to(tl.float32)
        hit = col == index[:, None]
        p = _weight(x, top, hit, gaps, scale, kind) / s[:, None]
        if kind == REINMAX:
            # 2 J((D + p) / 2) g - J(q) g / 2, p the softmax at `scale` and q that at 1
            drawn = tl.load(g_ptr + row * classes + index).to(tl.float32)
            q = tl.exp(x - top[:, None]) / s1[:, None]
            out = (p + tl.where(hit, 1.0, 0.0)) * (g - (0.5 * (a / s + drawn))[:, None])
            out -= 0.5 * q * (g - (a1 / s1)[:, None])
        else:
            out = p * factor[:, None] * (g - (a / s)[:, None])
        tl.store(out_ptr + spot, out, inside)


@triton.jit
def _mix(x: tl.tensor) -> tl.tensor:
    """Scramble uint32 words as `_random` does; here they wrap by themselves."""
    x = ((x >> 16) ^ x) * 0x45D9F3B
    x = ((x >> 16) ^ x) * 0x45D9F3B
    return (x >> 16) ^ x


@triton.jit
def _keys(seed: tl.tensor) -> tuple[tl.tensor, ...]:
    """Return the words of `CounterExponentials` that each class, and each draw, is mixed with."""
    bits = (seed * 2.0**53).to(tl.int64)
    low = (bits & 0xFFFFFFFF).to(tl.uint32)
    high = (bits >> 32).to(tl.uint32)
    return _mix(low), _mix(high ^ 0x5BD1E995) ^ _mix(low ^ 0x2545F491)


@triton.jit
def _class_words(key: tl.tensor, col: tl.tensor) -> tl.tensor:
    return _mix(_mix((col + 1).to(tl.uint32) * 0x9E3779B1) ^ key)


@triton.jit
def _counted(words: tl.tensor) -> tl.tensor:
    """Return the Exp(1) draws of mixed words."""
    u = ((_mix(words) >> 1).to(tl.float32) + 0.5) * 2.0**-31
    return exponential(tl.minimum(u, 1.0 - 2.0**-24))


@triton.jit
def _conditional(
    p: tl.tensor, one: tl.tensor, index: tl.tensor, col: tl.tensor, classes: tl.tensor,
    words: tl.tensor, word: tl.tensor, turn: tl.tensor, inner_ptr: tl.tensor, power: float,
    given: tl.constexpr, root: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Return exp((X - X_D) / tau), X the perturbed logits given that D = index is their argmax."""
    if given:
        e = tl.load(inner_ptr + col, col < classes, 1.0).to(tl.float32)
        drawn = tl.load(inner_ptr + index).to(tl.float32)
    else:
        turn = _mix(turn)
        e = _counted(words ^ turn)
        drawn = _counted(word ^ turn)
    race = p * drawn
    ratio = race / (e + race)
    if root:
        ratio = tl.exp(tl.log(ratio) * power)
    return tl.where(col == index, one, ratio)


@triton.jit(do_not_specialize=["rows", "count"])
def pull_inner(
    x_ptr: tl.tensor, g_ptr: tl.tensor, index_ptr: tl.tensor, noise_ptr: tl.tensor,
    inner_ptr: tl.tensor, out_ptr: tl.tensor, rows: int, count: int, power: float, weight: float,
    halved: tl.constexpr,  # draws are made at (D + pi) / 2, and J(pi) / 2 is taken off
    given: tl.constexpr,  # the draws are in memory
    root: tl.constexpr,  # power is not 1
    slots: tl.constexpr,  # a power of 2 no less than count
    units: int, align: tl.constexpr, blocks: tl.constexpr, block: tl.constexpr,
    height: tl.constexpr,
) -> None:  # fmt: skip
    """Pull g back through `count` conditional relaxations, `weight` times each."""
    classes = units * align
    span = block if blocks == 1 else classes
    row = own_rows(rows, height)
    top = tl.full((height,), float("-inf"), tl.float32)
    s = tl.zeros((height,), tl.float32)
    a = tl.zeros((height,), tl.float32)
    for start in range(0, span, block):
        x, spot, inside, _ = tile(x_ptr, row, start, classes, block)
        new = tl.maximum(top, tl.max(x, 1))
        s = fold(s, top, x, new, 1.0, 1.0)
        if halved:
            g = tl.load(g_ptr + spot, inside, 0.0).to(tl.float32)
            a = fold(a, top, x, new, g, 1.0)
        top = new
    one = (s / s)[:, None]  # NaN in an unsound row
    part = one / s[:, None] * (0.5 if halved else 1.0)
    index = tl.load(index_ptr + row).to(tl.int32)[:, None]
    key, turn = _keys(tl.load(noise_ptr + row * 2 + 1)[:, None])
    word = _class_words(key, index)
    origin = inner_ptr + (row * count * classes)[:, None]
    # The two sums of each draw, where the row must be walked to know them.
    slot = tl.arange(0, slots)[None, :]
    masses = tl.zeros((height, slots), tl.float32)
    dots = tl.zeros((height, slots), tl.float32)
    if blocks > 1:
        for start in range(0, span, block):
            x, spot, inside, col = tile(x_ptr, row, start, classes, block)
            g = tl.load(g_ptr + spot, inside, 0.0).to(tl.float32)
            p = tl.exp(x - top[:, None]) * part
            words = _class_words(key, col)
            step = tl.zeros((height, 1), tl.uint32)
            draws = origin
            for k in range(count):
                step += 0x85EBCA77
                r = _conditional(
                    p, one, index, col, classes, words, word, turn ^ step, draws, power,
                    given, root,
                )  # fmt: skip
                masses += tl.where(slot == k, tl.sum(r, 1)[:, None], 0.0)
                dots += tl.where(slot == k, tl.sum(r * g, 1)[:, None], 0.0)
                draws += classes
    for start in range(0, span, block):
        x, spot, inside, col = tile(x_ptr, row, start, classes, block)
        g = tl.load(g_ptr + spot, inside, 0.0).to(tl.float32)
        p = tl.exp(x - top[:, None]) * part
        out = tl.zeros((height, block), tl.float32)
        if halved:
            out -= p * (g - (a / s)[:, None])
        words = _class_words(key, col)
        step = tl.zeros((height, 1), tl.uint32)
        draws = origin
        for k in range(count):
            step += 0x85EBCA77
            r = _conditional(
                p, one, index, col, classes, words, word, turn ^ step, draws, power, given, root
            )
            if blocks == 1:
                mass = tl.sum(r, 1)
                dot = tl.sum(r * g, 1)
            else:
                mass = tl.sum(tl.where(slot == k, masses, 0.0), 1)
                dot = tl.sum(tl.where(slot == k, dots, 0.0), 1)
            out += r * (weight / mass)[:, None] * (g - (dot / mass)[:, None])
            draws += classes
        tl.store(out_ptr + spot, out, inside)
