"""A chart of an audit as a piece of HTML that shows all figures of a point under the mouse."""

from __future__ import annotations

import html
import math
from typing import Any

import plotly.graph_objects as go

from .axes import Axis
from .chart import BIASED, GAP, GREY, UNBIASED, Chart, Point
from .rows import AuditRow

_SIZE = 13  # of letters in a chart, in pixels
_FONT = {"family": "system-ui, sans-serif", "size": _SIZE, "color": "#1a1a1a"}
_MARGIN = {"l": 58, "r": 12, "t": 36, "b": 52}
# The whole chart on a wide and on a narrow screen: labels find their places for either.
_WIDE, _NARROW = (1024, 580), (368, 580)
# On a narrow screen a finger scrolls the page, and must not draw a box to zoom into.
_FIT = """
const chart = document.getElementById('{plot_id}'), wide = matchMedia('(min-width: 60rem)');
const labels = {true: chart.layout.annotations, false: chart.layout.meta};
const fit = () => Plotly.relayout(chart, {
  annotations: labels[wide.matches], dragmode: wide.matches ? 'zoom' : false });
wide.addEventListener('change', fit);
return fit();
"""


def interactive(chart: Chart, unit: float, *, name: str, script: bool) -> str:
    """Return a chart as a piece of HTML.

    Args:
        chart: what to draw.
        unit: the norm that figures are relative to.
        name: of the piece, unlike any other on the page.
        script: whether plotly's own code comes with it; once a page is enough.
    """
    figure = go.Figure()
    for curve in chart.curves:
        figure.add_scatter(
            x=curve.x,
            y=curve.y,
            mode="lines",
            line={"color": GREY, "width": 1, "dash": "dash"},
            hoverinfo="skip",
        )
    for biased in (True, False):
        _add(figure, [p for p in chart.points if p.row.biased == biased], unit)
    figure.update_layout(
        template="plotly_white",
        showlegend=False,
        hovermode="closest",
        hoverlabel={"bgcolor": "white", "align": "left", "font": _FONT},
        font=_FONT,
        margin=_MARGIN,
        height=_WIDE[1],
        modebar={"remove": ["select", "lasso"]},
        annotations=_labels(chart, _WIDE),
        meta=_labels(chart, _NARROW),
    )
    figure.update_xaxes(**_ruler(chart.x))
    figure.update_yaxes(**_ruler(chart.y))
    drawn: str = figure.to_html(
        full_html=False,
        include_plotlyjs=script,
        include_mathjax=False,
        post_script=_FIT,
        div_id=name,
        config={"displaylogo": False, "responsive": True},
    )
    return drawn


def _ruler(axis: Axis) -> dict[str, Any]:
    return {
        "type": "log",
        "title": {"text": axis.title, "standoff": 8, "font": {"size": _SIZE}},
        "range": (axis.low, axis.high),
        "tickvals": [value for value, _ in axis.ticks],
        "ticktext": [text for _, text in axis.ticks],
        "tickangle": 0,
        "zeroline": False,
        "showline": True,
        "linecolor": GREY,
    }


def _add(figure: go.Figure, points: list[Point], unit: float) -> None:
    if not points:
        return
    biased, bound = points[0].row.biased, points[0].bound
    colour = BIASED if biased else UNBIASED
    # Triangles crowd where no bias was found: let all of them be seen.
    shape = "triangle-down-open" if bound else "circle"
    inside = colour if biased or bound else "white"
    figure.add_scatter(
        x=[p.x for p in points],
        y=[p.y for p in points],
        mode="markers",
        marker={
            "symbol": shape,
            "color": inside,
            "size": 10,
            "line": {"width": 1.5, "color": colour},
        },
        error_y={
            "array": [max(p.high - p.y, 0.0) for p in points],
            "arrayminus": [max(p.y - p.low, 0.0) for p in points],
            "color": colour,
            "thickness": 1.5,
            "width": 0,
        },
        hovertext=[_hover(p.row, unit) for p in points],
        hoverinfo="text",
    )


def _labels(chart: Chart, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return plotly's annotations for a chart of this size."""
    area = (size[0] - _MARGIN["l"] - _MARGIN["r"], size[1] - _MARGIN["t"] - _MARGIN["b"])

    out: list[dict[str, Any]] = [
        {
            "x": math.log10(curve.end[0]),
            "y": math.log10(curve.end[1]),
            "text": curve.text,
            "showarrow": False,
            "xanchor": "left" if curve.left else "center",
            "yanchor": "middle" if curve.left else "bottom",
            "xshift": GAP if curve.left else 0,
            "yshift": 0 if curve.left else GAP,
            "borderpad": 0,
            "bgcolor": "white",
            "font": {"color": GREY},
        }
        for curve in chart.curves
    ]
    for point, (right, up) in zip(chart.points, chart.labels(area, _SIZE), strict=True):
        text = _plain(point.text)
        out.append(
            {
                "x": math.log10(point.x),
                "y": math.log10(point.y),
                "text": f"<b>{text}</b>" if point.row.estimator == chart.chosen else text,
                "ax": right,
                "ay": -up,
                "arrowhead": 0,
                "arrowwidth": 0.8,
                "arrowcolor": GREY,
                "standoff": 5,
                "borderpad": 0,
                "bgcolor": "rgba(255, 255, 255, 0.7)",
            }
        )
    return out


def _hover(row: AuditRow, unit: float) -> str:
    """Return all figures of a row, a line each."""
    from .report import number

    def interval(x: float, low: float, high: float, power: int) -> str:
        texts = [number(v / unit**power) for v in (x, low, high)]
        return f"{texts[0]} ({texts[1]} to {texts[2]})"

    lines = {
        "bias": interval(row.bias, row.bias_low, row.bias_high, 1),
        "biased": f"{'yes' if row.biased else 'none found'} (p = {number(row.p_value)})",
        "promises no bias": "yes" if row.unbiased else "no",
        "variance": interval(row.variance, row.variance_low, row.variance_high, 2),
        "MSE": interval(row.mse, row.mse_low, row.mse_high, 2),
        "cosine of the mean": f"{row.cosine:.3f}",
        "cosine of one": f"{row.cosine_single:.3f}",
        "forward": f"{1000 * row.seconds_forward:.3g} ms",
        "backward": f"{1000 * row.seconds_backward:.3g} ms",
        "peak": "-" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.3g} MiB",
        "evaluations of f": f"{row.evaluations:,} ({row.samples:,} samples)",
        "estimates": f"{row.replicates:,}",
    }
    if row.minibatch_variance is not None and row.sampling_variance is not None:
        lines["variance over the data"] = number(row.minibatch_variance / unit**2)
        lines["variance over the draws"] = number(row.sampling_variance / unit**2)
    shown = "<br>".join(f"{name}: {value}" for name, value in lines.items())
    return f"<b>{_plain(row.estimator)}</b><br>{shown}"


def _plain(text: str) -> str:
    """Return text in which plotly finds neither tags nor its own templates."""
    return html.escape(text).replace("%", "&#37;")
