"""From an experiment and its records to all that a report shows of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..cells import cells
from ..experiment import Experiment
from .charts import Chart
from .coverage import Coverage, coverage
from .figures import chart_of
from .numbers import Numbers
from .runs import Run, Store
from .tables import Table, table_of


@dataclass(frozen=True)
class Section:
    """What a report says of one experiment.

    Args:
        experiment: which.
        folder: of its records.
        tables: filled in.
        charts: filled in, each with a name that is good for a file.
        coverage: of each budget.
        ledger: by cell, the runs whose numbers are shown.
    """

    experiment: Experiment
    folder: Path
    tables: tuple[Table, ...]
    charts: tuple[tuple[str, Chart], ...]
    coverage: tuple[Coverage, ...]
    ledger: Mapping[str, tuple[Run, ...]]

    @property
    def name(self) -> str:
        """Of the experiment, as an anchor."""
        return slug(self.experiment.name)


def section(experiment: Experiment, results: Path) -> Section:
    """Read the records of an experiment and fill in what it shows.

    Args:
        experiment: which.
        results: its records lie in the subfolder of its name; a run that another experiment has
            done is taken from there.

    Raises:
        ConfigError: a view that does not say what it shows.
        DomainError: files that are not records.
    """
    folder = results / experiment.name
    every = (cell for budget in experiment.budgets for cell in cells(experiment, budget))
    store = Store.read(folder, {config.key for cell in every for config in cell.configs})
    numbers = Numbers(experiment, store)
    tables = tuple(table_of(experiment, view, numbers) for view in experiment.tables)
    charts: dict[str, Chart] = {}
    for i, view in enumerate(experiment.figures):
        name = slug(f"{experiment.name}-{view.title}")
        charts[name if name not in charts else f"{name}-{i}"] = chart_of(experiment, view, numbers)
    ledger = {title: _by_seed(runs.values()) for title, runs in sorted(numbers.ledger.items())}
    done = coverage(experiment, store)
    return Section(experiment, folder, tables, tuple(charts.items()), done, ledger)


def _by_seed(runs: Iterable[Run]) -> tuple[Run, ...]:
    return tuple(sorted(runs, key=lambda run: run.config.seed))


def slug(text: str) -> str:
    """Return a name for a file or an anchor.

    Example:
        >>> from gradthrough.bench.reporting.assembly import slug
        >>> slug("mnist_vae-Learning curves, 8×4")
        'mnist_vae-learning-curves-8-4'
    """
    return re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-")
