"""What a worker does: one job, whose failure is a row of the records and not the end of a sweep."""

from __future__ import annotations

import json
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from ..config import RunConfig
from ..records import LockedError
from ..task import AbstractTask
from .job import Job, Outcome
from .states import fail

PATIENCE = 1.0  # seconds between two looks at a run that another process writes
_KEPT = 4  # data sets in the memory of one worker
_tasks: dict[str, AbstractTask] = {}


def work(job: Job) -> Outcome:
    """Do a job in this process, which is meant to do nothing else.

    Whatever goes wrong ends in the records as "failed", with the reason. A run that another process
    writes is waited for.

    Args:
        job: one run, or several seeds as one vectorised run.

    Returns:
        How its runs ended.
    """
    torch.set_num_threads(job.threads)
    while True:
        try:
            return _train(job)
        except LockedError:
            time.sleep(PATIENCE)
        except Exception as error:
            _tasks.clear()  # what failed may have left them half made
            return fail(job, f"{told(error)} ({_place(error)})")


def told(error: BaseException) -> str:
    """Return an error in a line: its type and what it says."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _place(error: BaseException) -> str:
    """Return where an error was raised, in as much of the path as says it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{'/'.join(Path(last.filename).parts[-3:])}:{last.lineno}"


def _train(job: Job) -> Outcome:
    # A sweep names `work` without doing any: what trains takes seconds to import.
    from ..together import run_together
    from ..train import run

    given: dict[str, Any] = {
        "out": job.out,
        "experiment": job.experiment,
        "accelerator": job.accelerator,
        "progress": False,
        "task": _task(job.config),
    }
    if len(job.seeds) == 1:
        results = [run(job.config, **given)]
    else:
        results = run_together(job.config, job.seeds, **given)
    last = {r.config.key: r.records[-1].reason for r in results}
    reasons = {key: reason for key, reason in last.items() if reason}
    return Outcome({r.config.key: r.status for r in results}, reasons)


def _task(config: RunConfig) -> AbstractTask:
    """Return the task of a config, whose data this worker may have loaded before."""
    from ..loop import build_task

    key = json.dumps((config.task, config.as_dict()["task_options"]), sort_keys=True)
    if key not in _tasks:
        while len(_tasks) >= _KEPT:
            del _tasks[next(iter(_tasks))]
        _tasks[key] = build_task(config)
    return _tasks[key]
