"""Tables: ours beside published, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..experiment import Experiment, TableView
from .names import name_of
from .number import Number
from .numbers import Numbers
from .runs import Run
from .verdicts import Verdict, verdict
from .views import Published, Reader


@dataclass(frozen=True)
class Entry:
    """One cell of a table.

    Args:
        ours: what the runs found.
        published: what was published, if anything.
        verdict: how they compare.
    """

    ours: Number
    published: Published | None
    verdict: Verdict


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        title: of it.
        says: what its numbers are.
        corner: what its rows are.
        rows: by level from above, their titles.
        columns: likewise from the left.
        entries: by (row, column), levels; a cell that does not exist is not there.
        source: of the published numbers, "" if there are none.
        note: a sentence below it.
    """

    title: str
    says: str
    corner: str
    rows: Mapping[str, str]
    columns: Mapping[str, str]
    entries: Mapping[tuple[str, str], Entry]
    source: str
    note: str

    @property
    def runs(self) -> list[Run]:
        """Whose numbers are in it, each once."""
        found = {run.key: run for entry in self.entries.values() for run in entry.ours.runs}
        return list(found.values())


def table_of(experiment: Experiment, view: TableView, numbers: Numbers) -> Table:
    """Fill in a table.

    Raises:
        ConfigError: the view does not say what it shows.
    """
    reader = Reader(experiment, view)
    rows, columns = reader.levels(view.rows), reader.levels(view.columns)
    entries: dict[tuple[str, str], Entry] = {}
    for row in rows:
        for column in columns:
            place = reader.place((row, column))
            if place is not None:
                ours, published = numbers.at(place), reader.published((row, column))
                entries[row, column] = Entry(ours, published, verdict(ours, published))
    return Table(
        view.title,
        _says(reader, view),
        view.rows,
        {level: reader.shown(view.rows, level) for level in rows},
        {level: reader.shown(view.columns, level) for level in columns},
        entries,
        _source(view),
        view.note,
    )


def _source(view: TableView) -> str:
    """Return where the published numbers stand, and what they are."""
    if not view.published:
        return ""
    spread = "standard error" if view.spread == "se" else "sd"
    return (view.source or "source not named") + (
        f"; mean ± {spread}, n = {view.n}" if view.n else ""
    )


def _says(reader: Reader, view: TableView) -> str:
    """Return what the numbers are, and which way is better."""
    names = [name_of(reader.experiment, metric) for metric in view.metrics.values()]
    spread = "metric" in (view.rows, view.columns)
    parts = [
        f"{shown}: {name.axis}" if spread and shown != name.axis else name.axis
        for shown, name in zip(view.metrics, names, strict=True)
    ]
    ways = {name.better for name in names} - {"neither"}
    better = f"; {ways.pop()} is better" if len(ways) == 1 else ""
    epoch = f", after epoch {view.epochs[0]}" if len(view.epochs) == 1 else ""
    fixed = [reader.shown(axis, x[0]) for axis, x in view.where.items() if len(x) == 1]
    place = f" Of {', '.join(fixed)}." if fixed else ""
    return f"{'; '.join(parts)}{epoch}{better}.{place}"
