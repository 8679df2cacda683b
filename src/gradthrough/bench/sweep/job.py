"""Jobs: what one worker does at a time, as plain data that any machine can be sent."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import RunConfig


@dataclass(frozen=True)
class Job:
    """One config with one seed, or with several that train as one vectorised run.

    Args:
        config: of the first seed.
        seeds: at least one.
        experiment: folder of the records below `out`.
        out: folder of results, on a disk that all workers share.
        threads: of the worker's torch.
        accelerator: as lightning-fabric has it.
        title: for people.
    """

    config: RunConfig
    seeds: tuple[int, ...]
    experiment: str
    out: Path
    threads: int = 1
    accelerator: str = "auto"
    title: str = ""

    @property
    def configs(self) -> tuple[RunConfig, ...]:
        """The config of each seed."""
        return tuple(replace(self.config, seed=seed) for seed in self.seeds)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Where the records of each seed go."""
        return tuple(self.out / self.experiment / f"{c.key}.jsonl" for c in self.configs)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON."""
        data: dict[str, Any] = {
            "seeds": list(self.seeds),
            "experiment": self.experiment,
            "out": str(self.out),
        }
        more: dict[str, Any] = {
            "threads": self.threads,
            "accelerator": self.accelerator,
            "title": self.title,
        }
        return {"config": self.config.as_dict()} | data | more

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Job:
        """Return the job that `as_dict` wrote."""
        seeds, out = tuple(data["seeds"]), Path(data["out"])
        rest = {k: data[k] for k in ("experiment", "threads", "accelerator", "title")}
        return cls(RunConfig(**data["config"]), seeds=seeds, out=out, **rest)


@dataclass(frozen=True)
class Outcome:
    """How a job ended: by key, the status of each of its runs, and the reason if there is one."""

    status: dict[str, str]
    reasons: dict[str, str]
