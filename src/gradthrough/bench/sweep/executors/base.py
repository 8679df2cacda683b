"""Executors: who does the jobs of a sweep, behind one interface like that of futures."""

from __future__ import annotations

import abc
from collections.abc import Callable
from concurrent.futures import Future

from ..job import Job, Outcome

Work = Callable[[Job], Outcome]


class LostWorkerError(Exception):
    """The worker of a job is gone: killed, or its machine is. The job can be done again."""


class AbstractExecutor(abc.ABC):
    """Does jobs side by side, each in a process of its own.

    `work` writes the records; what comes back only says how it went. A future ends with the
    outcome, with `LostWorkerError` if the worker died, or with what `work` raised.
    """

    @property
    @abc.abstractmethod
    def workers(self) -> int:
        """How many jobs are done at a time, as far as is known now."""

    @abc.abstractmethod
    def submit(self, work: Work, job: Job) -> Future[Outcome]:
        """Queue a job; `work` is a function at the top of a module."""

    @abc.abstractmethod
    def close(self) -> None:
        """End the workers, at once; jobs in flight are left as their last checkpoint has them."""
