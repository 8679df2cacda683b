"""Workers on this machine: one process each, so that one that is killed takes no other along."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import final

from ...._errors import ConfigError
from ..job import Job, Outcome
from .base import AbstractExecutor, LostWorkerError, Work


@final
class LocalExecutor(AbstractExecutor):
    """Workers on this machine.

    A worker starts when the first job needs it, and keeps what it loaded for the next one. Workers
    end with the process that started them, however that ends.

    Args:
        workers: how many; by default, as many as have a core for each of their threads.
        threads: of each of them.

    Raises:
        ConfigError: fewer than one.
    """

    def __init__(self, workers: int | None = None, *, threads: int = 1) -> None:
        for name, number in (("workers", workers), ("threads", threads)):
            if number is not None and number < 1:
                raise ConfigError(f"{name} must be at least 1, but is {number}.")
        self._workers = workers or max(1, cores() // threads)
        self._context = multiprocessing.get_context("spawn")  # torch does not survive a fork
        # Nobody writes: workers read from it until this end is closed, by `close` or by the system.
        self._ear, self._mouth = self._context.Pipe(duplex=False)
        self._idle: list[ProcessPoolExecutor] = []
        # One thread for each worker waits for it; together they are the queue.
        self._waiters = ThreadPoolExecutor(self._workers, "sweep")

    @property
    def workers(self) -> int:
        """How many jobs are done at a time."""
        return self._workers

    def submit(self, work: Work, job: Job) -> Future[Outcome]:
        """Queue a job."""
        return self._waiters.submit(self._do, work, job)

    def _do(self, work: Work, job: Job) -> Outcome:
        """Hand a job to a worker that has nothing to do, or to a new one, and wait."""
        pool, inner = self._hand(work, job)
        try:
            return inner.result()
        except BrokenProcessPool:  # it ends itself; the next job gets a new one
            pool = None
            raise LostWorkerError(f"the worker of {job.title or job.config.label} died") from None
        finally:
            if pool is not None:
                self._idle.append(pool)

    def _hand(self, work: Work, job: Job) -> tuple[ProcessPoolExecutor, Future[Outcome]]:
        while self._idle:
            pool = self._idle.pop()
            with contextlib.suppress(BrokenProcessPool):  # killed while it had nothing to do
                return pool, pool.submit(work, job)
        pool = ProcessPoolExecutor(1, self._context, _begin, (self._ear,))
        if hasattr(signal, "pthread_sigmask"):  # a worker that still imports inherits it
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        return pool, pool.submit(work, job)

    def close(self) -> None:
        """End the workers, at once."""
        self._mouth.close()
        self._waiters.shutdown(cancel_futures=True)
        for pool in self._idle:
            pool.shutdown()
        self._ear.close()


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _begin(ear: Connection) -> None:
    """Begin a worker: it ends with its parent, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(ear,), daemon=True).start()


def _end_with(ear: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        ear.recv_bytes()
    os._exit(1)
