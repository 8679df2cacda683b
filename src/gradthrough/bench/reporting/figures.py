"""Figures: from a view and what was found to a chart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ...auditing.axes import Axis, axis_of, round_numbers, tick
from ..experiment import Experiment, FigureView
from .charts import Chart, Line, Mark, Panel, places
from .names import name_of
from .number import Number
from .numbers import Numbers
from .style import styles
from .views import Published, Reader

_TICKS = 9  # at most, on a log axis
_NAMED = 6  # empty lines, in the caption


def chart_of(experiment: Experiment, view: FigureView, numbers: Numbers) -> Chart:
    """Fill in a figure.

    Raises:
        ConfigError: the view does not say what it shows, or has levels that are no numbers where a
            curve needs some.
    """
    maker = _Maker(experiment, view, numbers)
    panels = tuple(panel for name in maker.names(view.panels) if (panel := maker.panel(name)).lines)
    names = list(dict.fromkeys(name_of(experiment, m).axis for m in view.metrics.values()))
    groups = maker.reader.levels(view.x) if view.kind == "bars" else []
    drawn = {line.name for panel in panels for line in panel.lines}
    x = "training step" if view.x == "step" else view.x.replace("_", " ")
    return Chart(
        view.title,
        _caption(view, panels, maker),
        view.kind,
        x,
        view.label or ", ".join(names),
        _ruler(x, places(panels)) if "x" in view.log and view.kind == "curves" else None,
        {level: maker.reader.shown(view.x, level) for level in groups},
        panels,
        {name: style for name, style in maker.styles.items() if name in drawn},
        tuple({run.key: run for number in maker.used for run in number.runs}.values()),
    )


class _Maker:
    def __init__(self, experiment: Experiment, view: FigureView, numbers: Numbers) -> None:
        self.view, self.numbers = view, numbers
        self.reader = Reader(experiment, view)
        self.continuous = view.x in ("epoch", "step")
        if view.kind == "bars" and self.continuous:
            raise self.reader.error(
                f"bars over {view.x!r}. Take an axis for x, or kind = 'curves'."
            )
        if not self.continuous:
            for level in self.reader.levels(view.x):
                self._x(level)  # refuses, whatever was run
        looks = styles(experiment, view)
        self.styles = {self.title(name): looks[name] for name in self.names(view.lines)}
        self.used: list[Number] = []
        self.empty: list[str] = []
        better = {name_of(experiment, m).better for m in view.metrics.values()}
        self.better = better.pop() if len(better) == 1 else "neither"

    def names(self, spread: str) -> list[str]:
        return self.reader.levels(spread) if spread else [""]

    def title(self, line: str) -> str:
        return self.reader.shown(self.view.lines, line) or next(iter(self.view.metrics))

    def panel(self, name: str) -> Panel:
        found = [self._line(line, name) for line in self.names(self.view.lines)]
        lines = tuple(line for line in found if line.marks or line.published)
        title = self.reader.shown(self.view.panels, name)
        if "y" in self.view.log:
            y = [m.y for line in lines for m in (*line.marks, *line.published)]
            return Panel(title, lines, None, _ruler("", y))
        return Panel(title, lines, _window(lines, self.better) if self.continuous else None)

    def _line(self, name: str, panel: str) -> Line:
        path = [level for level in (name, panel) if level]
        marks = tuple(self._curve(path) if self.continuous else self._points(path))
        if self.continuous:
            given: list[tuple[float | str, Published]] = [*self.reader.curve(path)]
        else:
            every = [
                (x, self.reader.published((*path, x))) for x in self.reader.levels(self.view.x)
            ]
            given = [(self._x(x), p) for x, p in every if p is not None]
        published = tuple(_published(x, p) for x, p in given)
        if not marks:
            spread = (axis for axis in (self.view.lines, self.view.panels) if axis)
            titles = (self.reader.shown(*pair) for pair in zip(spread, path, strict=True))
            self.empty.append(", ".join(titles))
        title = self.title(name)
        return Line(title, self.styles[title], marks, published)

    def _curve(self, path: Sequence[str]) -> Iterator[Mark]:
        place = self.reader.place(path)
        for step, number in [] if place is None else self.numbers.curve(place):
            self.used.append(number)
            yield self._mark(step if self.view.x == "step" else number.epoch, number)

    def _points(self, path: Sequence[str]) -> Iterator[Mark]:
        for level in self.reader.levels(self.view.x):
            place = self.reader.place((*path, level))
            number = Number() if place is None else self.numbers.at(place)
            if number.values:
                self.used.append(number)
                yield self._mark(self._x(level), number)

    def _x(self, level: str) -> float | str:
        if self.view.kind == "bars":
            return level
        try:
            return float(level)
        except ValueError:
            raise self.reader.error(
                f"a curve over {self.view.x} needs levels that are numbers, but one is {level!r}. "
                "Rename it, or take kind = 'bars'."
            ) from None

    def _mark(self, x: float | str, number: Number) -> Mark:
        if self.view.statistic == "median":
            low, high = number.quartiles or (number.median, number.median)
            return Mark(x, number.median, low, high)
        mean, sd = number.mean, number.sd or 0.0
        return Mark(x, mean, mean - sd, mean + sd)


def _ruler(title: str, values: Sequence[float]) -> Axis:
    axis = axis_of(title, values)
    ticks = tuple((v, tick(v)) for v in round_numbers(axis.low, axis.high, _TICKS))
    return replace(axis, ticks=ticks)


def _published(x: float | str, p: Published) -> Mark:
    sd = p.sd or 0.0
    return Mark(x, p.mean, p.mean - sd, p.mean + sd)


def _window(lines: Sequence[Line], better: str) -> tuple[float, float] | None:
    """Return the part of the y axis where curves differ: the first epochs come from far away."""
    curves = [marks for line in lines for marks in (line.marks, line.published) if marks]
    every = [m.y for marks in curves for m in marks]
    if better == "neither" or not every:
        return None
    # A run that has only begun is as far away as the first epochs are.
    last = max(float(marks[-1].x) for marks in curves)
    ends = [marks[-1].y for marks in curves if float(marks[-1].x) >= last / 2]
    low, high = min(every), max(every)
    room = max(1.5 * (max(ends) - min(ends)), 0.15 * (high - low))
    edge = 0.04 * (high - low)
    if better == "lower" and max(ends) + room < high:
        top = max(ends) + room
        return low - 0.06 * (top - low), top
    if better == "higher" and min(ends) - room > low:
        bottom = min(ends) - room
        return bottom, high + 0.06 * (high - bottom)
    return (low - edge, high + edge) if edge and math.isfinite(edge) else None


def _caption(view: FigureView, panels: Sequence[Panel], maker: _Maker) -> str:
    lines = [line for panel in panels for line in panel.lines]
    what = "Bars" if view.kind == "bars" else "Lines"
    over = {"mean": "means over seeds", "median": "medians over seeds"}[view.statistic]
    parts: list[str] = []
    if maker.used:
        counts = sorted({number.n for number in maker.used})
        seeds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
        parts.append(f"{what}: {over} (n = {seeds}).")
        if counts[-1] > 1:
            spread = "± sd" if view.statistic == "mean" else "the middle half"
            parts.append(f"{'Whiskers' if view.kind == 'bars' else 'Bands'}: {spread}.")
    if any(line.published for line in lines):
        source = f", {view.source}" if view.source else ""
        parts.append(f"Hollow markers: published{source}.")
    if any(_beyond(panel) for panel in panels):
        parts.append("The y axes leave out the first epochs, which lie far beyond.")
    short = {f"{n.short[0]} of {n.short[1]} epochs" for n in maker.used if n.short}
    short |= {n.other for n in maker.used if n.other}
    if short and not maker.continuous:
        parts.append(f"Some are of a smaller budget: {'; '.join(sorted(short))}.")
    if maker.empty and any(maker.empty):
        more = f"; {len(maker.empty) - _NAMED} more" if len(maker.empty) > _NAMED else ""
        parts.append(f"Not run: {'; '.join(maker.empty[:_NAMED])}{more}.")
    if view.note:
        parts.append(view.note)
    return " ".join(parts)


def _beyond(panel: Panel) -> bool:
    if panel.window is None:
        return False
    low, high = panel.window
    return any(not low <= m.y <= high for line in panel.lines for m in line.marks)
