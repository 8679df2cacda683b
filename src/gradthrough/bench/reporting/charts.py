"""Figures as data, for whichever library draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...auditing.axes import Axis
from .runs import Run
from .style import Style


@dataclass(frozen=True)
class Mark:
    """A point of a line, or the top of a bar.

    Args:
        x: a number, or the name of a group of bars.
        y: mean or median.
        low: lower end of its spread, y itself of a single seed.
        high: upper end.
    """

    x: float | str
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """One line, or one colour of bars.

    Args:
        name: of it.
        style: of it.
        marks: ours, from the left.
        published: likewise.
    """

    name: str
    style: Style
    marks: tuple[Mark, ...]
    published: tuple[Mark, ...]


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Args:
        title: "" where there is one panel alone.
        lines: those with something to draw.
        window: of the y axis; None: all that there is.
        log: the y axis, where it is logarithmic.
    """

    title: str
    lines: tuple[Line, ...]
    window: tuple[float, float] | None = None
    log: Axis | None = None


@dataclass(frozen=True)
class Chart:
    """A figure.

    Args:
        title: of it.
        caption: how to read it.
        kind: curves or bars.
        x: title of the axis.
        y: likewise.
        log: the x axis, the same for all panels, where it is logarithmic.
        groups: of bars by level from the left, their titles.
        panels: those with something to draw.
        legend: what its lines look like, by name.
        runs: whose numbers are in it.
    """

    title: str
    caption: str
    kind: str
    x: str
    y: str
    log: Axis | None
    groups: Mapping[str, str]
    panels: tuple[Panel, ...]
    legend: Mapping[str, Style]
    runs: tuple[Run, ...]

    @property
    def sparse(self) -> bool:
        """Whether the points of curves are few enough to be shown."""
        return all(len(line.marks) < 15 for panel in self.panels for line in panel.lines)

    @property
    def ends(self) -> tuple[float, float]:
        """Where the x axis of curves begins and ends, the same for all panels."""
        x = places(self.panels)
        pad = 0.03 * (max(x) - min(x)) or 0.5
        return min(x) - pad, max(x) + pad


def places(panels: Sequence[Panel]) -> list[float]:
    """Return where the points of curves lie on the x axis."""
    lines = [line for panel in panels for line in panel.lines]
    return [float(m.x) for line in lines for m in (*line.marks, *line.published)]
