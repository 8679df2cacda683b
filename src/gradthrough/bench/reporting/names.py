"""What the numbers of an experiment are called: titles and units, from the tables of the tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..experiment import Experiment
from ..task import Metric
from ..tasks import TASKS
from . import derived


@dataclass(frozen=True)
class Name:
    """Of a number.

    Args:
        title: for a column.
        unit: "" for none.
        better: lower, higher or neither.
    """

    title: str
    unit: str
    better: str

    @property
    def axis(self) -> str:
        """The title with its unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


def name_of(experiment: Experiment, metric: str) -> Name:
    """Return what ``split/metric`` is called.

    Raises:
        ConfigError: a derived number that there is not.
    """
    if metric.startswith(derived.SPLIT):
        title, unit = derived.title(metric, lambda m: name_of(experiment, m).title)
        neither = metric == "run/evaluations_per_step"
        return Name(title, unit, "neither" if neither else "lower")
    split, _, name = metric.partition("/")
    found = _metrics(experiment).get(name)
    if found is None:
        text = name if split == "probe" else f"{split} {name}"
        return Name(text.replace("_", " "), "", "neither")
    return Name(f"{split} {found.title}", found.unit.strip("-"), found.better)


def level_title(axis: str, level: str) -> str:
    """Return a level as a title; a bare number says of what it is.

    Example:
        >>> from gradthrough.bench.reporting.names import level_title
        >>> level_title("batch_size", "20"), level_title("method", "ST"), level_title("epoch", "5")
        ('batch size = 20', 'ST', 'epoch 5')
    """
    if not is_number(level):
        return level
    return f"epoch {level}" if axis == "epoch" else f"{axis.replace('_', ' ')} = {level}"


def cell_title(levels: Mapping[str, str]) -> str:
    """Return the levels of a cell, in a line."""
    return ", ".join(level_title(axis, level) for axis, level in levels.items())


def is_number(text: str) -> bool:
    """Return whether text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _metrics(experiment: Experiment) -> dict[str, Metric]:
    """Return what the tasks of an experiment report; one axis of it may be the task."""
    fields = [experiment.run, *(x for levels in experiment.axes.values() for x in levels.values())]
    tasks = dict.fromkeys(f["task"] for f in fields if "task" in f)
    return {m.name: m for task in tasks if task in TASKS for m in TASKS[task].metrics}
