"""Optuna's studies in a journal, a file that grows by a line with each thing that happens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ..cells import Cell
from ..experiment import Search

_DIRECTIONS = {"lower": StudyDirection.MINIMIZE, "higher": StudyDirection.MAXIMIZE}


@dataclass(frozen=True)
class Verdict:
    """How a trial ended: its value, or why it has none."""

    state: TrialState
    value: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Best:
    """What a search found in one cell so far.

    Args:
        levels: of the cell, by axis.
        settings: of the best trial, by dotted name; empty where none has a value.
        value: of the metric there.
        key: of its run, the first one where seeds train together.
        trial: its number.
        ended: how many trials have ended.
        reasons: of those that ended without a value, by number of the trial.
    """

    levels: Mapping[str, str]
    settings: Mapping[str, Any]
    value: float | None
    key: str | None
    trial: int | None
    ended: int
    reasons: Mapping[int, str]


class _NoLock:
    """For a journal that its owner has locked: Optuna's locks outlive a process that is killed."""

    def acquire(self) -> bool:
        """Return at once."""
        return True

    def release(self) -> None:
        """Do nothing."""


def name_of(search: Search, cell: Cell) -> str:
    """Return the name of a cell's study: its levels, and a hash of what its values depend on."""
    levels = ", ".join(f"{axis}={level}" for axis, level in cell.levels.items())
    seeds = cell.seeds if cell.together else cell.seeds[:1]
    how = [search.space, search.metric, search.better, search.sampler]
    text = json.dumps([cell.config.as_dict(), seeds, how], sort_keys=True)
    return f"{levels} {hashlib.sha256(text.encode()).hexdigest()[:12]}".strip()


def mend(path: Path) -> None:
    """Cut off a last line of a journal that a kill left without its end."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


class CellStudy:
    """The study of one cell, open to be written.

    Args:
        storage: of all studies; one process at a time may write it.
        name: of the study, which is made if it is not there.
        search: whose study it is.
    """

    def __init__(self, storage: JournalStorage, name: str, search: Search) -> None:
        self._storage = storage
        if name not in {study.study_name for study in storage.get_all_studies()}:
            with quiet():
                storage.create_new_study([_DIRECTIONS[search.better]], name)
        self._id = storage.get_study_id_from_name(name)

    def trials(self) -> list[FrozenTrial]:
        """Return all trials, in their order; they are not to be changed."""
        return self._storage.get_all_trials(self._id, deepcopy=False)

    def add(self, trial: FrozenTrial) -> None:
        """Write a trial down, in one line: a kill leaves all of it or nothing."""
        self._storage.create_new_trial(self._id, trial)

    def end(self, number: int, verdict: Verdict) -> None:
        """Write down how a trial ended."""
        trial = self._storage.get_trial_id_from_study_id_trial_number(self._id, number)
        if verdict.reason:
            self._storage.set_trial_user_attr(trial, "reason", verdict.reason)
        values = None if verdict.value is None else [verdict.value]
        self._storage.set_trial_state_values(trial, verdict.state, values)


def storage_of(path: Path) -> JournalStorage:
    """Return the storage in a journal, which is made if it is not there."""
    lock: Any = _NoLock()
    return JournalStorage(JournalFileBackend(str(path), lock))


def trials_of(path: Path) -> dict[str, list[FrozenTrial]]:
    """Return the trials of each study in a journal by its name; nothing is written."""
    if not path.exists():
        return {}
    storage = storage_of(path)
    names = [study.study_name for study in storage.get_all_studies()]
    return {name: storage.get_all_trials(storage.get_study_id_from_name(name)) for name in names}


def best_of(search: Search, cell: Cell, trials: Sequence[FrozenTrial]) -> Best:
    """Return the best of a cell's trials; of equal ones, the first."""
    sign = 1 if search.better == "lower" else -1
    ended = [t for t in trials if t.state.is_finished()]
    found = [(sign * t.value, t.number) for t in ended if t.value is not None]
    reasons = {t.number: t.user_attrs["reason"] for t in ended if "reason" in t.user_attrs}
    if not found:
        return Best(cell.levels, {}, None, None, None, len(ended), reasons)
    best = trials[min(found)[1]]
    key = best.user_attrs["key"]
    return Best(cell.levels, best.params, best.value, key, best.number, len(ended), reasons)


def scratch(search: Search, sampler: BaseSampler) -> optuna.Study:
    """Return a study that is nowhere but in memory."""
    with quiet():
        return optuna.create_study(direction=_DIRECTIONS[search.better], sampler=sampler)


@contextmanager
def quiet() -> Generator[None]:
    """Keep Optuna from logging every study that is made."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
