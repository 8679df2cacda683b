"""Where labels go beside points, so that they cover neither points nor one another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

Pair = tuple[float, float]
Box = tuple[float, float, float, float]  # left, bottom, right, top

RADIUS = 6.0  # of a marker
# Around a label's frame, from -1 to 1: sides first, then corners, then between.
_AROUND = (
    *((1, 0), (-1, 0), (0, 1), (0, -1)),
    *((1, 1), (-1, 1), (1, -1), (-1, -1)),
    *((0.5, 1), (-0.5, 1), (0.5, -1), (-0.5, -1)),
    *((1, 0.5), (-1, 0.5), (1, -0.5), (-1, -0.5)),
)
_STEP, _RINGS = 5.0, 24


def width(text: str, size: float) -> float:
    """Return about how wide a text is, from the size of its letters; rather more than less."""
    return 0.62 * size * len(text)


def place(
    anchors: Sequence[Pair], sizes: Sequence[Pair], area: Pair, taken: Sequence[Box] = ()
) -> list[Pair]:
    """Return the centre of each label, counted from its anchor.

    Each takes the nearest free place. Who comes first matters, so some orders are tried, and the
    one with the fewest collisions, then with the shortest ways, is kept.

    Args:
        anchors: what is labelled, in pixels from the lower left of the area.
        sizes: width and height of each label.
        area: width and height of what no label may leave.
        taken: boxes to keep clear of, besides the anchors.
    """
    blocked = [*taken, *(_box(anchor, (2 * RADIUS, 2 * RADIUS)) for anchor in anchors)]
    crowd = [float(sum(math.dist(a, b) < 60 for b in anchors)) for a in anchors]
    tried: list[tuple[float, list[Pair]]] = []
    for key in ([a[0] for a in anchors], [a[1] for a in anchors], crowd):
        for sign in (1, -1):
            order = sorted(range(len(anchors)), key=[sign * x for x in key].__getitem__)
            tried.append(_arrange(order, anchors, sizes, area, blocked))
    return min(tried, key=lambda one: one[0])[1]


def _arrange(
    order: Sequence[int],
    anchors: Sequence[Pair],
    sizes: Sequence[Pair],
    area: Pair,
    blocked: Sequence[Box],
) -> tuple[float, list[Pair]]:
    """Return what an arrangement costs, and the arrangement."""
    labels: list[Box] = []
    lines: list[Box] = []
    out: list[Pair] = [(0.0, 0.0)] * len(anchors)
    total = 0.0
    for i in order:
        best, least = (0.0, 0.0), math.inf
        for way, offset in _candidates(sizes[i]):
            centre = (anchors[i][0] + offset[0], anchors[i][1] + offset[1])
            box = _box(centre, sizes[i])
            if box[0] < 0 or box[1] < 0 or box[2] > area[0] or box[3] > area[1]:
                continue
            line = _line(anchors[i], centre, box)
            # A label on a label cannot be read; one on a point hides it; a line may be followed.
            hits = 10 * sum(overlap(box, other) for other in labels)
            hits += 5 * sum(overlap(box, other) for other in blocked)
            hits += any(overlap(box, other) for other in lines)
            hits += any(overlap(piece, other) for piece in line for other in labels)
            if (cost := way + 1000.0 * hits) < least:
                best, least = offset, cost
            if not hits:
                break
        out[i] = best
        total += min(least, 1e6)
        centre = (anchors[i][0] + best[0], anchors[i][1] + best[1])
        labels.append(_box(centre, sizes[i]))
        lines += _line(anchors[i], centre, labels[-1])
    return total, out


def _candidates(size: Pair) -> Iterator[tuple[float, Pair]]:
    """Yield places with their distance, the nearest first."""
    for ring in range(_RINGS):
        away = RADIUS + 2 + _STEP * ring
        for x, y in _AROUND:
            yield _STEP * ring, (x * (size[0] / 2 + away), y * (size[1] / 2 + away))


def _box(centre: Pair, size: Pair) -> Box:
    (x, y), (w, h) = centre, size
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def overlap(a: Box, b: Box) -> bool:
    """Return whether two boxes have a point inside in common."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _line(anchor: Pair, centre: Pair, label: Box) -> list[Box]:
    """Return small boxes along the line from a label to its anchor."""
    pieces = int(math.dist(anchor, centre) / 4)
    found: list[Box] = []
    for i in range(1, pieces):
        t = i / pieces
        at = (anchor[0] + t * (centre[0] - anchor[0]), anchor[1] + t * (centre[1] - anchor[1]))
        piece = _box(at, (2.0, 2.0))
        if math.dist(at, anchor) > RADIUS and not overlap(piece, label):
            found.append(piece)
    return found
