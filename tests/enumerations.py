"""All draws of an estimator, as noise with exact probabilities.

Noise is continuous, but an estimator looks at it through few doors: in which cell of a partition
it lies, and sometimes a number that is linear within the cell, whose mean is that at the middle.
So a finite set of noise values stands for all of it. The partitions are worked out again here,
from the papers; only the two relaxations of REBAR need quadrature.
"""

from functools import cache
from itertools import combinations, pairwise, permutations, product
from math import comb, pi

import torch
from numpy.polynomial.legendre import leggauss

F64 = torch.float64
LEAST = 1e-13  # a cell of this width is rounding


def cells(probs, mirrored=False):
    """Middles and widths of the intervals of a uniform on which no draw from probs changes.

    `probs` (..., C) may hold several laws; `mirrored`: nor does the draw of 1 - u change.
    """
    edges = torch.cat((torch.zeros(1, dtype=F64), probs.cumsum(-1)[..., :-1].reshape(-1)))
    edges = torch.cat((edges, 1.0 - edges) if mirrored else (edges, torch.ones(1, dtype=F64)))
    edges = torch.cat((edges, torch.ones(1, dtype=F64))).sort().values
    width = edges.diff()
    return ((edges[1:] + edges[:-1]) / 2)[width > LEAST], width[width > LEAST]


def grid(columns):
    """Every combination of entries of the columns, (M, number of columns)."""
    return torch.cartesian_prod(*columns).reshape(-1, len(columns))


# A unit is what is drawn independently of everything else: blocks of noise (K, ...) and their
# probabilities (K,).


def together(units):
    """Every combination of entries of the units: blocks (U, M, ...) and probabilities (M,)."""
    index = grid([torch.arange(len(weight)) for _, weight in units]).T
    blocks = torch.stack([block[i] for (block, _), i in zip(units, index, strict=True)])
    weights = torch.stack([weight[i] for (_, weight), i in zip(units, index, strict=True)])
    return blocks, weights.prod(0)


def independent(units, samples, shape):
    """Noise (samples, M, *shape, ...) where every sample of every variable is a unit."""
    blocks, weight = together(units * samples)
    return blocks.unflatten(0, (samples, *shape)).movedim(1 + len(shape), 1), weight


def coupled(units, shape):
    """Noise (samples, M, *shape, ...) where a unit is one variable: blocks (K, samples, ...)."""
    blocks, weight = together(units)  # (variables, M, samples, ...)
    return blocks.movedim(0, 2).movedim(1, 0).unflatten(2, shape), weight


def decisions(sigmas, mirrored=False):
    """Of a walk, one unit: a uniform for each decision, (K, decisions)."""
    pair = torch.stack((sigmas, 1.0 - sigmas), -1)
    blocks, weight = together([cells(p, mirrored) for p in pair])
    return blocks.T, weight


# --- walks


def stick_probabilities(p):
    """Of stopping at each class but the last, in ascending order, given that one got there."""
    p = p.sort().values
    return torch.stack([p[i] / p[i:].sum() for i in range(len(p) - 1)])


