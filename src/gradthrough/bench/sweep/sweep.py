"""Sweeps: every run of an experiment, done once, whatever is killed on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..experiment import Experiment
from .engine import Engine, Source, Watcher
from .executors.base import AbstractExecutor
from .job import Job, Outcome
from .plan import Grid, Row, jobs, plan
from .states import standing

if TYPE_CHECKING:
    from .search import Studies


@dataclass(frozen=True)
class End:
    """How one run ended, or how far it is.

    Args:
        title: of its cell.
        seed: of it.
        path: of its records.
        state: done, diverged, skipped, failed, unfinished or not started.
        reason: of it, if there is one.
    """

    title: str
    seed: int
    path: Path
    state: str
    reason: str = ""


@dataclass(frozen=True)
class Summary:
    """What became of a sweep.

    Args:
        experiment: its name.
        budget: of it.
        runs: in the order of the plan, those of a search last.
        interrupted: somebody stopped it.
    """

    experiment: str
    budget: str
    runs: tuple[End, ...]
    interrupted: bool = False

    def count(self, *states: str) -> int:
        """Return how many runs are in one of some states."""
        counts = Counter(run.state for run in self.runs)
        return sum(counts[state] for state in states)


def sweep(
    experiment: Experiment,
    budget: str,
    *,
    executor: AbstractExecutor,
    out: Path,
    retries: int = 2,
    rerun_failed: bool = False,
    threads: int = 1,
    accelerator: str = "auto",
    watcher: Watcher | None = None,
) -> Summary:
    """Do all runs of an experiment that are not done yet.

    A run that was killed goes on from its last checkpoint. Several sweeps may work on the same
    folder at once: each run is done by one of them. Ctrl-C ends the sweep; the executor is left to
    the caller, who closes it.

    Args:
        experiment: what to run.
        budget: smoke, laptop or paper.
        executor: who does the jobs.
        out: folder of results; records go to ``<out>/<experiment>/<key>.jsonl``.
        retries: how often a job is done again whose worker died; then its runs have failed.
        rerun_failed: do runs again that failed before.
        threads: of each worker's torch.
        accelerator: as lightning-fabric has it.
        watcher: told of everything, to show it.

    Returns:
        How every run of the plan ended.

    Raises:
        ConfigError: the experiment has a cell that is refused, or none.
    """
    rows = plan(experiment, budget, out)
    left = jobs(rows, threads=threads, accelerator=accelerator, rerun_failed=rerun_failed)
    sources: list[Source] = [Grid(left)]
    watcher, further = watcher or Watcher(), 0
    with ExitStack() as stack:
        if any(row.searched for row in rows):
            from .search import Studies

            studies = Studies(experiment, budget, out, threads, accelerator)
            stack.callback(studies.close)
            further = _further(studies, experiment, budget, rows)
            sources.insert(0, studies)  # if another process searches, it is heard at once
        engine = Engine(sources, executor, watcher, retries, rerun_failed)
        watcher.begin(rows, further)
        stack.callback(watcher.finish)
        engine.go()
    return Summary(experiment.name, budget, _ends(rows, engine.ended), engine.interrupted)


def _further(studies: Studies, experiment: Experiment, budget: str, rows: Sequence[Row]) -> int:
    """Return how many runs a search still has to ask for, at most."""
    assert experiment.search is not None
    trials = experiment.search.trials[budget]
    searched = (row.cell for row in rows if row.searched)
    return sum(
        max(0, trials - best.ended) * (len(cell.seeds) if cell.together else 1)
        for cell, best in zip(searched, studies.best(), strict=True)
    )


def _ends(rows: Sequence[Row], ended: Sequence[tuple[Job, Outcome]]) -> tuple[End, ...]:
    """Return how every run of a plan ended, and those that a search added."""
    found: dict[Path, End] = {}
    for row in rows:
        for run in row.runs:
            # One that nobody was told of may be on its way.
            now = run.standing if run.standing.ended else standing(run.path)
            end = End(run.title, run.config.seed, run.path, now.state, now.reason)
            found.setdefault(run.path, end)
    for job, outcome in ended:
        for config, path in zip(job.configs, job.paths, strict=True):
            state = outcome.status.get(config.key)
            if state is not None:
                title = found[path].title if path in found else job.title
                reason = outcome.reasons.get(config.key, "")
                found[path] = End(title, config.seed, path, state, reason)
    return tuple(found.values())
