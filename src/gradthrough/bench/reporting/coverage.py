"""Coverage: what of an experiment has been run, and what came to nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..cells import cells
from ..experiment import BUDGETS, Experiment
from .digits import ranges
from .names import cell_title
from .runs import Run, Store
from .searches import Searches


@dataclass(frozen=True)
class Lost:
    """A run that did not end well, or has not ended.

    Args:
        cell: where it belongs.
        run: its records.
    """

    cell: str
    run: Run

    @property
    def words(self) -> str:
        """What became of it."""
        run = self.run
        if run.status == "unfinished":
            return f"unfinished: {run.reached} of {run.config.epochs} epochs"
        return f"{run.status}: {run.reason}" if run.reason else run.status


@dataclass(frozen=True)
class Coverage:
    """Of one budget.

    Args:
        budget: its name.
        wanted: how many runs it asks for.
        done: how many of them are done.
        missing: (seeds, or trials of a search, and the cells that lack them).
        lost: runs that diverged, failed, were skipped or have not ended.
    """

    budget: str
    wanted: int
    done: int
    missing: tuple[tuple[str, tuple[str, ...]], ...]
    lost: tuple[Lost, ...]

    @property
    def line(self) -> str:
        """All of it in a few words."""
        head = f"{self.done} of {self.wanted} runs done"
        return f"all {self.wanted} runs done" if self.done == self.wanted else head


def coverage(experiment: Experiment, store: Store) -> tuple[Coverage, ...]:
    """Return what each budget has, the paper's first."""
    return tuple(_of(experiment, store, budget) for budget in reversed(BUDGETS))


def _of(experiment: Experiment, store: Store, budget: str) -> Coverage:
    wanted = done = 0
    searches = Searches(experiment, store.folder)
    lost: list[Lost] = []
    missing: dict[str, list[str]] = {}
    every = cells(experiment, budget)
    for cell in every:
        title = cell_title(cell.levels)
        found = searches.of(cell, budget)
        if found is not None:
            ended = min(found.best.ended, found.wanted)
            wanted, done = wanted + found.wanted, done + ended
            if ended < found.wanted:
                words = f"{found.wanted - ended} of {found.wanted} trials of the search"
                missing.setdefault(words, []).append(title)
            continue
        absent: list[int] = []
        for config in cell.configs:
            run = store.run(config.key)
            wanted += 1
            if run is None:
                absent.append(config.seed)
            elif run.status == "done":
                done += 1
            else:
                lost.append(Lost(title, run))
        if absent:
            missing.setdefault(_seeds(absent), []).append(title)
    all_of = (f"all {len(every)} cells",)
    groups = tuple(
        (seeds, all_of if len(titles) == len(every) > 1 else tuple(titles))
        for seeds, titles in missing.items()
    )
    return Coverage(budget, wanted, done, groups, tuple(lost))


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {ranges(list(seeds))}"
