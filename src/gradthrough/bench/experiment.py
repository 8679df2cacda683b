"""Experiments: a published table or figure as a file, with its settings and published numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Budget = Literal["smoke", "laptop", "paper"]
BUDGETS: tuple[Budget, ...] = get_args(Budget)
Where = Mapping[str, tuple[str, ...]]  # axis -> the levels that are meant

# What stands beside the axes of an experiment as rows, columns, lines or panels.
VIRTUAL = ("metric", "epoch")


@dataclass(frozen=True)
class Override:
    """Settings of some cells.

    Args:
        where: which cells: a level or a list of levels for some of the axes; the others are free.
        run: fields of a config, laid over those of the axes.
    """

    where: Where
    run: Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """What a budget allows some cells; the first part of a budget that matches a cell holds.

    Args:
        where: which cells.
        seeds: of each of them, as `parse_seeds` reads them.
        run: fields of a config, laid over everything else.
        together: train the seeds as one vectorised run.
    """

    where: Where = field(default_factory=dict[str, tuple[str, ...]])
    seeds: str = "0"
    run: Mapping[str, Any] = field(default_factory=dict[str, Any])
    together: bool = False


@dataclass(frozen=True)
class Search:
    """A search for settings, one for each cell that `where` matches, instead of single runs.

    Args:
        space: by the dotted name of a field of a config, such as ``"lr"`` or
            ``"estimator_options.tau"``: ``{low, high, log}`` or ``{choices}``.
        metric: which number of a run is compared, as ``"split/metric"``.
        better: which way.
        sampler: random or tpe.
        trials: by budget, how many.
        where: which cells.
    """

    space: Mapping[str, Mapping[str, Any]]
    metric: str
    better: Literal["lower", "higher"] = "lower"
    sampler: Literal["random", "tpe"] = "random"
    trials: Mapping[str, int] = field(default_factory=dict[str, int])
    where: Where = field(default_factory=dict[str, tuple[str, ...]])


@dataclass(frozen=True)
class View:
    """What a table and a figure have in common.

    Args:
        title: of it.
        metrics: by the name shown, ``"split/metric"``; one of the names of `derived` where the
            split is "run".
        where: which levels of axes that the view does not spread out.
        published: nested by level, in the order (rows, columns) or (lines, panels, x); a number,
            ``[mean, sd]``, or ``[mean, sd, n]``.
        source: where they stand.
        spread: what their second number is.
        n: of how many seeds they are, where the numbers do not say it.
        note: a sentence below it.
    """

    title: str
    metrics: Mapping[str, str]
    where: Where = field(default_factory=dict[str, tuple[str, ...]])
    published: Mapping[str, Any] = field(default_factory=dict[str, Any])
    source: str = ""
    spread: Literal["sd", "se"] = "sd"
    n: int | None = None
    note: str = ""


@dataclass(frozen=True)
class TableView(View):
    """A table of means over seeds, ours beside published.

    Args:
        rows: an axis, "metric" or "epoch".
        columns: another one.
        epochs: at which, several where an axis of the table is "epoch"; none: after the last.
    """

    rows: str = ""
    columns: str = ""
    epochs: tuple[int, ...] = ()


@dataclass(frozen=True)
class FigureView(View):
    """Curves or bars of means over seeds.

    Args:
        kind: curves or bars.
        x: "epoch", "step", or an axis; for curves its levels must be numbers.
        lines: an axis or "metric".
        panels: another one, "" for a single panel.
        log: which axes are logarithmic: "", "x", "y" or "xy".
        epoch: at which, where x is an axis; none: after the last.
        label: of the y axis.
        statistic: over the seeds.
    """

    kind: Literal["curves", "bars"] = "curves"
    x: str = "epoch"
    lines: str = ""
    panels: str = ""
    log: str = ""
    epoch: int | None = None
    label: str = ""
    statistic: Literal["mean", "median"] = "mean"


@dataclass(frozen=True)
class Experiment:
    """One file of ``experiments/``.

    Args:
        name: of the file, and of the folder with its records.
        title: what is measured.
        paper: where it was published.
        about: how this protocol differs from the published one, what was assumed.
        run: fields of a config that all cells share; its task above all.
        axes: by name, their levels, each with the fields of a config that it sets.
        overrides: settings of some cells, in their order.
        skip: cells that do not exist.
        budgets: what each of them allows.
        search: instead of single runs.
        tables: to report.
        figures: to draw.
    """

    name: str
    title: str
    paper: str
    run: Mapping[str, Any]
    axes: Mapping[str, Mapping[str, Mapping[str, Any]]]
    budgets: Mapping[str, tuple[Part, ...]]
    about: str = ""
    overrides: tuple[Override, ...] = ()
    skip: tuple[Where, ...] = ()
    search: Search | None = None
    tables: tuple[TableView, ...] = ()
    figures: tuple[FigureView, ...] = ()
