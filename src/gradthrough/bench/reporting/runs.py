"""Runs as their records tell them, and all runs below one folder."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..._errors import DomainError, GradthroughError
from .. import records
from ..config import RunConfig
from ..records import Record
from .derived import SPLIT, derived

# Runs that differ in these alone went the same way, as far as they both went.
_FREE = ("epochs", "seed", "evaluate_every")


def family(config: RunConfig) -> str:
    """Return, as text, what runs share whose numbers may stand for one another.

    With a schedule, of the learning rate or of tau, what an epoch finds depends on how many there
    are to be, so there only the seed is free.
    """
    moved = config.schedule != "none" or config.tau_end is not None
    free = ("seed",) if moved else _FREE
    kept = {k: v for k, v in config.as_dict().items() if k not in free}
    return json.dumps(kept, sort_keys=True)


@dataclass(frozen=True, eq=False)
class Run:
    """One run.

    Args:
        key: of its config.
        config: as recorded.
        records: all of them.
        folder: name of the one that they lie in.
    """

    key: str
    config: RunConfig
    records: tuple[Record, ...]
    folder: str = ""

    @property
    def status(self) -> str:
        """How it ended: done, diverged, failed, skipped, or unfinished."""
        return self.records[-1].status or "unfinished"

    @property
    def reason(self) -> str:
        """Why it ended so, if it says."""
        return self.records[-1].reason or ""

    @property
    def environments(self) -> list[Mapping[str, Any]]:
        """Where it ran: once, and again whenever it was taken up."""
        return [r.environment for r in self.records if r.environment is not None]

    @cached_property
    def passes(self) -> list[Record]:
        """Its first record of training in each epoch."""
        first: dict[int, Record] = {}
        for r in self.records:
            if r.kind == "metric" and r.split == "train":
                first.setdefault(r.step, r)
        return [first[step] for step in sorted(first)]

    @property
    def reached(self) -> int:
        """How many epochs it has done."""
        return len(self.passes)

    @cached_property
    def series(self) -> dict[str, dict[int, float]]:
        """By ``split/metric``, its values by epoch; those that are not finite are left out."""
        epochs = {r.step: i + 1 for i, r in enumerate(self.passes)}
        out: dict[str, dict[int, float]] = {}
        for r in self.records:
            if r.kind == "metric" and r.value is not None:
                epoch = epochs.get(r.step, 0)  # before the first
                out.setdefault(f"{r.split}/{r.metric}", {})[epoch] = r.value
        return out

    def epochs_with(self, metric: str) -> list[int]:
        """Return the epochs at which there is a value."""
        if metric.startswith(SPLIT):
            return [e for e in range(1, self.reached + 1) if self.value(metric, e) is not None]
        return list(self.series.get(metric, ()))

    def value(self, metric: str, epoch: int) -> float | None:
        """Return ``split/metric`` after an epoch, None where there is none."""
        if metric.startswith(SPLIT):
            return derived(self, metric, epoch) if 1 <= epoch <= self.reached else None
        return self.series.get(metric, {}).get(epoch)

    def step_at(self, epoch: int) -> int:
        """Return the step at which an epoch ended."""
        return self.passes[epoch - 1].step if epoch else 0


class Store:
    """All runs of one experiment.

    Args:
        folder: theirs.
        runs: as read.
    """

    def __init__(self, folder: Path, runs: list[Run]) -> None:
        self.folder, self.runs = folder, runs
        self._by_key = {run.key: run for run in runs}
        self._families: dict[str, list[Run]] = {}
        for run in runs:
            self._families.setdefault(family(run.config), []).append(run)

    @classmethod
    def read(cls, folder: Path, wanted: Collection[str] = ()) -> Store:
        """Read the runs of a folder; one that does not exist holds none.

        Args:
            folder: theirs.
            wanted: keys. One that is not there is looked for in the folders beside it: two
                experiments may ask for the same run, and it counts for both once it is done.

        Raises:
            DomainError: a file that is not records, or whose config has another key than its name
                says.
        """
        own = sorted(folder.glob("*.jsonl"))
        missing = set(wanted) - {path.stem for path in own}
        beside = sorted(p for p in folder.parent.glob("*/*.jsonl") if p.stem in missing)
        found = [run for path in own if (run := _read(path)) is not None]
        lent = [run for path in beside if (run := _read(path)) and run.status == "done"]
        return cls(folder, found + list({run.key: run for run in lent}.values()))

    def run(self, key: str) -> Run | None:
        """Return the run of a key, None if there are no records of it."""
        return self._by_key.get(key)

    def family(self, config: RunConfig) -> list[Run]:
        """Return the runs whose numbers may stand for those of a config, the longest first."""
        return sorted(self._families.get(family(config), []), key=lambda r: -r.config.epochs)


def _read(path: Path) -> Run | None:
    try:
        lines = records.read(path)
        if not lines:  # another process is about to write the first one
            return None
        config = RunConfig(**(lines[0].config or {}))
    except (GradthroughError, TypeError) as error:
        raise DomainError(f"{path}: {error}") from error
    if config.key != path.stem:
        raise DomainError(
            f"{path} holds a config whose key is {config.key}. Records lie in the file that their "
            "config names: was it renamed or edited?"
        )
    return Run(path.stem, config, tuple(lines), path.parent.name)
