"""Journals: the records and the checkpoint of one run, and the counters that both hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import checkpoint, records
from .config import RunConfig
from .environment import environment
from .records import Record
from .task import AbstractTask

_COUNTERS = ("epoch", "step", "evaluations", "seconds")


@dataclass
class Result:
    """A finished run: its records, and the model where it trained to the end."""

    config: RunConfig
    path: Path
    records: list[Record]
    task: AbstractTask
    model: nn.Module | None

    @property
    def status(self) -> str:
        """How it ended."""
        return self.records[-1].status or "failed"

    def last(self, split: str, metric: str) -> float | None:
        """Return the latest value of a metric, None where there is none."""
        hits = [r for r in self.records if (r.split, r.metric) == (split, metric)]
        return hits[-1].value if hits else None


class Journal:
    """What one run writes, so that it can be taken up wherever it was killed.

    Args:
        config: of the run.
        path: of its records; the checkpoint lies beside them.
        device: where it trains.
        devices: how many.
        writes: whether this process is the one that writes.

    Attributes:
        epoch: passes done.
        step: steps done.
        evaluations: of f, up to the last whole epoch.
        seconds: of training, up to the last whole epoch.
        together: how many seeds train at once; None: the run is on its own.
    """

    def __init__(
        self,
        config: RunConfig,
        path: Path,
        device: torch.device,
        *,
        devices: int = 1,
        writes: bool = True,
    ) -> None:
        self.config, self.path, self.device = config, path, device
        self._devices, self._writes = devices, writes
        self.epoch = self.step = self.evaluations = 0
        self.seconds = 0.0
        self.together: int | None = None
        self._old: list[Record] = []

    @property
    def _checkpoint(self) -> Path:
        return self.path.with_suffix(".ckpt")

    def load(self) -> dict[str, Any] | None:
        """Set the counters to those of the checkpoint; return what else it holds, None without one.

        Raises:
            DomainError: the file is not a checkpoint.
        """
        self._old = records.read(self.path)
        # A checkpoint without its records would end in a run with a hole: start anew.
        state = checkpoint.load(self._checkpoint, self.device) if self._old else None
        if state is not None:
            for name in _COUNTERS:
                setattr(self, name, state.pop(name))
        return state

    @property
    def status(self) -> records.Status | None:
        """How the run ended, by what `load` found; None if it did not."""
        return self._old[-1].status if self._old and self._old[-1].kind == "end" else None

    def start(self, *, anew: bool = True) -> None:
        """Say what runs, and where: once, and again whenever the run is taken up."""
        if not self._writes:
            return
        facts = environment(self.device) | {"devices": self._devices}
        line = self._record("start", config=self.config.as_dict(), environment=facts)
        # Lines after the checkpoint belong to work that is about to be done again.
        kept = [] if anew else [r for r in self._old if r.step <= self.step]
        records.write(self.path, [*kept, line])

    def _record(self, kind: records.Kind, **more: Any) -> Record:  # noqa: ANN401 - Record's fields
        return Record(kind, self.config.key, self.step, together=self.together, **more)

    def _lines(self, found: dict[tuple[str, str], float]) -> list[Record]:
        cost = {"evaluations": self.evaluations, "seconds": round(self.seconds, 3)}
        return [
            self._record("metric", split=split, metric=metric, value=value, **cost)
            for (split, metric), value in found.items()
        ]

    def write(self, found: dict[tuple[str, str], float]) -> None:
        """Append numbers by (split, metric)."""
        if self._writes:
            records.append(self.path, self._lines(found))

    def end(
        self,
        status: records.Status,
        reason: str | None,
        found: dict[tuple[str, str], float] | None = None,
    ) -> None:
        """Append the last numbers, and how the run ended."""
        if not self._writes:
            return
        cost = {"evaluations": self.evaluations, "seconds": round(self.seconds, 3)}
        last = self._record("end", status=status, reason=reason, **cost)
        # In one go: what is measured at the end is there once or not at all.
        records.append(self.path, [*self._lines(found or {}), last])

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint: the counters, and the state of whatever trains."""
        if self._writes:
            counters = {name: getattr(self, name) for name in _COUNTERS}
            checkpoint.save(self._checkpoint, counters | state)

    def result(self, task: AbstractTask, model: nn.Module | None) -> Result:
        """Return the finished run."""
        return Result(self.config, self.path, records.read(self.path), task, model)