def node_probabilities(p):
    """Of going left at each node of a balanced tree, as in a heap; missing leaves come first."""
    depth = (len(p) - 1).bit_length()
    leaves = torch.cat((torch.zeros(2**depth - len(p), dtype=F64), p.sort().values))
    out = []
    for level in range(depth):
        for node in leaves.reshape(2**level, -1):
            left = node[: len(node) // 2].sum()
            out.append(left / node.sum() if node.sum() > 0 else torch.zeros((), dtype=F64))
    return torch.stack(out)


# --- n coins coupled by a Dirichlet copula


def coins(s, n):
    """Noise (K, n) for every pattern of n coupled coins of probability s <= 1/2, and its law.

    A coin hits where d_i > t, d uniform on the simplex, P(hit) = (1 - t)^(n-1) = s. All of a set A
    hit with probability max(0, 1 - |A| t)^(n-1); exactly A by inclusion and exclusion.
    """
    t = 1.0 - float(s) ** (1.0 / (n - 1))

    def all_hit(size):
        return max(0.0, 1.0 - size * t) ** (n - 1)

    blocks, weights = [], []
    for size in range(n + 1):
        more = n - size
        weight = sum((-1) ** j * comb(more, j) * all_hit(size + j) for j in range(more + 1))
        if weight <= LEAST:
            continue
        for hit in combinations(range(n), size):
            low = 0.5 * min(t, (1.0 - size * t) / more) if size and more else 0.0
            d = torch.full((n,), low if size else 1.0 / n, dtype=F64)
            d[list(hit)] = (1.0 - more * low) / max(size, 1)
            blocks.append(-torch.expm1(-d))
            weights.append(weight)
    return torch.stack(blocks), torch.tensor(weights, dtype=F64)


def coin_walks(sigmas, n):
    """Noise (K, n, decisions) for n coupled walks, and its law."""
    blocks, weight = together([coins(s, n) for s in sigmas])
    return blocks.movedim(0, -1), weight


# --- ARSM: polygons


def swap_cells(p):
    """Noise (K, C) for one variable of ARSM, at most three classes, and its law."""
    return _swap_cells(tuple(p.tolist()))


@cache
def _swap_cells(p):
    """With w uniform on the simplex, no swap moves a draw as long as no ratio w_i / w_j passes a
    ratio of probabilities: those lines cut the simplex into cells. The gradient is linear in w
    within each, so its mean is that at the centroid.
    """
    alive = [c for c, x in enumerate(p) if x > 0]
    if len(alive) == 1:
        return torch.full((1, len(p)), 0.3, dtype=F64), torch.ones(1, dtype=F64)
    if len(alive) < len(p):
        return _two_of_three(p, *alive)
    corners = torch.eye(len(p), dtype=F64)
    pieces = [corners]
    for i, j in combinations(alive, 2):
        for a, b in permutations(alive, 2):
            line = p[b] * corners[i] - p[a] * corners[j]
            pieces = [part for piece in pieces for part in (half(piece, line), half(piece, -line))]
            pieces = [piece for piece in pieces if size_of(piece) > LEAST]
    sizes = torch.stack([size_of(piece) for piece in pieces])
    w = torch.stack([centroid(piece) for piece in pieces])
    return -torch.expm1(-w), sizes / size_of(corners)


def _two_of_three(p, a, b):
    """Classes a and b alive, m masked: the gradient is linear in w = e_a / (e_a + e_b) alone.

    A swap with m gives a class e_m = r (e_a + e_b), P(r < x) = 1 - (1 + x)^-2: exact cells for r
    given w, Gauss-Legendre over w between the places where the order of the cells changes.
    """
    (m,) = {0, 1, 2} - {a, b}
    odds = p[a] / p[b]
    nodes, weights = (torch.from_numpy(x) for x in leggauss(16))
    edges = sorted((0.0, p[a], p[b], odds**2 / (1 + odds**2), 1.0))
    blocks, law = [], []
    for low, high in pairwise(edges):
        for x, dx in zip(nodes, weights, strict=True):
            w = float(low + (high - low) * (x + 1) / 2)
            cuts = [0.0, *sorted((w / odds, (1 - w) * odds)), torch.inf]
            for r0, r1 in pairwise(cuts):
                r = (r0 + r1) / 2 if r1 < torch.inf else r0 + 1.0
                e = torch.empty(3, dtype=F64)
                e[[a, b, m]] = torch.tensor([w, 1 - w, r], dtype=F64)
                blocks.append(-torch.expm1(-e))
                law.append(float(dx) / 2 * (high - low) * ((1 + r0) ** -2 - (1 + r1) ** -2))
    return torch.stack(blocks), torch.tensor(law, dtype=F64)


def half(piece, line):
    """The part of a convex piece (corners, n), a segment or a polygon, where line . w >= 0."""
    side, out = piece @ line, []
    for k, (here, there) in enumerate(zip(side, side.roll(-1), strict=True)):
        if here >= 0:
            out.append(piece[k])
        last = k == len(piece) - 1 and piece.shape[-1] < 3  # a segment does not close
        if here * there < 0 and not last:
            share = here / (here - there)
            out.append(piece[k] + share * (piece[(k + 1) % len(piece)] - piece[k]))
    return torch.stack(out) if out else piece[:0]


def size_of(piece):
    """Length or area of a convex piece, up to a common factor."""
    if piece.shape[-1] < 3:
        return (piece[-1:] - piece[:1]).abs().sum()
    return sum((area(piece, k) for k in range(1, len(piece) - 1)), piece.new_zeros(()))


def area(piece, k):
    """Of the triangle of corners 0, k and k + 1."""
    return torch.linalg.det(torch.stack((piece[0], piece[k], piece[k + 1]))).abs()


def centroid(piece):
    """The mean of a uniform point of a convex piece."""
    if piece.shape[-1] < 3:
        return piece.mean(0)
    parts = range(1, len(piece) - 1)
    total = sum(area(piece, k) * (piece[0] + piece[k] + piece[k + 1]) / 3 for k in parts)
    return total / size_of(piece)


# --- REBAR: quadrature


def double_exponential(h=0.08, reach=3.2):
    """Nodes x, 1 - x and weights on (0, 1): tanh-sinh, whatever happens at the ends."""
    t = torch.arange(-reach, reach + h / 2, h, dtype=F64)
    x, rest = (pi * t.sinh()).sigmoid(), (-pi * t.sinh()).sigmoid()
    weight = h * pi * t.cosh() * x * rest
    return x, rest, weight / weight.sum()


def relaxed_pairs(p, *, product):
    """Noise (K, C, 2) for one variable of REBAR, at most two classes alive, and its law.

    What matters are two ratios of exponentials, each a uniform; everything is smooth in both as
    long as the drawn class stays. Masked classes get any noise. Without `product` the second
    uniform goes where the first is within the cell of its class, which leaves each independent of
    the drawn class; enough for a sum of terms that look at one of the two.
    """
    alive = p.nonzero().flatten().tolist()
    if len(alive) == 1:
        return torch.full((1, len(p), 2), 0.3, dtype=F64), torch.ones(1, dtype=F64)
    x, rest, weight = double_exponential()
    a, b = alive
    first = torch.cat((torch.stack((p[a] * x, p[b] + p[a] * rest), -1),
                       torch.stack((p[a] + p[b] * x, p[b] * rest), -1)))  # fmt: skip
    second, law = torch.stack((x, rest), -1), torch.cat((p[a] * weight, p[b] * weight))
    if product:
        first, second = first.repeat_interleave(len(x), 0), second.repeat(2 * len(x), 1)
        law = (law.unsqueeze(-1) * weight).flatten()
    else:
        second = second.repeat(2, 1)
    e = torch.full((len(law), len(p), 2), 0.3, dtype=F64)
    e[:, alive, 0], e[:, alive, 1] = first, second
    return -torch.expm1(-e), law


# --- without replacement


def joint_table(probs):
    """Probabilities of all points of independent variables (m, C): {code: probability}."""
    m, c = probs.shape
    return {
        code: float(torch.stack([probs[i, k] for i, k in enumerate(code)]).prod())
        for code in product(range(c), repeat=m)
    }


def branches(table, excluded, m, c):
    """(code, its uniforms, its probability) for each point of the law without the excluded.

    Drawn variable by variable: the uniform of each is the middle of the interval of its class.
    """
    left = {code: 0.0 if code in excluded else mass for code, mass in table.items()}
    whole = sum(left.values())
    if whole <= LEAST:
        return [(None, (0.5,) * m, 1.0)]
    out = []
    for code, mass in left.items():
        if mass <= LEAST:
            continue
        uniforms = []
        for i in range(m):
            law = [
                sum(x for other, x in left.items() if other[: i + 1] == (*code[:i], k))
                for k in range(c)
            ]
            uniforms.append((sum(law[: code[i]]) + law[code[i]] / 2) / sum(law))
        out.append((code, tuple(uniforms), mass / whole))
    return out


def likeliest(table, k):
    """The k likeliest points."""
    return frozenset(sorted(table, key=table.get, reverse=True)[:k])


def remaining(probs, k, samples, shape):
    """Noise for samples from what the k likeliest points leave, and its law."""
    table = joint_table(probs)
    out = branches(table, likeliest(table, k), *probs.shape)
    unit = (torch.tensor([u for _, u, _ in out], dtype=F64),
            torch.tensor([w for *_, w in out], dtype=F64))  # fmt: skip
    noise, weight = together([unit] * samples)
    return noise.unflatten(-1, shape), weight


def distinct(probs, samples, shape):
    """Noise for samples that never repeat, and its law."""
    table, todo = joint_table(probs), [((), (), 1.0)]
    for _ in range(samples):
        todo = [
            ((*codes, code), (*noise, u), weight * w)
            for codes, noise, weight in todo
            for code, u, w in branches(table, frozenset(codes), *probs.shape)
        ]
    noise = torch.tensor([u for _, u, _ in todo], dtype=F64).movedim(1, 0)
    return noise.unflatten(-1, shape), torch.tensor([w for *_, w in todo], dtype=F64)
