"""What searches found: the best trial of each cell, from the journal that the search keeps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..cells import Cell, matches
from ..experiment import Experiment, Search

if TYPE_CHECKING:
    from ..sweep.studies import Best


@dataclass(frozen=True)
class Found:
    """What the search in one cell came to.

    Args:
        best: its best trial so far.
        wanted: how many trials the budget asks for.
    """

    best: Best
    wanted: int


class Searches:
    """The searches of an experiment, if it has any.

    Args:
        experiment: perhaps with a search.
        folder: of its records.
    """

    def __init__(self, experiment: Experiment, folder: Path) -> None:
        self._search: Search | None = experiment.search
        self._trials = {}
        if experiment.search is not None:
            from ..sweep.studies import trials_of  # Optuna is slow to import

            self._trials = trials_of(folder / "search.journal")

    def of(self, cell: Cell, budget: str) -> Found | None:
        """Return what was found in a cell; None if its settings are given."""
        search = self._search
        if search is None or not matches(search.where, cell.levels):
            return None
        from ..sweep.studies import best_of, name_of

        best = best_of(search, cell, self._trials.get(name_of(search, cell), ()))
        return Found(best, search.trials.get(budget, 0))
