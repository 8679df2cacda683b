"""Figures as PNG pictures: the same numbers make the same bytes."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis as Ruler
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray
from PIL import Image

from ...auditing.axes import Axis
from .charts import Chart, Line, Mark, Panel
from .style import COLOURS, Style

_DPI = 150
_GRID = "#dedede"
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)))
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "font.family": "DejaVu Sans",  # it comes with matplotlib: the same letters everywhere
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "text.parse_math": False,
}


def png(chart: Chart) -> bytes:
    """Return the picture of a chart with something to draw."""
    with mpl.rc_context({**mpl.rcParamsDefault, **_STYLE}):
        buffer = io.BytesIO()
        _draw(chart).savefig(buffer, format="png", dpi=_DPI)
    return _small(np.asarray(Image.open(buffer).convert("RGB")))


def _small(picture: NDArray[np.uint8]) -> bytes:
    """Return a PNG of 256 colours, a third of the bytes: ours on white, in all shades."""
    inks = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in ("#000000", *COLOURS)])
    shades = np.linspace(0, 1, 32)[:, None, None]
    palette = np.rint(255 + (inks - 255) * shades).astype(np.int64).reshape(-1, 3)
    found, places = np.unique(picture.reshape(-1, 3), axis=0, return_inverse=True)
    apart = ((found[:, None].astype(np.int64) - palette) ** 2).sum(-1)
    indices = apart.argmin(-1).astype(np.uint8)[places.ravel()]
    out, image = io.BytesIO(), Image.fromarray(indices.reshape(picture.shape[:2]), "P")
    image.putpalette(palette.ravel().tolist())
    image.save(out, format="png", optimize=True)
    return out.getvalue()


def _draw(chart: Chart) -> Figure:
    count = len(chart.panels)
    columns = 2 if count in (2, 4) else min(count, 3)
    rows = math.ceil(count / columns)
    width = {1: 6.4, 2: 8.4, 3: 10.4}[columns]
    figure = Figure(figsize=(width, 0.7 + 2.7 * rows), layout="constrained")
    grid: list[list[Axes]] = figure.subplots(rows, columns, squeeze=False).tolist()
    panes = [axes for row in grid for axes in row]
    for axes in panes[count:]:
        axes.set_visible(False)
    for i, (axes, panel) in enumerate(zip(panes, chart.panels, strict=False)):
        _panel(axes, chart, panel)
        if i % columns == 0:
            axes.set_ylabel(textwrap.fill(chart.y, 34))
        if i + columns >= count:
            axes.set_xlabel(chart.x)
    _legend(figure, chart, int(width / 1.4))
    return figure


def _panel(axes: Axes, chart: Chart, panel: Panel) -> None:
    axes.set_title(panel.title)
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    if chart.kind == "bars":
        _bars(axes, chart, panel)
    else:
        for line in panel.lines:
            _curve(axes, line, "o" if chart.sparse else "")
        axes.set_xlim(chart.ends)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    if chart.log is not None:
        axes.set_xscale("log")
        axes.set_xlim(10**chart.log.low, 10**chart.log.high)
        _rule(axes.xaxis, chart.log)
    if panel.log is not None:
        axes.set_yscale("log")
        axes.set_ylim(10**panel.log.low, 10**panel.log.high)
        _rule(axes.yaxis, panel.log)
    if panel.window is not None:
        axes.set_ylim(panel.window)


def _rule(ruler: Ruler, axis: Axis) -> None:
    ruler.set_major_locator(FixedLocator([value for value, _ in axis.ticks]))
    ruler.set_major_formatter(FixedFormatter([text for _, text in axis.ticks]))
    ruler.set_minor_locator(NullLocator())


def _curve(axes: Axes, line: Line, few: str) -> None:
    marks, style = line.marks, line.style
    x: list[Any] = [m.x for m in marks]
    if any(m.low < m.high for m in marks):
        low, high = [m.low for m in marks], [m.high for m in marks]
        axes.fill_between(x, low, high, color=style.colour, alpha=0.18, linewidth=0)
    look: dict[str, Any] = {"color": style.colour, "ls": _dash(style), "zorder": 2 + style.dash / 9}
    axes.plot(x, [m.y for m in marks], marker=few, lw=1.6, ms=3, **look)
    _hollow(axes, [m.x for m in line.published], line.published, style)


def _bars(axes: Axes, chart: Chart, panel: Panel) -> None:
    wide, order = 0.8 / len(panel.lines), list(chart.groups)
    for i, line in enumerate(panel.lines):
        shift = (i - (len(panel.lines) - 1) / 2) * wide
        x = [order.index(str(m.x)) + shift for m in line.marks]
        axes.bar(x, [m.y for m in line.marks], 0.92 * wide, color=line.style.colour)
        for at, m in zip(x, line.marks, strict=True):
            axes.vlines(at, m.low, m.high, color="black", linewidth=0.9)
        known = [order.index(str(m.x)) + shift for m in line.published]
        _hollow(axes, known, line.published, Style("#000000", 0))
    axes.set_xticks(range(len(order)), list(chart.groups.values()))


def _hollow(axes: Axes, x: Sequence[Any], marks: Sequence[Mark], style: Style) -> None:
    for at, m in zip(x, marks, strict=True):
        if m.low < m.high:
            axes.vlines(at, m.low, m.high, color=style.colour, linewidth=0.9)
    y = [m.y for m in marks]
    axes.plot(x, y, "o", color=style.colour, mfc="white", ms=4.5, mew=1.1, zorder=3)


def _legend(figure: Figure, chart: Chart, columns: int) -> None:
    handles: list[Artist] = []
    for name, style in chart.legend.items():
        if chart.kind == "bars":
            handles.append(Patch(color=style.colour, label=name))
        else:
            handles.append(Line2D([], [], color=style.colour, ls=_dash(style), label=name))
    if any(line.published for panel in chart.panels for line in panel.lines):
        hollow: dict[str, Any] = {
            "color": "#444444",
            "mfc": "white",
            "ms": 4.5,
            "label": "published",
        }
        handles.append(Line2D([], [], ls="", marker="o", **hollow))
    if len(handles) > 1:
        count = math.ceil(len(handles) / math.ceil(len(handles) / columns))
        figure.legend(handles=handles, loc="outside upper center", ncols=count, frameon=False)


def _dash(style: Style) -> Any:  # noqa: ANN401 - matplotlib's own type
    return _DASHES[style.dash]
