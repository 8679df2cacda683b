"""How far the records of a run are, and the marks that a sweep leaves in them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from ..._errors import DomainError
from .. import records
from ..config import RunConfig
from ..environment import environment
from ..records import LockedError, Record
from .job import Job, Outcome

State = Literal["done", "diverged", "skipped", "failed", "unfinished", "not started"]


@dataclass(frozen=True)
class Standing:
    """What the records of one run say.

    Args:
        state: how it ended, or that it did not.
        reason: why it ended so.
        epochs: that are done.
        steps: of training.
        seconds: of training.
    """

    state: State = "not started"
    reason: str = ""
    epochs: int = 0
    steps: int = 0
    seconds: float = 0.0

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to do."""
        return self.state not in ("unfinished", "not started")


def standing(path: Path) -> Standing:
    """Return how far a run is.

    Raises:
        DomainError: the file holds something else than records.
    """
    try:
        return said(records.read(path))
    except DomainError as error:
        raise DomainError(f"{path}: {error}") from error


def said(lines: Sequence[Record]) -> Standing:
    """Return what some records say."""
    if not lines:
        return Standing()
    last = lines[-1]
    # Each epoch writes one number of the training loss.
    epochs = sum(r.kind == "metric" and r.split == "train" for r in lines)
    steps, seconds = max(r.step for r in lines), max(r.seconds for r in lines)
    return Standing(last.status or "unfinished", last.reason or "", epochs, steps, seconds)


def remaining(job: Job) -> tuple[Job | None, Outcome]:
    """Return what of a job is left to do, None for nothing, and how the rest ended."""
    found = [(c, standing(path)) for c, path in zip(job.configs, job.paths, strict=True)]
    ended = {c.key: s for c, s in found if s.ended}
    status: dict[str, str] = {key: s.state for key, s in ended.items()}
    known = Outcome(status, {key: s.reason for key, s in ended.items() if s.reason})
    left = [c for c, s in found if not s.ended]
    if not left:
        return None, known
    return replace(job, config=left[0], seeds=tuple(c.seed for c in left)), known


def held(job: Job) -> bool:
    """Return whether another process writes one of the runs of a job."""
    return any(_held(path) for path in job.paths)


def _held(path: Path) -> bool:
    if not path.with_suffix(".lock").exists():
        return False  # and to look does not make one
    try:
        records.Lock(path).release()
    except LockedError:
        return True
    return False


def fail(job: Job, reason: str) -> Outcome:
    """Write that the runs of a job failed, those that have not ended; keep what they measured.

    Returns:
        How its runs ended; without those that another process writes now, which are let be.
    """
    for config, path in zip(job.configs, job.paths, strict=True):
        with suppress(LockedError), _locked(path):
            lines = records.read(path)
            if not said(lines).ended:
                records.write(path, _failed(config, lines, reason))
    return remaining(job)[1]


def reopen(job: Job) -> None:
    """Take back that runs of a job failed, so that they go on from their last checkpoint."""
    for path in job.paths:
        if standing(path).state == "failed":
            with suppress(LockedError), _locked(path):
                lines = records.read(path)
                records.write(path, [r for r in lines if r.status != "failed"])


@contextmanager
def _locked(path: Path) -> Generator[None]:
    lock = records.Lock(path)
    try:
        yield
    finally:
        lock.release()


def _failed(config: RunConfig, lines: list[Record], reason: str) -> list[Record]:
    """Return the records of a run with its end, and with its start where it never got there."""
    if not lines:
        facts = environment(torch.device("cpu"))
        lines = [Record("start", config.key, config=config.as_dict(), environment=facts)]
    so_far = said(lines)
    end = Record(
        "end",
        config.key,
        so_far.steps,
        evaluations=max(r.evaluations for r in lines),
        seconds=so_far.seconds,
        status="failed",
        reason=reason,
        together=lines[-1].together,
    )
    return [*lines, end]
