"""Figures as pieces of HTML, a plot for each panel: a narrow screen shows one below the other."""

from __future__ import annotations

import html
import math
from typing import Any

import plotly.graph_objects as go

from ...auditing.axes import Axis
from .charts import Chart, Line, Mark, Panel

_DASHES = ("solid", "dash", "dot", "dashdot")
_GREY = "#808080"
_SIZE = 13
_FONT = {"family": "system-ui, sans-serif", "size": _SIZE, "color": _GREY}

# What the page runs once: colours that follow the page's own, and a legend that all panels share.
SCRIPT = """
const charts = [...document.querySelectorAll('.plotly-graph-div')];
const narrow = matchMedia('(max-width: 60rem)'), dark = matchMedia('(prefers-color-scheme: dark)');
const dress = () => {
  const css = getComputedStyle(document.documentElement), of = name => css.getPropertyValue(name);
  for (const chart of charts) Plotly.relayout(chart, {
    'font.color': of('--ink'), 'xaxis.gridcolor': of('--line'), 'yaxis.gridcolor': of('--line'),
    'hoverlabel.bgcolor': of('--paper'), 'hoverlabel.font.color': of('--ink'),
    dragmode: narrow.matches ? false : 'zoom' });
};
for (const query of [narrow, dark]) query.addEventListener('change', dress);
for (const button of document.querySelectorAll('.legend button')) button.onclick = () => {
  const shown = button.getAttribute('aria-pressed') !== 'true';
  button.setAttribute('aria-pressed', shown);
  for (const chart of button.closest('figure').querySelectorAll('.plotly-graph-div')) {
    const hit = chart.data.flatMap((t, i) => t.legendgroup === button.dataset.line ? [i] : []);
    if (hit.length) Plotly.restyle(chart, { visible: shown }, hit);
  }
};
dress();
// A plot that was drawn before its neighbours were there is too wide.
for (const chart of charts) Plotly.Plots.resize(chart);
"""


def interactive(chart: Chart, name: str) -> str:
    """Return a chart as a piece of HTML.

    Args:
        chart: with something to draw.
        name: of the piece, unlike any other on the page.
    """
    panels = "".join(
        f"<div>{_title(panel)}{_panel(chart, panel, f'{name}-{i}')}</div>"
        for i, panel in enumerate(chart.panels)
    )
    return f'{_legend(chart)}<div class="panels">{panels}</div>'


def _title(panel: Panel) -> str:
    return f"<h4>{html.escape(panel.title)}</h4>" if panel.title else ""


def _legend(chart: Chart) -> str:
    looks = ("solid", "dashed", "dotted", "dashed")
    keys = "".join(
        f'<button aria-pressed="true" data-line="l{i}"><i style="border-top: 3px '
        f'{looks[style.dash]} {style.colour}"></i>{html.escape(line)}</button>'
        for i, (line, style) in enumerate(chart.legend.items())
    )
    return f'<div class="legend">{keys}</div>'


def _panel(chart: Chart, panel: Panel, name: str) -> str:
    figure = go.Figure()
    order = list(chart.legend)
    for line in sorted(panel.lines, key=lambda line: line.style.dash):  # dashes lie above
        _add(figure, chart, panel, line, f"l{order.index(line.name)}")
    figure.update_layout(
        showlegend=False,
        hovermode="closest",
        hoverlabel={"bgcolor": "white", "font": {**_FONT, "color": "black"}, "align": "left"},
        font=_FONT,
        margin={"l": 62, "r": 8, "t": 8, "b": 46},
        height=320,
        barmode="group",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        modebar={"remove": ["select", "lasso"], "bgcolor": "rgba(0,0,0,0)"},
        template=None,
    )
    figure.update_xaxes(**_ruler(chart.x, chart.log))
    figure.update_yaxes(**_ruler(chart.y, panel.log))
    if chart.kind == "bars":
        titles = [_plain(title) for title in chart.groups.values()]
        figure.update_xaxes(type="category", categoryorder="array", categoryarray=titles)
    elif chart.log is None:
        figure.update_xaxes(range=chart.ends)
    if panel.window is not None:
        figure.update_yaxes(range=panel.window)
    drawn: str = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        include_mathjax=False,
        div_id=name,
        config={"displaylogo": False, "responsive": True, "displayModeBar": False},
    )
    return drawn


