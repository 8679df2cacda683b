"""The figure `gumbel`: density, inverse cdf, and a histogram of draws."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..._random import gumbels, uniforms
from ..reporting.style import COLOURS
from ..seeds import Seeds
from .sheet import Sheet, numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DRAWS = 20_000
LOW, HIGH, BINS = -3.0, 9.0, 48
Row = Mapping[str, Any]


def gumbel(seed: int, smoke: bool) -> Sheet:
    """Draw Gumbels as the estimators do, and hold them against density and inverse cdf.

    ``p(g) = exp(-g - exp(-g))``, ``F(g) = exp(-exp(-g))``, ``F^-1(u) = -log(-log u)``. Rows of the
    part "histogram" are bins: their density, and the one that F gives them.
    """
    draws = 1_000 if smoke else DRAWS
    rows = (*_density(), *_inverse(), *_histogram(draws, seed))
    return Sheet(rows, lambda: _png(rows, draws))


def _row(part: str, left: float, right: float, value: float, exact: float | None) -> Row:
    return {"part": part, "left": left, "right": right, "value": value, "exact": exact}


def _density() -> list[Row]:
    x = torch.linspace(LOW, HIGH, 121, dtype=torch.float64)
    values = numbers((-x - (-x).exp()).exp())
    return [_row("density", at, at, y, None) for at, y in zip(numbers(x), values, strict=True)]


def _inverse() -> list[Row]:
    u = torch.arange(1, 200, dtype=torch.float64) / 200
    found = gumbels(1.0 - u, torch.float64)  # the library's: a uniform of 0 is the largest Gumbel
    exact = -(-u.log()).log()
    columns = zip(numbers(u), numbers(found), numbers(exact), strict=True)
    return [_row("inverse cdf", at, at, value, want) for at, value, want in columns]


def _histogram(draws: int, seed: int) -> list[Row]:
    generator = torch.Generator().manual_seed(Seeds(seed).of("gumbel"))
    g = gumbels(uniforms((draws,), torch.device("cpu"), generator), torch.float64)
    edges = torch.linspace(LOW, HIGH, BINS + 1, dtype=torch.float64)
    counts = torch.histogram(g, edges).hist
    mass = (-(-edges).exp()).exp().diff()
    width = edges.diff()
    columns = (edges[:-1], edges[1:], counts / draws / width, mass / width)
    return [_row("histogram", *row) for row in zip(*map(numbers, columns), strict=True)]


def _png(rows: Sequence[Row], draws: int) -> bytes:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "font.size": 9,
        "font.family": "DejaVu Sans",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "text.parse_math": False,
    }
    parts = {
        part: [row for row in rows if row["part"] == part]
        for part in ("density", "inverse cdf", "histogram")
    }
    with mpl.rc_context({**mpl.rcParamsDefault, **style}):
        figure = Figure(figsize=(10.4, 3.3), layout="constrained")
        first, second, third = figure.subplots(1, 3)
        _line(first, parts["density"], "value", "density", "g", "p(g)")
        _line(second, parts["inverse cdf"], "value", "inverse cdf", "u", "−log(−log u)")
        bins = parts["histogram"]
        edges = [*(row["left"] for row in bins), bins[-1]["right"]]
        values = [row["value"] for row in bins]
        third.stairs(values, edges, fill=True, color=COLOURS[5], alpha=0.6)
        title = f"{draws:,} draws, and the density"
        _line(third, parts["density"], "value", title, "g", "share / width of a bin")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _line(axes: Axes, rows: Sequence[Row], name: str, title: str, x: str, y: str) -> None:
    axes.plot([row["left"] for row in rows], [row[name] for row in rows], color=COLOURS[0], lw=1.6)
    axes.grid(color="#dedede", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set(title=title, xlabel=x, ylabel=y)
