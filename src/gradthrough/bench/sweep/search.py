"""Searches: settings that are asked for, tried as ordinary runs, and remembered whatever is killed.

There is one study for each cell, in ``<out>/<experiment>/search.journal``. Its name holds a hash of
all that its values depend on: a search that was changed begins anew, and finds the runs that it
asks for again already done.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from optuna.trial import TrialState, create_trial

from ..._errors import ConfigError, GradthroughError
from .. import records
from ..cells import Cell, cells, matches
from ..experiment import Experiment, Search
from .job import Job, Outcome
from .space import Space, check_metric, draw, laid_over, seed_of, space_of
from .studies import Best, CellStudy, Verdict, best_of, mend, name_of, storage_of, trials_of


@dataclass(eq=False)
class _Quest:
    """The search in one cell, and how far it is."""

    name: str
    cell: Cell
    space: Space
    asked: int = 0
    ended: int = 0
    left: deque[int] = field(default_factory=deque[int])  # trials without a worker

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.cell.seeds if self.cell.together else self.cell.seeds[:1]


class Studies:
    """The search of an experiment: ask it for jobs, tell it how they ended.

    A trial is an ordinary run, of the first seed of its cell; where the seeds of a cell train
    together it is all of them, and their mean is compared. Trials that diverge, fail or are skipped
    count, and keep their reason. Trials with the same settings are one run.

    One process at a time may ask and tell, in one thread; `best` and `done` may be read by others.
    A trial that a killed process had asked for is given out again, with its settings. What trial n
    of a random search asks depends on the experiment's name, the cell's levels, the space and n.

    Args:
        experiment: with a search.
        budget: which cells, and how many trials each.
        out: folder of results.
        threads: of each job.
        accelerator: of each job.

    Raises:
        ConfigError: no search, no trials for this budget; a metric or a space that cannot be.
    """

    def __init__(
        self,
        experiment: Experiment,
        budget: str,
        out: Path,
        threads: int = 1,
        accelerator: str = "auto",
    ) -> None:
        search = experiment.search
        if search is None:
            raise ConfigError(f"{experiment.name} has no search. Give its file a table [search].")
        if search.trials.get(budget, 0) < 1:
            raise ConfigError(
                f"{experiment.name}: search.trials is {dict(search.trials)}, with none for "
                f"{budget}. Say how many, in search.trials.{budget}."
            )
        self._experiment, self._search, self._out = experiment, search, out
        self._threads, self._accelerator = threads, accelerator
        self._wanted = search.trials[budget]
        self._path = out / experiment.name / "search.journal"
        self._quests = [
            _quest(search, cell)
            for cell in cells(experiment, budget)
            if matches(search.where, cell.levels)
        ]
        self._studies: dict[str, CellStudy] = {}
        self._flight: dict[tuple[str, ...], list[tuple[_Quest, int]]] = {}
        self._lock: records.Lock | None = None

    def next(self) -> Job | None:
        """Return a job to do, or None: all have been asked for.

        Ask when there is someone to do it: what a search asks next depends on what it was told.

        Raises:
            LockedError: another process searches.
        """
        self._open()
        while (quest := self._turn()) is not None:
            if not quest.left:
                self._ask(quest)
                continue
            number = quest.left.popleft()
            job = self._job(quest, number)
            waiting = self._flight.setdefault(_keys(job), [])
            waiting.append((quest, number))
            if len(waiting) == 1:
                return job
        return None

    def tell(self, job: Job, outcome: Outcome) -> None:
        """Note how a job ended.

        Raises:
            ConfigError: `next` did not give it out, or it was told before.
        """
        waiting = self._flight.pop(_keys(job), None)
        if waiting is None:
            raise ConfigError(f"{job.title!r} is not asked for. Tell a job of `next`, once.")
        verdict = self._verdict(job, outcome)
        for quest, number in waiting:
            self._studies[quest.name].end(number, verdict)
            quest.ended += 1

    def done(self) -> bool:
        """Return whether all trials have ended."""
        if self._lock is None:
            return all(row.ended >= self._wanted for row in self.best())
        return all(quest.ended >= self._wanted for quest in self._quests)

    def best(self) -> list[Best]:
        """Return the best trial of each cell, in the order of the file, as the storage has them."""
        past = trials_of(self._path)
        return [best_of(self._search, q.cell, past.get(q.name, ())) for q in self._quests]

    def close(self) -> None:
        """Let another process search; trials that were not told are left to it."""
        if self._lock is not None:
            self._lock.release()
        self._lock = None
        self._studies, self._flight = {}, {}

    def _open(self) -> None:
        if self._lock is not None:
            return
        self._lock = records.Lock(self._path)
        weakref.finalize(self, self._lock.release)
        mend(self._path)
        storage = storage_of(self._path)
        for quest in self._quests:
            study = CellStudy(storage, quest.name, self._search)
            self._studies[quest.name], trials = study, study.trials()
            running = [t.number for t in trials if not t.state.is_finished()]
            quest.asked, quest.ended = len(trials), len(trials) - len(running)
            quest.left = deque(number for number in running if number < self._wanted)

    def _turn(self) -> _Quest | None:
        """Return whose turn it is: trials that were asked for before, then the least busy cell."""
        for quest in self._quests:
            if quest.left:
                return quest
        free = [quest for quest in self._quests if quest.asked < self._wanted]
        return min(free, key=lambda quest: (quest.asked - quest.ended, quest.asked), default=None)

    def _ask(self, quest: _Quest) -> None:
        """Draw settings and write them down."""
        study, number = self._studies[quest.name], quest.asked
        seed = seed_of(self._experiment.name, quest.cell.levels, number)
        settings = draw(self._search, quest.space, study.trials(), seed)
        facts, state = dict[str, str](), TrialState.RUNNING
        try:
            facts["key"] = laid_over(quest.cell.config, settings).key
            quest.left.append(number)
        except GradthroughError as error:  # settings that do not go together
            facts["reason"], state = str(error), TrialState.FAIL
            quest.ended += 1
        quest.asked += 1
        study.add(
            create_trial(state=state, params=settings, distributions=quest.space, user_attrs=facts)
        )

    def _job(self, quest: _Quest, number: int) -> Job:
        settings = self._studies[quest.name].trials()[number].params
        shown = ", ".join(f"{name}={_short(value)}" for name, value in settings.items())
        return Job(
            laid_over(quest.cell.config, settings),
            quest.seeds,
            self._experiment.name,
            self._out,
            self._threads,
            self._accelerator,
            f"{quest.cell.title}, trial {number}: {shown}",
        )

    def _verdict(self, job: Job, outcome: Outcome) -> Verdict:
        values: list[float] = []
        for config, path in zip(job.configs, job.paths, strict=True):
            status = outcome.status.get(config.key, "failed")
            if status != "done":
                # Settings that diverge are bad ones, which a search that learns is to know.
                state = TrialState.PRUNED if status == "diverged" else TrialState.FAIL
                return Verdict(state, reason=outcome.reasons.get(config.key, status))
            value = _last(path, self._search.metric)
            if value is None:
                reason = f"{self._search.metric} has no finite last value in {path.name}"
                return Verdict(TrialState.FAIL, reason=reason)
            values.append(value)
        return Verdict(TrialState.COMPLETE, math.fsum(values) / len(values))


def _quest(search: Search, cell: Cell) -> _Quest:
    check_metric(search.metric, cell.config.task)
    space = space_of(search, cell.config)
    return _Quest(name_of(search, cell), cell, space)


def _last(path: Path, metric: str) -> float | None:
    """Return the last value of a metric, as "split/metric", in the records of a run."""
    hits = [r for r in records.read(path) if f"{r.split}/{r.metric}" == metric]
    return hits[-1].value if hits else None


def _keys(job: Job) -> tuple[str, ...]:
    return tuple(config.key for config in job.configs)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