def _ruler(title: str, log: Axis | None) -> dict[str, Any]:
    shared: dict[str, Any] = {
        "title": {"text": _plain(title), "standoff": 6, "font": {"size": _SIZE}},
        "automargin": True,
        "zeroline": False,
        "showline": True,
        "linecolor": _GREY,
        "gridcolor": "#dddddd",
        "exponentformat": "power",
    }
    if log is None:
        return shared
    ticks = {"tickvals": [v for v, _ in log.ticks], "ticktext": [text for _, text in log.ticks]}
    return shared | ticks | {"type": "log", "range": (log.low, log.high), "tickangle": 0}


def _add(figure: go.Figure, chart: Chart, panel: Panel, line: Line, group: str) -> None:
    colour, marks, y = line.style.colour, line.marks, [_short(m.y) for m in line.marks]
    shared: dict[str, Any] = {"legendgroup": group, "name": _plain(line.name)}
    spread = any(m.low < m.high for m in marks)
    if chart.kind == "bars":
        error = _whiskers(marks, _GREY) if spread else None
        figure.add_bar(x=_x(chart, marks), y=y, marker_color=colour, error_y=error, **shared)
    else:
        if spread:
            least = -math.inf if panel.log is None else 10**panel.log.low
            _band(figure, marks, least, colour, shared)
        figure.add_scatter(
            x=_x(chart, marks),
            y=y,
            mode="lines+markers" if chart.sparse else "lines",
            line={"color": colour, "width": 2, "dash": _DASHES[line.style.dash]},
            hovertemplate=_hover(line.name, chart.x),
            **shared,
        )
    if line.published:
        known = line.published
        error = _whiskers(known, colour) if any(m.low < m.high for m in known) else None
        figure.add_scatter(
            x=_x(chart, known),
            y=[_short(m.y) for m in known],
            mode="markers",
            marker={"symbol": "circle-open", "size": 8, "color": colour, "line": {"width": 1.5}},
            error_y=error,
            hovertemplate=_hover(f"{line.name}, published", chart.x),
            **shared,
        )


def _band(
    figure: go.Figure,
    marks: tuple[Mark, ...],
    least: float,
    colour: str,
    shared: dict[str, Any],
) -> None:
    x = [m.x for m in marks]
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    figure.add_scatter(
        x=x + x[::-1],
        y=[_short(m.high) for m in marks] + [_short(max(m.low, least)) for m in marks][::-1],
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.2)",
        hoverinfo="skip",
        **shared,
    )


def _whiskers(marks: tuple[Mark, ...], colour: str) -> dict[str, Any]:
    return {
        "array": [_short(m.high - m.y) for m in marks],
        "arrayminus": [_short(m.y - m.low) for m in marks],
        "color": colour,
        "thickness": 1.2,
        "width": 0,
    }


def _hover(name: str, x: str) -> str:
    return f"{_plain(name)}<br>{_plain(x)} %{{x}}: %{{y:.6g}}<extra></extra>"


def _x(chart: Chart, marks: tuple[Mark, ...]) -> list[float | str]:
    if chart.kind == "bars":
        return [_plain(chart.groups[str(m.x)]) for m in marks]
    return [m.x for m in marks]


def _short(x: float) -> float:
    """Return a number with the digits that a picture shows: the page is smaller for it."""
    return float(f"{x:.7g}")


def _plain(text: str) -> str:
    """Return text in which plotly finds neither tags nor its own templates."""
    return html.escape(text).replace("%", "&#37;")
