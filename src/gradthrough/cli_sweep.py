"""The command line's sweep: all runs of one experiment, or of several."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from ._errors import ConfigError
from .bench.experiment import Budget, Experiment

if TYPE_CHECKING:
    from .bench.sweep.sweep import Summary


@dataclass
class Sweeping:
    """What to run, where, and how much of it.

    Args:
        budget: smoke: does it run at all; laptop: a smaller protocol; paper: the published one.
        out: folder of the results.
        executor: local: processes on this machine; ray and slurm: on a cluster.
        workers: jobs at a time; on this machine, one for each core by default.
        threads: of each worker.
        accelerator: cpu, cuda or auto.
        address: of a Ray cluster; the one that runs here, or a new one, by default.
        slurm: parameter of each job there, as NAME=VALUE: timeout_min=60, mem_gb=8, partition=gpu.
        retries: how often a job is done again whose worker was killed.
        rerun_failed: do runs again that failed before.
        only: cells with these levels, as AXIS=LEVEL or AXIS=LEVEL,LEVEL.
        seeds: of every cell, instead of those of the budget: 0..9 or 0,3,7.
        dry_run: print the plan, and run nothing.
    """

    budget: Budget = "laptop"
    out: Path = Path("runs")
    executor: Literal["local", "ray", "slurm"] = "local"
    workers: int | None = None
    threads: int = 1
    accelerator: str = "auto"
    address: str | None = None
    slurm: tyro.conf.UseAppendAction[list[str]] = field(default_factory=list[str])
    retries: int = 2
    rerun_failed: bool = False
    only: tyro.conf.UseAppendAction[list[str]] = field(default_factory=list[str])
    seeds: str | None = None
    dry_run: bool = False


def bench_sweep(experiments: list[Path], /, sweeping: Sweeping) -> None:
    """Do all runs of an experiment that are not done yet; the same command goes on after any end.

    Args:
        experiments: their files, such as experiments/mnist_vae.toml.
        sweeping: what of them.
    """
    from .bench.experiment_file import load
    from .bench.sweep.plan import narrowed

    if not experiments:
        raise ConfigError("no experiment came. Name a file: gradthrough bench sweep FILE.toml")
    if sweeping.retries < 0:
        raise ConfigError(f"--retries must be at least 0, but is {sweeping.retries}.")
    found = [narrowed(load(path), sweeping.only, sweeping.seeds) for path in experiments]
    if sweeping.dry_run:
        _show(found, sweeping)
        return
    try:
        summaries = _sweep(found, sweeping)
        stopped = summaries[-1].interrupted
    except KeyboardInterrupt:  # while it begins or ends
        summaries, stopped = [], True
    if stopped:
        print("Stopped. The same command goes on from the last checkpoints.", file=sys.stderr)
        sys.exit(130)
    if any(summary.count("failed") for summary in summaries):
        sys.exit(1)


def _show(experiments: list[Experiment], sweeping: Sweeping) -> None:
    """Print the plans."""
    from rich.console import Console

    from .bench.sweep.plan import plan
    from .bench.sweep.view import plan_table

    for experiment in experiments:
        rows = plan(experiment, sweeping.budget, sweeping.out)
        Console().print(plan_table(rows, f"{experiment.name}, budget {sweeping.budget}"))


def _sweep(experiments: list[Experiment], sweeping: Sweeping) -> list[Summary]:
    """Run the experiments one after another; print how each of them ended."""
    from rich.console import Console

    from .bench.sweep.executors import Resources, executor
    from .bench.sweep.plan import plan
    from .bench.sweep.sweep import sweep
    from .bench.sweep.view import View, summary_table

    for experiment in experiments[1:]:  # refused now, and not once the first has run for days
        plan(experiment, sweeping.budget, sweeping.out)
    console, summaries = Console(), list["Summary"]()
    resources = Resources(
        sweeping.workers,
        sweeping.threads,
        sweeping.address,
        sweeping.out,
        _parameters(sweeping.slurm),
    )
    with closing(executor(sweeping.executor, resources)) as workers:
        for experiment in experiments:
            summary = sweep(
                experiment,
                sweeping.budget,
                executor=workers,
                out=sweeping.out,
                retries=sweeping.retries,
                rerun_failed=sweeping.rerun_failed,
                threads=sweeping.threads,
                accelerator=sweeping.accelerator,
                watcher=View(console),
            )
            summaries.append(summary)
            if summary.interrupted:
                break
    for summary in summaries:
        console.print(summary_table(summary))
    return summaries


def _parameters(words: list[str]) -> dict[str, int | str]:
    """Return parameters of Slurm as they are meant: whole numbers are numbers."""
    found: dict[str, int | str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise ConfigError(f"--slurm is {word!r}, but must be NAME=VALUE, as in mem_gb=8.")
        found[name] = int(value) if value.isdecimal() else value
    return found
