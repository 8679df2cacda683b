"""The engine of a sweep: keeps all workers busy until no source has a job."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Protocol

from .executors.base import AbstractExecutor, LostWorkerError
from .job import Job, Outcome
from .plan import Row
from .states import fail, held, remaining, reopen
from .work import told, work

POLL = 0.5  # seconds between two looks at what runs


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


@dataclass
class _Ticket:
    """A job on its way: as its source gave it, what is left of it, and how it has gone so far."""

    source: Source
    job: Job
    left: Job
    known: Outcome = field(default_factory=lambda: Outcome({}, {}))
    losses: int = 0


class Engine:
    """Keeps all workers busy until no source has a job.

    Args:
        sources: of jobs, in the order in which they are asked.
        executor: who does the jobs.
        watcher: told of everything.
        retries: how often a job is done again whose worker died.
        rerun_failed: do what failed before.

    Attributes:
        ended: jobs, and how they ended.
        interrupted: whether somebody stopped it.
    """

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
            time.sleep(POLL)
        ended, _ = wait(self._running, POLL, FIRST_COMPLETED)
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
