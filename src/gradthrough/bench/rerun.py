"""Running a recorded run again from its own config, and holding the numbers side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._errors import ConfigError
from . import records
from .config import RunConfig
from .journal import Result
from .loop import path_of
from .records import Record
from .together import run_together
from .train import run

Place = tuple[str, str, int]  # split, metric, step


@dataclass(frozen=True)
class Again:
    """What a run says the second time.

    Args:
        result: of the second time.
        compared: how many numbers both have.
        differing: those that are not the same to the last digit: what was recorded, and now.
        missing: those that only one of them has.
        environment: what is not as it was, by name: recorded, and now.
    """

    result: Result
    compared: int
    differing: Mapping[Place, tuple[float | None, float | None]]
    missing: tuple[Place, ...]
    environment: Mapping[str, tuple[Any, Any]]

    @property
    def same(self) -> bool:
        """Whether every number is there again, to the last digit."""
        return not self.differing and not self.missing and self.compared > 0


def recorded(path: Path) -> Record:
    """Return the first line of a file of records, with the config and the environment.

    Raises:
        ConfigError: there is none.
    """
    lines = records.read(path)
    if not lines or lines[0].config is None:
        raise ConfigError(f"{path} holds no records. Name a file <key>.jsonl of a run.")
    return lines[0]


def rerun(path: Path, *, out: Path, accelerator: str = "auto", progress: bool = True) -> Again:
    """Do a recorded run once more, elsewhere, and compare.

    A seed that trained together with others is trained together with them again: the sums of one
    vectorised pass are not rounded as those of a single run are.

    Args:
        path: records of the run; those of the seeds it trained with lie beside it.
        out: folder of the new records, over those of an earlier time; not the one that `path` is
            in.
        accelerator: as lightning-fabric has it.
        progress: show a bar.

    Raises:
        ConfigError: no records there; `out` would overwrite them; seeds that trained with it are
            not there any more; another process does the same.
    """
    start = recorded(path)
    config = RunConfig(**dict(start.config or {}))
    if (out / path.parent.name).resolve() == path.parent.resolve():
        raise ConfigError(f"out is {out}, where the records are. Name another folder.")
    name = path.parent.name
    seeds = [config.seed] if start.together is None else _together(path, config, start.together)
    for seed in seeds:
        _forget(path_of(dataclasses.replace(config, seed=seed), out, name))
    if start.together is None:
        second = run(config, out=out, experiment=name, accelerator=accelerator, progress=progress)
    else:
        results = run_together(
            config, seeds, out=out, experiment=name, accelerator=accelerator, progress=progress
        )
        second = results[seeds.index(config.seed)]
    return compare(records.read(path), second)


def _forget(path: Path) -> None:
    """Remove what an earlier second time left: a run that is done is not done again."""
    lock = records.Lock(path)
    try:
        path.unlink(missing_ok=True)  # without its records a checkpoint does not count
    finally:
        lock.release()


def compare(before: list[Record], second: Result) -> Again:
    """Hold the records of a run beside those of its second time."""
    was, now = _numbers(before), _numbers(second.records)
    both = [place for place in was if place in now]
    return Again(
        result=second,
        compared=len(both),
        differing={p: (was[p], now[p]) for p in both if was[p] != now[p]},
        missing=tuple(p for p in (*was, *now) if p not in was or p not in now),
        environment=_changed(before[0].environment or {}, second.records[0].environment or {}),
    )


def _numbers(lines: list[Record]) -> dict[Place, float | None]:
    return {(r.split, r.metric, r.step): r.value for r in lines if r.kind == "metric"}


def _changed(was: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = dict.fromkeys((*was, *now))
    return {k: (was.get(k), now.get(k)) for k in names if was.get(k) != now.get(k)}


def _together(path: Path, config: RunConfig, count: int) -> list[int]:
    """Return the seeds that trained with a run, in their order."""
    found: list[int] = []
    for other in path.parent.glob("*.jsonl"):
        start = recorded(other)
        there = RunConfig(**dict(start.config or {}))
        if start.together == count and dataclasses.replace(there, seed=config.seed) == config:
            found.append(there.seed)
    if len(found) != count:
        raise ConfigError(
            f"{path} trained with {count - 1} other seeds, but {path.parent} has the records of "
            f"{len(found) - 1} of them."
        )
    return sorted(found)
