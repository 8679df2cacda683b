"""Numbers: which runs of a cell serve which number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from ..cells import Cell, cells
from ..config import RunConfig
from ..experiment import Experiment
from .names import cell_title
from .number import Number
from .runs import Run, Store, family
from .searches import Searches
from .views import Place

_ENDED = ("diverged", "failed", "skipped")
Levels = Mapping[str, str]


@dataclass(frozen=True)
class _Source:
    """Runs that may serve a cell: those of one protocol.

    Args:
        runs: the longest first.
        epochs: the most that count.
        short: see `Number`.
        other: see `Number`.
        trials: see `Number`.
    """

    runs: Sequence[Run]
    epochs: int
    short: tuple[int, int] | None = None
    other: str = ""
    trials: int = 0


class Numbers:
    """What an experiment found.

    The protocol of a cell is that of the budget "paper". Runs of fewer epochs serve as well, and
    say so; so does what the budget "laptop" asks for in its stead. "smoke" never does.

    Args:
        experiment: its cells.
        store: its runs.

    Attributes:
        ledger: by cell and number of epochs, the runs whose numbers were given out.
    """

    def __init__(self, experiment: Experiment, store: Store) -> None:
        self._store = store
        smoke = _asked(experiment, "smoke") - _asked(experiment, "paper", "laptop")
        self._barred = {run.key for run in store.runs if _seedless(run.config) in smoke}
        self.ledger: dict[str, dict[str, Run]] = {}
        self._searches = Searches(experiment, store.folder)
        search = experiment.search
        self._trials = 0 if search is None else search.trials.get("paper", 0)
        self._cells = {
            budget: {_place(cell.levels): cell for cell in cells(experiment, budget)}
            for budget in ("paper", "laptop")
        }

    def at(self, place: Place) -> Number:
        """Return the number at a place."""
        empty = Number()
        for source in self._sources(place.levels):
            found = _pooled(source, place.metric, place.epoch)
            if found.values:
                self._note(place, found)
                return found
            empty = empty if empty.lost else found
        return empty

    def curve(self, place: Place) -> list[tuple[int, Number]]:
        """Return the numbers of a place at all epochs, with the step of each, of the same seeds."""
        for source in self._sources(place.levels):
            if found := _curve(source, place.metric):
                self._note(place, found[0][1])
                return found
        return []

    def _note(self, place: Place, number: Number) -> None:
        for run in number.runs:
            title = f"{cell_title(place.levels)}, {run.config.epochs} epochs"
            self.ledger.setdefault(title, {})[run.key] = run

    def _sources(self, levels: Levels) -> list[_Source]:
        paper, laptop = (self._cells[b].get(_place(levels)) for b in ("paper", "laptop"))
        out = [] if paper is None else [self._source(paper, "paper", None, "")]
        if laptop is None:
            return out
        known = None if paper is None else family(paper.config)
        searched = self._searches.of(laptop, "laptop") is not None
        if searched or family(laptop.config) != known:
            out.append(self._source(laptop, "laptop", *_departure(laptop, paper)))
        return out

    def _source(
        self, cell: Cell, budget: str, short: tuple[int, int] | None, other: str
    ) -> _Source:
        epochs, found = cell.config.epochs, self._searches.of(cell, budget)
        if found is None:
            runs = [r for r in self._store.family(cell.config) if r.key not in self._barred]
            return _Source(runs, epochs, short, other)
        best = self._store.run(found.best.key or "")
        if best is None:
            return _Source((), epochs)
        seeds = cell.seeds if cell.together else cell.seeds[:1]
        same = [r for r in self._store.family(best.config) if r.config.epochs == epochs]
        runs = [r for r in same if r.config.seed in seeds]
        wanted, ended = self._trials or found.wanted, found.best.ended
        if ended < wanted:
            other = "; ".join(x for x in (other, f"{ended} of {wanted} trials") if x)
        return _Source(runs, epochs, short, other, ended)


def _asked(experiment: Experiment, *budgets: str) -> set[str]:
    """Return what budgets ask for, whatever the seed."""
    every = (cell for budget in budgets for cell in cells(experiment, budget))
    return {_seedless(cell.config) for cell in every}


def _seedless(config: RunConfig) -> str:
    return replace(config, seed=0).key


def _place(levels: Levels) -> tuple[tuple[str, str], ...]:
    return tuple(levels.items())


def _pooled(source: _Source, metric: str, epoch: int | None) -> Number:
    """Return the number after an epoch, or after the last one that any run is to have."""
    ends = {min(run.config.epochs, source.epochs) for run in source.runs}
    for e in sorted(ends, reverse=True) if epoch is None else [epoch]:
        found: dict[int, tuple[float, Run]] = {}
        for run in source.runs:
            value = run.value(metric, e)
            if value is not None:
                found.setdefault(run.config.seed, (value, run))
        lost = _lost(source.runs, e, set(found))
        if found or lost:
            short = (e, source.epochs) if epoch is None and e < source.epochs else source.short
            return _number(found, e, source, lost=lost, short=short)
    return Number()


def _number(
    found: dict[int, tuple[float, Run]],
    epoch: int,
    source: _Source,
    *,
    lost: Mapping[str, int],
    short: tuple[int, int] | None,
) -> Number:
    pairs = [found[seed] for seed in sorted(found)]
    values, runs = tuple(value for value, _ in pairs), tuple(run for _, run in pairs)
    return Number(values, runs, epoch, lost, short, source.other, source.trials)


def _lost(runs: Sequence[Run], epoch: int, found: set[int]) -> dict[str, int]:
    """Return how many seeds came to nothing at an epoch, by why; what still runs is not lost."""
    why: dict[int, str] = {}
    for run in runs:
        if run.config.epochs < epoch or run.config.seed in found:
            continue
        if run.status in _ENDED:
            why.setdefault(run.config.seed, run.status)
        elif run.reached >= epoch:
            why.setdefault(run.config.seed, "without a value")
    return dict(Counter(why.values()))


def _curve(source: _Source, metric: str) -> list[tuple[int, Number]]:
    """Return a curve of the seeds that come furthest; a mean over fewer and fewer would jump."""
    sound = [run for run in source.runs if run.status not in _ENDED]
    for runs in (sound, list(source.runs)):
        epochs = {
            run.key: {e for e in run.epochs_with(metric) if e <= source.epochs} for run in runs
        }
        last = max((e for known in epochs.values() for e in known), default=None)
        if last is None:
            continue
        chosen: dict[int, Run] = {}
        for run in runs:
            if last in epochs[run.key]:
                chosen.setdefault(run.config.seed, run)
        shared = set[int].intersection(*(epochs[run.key] for run in chosen.values()))
        first = next(iter(chosen.values()))
        return [
            (
                first.step_at(e),
                _number(_values(chosen, metric, e), e, source, lost={}, short=source.short),
            )
            for e in sorted(shared)
        ]
    return []


def _values(chosen: dict[int, Run], metric: str, epoch: int) -> dict[int, tuple[float, Run]]:
    both = {seed: (run.value(metric, epoch), run) for seed, run in chosen.items()}
    return {seed: (value, run) for seed, (value, run) in both.items() if value is not None}


def _departure(laptop: Cell, paper: Cell | None) -> tuple[tuple[int, int] | None, str]:
    """Return how the protocol of a laptop differs from the published one."""
    if paper is None:
        return None, "no budget of the paper"
    ours, theirs = _flat(laptop.config), _flat(paper.config)
    names = [n for n in (*theirs, *(n for n in ours if n not in theirs)) if n != "seed"]
    changed = [n for n in names if ours.get(n) != theirs.get(n)]
    if laptop.config.schedule != "plateau":  # else nothing that is trained depends on it
        changed = [n for n in changed if n != "evaluate_every"]
    if changed == ["epochs"] and laptop.config.epochs < paper.config.epochs:
        return (laptop.config.epochs, paper.config.epochs), ""
    if not changed:  # a search, over other seeds
        return None, ""
    words = [f"{n} {ours.get(n)}, not {theirs.get(n)}" for n in changed]
    return None, f"other settings: {'; '.join(words)}"


def _flat(config: RunConfig) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in config.as_dict().items():
        nested = isinstance(value, Mapping)
        inner = cast("Mapping[str, Any]", value) if nested else {name: value}
        # A task and an estimator may both have a tau.
        out |= {n if n not in out else f"{name}.{n}": x for n, x in inner.items()}
    return out
