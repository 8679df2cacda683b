"""How fast a sweep is: what running jobs have written so far, and the time that is left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .. import records
from ..config import RunConfig
from .plan import Run
from .states import Standing, said


class Tail:
    """The records of a run while another process writes them, on this machine or elsewhere.

    Args:
        path: of the records; the file need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = 0
        self._size = 0
        self.standing = Standing()

    def look(self) -> Standing:
        """Return how far the run is, and read nothing twice that is as it was."""
        try:
            facts = self._path.stat()
        except FileNotFoundError:
            return self.standing
        # A run that is taken up writes its file anew.
        if (facts.st_ino, facts.st_size) != (self._file, self._size):
            self._file, self._size = facts.st_ino, facts.st_size
            self.standing = said(records.read(self._path))
        return self.standing


class Pace:
    """The time that is left, from the training seconds of all runs and the time that has passed.

    Training seconds say how much work a run is compared with others; the time that has passed says
    how fast work goes, with all workers, data and evaluation.

    Args:
        runs: of the plan.
        further: runs that a search will ask for; each counts as the mean of the others.
    """

    def __init__(self, runs: Sequence[Run], further: int = 0) -> None:
        self._further = further
        self._configs: dict[Path, RunConfig] = {}
        self._settings: dict[Path, str] = {}
        self._first: dict[Path, int] = {}
        self._since: float | None = None
        self._now: dict[Path, Standing] = {}
        for run in runs:
            self.note(run.path, run.config, run.standing)

    def note(self, path: Path, config: RunConfig, now: Standing) -> None:
        """Take in how far a run is."""
        if path not in self._configs:
            self._configs[path] = config
            self._settings[path] = replace(config, seed=0).key
            self._first[path] = now.epochs
        self._now[path] = now

    def asked(self) -> None:
        """Take in that one of the further runs has been asked for."""
        self._further = max(0, self._further - 1)

    def left(self, passed: float) -> float | None:
        """Return the seconds that are left, None while nothing is known.

        Args:
            passed: seconds since the sweep began.
        """
        rates = self._rates()
        if rates is None:
            return None
        done = ahead = 0.0
        for path, now in self._now.items():
            config = self._configs[path]
            rate = rates.get(self._settings[path]) or rates.get(config.task) or rates[""]
            done += rate * max(0, now.epochs - self._first[path])
            if not now.ended:
                ahead += rate * (config.epochs - now.epochs)
        if done and self._since is None:
            # Until now workers started: count from here on.
            self._since = passed
            self._first = {path: now.epochs for path, now in self._now.items()}
            return None
        mean = sum(c.epochs for c in self._configs.values()) / len(self._configs)
        ahead += self._further * mean * rates[""]
        return (passed - (self._since or 0.0)) * ahead / done if done else None

    def _rates(self) -> dict[str, float] | None:
        """Return the training seconds of an epoch: by setting, by task, and under "" of all."""
        epochs: dict[str, int] = defaultdict(int)
        seconds: dict[str, float] = defaultdict(float)
        for path, now in self._now.items():
            for key in (self._settings[path], self._configs[path].task, ""):
                epochs[key] += now.epochs
                seconds[key] += now.seconds
        rates = {key: seconds[key] / n for key, n in epochs.items() if n}
        return rates if rates.get("") else None
