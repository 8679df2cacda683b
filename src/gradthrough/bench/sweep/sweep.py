"""Sweeps: every run of an experiment, done once, whatever is killed on the way."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..experiment import Experiment
from .executors.base import AbstractExecutor, LostWorkerError
from .job import Job, Outcome
from .plan import Grid, Row, jobs, plan
from .states import fail, held, remaining, reopen, standing
from .work import told, work

if TYPE_CHECKING:
    from .search import Studies

_POLL = 0.5  # seconds between two looks at what runs


class Source(Protocol):
    """Where jobs come from: a grid, or a search that asks for some once others are done."""

    def next(self) -> Job | None:
        """Return another job; None if there is none now."""
        ...

    def done(self) -> bool:
        """Return whether there are no more jobs to come."""
        ...

    def tell(self, job: Job, outcome: Outcome) -> None:
        """Hear how a job ended."""
        ...


class Watcher:
    """Hears what a sweep does; this one keeps silent."""

    def begin(self, rows: Sequence[Row], further: int) -> None:
        """Hear the plan, and how many runs a search will add."""

    def started(self, job: Job) -> None:
        """Hear that a job is with a worker."""

    def lost(self, job: Job) -> None:
        """Hear that the worker of a job is gone, and that the job is done again."""

    def ended(self, job: Job, outcome: Outcome) -> None:
        """Hear how a job ended."""

    def tick(self) -> None:
        """Hear that some time has passed."""

    def finish(self) -> None:
        """Hear that the sweep is over."""


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
        engine = _Engine(sources, executor, watcher, retries, rerun_failed)
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


@dataclass
class _Ticket:
    """A job on its way: as its source gave it, what is left of it, and how it has gone so far."""

    source: Source
    job: Job
    left: Job
    known: Outcome = field(default_factory=lambda: Outcome({}, {}))
    losses: int = 0


class _Engine:
    """Keeps all workers busy until no source has a job."""

    def __init__(
        self,
        sources: Sequence[Source],
        executor: AbstractExecutor,
        watcher: Watcher,
        retries: int,
        rerun_failed: bool,
    ) -> None:
        self._sources, self._executor, self._watcher = sources, executor, watcher
        self._retries, self._rerun = retries, rerun_failed
        self._running: dict[Future[Outcome], _Ticket] = {}
        self._waiting: deque[_Ticket] = deque()
        self.ended: list[tuple[Job, Outcome]] = []
        self.interrupted = False

    def go(self) -> None:
        """Do every job."""
        try:
            while True:
                self._start()
                if self._over():
                    return
                self._collect()
        except KeyboardInterrupt:
            self.interrupted = True

    def _over(self) -> bool:
        return not self._running and not self._waiting and all(s.done() for s in self._sources)

    def _start(self) -> None:
        # A cluster may have no worker yet, and start one for the first job.
        while len(self._running) < max(1, self._executor.workers):
            ticket = self._take()
            if ticket is None:
                return
            self._running[self._executor.submit(work, ticket.left)] = ticket
            self._watcher.started(ticket.left)

    def _take(self) -> _Ticket | None:
        """Return a job that can be done now: nobody else does it, or has done it."""
        postponed: list[_Ticket] = []
        try:
            while (ticket := self._candidate()) is not None:
                left, ticket.known = remaining(ticket.job)
                if left is None:
                    self._tell(ticket, ticket.known)
                elif held(left):
                    postponed.append(ticket)
                else:
                    ticket.left = left
                    return ticket
            return None
        finally:
            self._waiting.extend(postponed)

    def _candidate(self) -> _Ticket | None:
        if self._waiting:
            return self._waiting.popleft()
        for source in self._sources:
            job = source.next()
            if job is not None:
                if self._rerun:
                    reopen(job)
                return _Ticket(source, job, job)
        return None

    def _collect(self) -> None:
        """Wait a little for jobs to end."""
        if not self._running:  # other sweeps have what is left
            time.sleep(_POLL)
        ended, _ = wait(self._running, _POLL, FIRST_COMPLETED)
        for future in ended:
            self._end(self._running.pop(future), future)
        self._watcher.tick()

    def _end(self, ticket: _Ticket, future: Future[Outcome]) -> None:
        try:
            outcome = future.result()
        except LostWorkerError:
            ticket.losses += 1
            if ticket.losses <= self._retries:
                self._waiting.appendleft(ticket)
                self._watcher.lost(ticket.left)
                return
            outcome = self._fail(
                ticket.left,
                f"its worker died {ticket.losses} times: it was killed, or the memory is too small",
            )
        except Exception as error:
            outcome = self._fail(ticket.left, told(error))
        if any(config.key not in outcome.status for config in ticket.left.configs):
            self._waiting.append(ticket)  # another sweep has taken it up
            return
        known = ticket.known
        whole = Outcome(known.status | outcome.status, known.reasons | outcome.reasons)
        self._tell(ticket, whole)

    def _fail(self, job: Job, reason: str) -> Outcome:
        try:
            return fail(job, reason)
        except Exception as error:  # no room on the disk, say: then only the summary tells it
            reason = f"{reason}; and the records could not be written: {told(error)}"
            return Outcome(
                {c.key: "failed" for c in job.configs}, {c.key: reason for c in job.configs}
            )

    def _tell(self, ticket: _Ticket, outcome: Outcome) -> None:
        ticket.source.tell(ticket.job, outcome)
        self.ended.append((ticket.job, outcome))
        self._watcher.ended(ticket.job, outcome)
