"""Cells: what an experiment comes to under a budget, one config with its seeds for each."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from .._errors import ConfigError, GradthroughError
from ..estimators import ESTIMATORS
from .config import RunConfig
from .experiment import Experiment, Part, Where
from .seeds import parse_seeds
from .tasks import TASKS
from .typed import as_declared


@dataclass(frozen=True)
class Cell:
    """One place of the grid.

    Args:
        levels: by axis, where it is.
        config: of its first seed.
        seeds: all of them.
        together: train the seeds as one vectorised run.
    """

    levels: Mapping[str, str]
    config: RunConfig
    seeds: tuple[int, ...]
    together: bool = False

    @property
    def configs(self) -> tuple[RunConfig, ...]:
        """The config of each seed."""
        return tuple(replace(self.config, seed=seed) for seed in self.seeds)

    @property
    def title(self) -> str:
        """Its levels, in a line."""
        return ", ".join(self.levels.values()) or self.config.label


def cells(experiment: Experiment, budget: str) -> list[Cell]:
    """Return the cells of an experiment under a budget, in the order of the file.

    Raises:
        ConfigError: an unknown budget; a cell whose config is refused, and why.
    """
    if budget not in experiment.budgets:
        known = ", ".join(experiment.budgets)
        raise ConfigError(f"budget is {budget!r}, but {experiment.name} has {known}.")
    found: list[Cell] = []
    for levels in grid(experiment):
        part = next((p for p in experiment.budgets[budget] if matches(p.where, levels)), None)
        if part is not None:
            found.append(_cell(experiment, levels, part))
    return found


def grid(experiment: Experiment) -> list[dict[str, str]]:
    """Return the levels of every cell that exists, by axis."""
    axes = experiment.axes
    every = (dict(zip(axes, levels, strict=True)) for levels in itertools.product(*axes.values()))
    return [x for x in every if not any(matches(where, x) for where in experiment.skip)]


def matches(where: Where, levels: Mapping[str, str]) -> bool:
    """Return whether a cell is one of those that are meant."""
    return all(levels[axis] in wanted for axis, wanted in where.items())


def settings(experiment: Experiment, levels: Mapping[str, str], part: Part) -> dict[str, Any]:
    """Return the fields of a cell's config: what all share, its levels, overrides, the budget."""
    layers = [experiment.run]
    layers += [experiment.axes[axis][level] for axis, level in levels.items()]
    layers += [o.run for o in experiment.overrides if matches(o.where, levels)]
    out: dict[str, Any] = {}
    for layer in (*layers, part.run):
        out = merged(out, layer)
    return out


def merged(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Return a with b laid over it, dicts within dicts too."""
    out = dict(a)
    for key, value in b.items():
        inner = out.get(key)
        both = isinstance(inner, Mapping) and isinstance(value, Mapping)
        out[key] = merged(cast("Any", inner), cast("Any", value)) if both else value
    return out


def config_of(fields: Mapping[str, Any]) -> RunConfig:
    """Return the config of plain fields, the options of its task and estimator filled in.

    Raises:
        ConfigError: unknown names, or options that do not go together.
    """
    data: dict[str, Any] = {"estimator_options": {}, "task_options": {}, **fields}
    name, key = str(data.get("task")), str(data.get("estimator"))
    for group in ("task_options", "estimator_options"):
        if not isinstance(data[group], Mapping):
            raise ConfigError(f"{group} is {data[group]!r}, but must be a table.")
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}. Known: {', '.join(TASKS)}.")
    if key not in ESTIMATORS:
        raise ConfigError(f"unknown estimator {key!r}. Known: {', '.join(ESTIMATORS)}.")
    try:
        task = TASKS[name](**as_declared(TASKS[name], data["task_options"]))
        options = as_declared(ESTIMATORS[key], data["estimator_options"])
        whole = data | {"task_options": task.options(), "estimator_options": options}
        return RunConfig(**as_declared(RunConfig, whole))
    except TypeError as error:
        raise ConfigError(f"{error}.") from None


def _cell(experiment: Experiment, levels: dict[str, str], part: Part) -> Cell:
    try:
        seeds = parse_seeds(part.seeds)
        config = config_of(settings(experiment, levels, part) | {"seed": seeds[0]})
    except GradthroughError as error:
        place = ", ".join(f"{axis}={level}" for axis, level in levels.items())
        raise ConfigError(f"{experiment.name}, {place}: {error}") from error
    return Cell(levels, config, seeds, part.together)
