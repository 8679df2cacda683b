"""Every executor, in one table; the packages that one needs are imported when it is asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...._errors import ConfigError
from .base import AbstractExecutor


@dataclass(frozen=True)
class Resources:
    """What a sweep may use.

    Args:
        workers: how many jobs at a time; None: the executor decides.
        threads: cores of each worker.
        address: of a Ray cluster; None: the one that runs here, or a new one.
        out: folder of the results; the logs of Slurm go below it.
        slurm: parameters of each job there, by name: time, memory, partition.
    """

    workers: int | None = None
    threads: int = 1
    address: str | None = None
    out: Path = Path("runs")
    slurm: Mapping[str, int | str] = field(default_factory=dict[str, "int | str"])


def _local(resources: Resources) -> AbstractExecutor:
    from .local import LocalExecutor

    return LocalExecutor(resources.workers, threads=resources.threads)


def _ray(resources: Resources) -> AbstractExecutor:
    from .ray import RayExecutor

    return RayExecutor(resources.address, resources.workers, resources.threads)


def _slurm(resources: Resources) -> AbstractExecutor:
    from .slurm import SlurmExecutor

    parameters: dict[str, Any] = dict(resources.slurm)
    where = resources.out / "slurm"
    return SlurmExecutor(where, resources.workers, resources.threads, **parameters)


EXECUTORS: dict[str, Callable[[Resources], AbstractExecutor]] = {
    "local": _local,
    "ray": _ray,
    "slurm": _slurm,
}
_PACKAGES = {"ray": "ray", "slurm": "submitit"}


def executor(key: str, resources: Resources) -> AbstractExecutor:
    """Return an executor.

    Args:
        key: of ``EXECUTORS``.
        resources: what it may use.

    Raises:
        ConfigError: an unknown key; a package that is not installed; what the executor refuses.
    """
    if key not in EXECUTORS:
        raise ConfigError(f"unknown executor {key!r}. Known: {', '.join(EXECUTORS)}.")
    package = _PACKAGES.get(key)
    if package is not None and importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"the executor {key} needs {package}: pip install 'gradthrough[cluster]'."
        )
    return EXECUTORS[key](resources)
