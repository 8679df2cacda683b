"""The two charts of an audit as data, for whichever library draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._errors import ConfigError
from .axes import Axis, axis_of, inside, round_numbers, tick
from .labels import Box, Pair, overlap, place, width
from .rows import AuditRow

if TYPE_CHECKING:
    from .report import AuditReport

# Of the palette of Okabe and Ito, which colour-blind eyes tell apart.
BIASED, UNBIASED, GREY = "#d55e00", "#0072b2", "#767676"
GAP = 4.0  # pixels between a curve's label and the axis that it stands at
_CURVES = 8


@dataclass(frozen=True)
class Point:
    """One estimator on a chart.

    Args:
        row: what was measured.
        text: its label, shortened.
        x: place on the log axis.
        y: likewise.
        low: lower end of the interval of y, NaN if none is drawn.
        high: upper end.
        bound: whether y is an upper end, and the truth lies below.
    """

    row: AuditRow
    text: str
    x: float
    y: float
    low: float
    high: float
    bound: bool


@dataclass(frozen=True)
class Curve:
    """A curve of equal error, and its label at one end.

    Args:
        text: the label.
        x: of its points.
        y: likewise.
        left: whether the label stands to the right of the left end; else above the lower one.
    """

    text: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    left: bool

    @property
    def end(self) -> Pair:
        """The end with the label."""
        return (self.x[0], self.y[0]) if self.left else (self.x[-1], self.y[-1])


@dataclass(frozen=True)
class Chart:
    """Points on two log axes.

    Args:
        title: a few words.
        caption: how to read it.
        x: axis.
        y: axis.
        points: one for each estimator that can be drawn.
        curves: behind them.
        chosen: label of the recommended estimator.
    """

    title: str
    caption: str
    x: Axis
    y: Axis
    points: tuple[Point, ...]
    curves: tuple[Curve, ...]
    chosen: str | None

    def labels(self, area: Pair, size: float) -> list[Pair]:
        """Return where labels go from their points, in pixels, x to the right and y up.

        Args:
            area: width and height of the plot.
            size: of the letters.
        """
        line = 1.35 * size
        anchors = [(self.x.at(p.x) * area[0], self.y.at(p.y) * area[1]) for p in self.points]
        taken: list[Box] = []
        for curve in self.curves:
            x, y = self.x.at(curve.end[0]) * area[0], self.y.at(curve.end[1]) * area[1]
            w = width(curve.text, size)
            x, y = (x + GAP + w / 2, y) if curve.left else (x, y + GAP + line / 2)
            taken.append((x - w / 2, y - line / 2, x + w / 2, y + line / 2))
        for point, (x, y) in zip(self.points, anchors, strict=True):
            if not math.isnan(point.low):
                ends = [self.y.at(v) * area[1] for v in (point.low, point.high)]
                taken.append((x - 1, min(*ends, y), x + 1, max(*ends, y)))
        bold = [1.1 if p.row.estimator == self.chosen else 1.0 for p in self.points]
        sizes = [
            (b * width(p.text, size) + 4, line) for b, p in zip(bold, self.points, strict=True)
        ]
        return place(anchors, sizes, area, taken)


def charts(report: AuditReport) -> tuple[Chart, Chart]:
    """Return bias against variance, and error against cost."""
    unit, relative = report.reference.norm**2 or 1.0, ", relative" if report.reference.norm else ""
    scale = (
        "the squared norm of the reference is 1" if relative else "absolute: the reference is zero"
    )
    try:
        chosen = report.recommend().choice
    except ConfigError:
        chosen = None
    plane = _chart(
        "Squared bias against variance, of one estimate",
        "Filled circle: biased. Open triangle: no bias found, drawn at the upper end of the 95 % "
        "interval; the truth lies below. Bars: 95 % intervals. Dashed: equal bias² + variance "
        f"= MSE ({scale}).",
        ("variance" + relative, "squared bias" + relative),
        [(row, row.variance / unit, _bias(row, unit)) for row in report.measured],
        chosen,
        curved=True,
    )
    cost = _chart(
        "Error against time, of one estimate",
        "Filled circle: biased. Open circle: no bias found. Bars: 95 % intervals of the MSE.",
        ("forward and backward, milliseconds", "MSE" + relative),
        [
            (
                row,
                1000 * (row.seconds_forward + row.seconds_backward),
                (row.mse / unit, row.mse_low / unit, row.mse_high / unit),
            )
            for row in report.measured
        ],
        chosen,
    )
    return plane, cost


def _bias(row: AuditRow, unit: float) -> tuple[float, float, float]:
    """Return the squared bias and its interval; where none was found, the upper end alone."""
    low, high = row.bias_low**2 / unit, row.bias_high**2 / unit
    return (row.bias**2 / unit, low, high) if row.biased else (high, math.nan, math.nan)


def _chart(
    title: str,
    caption: str,
    names: tuple[str, str],
    found: Sequence[tuple[AuditRow, float, tuple[float, float, float]]],
    chosen: str | None,
    *,
    curved: bool = False,
) -> Chart:
    sound = [one for one in found if all(0 <= v < math.inf for v in (one[1], one[2][0]))]
    x = axis_of(names[0], [one[1] for one in sound])
    y = axis_of(names[1], [v for one in sound for v in one[2]])
    points = tuple(_point(row, at, ys, x, y, bound=curved) for row, at, ys in sound)
    lost = [one[0].estimator for one in found if one not in sound]
    notes = [caption]
    if chosen is not None:
        notes.append("Bold: recommended.")
    if any(p.text[0] in "←↓↙" for p in points):
        notes.append("An arrow before a name: it lies beyond the axis, at zero or nearly so.")
    if lost:
        notes.append(f"Not drawn, as not finite: {', '.join(lost)}.")
    return Chart(
        title, " ".join(notes), x, y, points, _curves(x, y, points) if curved else (), chosen
    )


def _point(
    row: AuditRow,
    at: float,
    ys: tuple[float, float, float],
    x: Axis,
    y: Axis,
    *,
    bound: bool,
) -> Point:
    text = row.estimator if len(row.estimator) <= 30 else row.estimator[:29] + "…"
    (x_at, left), (y_at, down) = inside(at, x), inside(ys[0], y)
    arrow = "↙ " if left and down else "← " if left else "↓ " if down else ""
    low, high = (inside(v, y)[0] if v < math.inf else v for v in ys[1:])
    drawn = math.isfinite(low) and math.isfinite(high) and not down
    low, high = (low, high) if drawn else (math.nan, math.nan)
    return Point(row, arrow + text, x_at, y_at, low, high, bound and not row.biased)


def _curves(x: Axis, y: Axis, points: Sequence[Point]) -> tuple[Curve, ...]:
    out: list[Curve] = []
    # A little inside, for a label that lies on the border is not drawn.
    edge = [10 ** (axis.low + 1e-4 * (axis.high - axis.low)) for axis in (x, y)]
    most = math.log10(10**x.high + 10**y.high)
    for mse in round_numbers(math.log10(sum(edge)), most, _CURVES):
        # From the left end, where all is bias, to the lower end, where all is variance.
        first, last = (math.log(mse / v - 1) for v in edge)
        logits = [-first + (first + last) * i / 200 for i in range(201)]
        pairs = [(mse / (1 + math.exp(-s)), mse / (1 + math.exp(s))) for s in logits]
        kept = [p for p in pairs if x.at(p[0]) <= 1 and y.at(p[1]) <= 1]
        ends = [kept[0] == pairs[0], kept[-1] == pairs[-1]] if len(kept) > 1 else [False, False]
        # The axis with fewer decades has more room between two labels.
        left = ends[0] and not (ends[1] and x.high - x.low < y.high - y.low)
        if left or ends[1]:
            xs, ys = zip(*kept, strict=True)
            curve = Curve(f"MSE {tick(mse)}", xs, ys, left)
            spot = _spot(curve, x, y)
            taken = [_spot(other, x, y) for other in out]
            taken += [(x.at(p.x), y.at(p.y), x.at(p.x), y.at(p.y)) for p in points]
            if spot[0] >= 0 and spot[2] <= 1 and not any(overlap(spot, other) for other in taken):
                out.append(curve)
    return tuple(out)


def _spot(curve: Curve, x: Axis, y: Axis) -> Box:
    """Return about what the label of a curve covers, if the chart is small; the chart is 1 by 1."""
    across, up = x.at(curve.end[0]), y.at(curve.end[1])
    if curve.left:
        return 0.0, up - 0.03, 0.25, up + 0.03
    return across - 0.1, 0.0, across + 0.1, 0.07
