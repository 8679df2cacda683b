"""Ray: jobs on all machines of a Ray cluster.

Every machine needs the same environment with this package in it, and the folder of results at the
same path on a disk that they share: the records are what a job leaves, and only how it went comes
back over Ray. Nothing is installed or copied.
"""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, final

from ...._errors import ConfigError
from ..job import Job, Outcome
from .base import AbstractExecutor, LostWorkerError, Work

# What says that a worker, its machine, or what it kept there is gone. All of it in ray.exceptions.
_LOST = (
    "LocalRayletDiedError",
    "NodeDiedError",
    "ObjectLostError",
    "OutOfMemoryError",
    "RayActorError",
    "TaskCancelledError",
    "WorkerCrashedError",
)


_KNOCK = 10.0  # seconds
_STORE = 100 << 20  # bytes of memory for what tasks return, which here is next to nothing


@final
class RayExecutor(AbstractExecutor):
    """Workers on a Ray cluster.

    A job is a task of Ray: it waits for a machine with `threads` free cores, and with a free GPU if
    its accelerator is one, or "auto" where the cluster has some. Ray does not do it a second time;
    whoever asked hears `LostWorkerError`, and may submit it again.

    A machine that the cluster has given up may still be at work. What keeps two processes from
    writing one run is a lock on its file, flock, so between machines it takes a shared disk that
    passes such locks on: NFS 4 does, Lustre with the option flock, NFS 3 only with lockd.

    The environment variables GRADTHROUGH_* go along to the workers. What they print stays in the
    logs of Ray, on their machines.

    Args:
        address: of the cluster; "auto": the one that this machine is part of; None: that of the
            environment variable RAY_ADDRESS, the one that this machine is part of, or else a new
            one of this machine alone, which ends with the executor.
        workers: how many jobs at a time; None: as many as the cluster has cores for.
        threads: cores of each job.

    Raises:
        ConfigError: no cluster is at that address, or no machine of it has so many cores.
    """

    def __init__(
        self, address: str | None = None, workers: int | None = None, threads: int = 1
    ) -> None:
        import ray

        for name, number in (("workers", workers), ("threads", threads)):
            if number is not None and number < 1:
                raise ConfigError(f"{name} must be at least 1, but is {number}.")
        self._ray: Any = ray
        self._workers, self._threads = workers, threads
        self._pending: dict[Future[Outcome], Any] = {}
        self._owns = not ray.is_initialized()
        if self._owns:
            self._connect(address or os.environ.get("RAY_ADDRESS"))
        try:
            self._check_cores()
        except ConfigError:
            self.close()
            raise
        where = _environment(threads)
        self._do: Any = self._ray.remote(num_cpus=threads, max_retries=0, runtime_env=where)(_do)

    def _connect(self, address: str | None) -> None:
        silent: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        # Or Ray puts its own function in place of builtins.print, for good.
        os.environ.setdefault("RAY_TQDM_PATCH_PRINT", "0")
        found = _running_here() if address in (None, "auto") else address
        if address is None and found is None:
            self._start(silent)
            return
        try:
            if found is None:
                raise ConnectionError("none runs on this machine")
            _knock(found)
            self._ray.init(address=found, **silent)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"no Ray cluster at {address!r} ({error}). Start one, with 'ray start --head' on "
                "one machine and 'ray start --address=...' on the others, and give the address "
                "that the first one prints; on a machine of the cluster, 'auto' will do."
            ) from error

    def _start(self, silent: dict[str, Any]) -> None:
        alone = {"include_dashboard": False, "object_store_memory": _STORE}
        try:
            self._ray.init(address="local", **alone, **silent)
        except Exception as error:  # Ray has no kind of its own for it
            raise ConfigError(
                f"Ray did not start on this machine: {error} It waits 15 seconds for its parts, "
                "which may be too short where much else runs. Try again, or take the executor "
                "local."
            ) from error

    def _check_cores(self) -> None:
        """Refuse what would wait for ever."""
        most = int(max(self._on_each("CPU"), default=0))
        if most < self._threads:
            raise ConfigError(
                f"threads is {self._threads}, but no machine of the cluster has more than {most} "
                "cores. Take fewer, or start one with more."
            )

    @property
    def workers(self) -> int:
        """How many jobs are done at a time, by the machines that are there now."""
        most = sum(int(cores) // self._threads for cores in self._on_each("CPU"))
        return self._workers or max(1, most)

    def _on_each(self, resource: str) -> list[float]:
        """Return how much there is on each machine."""
        nodes = (node["Resources"] for node in self._ray.nodes() if node["Alive"])
        return [node.get(resource, 0) for node in nodes]

    def submit(self, work: Work, job: Job) -> Future[Outcome]:
        """Queue a job with Ray."""
        wants = job.accelerator in ("cuda", "gpu")
        gpus = int(wants or (job.accelerator == "auto" and any(self._on_each("GPU"))))
        # A worker is in a working directory of its own.
        job = replace(job, out=job.out.resolve())
        reference = self._do.options(num_gpus=gpus, name=job.title or None).remote(work, job)
        future: Future[Outcome] = Future()
        future.set_running_or_notify_cancel()  # it is with Ray now, and `close` alone takes it back
        self._pending[future] = reference

        def settle(done: Future[Outcome]) -> None:
            if self._pending.pop(future, None) is not None:
                _settle(future, done)

        reference.future().add_done_callback(settle)
        return future

    def close(self) -> None:
        """Kill the workers; a cluster that ran before goes on."""
        for reference in list(self._pending.values()):
            self._ray.cancel(reference, force=True)
        if self._owns:
            self._ray.shutdown()
        while self._pending:
            future, _ = self._pending.popitem()
            future.set_exception(LostWorkerError("the executor was closed"))


def _running_here() -> str | None:
    """Return the address that `ray start` has left on this machine, if somebody is there."""
    path = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray" / "ray_current_cluster"
    try:
        address = path.read_text(encoding="utf-8").strip()
        _knock(address)
    except OSError:
        return None
    return address or None


def _knock(address: str) -> None:
    """Refuse an address where nobody is: Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_KNOCK).close()


def _do(work: Callable[[Job], Outcome], job: Job) -> Outcome:
    """Do a job, on the worker."""
    return work(job)


def _settle(future: Future[Outcome], done: Future[Outcome]) -> None:
    """Hand on how a task ended, in the words of an executor."""
    from ray import exceptions

    error = done.exception()
    if error is None:
        future.set_result(done.result())
    elif isinstance(error, exceptions.RayTaskError):
        raised: BaseException = cast(Any, error).cause
        raised.__cause__ = error  # it has the traceback of the worker
        future.set_exception(raised)
    elif isinstance(error, tuple(getattr(exceptions, name) for name in _LOST)):
        first = str(error).partition("\n")[0]
        lost = LostWorkerError(f"{type(error).__name__}: {first}")
        lost.__cause__ = error
        future.set_exception(lost)
    else:
        future.set_exception(error)


def _environment(threads: int) -> dict[str, dict[str, str]]:
    """Return what a worker finds in its environment besides that of its machine."""
    own = {name: value for name, value in os.environ.items() if name.startswith("GRADTHROUGH_")}
    if "GRADTHROUGH_DATA" in own:
        own["GRADTHROUGH_DATA"] = str(Path(own["GRADTHROUGH_DATA"]).resolve())
    return {"env_vars": own | {"OMP_NUM_THREADS": str(threads)}}
