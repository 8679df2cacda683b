"""The picture of an audit: bias against variance, and error against cost."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis as Ruler
from matplotlib.figure import Figure, SubFigure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from .chart import BIASED, GAP, GREY, UNBIASED, Axis, Chart, charts

if TYPE_CHECKING:
    from .report import AuditReport

_SIZE = 8.5  # of a label, in points
_HALO = withStroke(linewidth=2.5, foreground="white")
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # a dollar in a label is a dollar
}


def draw(report: AuditReport) -> Figure:
    """Return both charts, side by side."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(12.5, 6.2), layout="constrained")
        problem = f"{report.problem[:1].upper()}{report.problem[1:]}"
        figure.suptitle(textwrap.fill(problem, 130), x=0.01, ha="left", fontsize=12)
        if not report.measured:
            figure.text(0.01, 0.5, "No estimator was measured.")
            return figure
        both = charts(report)
        halves = cast("list[SubFigure]", figure.subfigures(1, 2))
        panes = [half.add_subplot() for half in halves]
        titles = [half.suptitle(chart.title) for half, chart in zip(halves, both, strict=True)]
        for axes, chart in zip(panes, both, strict=True):
            _draw(axes, chart)
        # Labels find their places in pixels, which are known once the rest is laid out.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for axes, title, chart in zip(panes, titles, both, strict=True):
            title.set(x=axes.get_position().x0, ha="left", fontsize=10, fontweight="bold")
            _label(axes, chart)
    return figure


def _draw(axes: Axes, chart: Chart) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(10**chart.x.low, 10**chart.x.high)
    axes.set_ylim(10**chart.y.low, 10**chart.y.high)
    _rule(axes.xaxis, chart.x)
    _rule(axes.yaxis, chart.y)
    axes.set_title(textwrap.fill(chart.caption, 90), loc="left", fontsize=_SIZE)
    for curve in chart.curves:
        axes.plot(curve.x, curve.y, "--", color=GREY, linewidth=0.8, zorder=1)
        axes.annotate(
            curve.text,
            curve.end,
            (GAP, 0) if curve.left else (0, GAP),
            textcoords="offset points",
            color=GREY,
            fontsize=_SIZE,
            ha="left" if curve.left else "center",
            va="center" if curve.left else "bottom",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    for point in chart.points:
        colour = BIASED if point.row.biased else UNBIASED
        # Triangles crowd where no bias was found: let all of them be seen.
        inside = colour if point.row.biased else "none" if point.bound else "white"
        if point.low < point.high:
            axes.vlines(point.x, point.low, point.high, color=colour, linewidth=1.2)
        axes.plot(
            point.x,
            point.y,
            "v" if point.bound else "o",
            color=colour,
            markerfacecolor=inside,
            markersize=6,
        )


def _rule(ruler: Ruler, axis: Axis) -> None:
    ruler.set_major_locator(FixedLocator([value for value, _ in axis.ticks]))
    ruler.set_major_formatter(FixedFormatter([text for _, text in axis.ticks]))
    ruler.set_minor_locator(NullLocator())
    ruler.set_label_text(axis.title)


def _label(axes: Axes, chart: Chart) -> None:
    area = axes.get_window_extent()
    points = 72 / cast(Figure, axes.get_figure(root=True)).dpi
    places = chart.labels((area.width * points, area.height * points), _SIZE)
    for point, place in zip(chart.points, places, strict=True):
        axes.annotate(
            point.text,
            (point.x, point.y),
            place,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=_SIZE,
            fontweight="bold" if point.row.estimator == chart.chosen else "normal",
            path_effects=[_HALO],
            arrowprops={
                "arrowstyle": "-",
                "color": GREY,
                "linewidth": 0.6,
                "shrinkA": 0,
                "shrinkB": 4,
            },
        )
