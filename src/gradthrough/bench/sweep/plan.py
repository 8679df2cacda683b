"""Plans: the runs of an experiment under a budget, and how far each of them is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..._errors import ConfigError
from ..cells import Cell, cells, matches
from ..config import RunConfig
from ..experiment import Experiment, Where
from ..seeds import parse_seeds
from .job import Job, Outcome
from .states import Standing, standing


@dataclass(frozen=True)
class Run:
    """One run of a plan.

    Args:
        title: of its cell.
        config: with its seed.
        path: of its records.
        standing: how far it was when the plan was made.
    """

    title: str
    config: RunConfig
    path: Path
    standing: Standing


@dataclass(frozen=True)
class Row:
    """A cell with its runs; none if settings are searched for instead."""

    cell: Cell
    runs: tuple[Run, ...]
    searched: bool = False

    @property
    def status(self) -> str:
        """How many of its runs are how far."""
        if self.searched:
            return "search"
        counts = Counter(run.standing.state for run in self.runs)
        return ", ".join(f"{n} {state}" for state, n in counts.items())


def plan(experiment: Experiment, budget: str, out: Path) -> list[Row]:
    """Return the cells of an experiment under a budget, and how far their runs are.

    Args:
        experiment: what to run.
        budget: smoke, laptop or paper.
        out: folder of results.

    Raises:
        ConfigError: as `cells`; no cell.
        DomainError: a file of records that holds something else.
    """
    rows: list[Row] = []
    folder, search = out / experiment.name, experiment.search
    for cell in cells(experiment, budget):
        if search is not None and matches(search.where, cell.levels):
            rows.append(Row(cell, (), searched=True))
            continue
        paths = [(config, folder / f"{config.key}.jsonl") for config in cell.configs]
        runs = tuple(Run(cell.title, c, path, standing(path)) for c, path in paths)
        rows.append(Row(cell, runs))
    if not rows:
        raise ConfigError(f"no cell of {experiment.name} is left under the budget {budget!r}.")
    return rows


def jobs(
    rows: Sequence[Row],
    *,
    threads: int = 1,
    accelerator: str = "auto",
    rerun_failed: bool = False,
) -> Iterator[Job]:
    """Yield what is left to do of a plan, in its order; what two cells want comes once.

    Args:
        rows: of the plan.
        threads: of each job.
        accelerator: as lightning-fabric has it.
        rerun_failed: runs that failed are left to do, too.
    """
    wanted: set[Path] = set()
    for row in rows:
        left: list[Run] = []
        for run in row.runs:
            again = rerun_failed and run.standing.state == "failed"
            if run.path not in wanted and (again or not run.standing.ended):
                wanted.add(run.path)
                left.append(run)
        for some in [left] if row.cell.together and left else [[run] for run in left]:
            first = some[0]
            yield Job(
                first.config,
                tuple(run.config.seed for run in some),
                experiment=first.path.parent.name,
                out=first.path.parent.parent,
                threads=threads,
                accelerator=accelerator,
                title=row.cell.title,
            )


class Grid:
    """Jobs that are known beforehand, as a source of jobs; a search is another one."""

    def __init__(self, known: Iterator[Job]) -> None:
        self._left = list(known)[::-1]

    def next(self) -> Job | None:
        """Return another job, None if there is none."""
        return self._left.pop() if self._left else None

    def done(self) -> bool:
        """Return whether there are no more jobs to come."""
        return not self._left

    def tell(self, job: Job, outcome: Outcome) -> None:
        """Hear how a job ended."""


def narrowed(experiment: Experiment, only: Sequence[str], seeds: str | None) -> Experiment:
    """Return an experiment with some of its cells, or with other seeds.

    Args:
        experiment: the whole.
        only: "axis=level,level": those levels of the axis; several of one axis add up.
        seeds: of every cell, as `parse_seeds` reads them; None: those of the budget.

    Raises:
        ConfigError: no such axis or level; seeds that are none.
    """
    kept = _chosen(experiment, only)
    axes = {
        axis: {k: v for k, v in levels.items() if k in kept.get(axis, levels)}
        for axis, levels in experiment.axes.items()
    }
    budgets = experiment.budgets
    if seeds is not None:
        parse_seeds(seeds)
        budgets = {
            name: tuple(replace(part, seeds=seeds) for part in parts)
            for name, parts in budgets.items()
        }
    return replace(experiment, axes=axes, budgets=budgets)


def _chosen(experiment: Experiment, only: Sequence[str]) -> Where:
    kept: dict[str, tuple[str, ...]] = {}
    for text in only:
        axis, equals, levels = text.partition("=")
        if not equals:
            raise ConfigError(f"--only is {text!r}, but must be AXIS=LEVEL or AXIS=LEVEL,LEVEL.")
        if axis not in experiment.axes:
            known = ", ".join(experiment.axes) or "none"
            raise ConfigError(f"--only: {experiment.name} has no axis {axis!r}. Known: {known}.")
        known = experiment.axes[axis]
        # The name of a level may have commas of its own.
        for level in [levels] if levels in known else levels.split(","):
            if level not in known:
                raise ConfigError(
                    f"--only: {axis} has no level {level!r}. Known: {', '.join(known)}."
                )
            kept[axis] = (*kept.get(axis, ()), level)
    return kept


def seeds_text(seeds: Sequence[int]) -> str:
    """Return seeds as one types them; `parse_seeds` reads it.

    Example:
        >>> from gradthrough.bench.sweep.plan import seeds_text
        >>> seeds_text((0, 1, 2, 7))
        '0..2,7'
    """
    parts: list[list[int]] = []
    for seed in sorted(seeds):
        if parts and seed == parts[-1][-1] + 1:
            parts[-1].append(seed)
        else:
            parts.append([seed])
    return ",".join(f"{p[0]}..{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)
