"""Slurm: each job of a sweep is one of Slurm's, submitted with submitit."""

from __future__ import annotations

import functools
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, final

from ...._errors import ConfigError
from ..job import Job, Outcome
from .base import AbstractExecutor, LostWorkerError, Work

# Parameters that mean the same on every cluster of submitit's; others are Slurm's own.
_SHARED = ("cpus_per_task", "gpus_per_node", "mem_gb", "name", "stderr_to_stdout", "timeout_min")
_WORKERS = 32
_TIMEOUTS = 1000  # how often submitit queues a job again whose time was up
# Seconds between two looks at the jobs, until an outcome is seen through a shared disk, and until
# a process on this machine has ended.
_LOOK = {"slurm": 5.0, "local": 0.2}
_ARRIVAL = {"slurm": 30.0, "local": 0.0}
_CLOSING = 10.0


@dataclass
class _Pending:
    """A job with Slurm, and since when it is over without an outcome."""

    job: Any  # of submitit
    over: float | None = None


@final
class SlurmExecutor(AbstractExecutor):
    """Workers that Slurm starts, one for each job.

    Submit from a machine with sbatch; the folders of logs and results, the package and its
    environment must be on disks that all machines share. A job whose time is up, or that gives way
    to another one, is put back into the queue by itself and goes on from its last checkpoint, which
    is written after each epoch: an epoch has to fit into `timeout_min`. A job that is killed
    (memory, scancel, a broken machine) ends in `LostWorkerError`.

    Args:
        folder: for logs and what submitit keeps.
        workers: how many jobs are with Slurm at a time; None: 32.
        threads: cores of each job.
        local: do without Slurm, in processes on this machine.
        parameters: `timeout_min` (60 by default), `mem_gb`, `gpus_per_node`, `partition`,
            `account`, `qos` and whatever else submitit hands to sbatch.

    Raises:
        ConfigError: submitit finds no Slurm, or does not know a parameter.
    """

    def __init__(
        self,
        folder: Path,
        workers: int | None = None,
        threads: int = 1,
        *,
        local: bool = False,
        **parameters: Any,  # noqa: ANN401 - submitit's
    ) -> None:
        import submitit

        for name, number in (("workers", workers), ("threads", threads)):
            if number is not None and number < 1:
                raise ConfigError(f"{name} must be at least 1, but is {number}.")
        self._workers = workers or _WORKERS
        self._cluster = "local" if local else "slurm"
        limits = {"slurm_max_num_timeout": _TIMEOUTS, "local_max_num_timeout": _TIMEOUTS}
        try:
            self._executor: Any = submitit.AutoExecutor(folder.resolve(), self._cluster, **limits)
            self._executor.update_parameters(**_parameters(threads, parameters))
        except (AssertionError, NameError, RuntimeError, ValueError) as error:
            raise ConfigError(f"submitit refuses: {error}") from error
        self._pending: dict[Future[Outcome], _Pending] = {}
        self._accepted = False
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="slurm", daemon=True)
        self._watcher.start()

    @property
    def workers(self) -> int:
        """How many jobs are with Slurm at a time; it does them when it can."""
        return self._workers

    def submit(self, work: Work, job: Job) -> Future[Outcome]:
        """Queue a job with Slurm.

        Raises:
            ConfigError: Slurm refuses the first job; later on that is a lost worker.
        """
        future: Future[Outcome] = Future()
        future.set_running_or_notify_cancel()  # it is with Slurm now; `close` alone takes it back
        try:
            given = self._executor.submit(_Resumable(), work, replace(job, out=job.out.resolve()))
        except Exception as error:
            if not self._accepted:
                raise ConfigError(f"Slurm does not take the job: {error}") from error
            future.set_exception(_because(error, f"Slurm does not take the job: {error}"))
            return future
        self._accepted = True
        self._pending[future] = _Pending(given)
        return future

    def _watch(self) -> None:
        while not self._closing.wait(_LOOK[self._cluster]):
            for future, pending in list(self._pending.items()):
                try:
                    self._look(future, pending)
                except Exception as error:  # a future that never ends would hang the sweep
                    self._finish(future, error)

    def _look(self, future: Future[Outcome], pending: _Pending) -> None:
        job = pending.job
        if not job.done():
            return
        if job.paths.result_pickle.exists():
            self._finish(future, job.result())
            return
        now = time.monotonic()
        pending.over = pending.over or now
        if now - pending.over >= _ARRIVAL[self._cluster]:
            where = f"job {job.job_id} ended as {job.state}; its log is {job.paths.stderr}"
            self._finish(future, LostWorkerError(where))

    def _finish(self, future: Future[Outcome], found: Outcome | Exception) -> None:
        if self._pending.pop(future, None) is None:
            return
        if isinstance(found, Exception):
            future.set_exception(found)
        else:
            future.set_result(found)

    def close(self) -> None:
        """Cancel what is with Slurm."""
        self._closing.set()
        self._watcher.join()
        left = dict(self._pending)
        for pending in left.values():
            pending.job.cancel(check=False)
        for future in left:
            self._finish(future, LostWorkerError("the executor was closed"))
        if self._cluster == "local":
            _await([pending.job for pending in left.values()])


def _await(jobs: Sequence[Any]) -> None:
    """Wait until processes on this machine have ended, but not for ever."""
    end = time.monotonic() + _CLOSING
    while time.monotonic() < end and not all(job.done() for job in jobs):
        time.sleep(0.05)


class _Resumable:
    """What a machine is told to do; having `checkpoint`, it is queued again when its time is up."""

    def __call__(self, work: Work, job: Job) -> Outcome | Exception:
        """Do the job. Exceptions are handed back as they are: submitit would keep their text."""
        _guard_signals()
        try:
            return work(job)
        except Exception as error:
            return error

    def checkpoint(self, work: Work, job: Job) -> Any:  # noqa: ANN401 - submitit's
        """Return what is to be done next: the same, for the run has its own checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, work, job)


def _guard_signals() -> None:
    """End this process when Slurm's warning cannot be heeded: `work` would record the error."""
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        heed = signal.getsignal(number)
        if callable(heed):
            signal.signal(number, functools.partial(_heed, heed))


def _heed(
    heed: Callable[[int, FrameType | None], Any], number: int, frame: FrameType | None
) -> None:
    try:
        heed(number, frame)
    except Exception as error:
        raise SystemExit(f"this job cannot be queued again: {error}") from error


def _because(error: Exception, message: str) -> LostWorkerError:
    lost = LostWorkerError(message)
    lost.__cause__ = error
    return lost


def _parameters(threads: int, given: dict[str, Any]) -> dict[str, Any]:
    """Return parameters in the names of submitit."""
    shared = {name for name in given if name in _SHARED or name.startswith(("slurm_", "local_"))}
    own = {name if name in shared else f"slurm_{name}": value for name, value in given.items()}
    own = {"cpus_per_task": threads, "timeout_min": 60, "name": "gradthrough"} | own
    setup = [f"export OMP_NUM_THREADS={threads}", *own.pop("slurm_setup", ())]
    # Since Slurm 22.05 srun is not told by sbatch how many cores a task has.
    srun = [f"--cpus-per-task={threads}", *own.pop("slurm_srun_args", ())]
    return own | {"slurm_setup": setup, "slurm_srun_args": srun}
